"""N-grams with their scores as an automaton, and the n-grams of an automaton."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.text.automaton import ROOT, Automaton
from hra_jax.text.ngram_counts import end_mark, start_mark


class Grams(NamedTuple):
    """The n-grams of all orders, G of them: the empty one, then order by order, by their context and last token.

    Attributes:
      orders: how many there are of each order, that of the empty one included.
      context: int64 [G], which n-gram the first n-1 tokens are.
      token: int64 [G], the last token, or a mark of `ngram_counts`; 0 of the empty one.
      suffix: int64 [G], which n-gram is the longest one at the end that does not begin with the first token.
      scores: float64 [G], ln p of the last token after the context.
      rest: float64 [G], what backing off from an n-gram adds.
      kept: bool [G], whether an n-gram counts; those that do not are there as parts of others alone.
      states: bool [G], whether it must be remembered; the empty one always is.
    """

    orders: Sequence[int]
    context: np.ndarray
    token: np.ndarray
    suffix: np.ndarray
    scores: np.ndarray
    rest: np.ndarray
    kept: np.ndarray
    states: np.ndarray


def assemble(grams: Grams, *, missing: np.ndarray) -> Automaton:
    """The automaton of n-grams; `missing`: float32 [V], see `Automaton`."""
    end, start = end_mark(len(missing)), start_mark(len(missing))
    bounds = np.cumsum([0, *grams.orders])
    numbers = np.where(grams.states, np.cumsum(grams.states) - 1, ROOT)
    reached = numbers.copy()  # of each n-gram the longest state at its end
    for low, high in zip(bounds[1:-1], bounds[2:], strict=True):
        inside = slice(low, high)
        reached[inside] = np.where(grams.states[inside], numbers[inside], reached[grams.suffix[inside]])

    places = np.flatnonzero(grams.states)  # of each state, its n-gram
    backoff = reached[grams.suffix[places]]
    backoff_scores = grams.rest[places].astype(np.float32)
    backoff[ROOT], backoff_scores[ROOT] = ROOT, 0

    ends = np.flatnonzero(grams.kept & (grams.token == end))
    final, given = np.zeros(len(places), np.float32), np.zeros(len(places), bool)
    final[numbers[grams.context[ends]]] = grams.scores[ends]
    given[numbers[grams.context[ends]]] = True
    for low, high in zip(bounds[1:-1], bounds[2:], strict=True):
        # A state backs off to one of a lower order.
        some = np.arange(*np.searchsorted(places, (low, high)))
        some = some[~given[some]]
        final[some] = backoff_scores[some] + final[backoff[some]]

    arcs = np.flatnonzero(grams.kept & (grams.token < end))
    arcs = arcs[arcs > 0]
    states = numbers[grams.context[arcs]]
    first = np.searchsorted(states, np.arange(len(places) + 1))
    (opening,) = np.nonzero((grams.token == start) & (np.arange(len(reached)) < bounds[2]))
    return Automaton(
        first=first.astype(np.int32),
        tokens=grams.token[arcs].astype(np.int32),
        scores=grams.scores[arcs].astype(np.float32),
        targets=reached[arcs].astype(np.int32),
        backoff=backoff.astype(np.int32),
        backoff_scores=backoff_scores,
        missing=np.asarray(missing, np.float32),
        final=final,
        start=int(reached[opening[0]]) if len(opening) else ROOT,
    )


def contexts(automaton: Automaton) -> dict[int, tuple[int, ...]]:
    """The tokens that each state stands for, the mark of the start among them; states that nothing leads to have none.

    A token leads to the longest state at the end of (the tokens of a state + the token). So what a state stands for is
    the shortest of all that lead to it.
    """
    found: dict[int, tuple[int, ...]] = {ROOT: ()}
    # Those of a length after all that are shorter.
    lengths: dict[int, list[tuple[int, tuple[int, ...]]]] = collections.defaultdict(list, {0: [(ROOT, ())]})
    if automaton.start != ROOT:
        lengths[1].append((automaton.start, (start_mark(automaton.vocabulary_size),)))
    length = 0
    while lengths[length]:
        for state, tokens in lengths[length]:
            if found.setdefault(state, tokens) != tokens:
                continue
            for arc in range(automaton.first[state], automaton.first[state + 1]):
                target = int(automaton.targets[arc])
                if target not in found:
                    lengths[length + 1].append((target, (*tokens, int(automaton.tokens[arc]))))
        length += 1
    return found
