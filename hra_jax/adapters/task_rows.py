"""Rows of the task bank: drawn, gathered for a step, and scattered back; every leaf has one row per task.

Letters: A tasks in the bank, K tasks that a step may touch, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters.weights import Tree

if TYPE_CHECKING:
    from hra_jax.adapters.base import Adapter
    from hra_jax.models.encoder_config import EncoderConfig

_Leaves = TypeVar("_Leaves", Tree, jax.Array)  # a bank, or one leaf of it

NO_TASK = -1  # its number in a batch
NO_ROW = np.iinfo(np.int32).max  # fills the slots of a list of row numbers that name no row


def init_rows(adapter: Adapter, rng: jax.Array, encoder: EncoderConfig, ids: jax.Array) -> Tree:
    """New rows of the numbers `ids` `[n]`: leaves `[n, ...]`, each row drawn from its own key."""
    # fold_in per row, so that row i does not depend on how many rows there are.
    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(ids)
    rows: Tree = jax.vmap(lambda key: adapter.init_task(key, encoder))(keys)
    return rows


def active_rows(task: jax.Array, size: int, tasks: int) -> tuple[jax.Array, jax.Array]:
    """The tasks of a global batch.

    Args:
      task: int32 `[B]`, -1 for `__base__`.
      size: K, at least the number of distinct tasks in the batch.
      tasks: A.

    Returns:
      ids: int32 `[K]`, ascending and distinct; slots beyond the tasks present hold A, which is no row.
      index: int32 `[B]`, the slot of each utterance's task among `ids`; K for `__base__`.
    """
    task = jnp.where(task < 0, tasks, task).astype(jnp.int32)
    ids = jnp.unique(task, size=size, fill_value=tasks).astype(jnp.int32)
    index = jnp.searchsorted(ids, task).astype(jnp.int32)
    return ids, jnp.where(task == tasks, size, index)


def gather(bank: _Leaves, ids: jax.Array) -> _Leaves:
    """Rows `ids` `[K]` of every leaf `[A, ...]`; a slot that names no row gives zeros, never row 0."""
    rows: _Leaves = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0, mode="fill", fill_value=0), bank)
    return rows


def newest(incoming: Tree, resident: Tree) -> Tree:
    """The rows of `incoming`, those that `resident` has too taken from there.

    Both are {'ids': int32 `[K]`, ascending, NO_ROW in empty slots; 'rows': a tree with leading `[K]`}.
    """
    ids, held = incoming["ids"], resident["ids"]
    slot = jnp.searchsorted(held, ids).astype(jnp.int32)
    newer = (jnp.take(held, slot, mode="clip") == ids) & (ids != NO_ROW)

    def merge(stale: jax.Array, fresh: jax.Array) -> jax.Array:
        mask = newer.reshape((-1,) + (1,) * (stale.ndim - 1))
        return jnp.where(mask, jnp.take(fresh, slot, axis=0, mode="clip"), stale)

    merged: Tree = jax.tree.map(merge, incoming["rows"], resident["rows"])
    return merged


def scatter(bank: _Leaves, ids: jax.Array, rows: _Leaves) -> _Leaves:
    """Writes `rows` `[K, ...]` back; a slot that names no row is dropped."""
    written: _Leaves = jax.tree.map(
        lambda leaf, new: leaf.at[ids].set(new.astype(leaf.dtype), mode="drop", unique_indices=False), bank, rows
    )
    return written
