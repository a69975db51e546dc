"""Smoothing of n-grams: what is taken off their counts, and the probabilities of what is left and what was never seen.

Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (TR-10-98, 1998), sections 2.7 and
3. With a(hw) the adjusted count of the token w after the context h, D what is taken off it, and h' the context without
its first token:

    p(w | h) = (a(hw) - D(a(hw))) / sum_v a(hv) + g(h) p(w | h')

where g(h) is whatever is missing to a sum of 1, and below single tokens the V symbols that can come (all tokens but the
blank, and the end) share alike. An n-gram that is left out gets g(h) p(w | h'), and its count is part of g(h): so the
probabilities after any context sum to 1, however many n-grams are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.text.ngram_counts import Level, adjusted

SMOOTHINGS = ("kneser_ney", "absolute")
_PLAIN = 0.5  # taken off each count where too few n-grams are rare to estimate it


class Smoothed(NamedTuple):
    """The probabilities of one order.

    Attributes:
      probabilities: float64 [K], p(w | h) of each n-gram, whether it is kept or not.
      rest: float64 [number of contexts], g(h) of each n-gram of the order below; 1 where none with it is kept.
      discounts: what is taken off counts of 1, of 2, and of 3 and more.
    """

    probabilities: np.ndarray
    rest: np.ndarray
    discounts: tuple[float, float, float]


def discounts_of(counts: np.ndarray, *, several: bool) -> tuple[float, float, float]:
    """What is taken off counts of 1, of 2, and of 3 and more.

    Args:
      counts: int [K], adjusted counts; zeros do not matter.
      several: whether three discounts are wanted (modified Kneser-Ney). Where the numbers of n-grams that occur once,
        twice, three and four times do not allow them, one is used for all; where they allow none, it is 0.5.
    """
    n1, n2, n3, n4 = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if not n1 or not n2:
        return (_PLAIN,) * 3
    one = n1 / (n1 + 2 * n2)
    if several and n3 and n4:
        found = (1 - 2 * one * n2 / n1, 2 - 3 * one * n3 / n2, 3 - 4 * one * n4 / n3)
        if min(found) > 0:
            return found
    return (one,) * 3


def smoothed(
    levels: Sequence[Level], *, vocabulary_size: int, smoothing: str, least_counts: Sequence[int]
) -> list[Smoothed]:
    """The probabilities of all orders.

    Args:
      levels: the counts.
      vocabulary_size: V.
      smoothing: one of `SMOOTHINGS`: modified Kneser-Ney, or absolute discounting, both interpolated.
      least_counts: for each order, how often an n-gram must occur to be kept; it never falls with the order.
    """
    kneser_ney = smoothing == "kneser_ney"
    below = np.full(1, 1 / vocabulary_size)
    found: list[Smoothed] = []
    for level, counts, least in zip(levels, adjusted(levels, continuation=kneser_ney), least_counts, strict=True):
        discounts = discounts_of(counts, several=kneser_ney)
        off = np.array([0.0, *discounts])[np.minimum(counts, 3)]
        kept = level.counts >= least
        totals = np.bincount(level.context, weights=counts, minlength=len(below))
        # What is taken off those that are kept, and all of the others.
        given = np.bincount(level.context, weights=np.where(kept, off, counts), minlength=len(below))
        safe = np.where(totals > 0, totals, 1.0)
        rest = np.where(totals > 0, given / safe, 1.0)
        own = np.where(kept, (counts - off) / safe[level.context], 0.0)
        below = own + rest[level.context] * below[level.suffix]
        found.append(Smoothed(below, rest, discounts))
    return found
