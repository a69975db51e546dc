"""Several automata as one table on the device: dense where vocabularies are small, with arcs and back-off elsewhere.

Sizes are padded to powers of two, so that a program that reads a table is compiled again for a table of another size
only. Letters: B batch, W prefixes, K tokens of a frame, V vocabulary, S states, A arcs, R rows, C slots.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hra_jax.text.automaton import Automaton

NEVER = -1e30  # in place of -inf, which would make NaN of differences
_DENSE_BYTES = 64 * 2**20  # of tables that are dense where nothing is said
_LEAST_STATES, _LEAST_ARCS, _LEAST_ROWS = 1024, 4096, 64  # smaller tables are padded to this
_FEW_ARCS = 8  # states that have at most so many need no row, and more have none where rows would take _ROW_BYTES
_ROW_BYTES = 32 * 2**20


class Tables(NamedTuple):
    """Several automata in one, dense: float32 scores and int32 targets of each state and token, `[S, V]`.

    final: float32 `[S]`, what is added at the end.
    """

    scores: jax.Array
    targets: jax.Array
    final: jax.Array


class Arcs(NamedTuple):
    """Several automata in one, where V is large: arcs of the states that have few, rows of V of those that have more.

    A token is looked for among the at most C arcs of a state, then of its back-off, up to a state that has a row, which
    says what the automaton does with each token, all back-off arcs followed.

    scores: float32 `[A + R * V]`, of the arcs and then of the R rows.
    targets: int32 `[A + R * V]`, the state after.
    tokens: int32 `[A]`.
    first: int32 `[S]`, the first arc of a state.
    counts: int32 `[S]`, how many arcs it has, at most C; 0 where it has a row.
    row: int32 `[S]`, where in `scores` the row of a state begins; -1: it has none.
    backoff: int32 `[S]`; that of a state with a row is the state itself.
    backoff_scores: float32 `[S]`; 0 there.
    final: float32 `[S]`.
    slots: int32 `[C]`, 0 to C - 1.
    """

    scores: jax.Array
    targets: jax.Array
    tokens: jax.Array
    first: jax.Array
    counts: jax.Array
    row: jax.Array
    backoff: jax.Array
    backoff_scores: jax.Array
    final: jax.Array
    slots: jax.Array


def tables(
    automata: Sequence[Automaton], *, vocabulary_size: int, dense: bool | None = None
) -> tuple[Tables | Arcs, np.ndarray]:
    """Several automata as one, on the device.

    Args:
      automata: over token ids below `vocabulary_size`, which may be more than they know.
      vocabulary_size: V of the log-probabilities.
      dense: whether it is `Tables` or `Arcs`; None: `Tables` where they take at most 64 MiB.

    Returns:
      The table, and the start state of each automaton in it, int32 `[len(automata)]`.
    """
    offsets = np.cumsum([0, *(automaton.states for automaton in automata)]).astype(np.int32)
    states = _padded_size(int(offsets[-1]), _LEAST_STATES)
    if dense is None:
        dense = _is_dense(states, vocabulary_size)
    starts = np.array([automaton.start for automaton in automata], np.int32) + offsets[:-1]
    arrays = (_dense if dense else _arcs)(automata, offsets, states=states, vocabulary_size=vocabulary_size)
    found = {name: jnp.asarray(array) for name, array in arrays.items()}
    return Tables(**found) if dense else Arcs(**found), starts


def table_shapes(vocabulary_size: int, *, states: int, arcs: int, rows: int) -> Tables | Arcs:
    """The shapes that `tables` has for so many states, and if they are not dense, arcs and rows: powers of two."""

    def shape(dtype: DTypeLike, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    floats, integers = functools.partial(shape, jnp.float32), functools.partial(shape, jnp.int32)
    if _is_dense(states, vocabulary_size):
        size = states, vocabulary_size
        return Tables(floats(*size), integers(*size), floats(states))
    flat = arcs + rows * vocabulary_size
    of_states = {name: integers(states) for name in ("first", "counts", "row", "backoff")}
    of_states |= {name: floats(states) for name in ("backoff_scores", "final")}
    return Arcs(floats(flat), integers(flat), integers(arcs), slots=integers(_FEW_ARCS), **of_states)


def _is_dense(states: int, vocabulary_size: int) -> bool:
    return states * vocabulary_size * 8 <= _DENSE_BYTES


def _padded_size(size: int, least: int) -> int:
    return max(least, 1 << max(size - 1, 0).bit_length())


def _joined(parts: Iterable[np.ndarray], size: int, filler: float = 0) -> np.ndarray:
    """The parts one after the other, and the filler up to `size`."""
    parts = list(parts)
    found = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return np.pad(found, (0, size - len(found)), constant_values=filler)


def _dense(
    automata: Sequence[Automaton], offsets: np.ndarray, *, states: int, vocabulary_size: int
) -> dict[str, np.ndarray]:
    """The arrays of `Tables`."""
    scores = np.full((states, vocabulary_size), NEVER, np.float32)
    targets = np.zeros((states, vocabulary_size), np.int32)
    for automaton, begin, end in zip(automata, offsets[:-1], offsets[1:], strict=True):
        row_scores, row_targets = automaton.dense()
        scores[begin:end, : automaton.vocabulary_size] = row_scores
        targets[begin:end, : automaton.vocabulary_size] = row_targets + begin
    final = _joined((automaton.final for automaton in automata), states)
    return {"scores": scores, "targets": targets, "final": final.astype(np.float32)}


def _blocks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[begin : begin + size] for begin in range(0, len(array), size))


def _arcs(
    automata: Sequence[Automaton], offsets: np.ndarray, *, states: int, vocabulary_size: int
) -> dict[str, np.ndarray]:
    """The arrays of `Arcs`."""
    degrees = _joined((np.diff(automaton.first) for automaton in automata), states)
    is_row = np.zeros(states, bool)
    is_row[[0, *offsets[:-1]]] = True  # the roots, so that every state comes to a row
    most = _FEW_ARCS
    while (is_row | (degrees > most)).sum() * vocabulary_size * 8 > _ROW_BYTES and most < degrees.max():
        most *= 2
    is_row |= degrees > most
    rows = _padded_size(int(is_row.sum()), _LEAST_ROWS)
    arcs = _padded_size(int(degrees.sum()), _LEAST_ARCS)
    scores = np.full((rows, vocabulary_size), NEVER, np.float32)
    targets = np.zeros((rows, vocabulary_size), np.int32)
    done = 0
    for automaton, begin, end in zip(automata, offsets[:-1], offsets[1:], strict=True):
        size = automaton.vocabulary_size
        for block in _blocks(np.flatnonzero(is_row[begin:end]), 256):
            last = done + len(block)
            found = automaton.steps(np.repeat(block, size), np.tile(np.arange(size), len(block)))
            scores[done:last, :size], row_targets = (array.reshape(-1, size) for array in found)
            targets[done:last, :size] = row_targets + begin
            done = last
    shifted = list(zip(automata, offsets[:-1], strict=True))
    backoff = _joined((automaton.backoff + begin for automaton, begin in shifted), states)
    backoff_scores = _joined((automaton.backoff_scores for automaton in automata), states)
    arc_scores = _joined((automaton.scores for automaton in automata), arcs)
    arc_targets = _joined((automaton.targets + begin for automaton, begin in shifted), arcs)
    floats = {
        "scores": np.concatenate([arc_scores, scores.ravel()]),
        "backoff_scores": np.where(is_row, 0.0, backoff_scores),
        "final": _joined((automaton.final for automaton in automata), states),
    }
    integers = {
        "targets": np.concatenate([arc_targets, targets.ravel()]),
        "tokens": _joined((automaton.tokens for automaton in automata), arcs),
        "first": np.cumsum(degrees) - degrees,
        "counts": np.where(is_row, 0, degrees),
        "row": np.where(is_row, arcs + (np.cumsum(is_row) - 1) * vocabulary_size, -1),
        "backoff": np.where(is_row, np.arange(states), backoff),
        "slots": np.arange(most),
    }
    typed = ((floats, np.float32), (integers, np.int32))
    return {name: array.astype(dtype) for arrays, dtype in typed for name, array in arrays.items()}


def locate(table: Tables | Arcs, states: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Where in the scores of a table, taken as one dimension, that of each state and token stands.

    Args:
      table: of S states.
      states: int32 `[B, W]`.
      tokens: int32 `[B, K]`.

    Returns:
      Places, int32 `[B, W, K]`, and what back-off arcs on the way there gave, float32 `[B, W, K]`.
    """
    if isinstance(table, Tables):
        return states[:, :, None] * table.scores.shape[1] + tokens[:, None, :], 0.0

    def look(carried: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        states, places, given = carried
        arc = table.first[states][:, :, None] + table.slots[None, None, :]
        token = jnp.where(table.slots[None, None, :] < table.counts[states][:, :, None], table.tokens[arc], -1)
        found = jnp.where(token[:, :, :, None] == tokens[:, None, None, :], arc[:, :, :, None], -1).max(axis=2)
        places = jnp.where(places < 0, found, places)
        given += jnp.where(places < 0, table.backoff_scores[states][:, :, None], 0.0)
        return table.backoff[states], places, given

    shape = (*states.shape, tokens.shape[1])
    start = states, jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32)
    states, places, given = jax.lax.while_loop(lambda carried: (table.row[carried[0]] < 0).any(), look, start)
    return jnp.where(places < 0, table.row[states][:, :, None] + tokens[:, None, :], places), given
