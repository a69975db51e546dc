"""Counts of n-grams of tokens, as arrays: all windows of all texts at a time, no dictionary.

Between the tokens 0..V-1 of a text stand two marks: its end, V, which a model predicts as it does a token, and its
start, V + 1, which is a context alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """The n-grams of one order, K of them, sorted by their first n-1 tokens and then by the last.

    Attributes:
      context: int64 [K], which n-gram of the order below the first n-1 tokens are; 0 for single tokens.
      token: int64 [K], the last token, or a mark.
      suffix: int64 [K], which n-gram of the order below the last n-1 tokens are; 0 for single tokens.
      counts: int64 [K], how often they occur.
      opens: bool [K], whether the first token is the mark of a start: nothing is ever before them.
    """

    context: np.ndarray
    token: np.ndarray
    suffix: np.ndarray
    counts: np.ndarray
    opens: np.ndarray


def end_mark(vocabulary_size: int) -> int:
    """What stands for the end of a text."""
    return vocabulary_size


def start_mark(vocabulary_size: int) -> int:
    """What stands for its start."""
    return vocabulary_size + 1


def count(flat: np.ndarray, lengths: np.ndarray, *, vocabulary_size: int, order: int) -> list[Level]:
    """The n-grams of all orders up to `order`.

    Args:
      flat: int [sum of lengths], the tokens of all texts, one text after the other.
      lengths: int [N], tokens of each text.
      vocabulary_size: V.
      order: the largest n.

    Returns:
      A level for each n from 1. That of single tokens has an entry for all V tokens and both marks, in this order.
    """
    symbols = vocabulary_size + 2
    sizes = np.asarray(lengths, np.int64) + 2
    ends = np.cumsum(sizes)
    text, place = _with_marks(flat, sizes, ends, vocabulary_size=vocabulary_size)
    single = np.arange(symbols)
    none = np.zeros(symbols, np.int64)
    levels = [Level(none, single, none, np.bincount(text, minlength=symbols), single == start_mark(vocabulary_size))]
    found, at = text, np.arange(len(text))  # which n-gram ends at each position, where one does
    for n in range(2, order + 1):
        at = at[place[at] >= n - 1]
        keys = found[at - 1].astype(np.int64) * symbols + text[at]
        unique, inverse, counts = _distinct(keys, len(levels[-1].counts) * symbols)
        suffix, opens = np.zeros(len(unique), np.int64), np.zeros(len(unique), bool)
        suffix[inverse] = found[at]
        opens[inverse] = place[at] == n - 1
        levels.append(Level(unique // symbols, unique % symbols, suffix, counts, opens))
        found = np.zeros(len(text), np.int32)
        found[at] = inverse
    return levels


def _distinct(keys: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct values of int64 [M], all below `most`: in their order, which of them each is, and how often."""
    if most > 2 * len(keys):
        unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return unique, inverse.reshape(-1), counts
    # A count for each value that there can be takes no sorting.
    times = np.bincount(keys, minlength=most)
    (unique,) = np.nonzero(times)
    return unique, (np.cumsum(times > 0) - 1)[keys], times[unique]


def _with_marks(
    flat: np.ndarray, sizes: np.ndarray, ends: np.ndarray, *, vocabulary_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """All texts with their marks, int32, and how far each position is from the start of its text, int32."""
    total = int(sizes.sum())
    text = np.full(total, end_mark(vocabulary_size), np.int32)
    starts = ends - sizes
    text[starts] = start_mark(vocabulary_size)
    inside = np.ones(total, bool)
    inside[starts] = inside[ends - 1] = False
    text[inside] = flat
    return text, (np.arange(total) - np.repeat(starts, sizes)).astype(np.int32)


def most_frequent_extension(level: Level, contexts: int) -> np.ndarray:
    """int64 [contexts]: of each n-gram of the order below, the largest count of those of `level` that it begins."""
    most = np.zeros(contexts, np.int64)
    np.maximum.at(most, level.context, level.counts)
    return most


def adjusted(levels: Sequence[Level], *, continuation: bool) -> list[np.ndarray]:
    """The counts that probabilities are made from, int64 [K] for each order.

    Args:
      levels: as `count` gives them.
      continuation: below the largest order, count what different tokens come before an n-gram (Kneser-Ney), and its
        occurrences only where nothing can come before it.
    """
    found = [level.counts.copy() for level in levels]
    if continuation:
        for level, above, counts in zip(levels[:-1], levels[1:], found[:-1], strict=True):
            before = np.bincount(above.suffix, minlength=len(counts))
            counts[~level.opens] = before[~level.opens]
    found[0][levels[0].opens] = 0  # a start is never predicted
    return found
