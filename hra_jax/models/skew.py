"""Scores by offset brought to their keys, and back: the skew of Transformer-XL (arXiv 1901.02860, Appendix B).

Letters: B batch, N heads, Q queries, T keys, M = Q + T - 1 offsets.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def skew(scores: jax.Array) -> jax.Array:
    """Scores by offset -> scores by key: `[B, N, Q, M]` -> `[B, N, Q, T]`, out[i, j] = in[i, Q - 1 - i + j]."""
    if not isinstance(scores.shape[2], int):  # a program for any length: by how far rows slide is not known
        return read_narrower(scores)
    return jax.lax.platform_dependent(scores, tpu=slide, default=read_narrower)


def unskew(scores: jax.Array) -> jax.Array:
    """The transpose of `skew`: `[B, N, Q, T]` -> `[B, N, Q, M]`, zeros where there is no key."""
    return jax.lax.platform_dependent(scores, tpu=slide_back, default=read_wider)


skew.defvjp(lambda scores: (skew(scores), None), lambda _, slope: (unskew(slope),))


def read_narrower(scores: jax.Array) -> jax.Array:
    """`skew` on CPUs: rows padded to M + 1 and read back M wide slide by one position each. Three copies of memory."""
    batch, heads, queries, offsets = scores.shape
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(batch, heads, -1)
    flat = flat[:, :, queries - 1 : queries - 1 + queries * offsets].reshape(batch, heads, queries, offsets)
    return flat[..., : offsets - queries + 1]


def read_wider(scores: jax.Array) -> jax.Array:
    """The transpose of `read_narrower`."""
    batch, heads, queries, keys = scores.shape
    offsets = queries + keys - 1
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, queries - 1))).reshape(batch, heads, -1)
    flat = jnp.pad(flat, ((0, 0), (0, 0), (queries - 1, 1))).reshape(batch, heads, queries, offsets + 1)
    return flat[..., :offsets]


def slide(scores: jax.Array) -> jax.Array:
    """`skew` on TPUs: row i slides by Q - 1 - i positions to the left, by a power of two at a time.

    That is a chain of selections between two slices, which becomes one loop or two. Rows that are padded and read back
    narrower have another layout on a TPU, and go to memory and back six times (benchmarks/tpu_memory.md); on a CPU the
    chain takes 1.4 times as long (benchmarks/layers.py).
    """
    queries, offsets = scores.shape[2:]
    steps = _slides(queries)
    scores = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, sum(shift for shift, _ in steps) - queries + 1)))
    for shift, moves in steps:
        scores = jnp.where(moves, scores[..., shift:], scores[..., :-shift])
    return scores[..., : offsets - queries + 1]


def slide_back(scores: jax.Array) -> jax.Array:
    """The transpose of `slide`: rows slide to the right, zeros on both sides."""
    queries, keys = scores.shape[2:]
    for shift, moves in reversed(_slides(queries)):
        stay, move = (((0, 0), (0, 0), (0, 0), pads) for pads in ((0, shift), (shift, 0)))
        scores = jnp.where(moves, jnp.pad(scores, move), jnp.pad(scores, stay))
    return scores[..., : queries + keys - 1]


def _slides(queries: int) -> list[tuple[int, jax.Array]]:
    """Powers of two, the largest first, and which rows bool `[1, 1, Q, 1]` slide by so many positions."""
    distance = (queries - 1 - jnp.arange(queries))[None, None, :, None]
    return [(1 << bit, (distance >> bit) % 2 == 1) for bit in reversed(range((queries - 1).bit_length()))]
