"""Deterministic weighted automata with back-off arcs over the tokens of a vocabulary: language models and phrases.

A state is what is remembered of the tokens before. It has an arc for some tokens; for any other the automaton goes to
the state's back-off, adds its score, and looks there, down to the root, which takes every token. So a row of V scores
and V next states follows for each state (`Automaton.dense`), which is what a search on a device reads where it fits
into memory. Letters: S states, A arcs, V tokens (the blank's id included, which is never asked for).
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from hra_jax.errors import UserError

ROOT = 0
_MOST_BACKOFFS = 2**12  # from a state to the root: a context is no longer

# The arrays of an automaton, with the dtype and the letter of the length of each.
ARRAYS: dict[str, tuple[type[np.generic], str]] = {
    "first": (np.int32, "S + 1"),
    "tokens": (np.int32, "A"),
    "scores": (np.float32, "A"),
    "targets": (np.int32, "A"),
    "backoff": (np.int32, "S"),
    "backoff_scores": (np.float32, "S"),
    "missing": (np.float32, "V"),
    "final": (np.float32, "S"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """An automaton; state 0 is the root. Scores add up: logarithms of a language model, or plain bonuses.

    Attributes:
      first: int32 [S + 1]; the arcs of state s are first[s] .. first[s + 1].
      tokens: int32 [A], ascending within a state.
      scores: float32 [A].
      targets: int32 [A], the state after the token.
      backoff: int32 [S], where a state goes for a token that it has no arc for; the root's is the root.
      backoff_scores: float32 [S], what that adds; the root's is 0.
      missing: float32 [V], what the root gives a token that it has no arc for. It stays at the root.
      final: float32 [S], what is added at the end.
      start: the state before the first token.
    """

    first: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    backoff: np.ndarray
    backoff_scores: np.ndarray
    missing: np.ndarray
    final: np.ndarray
    start: int

    def __post_init__(self) -> None:
        """Checks the arrays.

        Raises:
          UserError: an array of another dtype or length, a state or token that there is not, tokens that do not ascend,
            back-off arcs that do not lead to the root, or a score that is not finite.
        """
        for name, (dtype, length) in ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1 or not len(array) and length != "A":
                wanted = f"{np.dtype(dtype)} [{length}]"
                raise UserError(f"{name!r} of an automaton is {array.dtype} {list(array.shape)}; it must be {wanted}")
            if dtype is np.float32 and not np.isfinite(array).all():
                raise UserError(f"{name!r} of an automaton holds a score that is not finite")
        states, arcs = self.states, self.arcs
        for names, count in ((("scores", "targets"), arcs), (("backoff", "backoff_scores", "final"), states)):
            for name in names:
                if len(getattr(self, name)) != count:
                    raise UserError(f"{name!r} of an automaton has {len(getattr(self, name))} values; needed: {count}")
        if self.first[0] != 0 or self.first[-1] != arcs or (np.diff(self.first) < 0).any():
            raise UserError(f"'first' of an automaton must go from 0 to {arcs}, its arcs, and never down")
        for name, most in (("tokens", self.vocabulary_size), ("targets", states), ("backoff", states)):
            array = getattr(self, name)
            if len(array) and not 0 <= array.min() <= array.max() < most:
                raise UserError(
                    f"{name!r} of an automaton holds {array.min()} to {array.max()}; allowed: 0 to {most - 1}"
                )
        if not 0 <= self.start < states:
            raise UserError(f"an automaton of {states} states starts at {self.start}; allowed: 0 to {states - 1}")
        if (np.diff(self._keys) <= 0).any():
            raise UserError("the tokens of an automaton's arcs must ascend within each state")
        if self.backoff[ROOT] != ROOT or self.backoff_scores[ROOT] != 0:
            raise UserError("the root of an automaton must back off to itself, for a score of 0")
        self._levels  # noqa: B018  checks that all back-off arcs lead to the root

    @property
    def states(self) -> int:
        """S."""
        return len(self.first) - 1

    @property
    def arcs(self) -> int:
        """A."""
        return len(self.tokens)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.missing)

    @property
    def sparse_bytes(self) -> int:
        """Bytes of the arcs and back-off arcs."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    @property
    def dense_bytes(self) -> int:
        """Bytes of what `dense` gives."""
        return self.states * self.vocabulary_size * 8

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """int64 [A]: state and token of each arc in one number, ascending."""
        states = np.repeat(np.arange(self.states, dtype=np.int64), np.diff(self.first))
        return states * self.vocabulary_size + self.tokens

    @functools.cached_property
    def _levels(self) -> list[np.ndarray]:
        """The states by how many back-off arcs they are from the root: first the root alone."""
        depths = np.full(self.states, -1, np.int64)
        depths[ROOT] = 0
        levels = [np.array([ROOT])]
        left = np.flatnonzero(depths < 0)
        while len(left):
            found = depths[self.backoff[left]] >= 0
            if not found.any() or len(levels) > _MOST_BACKOFFS:
                most = f"the root, over at most {_MOST_BACKOFFS:,} of them"
                raise UserError(f"the back-off arcs of state {left[0]} of an automaton must lead to {most}")
            levels.append(left[found])
            # Only now, as a state may back off to another of the same round.
            depths[left[found]] = len(levels) - 1
            left = left[~found]
        return levels

    def step(self, state: int, token: int) -> tuple[float, int]:
        """What a token adds after a state, and the state after it: the definition, in plain Python."""
        score = 0.0
        while True:
            begin, end = int(self.first[state]), int(self.first[state + 1])
            at = begin + int(np.searchsorted(self.tokens[begin:end], token))
            if at < end and self.tokens[at] == token:
                return score + float(self.scores[at]), int(self.targets[at])
            if state == ROOT:
                return score + float(self.missing[token]), ROOT
            score += float(self.backoff_scores[state])
            state = int(self.backoff[state])

    def score(self, tokens: Iterable[int]) -> float:
        """What a whole sequence of tokens gets, `final` included."""
        state, total = self.start, 0.0
        for token in tokens:
            added, state = self.step(state, token)
            total += added
        return total + float(self.final[state])

    def steps(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`step` of many pairs at a time: int [N] and int [N] give float64 [N] and int64 [N]."""
        states, tokens = np.array(states, np.int64), np.asarray(tokens, np.int64)
        scores, targets = np.zeros(len(states)), np.zeros(len(states), np.int64)
        left = np.arange(len(states))
        while len(left):
            keys = states[left] * self.vocabulary_size + tokens[left]
            at = np.searchsorted(self._keys, keys)
            found = np.zeros(len(left), bool)
            inside = at < self.arcs
            found[inside] = self._keys[at[inside]] == keys[inside]
            scores[left[found]] += self.scores[at[found]]
            targets[left[found]] = self.targets[at[found]]
            left = left[~found]
            ends = states[left] == ROOT
            scores[left[ends]] += self.missing[tokens[left[ends]]]
            left = left[~ends]
            scores[left] += self.backoff_scores[states[left]]
            states[left] = self.backoff[states[left]]
        return scores, targets

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """`step` of every state and token: scores float32 [S, V] and next states int32 [S, V]."""
        scores = np.empty((self.states, self.vocabulary_size), np.float32)
        targets = np.empty((self.states, self.vocabulary_size), np.int32)
        scores[ROOT], targets[ROOT] = self.missing, ROOT
        for depth, level in enumerate(self._levels):
            if depth:
                scores[level] = scores[self.backoff[level]] + self.backoff_scores[level, None]
                targets[level] = targets[self.backoff[level]]
            counts = np.diff(self.first)[level]
            rows = np.repeat(level, counts)
            arcs = np.arange(counts.sum()) + np.repeat(self.first[level] - (np.cumsum(counts) - counts), counts)
            scores[rows, self.tokens[arcs]] = self.scores[arcs]
            targets[rows, self.tokens[arcs]] = self.targets[arcs]
        return scores, targets
