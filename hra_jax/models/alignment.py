"""Alignment: the likeliest path of labels that are known, through the lattice of CTC.

A path has a label, or the blank, for each frame. Those that say U labels go through the 2U + 1 states

    blank, first label, blank, second label, ..., last label, blank

in their order. Each frame stays in a state or goes on to the next one; the blank between two labels may be left out
unless they are equal; and a path begins and ends in one of the first and last two states.

Letters: B batch, T frames, V vocabulary, U labels, S = 2U + 1 states.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hra_jax.models import padding

_LEAST = 16  # frames and labels that `align` has shapes for


@jax.jit
def viterbi(
    log_probs: ArrayLike, lengths: ArrayLike, tokens: ArrayLike, token_lengths: ArrayLike, blank_id: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The likeliest path of each row that says its labels.

    What a row gets depends on no other row and on no padding. Of paths that are equally likely it is always the same.

    Args:
      log_probs: `[B, T, V]`, taken to float32; -inf is impossible.
      lengths: int32 `[B]`, frames.
      tokens: int32 `[B, U]`, label ids, none of them the blank's; any beyond the length.
      token_lengths: int32 `[B]`, labels.
      blank_id: id of the blank, or int32 `[B]` where the rows have different ones.

    Returns:
      paths: int32 `[B, T]`; the blank beyond the length.
      scores: float32 `[B]`, the log-probability of the path; -inf where no path says the labels: there are too few
        frames, or what they say is impossible. The path of such a row is the blank alone.
    """
    log_probs, tokens = jnp.asarray(log_probs, jnp.float32), jnp.asarray(tokens, jnp.int32)
    batch, frames, symbols = log_probs.shape
    blank = jnp.broadcast_to(jnp.asarray(blank_id, jnp.int32), (batch,))[:, None]
    states = _states(jnp.clip(tokens, 0, symbols - 1), blank)
    # A label may follow another one at once, unless it is the same.
    other = jnp.pad(states, ((0, 0), (2, 0)))[:, :-2] != states
    skips = other & (states != blank) & (jnp.arange(states.shape[1]) > 1)[None, :]
    emitted = jnp.take_along_axis(log_probs, states[:, None, :], axis=2).swapaxes(0, 1)  # [T, B, S]
    valid = padding.valid_mask(jnp.asarray(lengths), frames).T  # [T, B]

    def forward(scores: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The scores `[B, S]` after one frame more, and by how many states each came on."""
        emission, here = at
        before = jnp.pad(scores, ((0, 0), (2, 0)), constant_values=-jnp.inf)
        ways = jnp.stack([scores, before[:, 1:-1], jnp.where(skips, before[:, :-2], -jnp.inf)])
        moves = jnp.where(here[:, None], ways.argmax(axis=0), 0).astype(jnp.int8)
        return jnp.where(here[:, None], ways.max(axis=0) + emission, scores), moves

    # From here the first frame goes to the first blank or the first label.
    start = jnp.full(states.shape, -jnp.inf).at[:, 0].set(0.0)
    scores, moves = jax.lax.scan(forward, start, (emitted, valid))
    ends = jnp.stack([2 * jnp.asarray(token_lengths), jnp.maximum(2 * jnp.asarray(token_lengths) - 1, 0)], axis=1)
    final = jnp.take_along_axis(scores, ends, axis=1)
    last = jnp.take_along_axis(ends, final.argmax(axis=1)[:, None], axis=1)
    best = final.max(axis=1)

    def backward(state: jax.Array, move: jax.Array) -> tuple[jax.Array, jax.Array]:
        return state - jnp.take_along_axis(move, state, axis=1), state

    _, reached = jax.lax.scan(backward, last, moves, reverse=True)  # [T, B, 1]
    paths = jnp.take_along_axis(states, reached[..., 0].T, axis=1)
    known = valid.T & (best > -jnp.inf)[:, None]
    return jnp.where(known, paths, blank), best


def _states(tokens: jax.Array, blank: jax.Array) -> jax.Array:
    """The labels of the lattice's states, int32 `[B, S]`, from those `[B, U]` and the blank `[B, 1]`."""
    between = jnp.broadcast_to(blank, tokens.shape)
    return jnp.concatenate(
        [blank, jnp.stack([tokens, between], axis=2).reshape(len(tokens), 2 * tokens.shape[1])], axis=1
    )


def align(
    log_probs: np.ndarray, lengths: np.ndarray, labels: Sequence[Sequence[int]], blank_id: ArrayLike
) -> tuple[list[np.ndarray], np.ndarray]:
    """As `viterbi`, in few compiled shapes, for labels in lists.

    Args:
      log_probs: float32 numpy `[B, T, V]`.
      lengths: int `[B]`, frames.
      labels: of each row.
      blank_id: as for `viterbi`.

    Returns:
      The path of each row, int32 numpy `[frames]`, and the scores, float32 numpy `[B]`.
    """
    batch, frames = log_probs.shape[:2]
    counts = np.array([len(row) for row in labels], np.int32)
    tokens = np.zeros((batch, padding.padded_size(max(map(len, labels), default=0), _LEAST)), np.int32)
    for row, ids in enumerate(labels):
        tokens[row, : len(ids)] = ids
    padded = np.pad(log_probs, ((0, 0), (0, padding.padded_size(frames, _LEAST) - frames), (0, 0)))
    lengths, blanks = np.asarray(lengths, np.int32), np.broadcast_to(np.asarray(blank_id, np.int32), (batch,))
    paths, scores = viterbi(padded, lengths, tokens, counts, blanks)
    return [path[:length] for path, length in zip(np.asarray(paths), lengths, strict=True)], np.asarray(scores)
