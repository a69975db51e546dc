"""Attention part by part: some heads and some queries at a time, so that their scores need little memory.

Letters: B batch, N heads, T frames, H head width, Q queries of a part.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Scores of a part of so many bytes stay in the memory of a TPU chip itself, with what is computed from them. Larger
# ones go to HBM and back some 25 times a layer; for smaller ones keys and values are read more often
# (benchmarks/tpu_memory.md).
ON_CHIP = 12 << 20
# Fewer queries at a time would leave most of a matrix unit idle.
QUERIES = 128


@dataclasses.dataclass(frozen=True)
class Budget:
    """How large the scores of a part may be; the part follows from the batch.

    Attributes:
      size: bytes of float32 scores on one device.
      devices: that share the rows of a batch and the heads.
      tensor: those of them that share the heads; every part has a multiple of so many.
    """

    size: int = ON_CHIP
    devices: int = 1
    tensor: int = 1


def for_platform(platform: str, *, devices: int = 1, tensor: int = 1) -> int | Budget:
    """What suits the devices: on TPUs parts whose scores stay on the chip, elsewhere all at once."""
    return Budget(devices=devices, tensor=tensor) if platform == "tpu" else 0


def part(block: int | Budget, batch: int, heads: int, frames: int) -> tuple[int, int]:
    """How many heads and how many queries are taken at a time.

    A number is one of queries, 0 all of them, with all heads. A `Budget` takes all where they fit, else the most heads
    that fit with `QUERIES` queries, and fewer queries only where one head for each device does not fit.
    """
    if isinstance(block, int):
        return heads, min(block or frames, frames)
    query = 4 * batch * frames / block.devices  # bytes for one head
    if heads * frames * query <= block.size:
        return heads, frames
    few = min(QUERIES, frames)
    allowed = [n for n in range(1, heads + 1) if heads % n == 0 and n % block.tensor == 0] or [heads]
    some = max((n for n in allowed if n * few * query <= block.size), default=allowed[0])
    most = max(int(block.size / (some * query)) // 16 * 16, 16)
    # All parts as large as each other, in tiles of 16 queries.
    parts = math.ceil(frames / most)
    return some, min(math.ceil(frames / parts / 16) * 16, frames)


def by_heads(attend: Callable[..., jax.Array], some: int, arrays: tuple) -> jax.Array:
    """`attend(*arrays)` of `some` heads after `some` heads, put together: `[B, N, T, H]`.

    Heads are axis 1 of all arrays. A part takes every (N / some)-th head, so that each of the devices that share the
    heads has its own share of every part.
    """
    count = arrays[0].shape[1] // some

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], some, count, *x.shape[2:]), 2, 0)

    _, y = jax.lax.scan(lambda carry, own: (carry, attend(*own)), None, tuple(split(x) for x in arrays))
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def split_queries(x: jax.Array, queries: int) -> jax.Array:
    """`[B, N, T, ...]` -> `[parts, B, N, Q, ...]`, the last part filled up with zeros."""
    parts = -(-x.shape[2] // queries)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, parts * queries - x.shape[2]), (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], parts, queries, x.shape[3]), 2, 0)


def by_queries(attend: Callable[..., jax.Array], query: jax.Array, masks: jax.Array) -> jax.Array:
    """`attend(query, mask, start)` of one part of the queries after the other, put together: `[B, N, T, H]`.

    query is `[B, N, T, H]`, masks bool `[parts, B, 1, Q, T]` from `split_queries`; `start` is a part's first query.
    """
    size, queries = query.shape[2], masks.shape[3]

    def body(start: Any, split: Any) -> tuple[Any, jax.Array]:
        return start + queries, attend(*split, start)

    _, y = jax.lax.scan(body, jnp.int32(0), (split_queries(query, queries), masks))
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(*y.shape[:2], -1, y.shape[4])[:, :, :size]
