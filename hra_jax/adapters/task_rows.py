"""The task bank: one row per task in every leaf, and the rows that one step touches.

Letters: A tasks in the bank, K tasks that a step may touch, B batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

NO_TASK = -1  # its number in a batch
NO_ROW = np.iinfo(np.int32).max  # fills the places of a list of row numbers that name no row


def init_rows(adapter, rng, encoder, ids):
    """New rows of the numbers `ids` `[n]`: leaves `[n, ...]`, each row drawn from its own key."""
    # fold_in per row, so that row i does not depend on how many rows there are.
    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(ids)
    return jax.vmap(lambda key: adapter.init_task(key, encoder))(keys)


def active_rows(task, size: int, tasks: int):
    """The tasks of a global batch.

    Args:
      task: int32 `[B]`, -1 for `__base__`.
      size: K, at least the number of distinct tasks in the batch.
      tasks: A.

    Returns:
      ids: int32 `[K]`, ascending and distinct; places beyond the tasks present hold A, which is no row.
      index: int32 `[B]`, the place of each utterance's task among `ids`; K for `__base__`.
    """
    task = jnp.where(task < 0, tasks, task).astype(jnp.int32)
    ids = jnp.unique(task, size=size, fill_value=tasks).astype(jnp.int32)
    index = jnp.searchsorted(ids, task).astype(jnp.int32)
    return ids, jnp.where(task == tasks, size, index)


def gather(bank, ids):
    """Rows `ids` `[K]` of every leaf `[A, ...]`; a place that is no row gives zeros, never row 0."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0, mode="fill", fill_value=0), bank)


def newest(incoming, resident):
    """The rows of `incoming`, those that `resident` has too taken from there.

    Both are {'ids': int32 `[K]`, ascending, NO_ROW in empty places; 'rows': a tree with leading `[K]`}.
    """
    ids, held = incoming["ids"], resident["ids"]
    place = jnp.searchsorted(held, ids).astype(jnp.int32)
    newer = (jnp.take(held, place, mode="clip") == ids) & (ids != NO_ROW)

    def merge(stale, fresh):
        mask = newer.reshape((-1,) + (1,) * (stale.ndim - 1))
        return jnp.where(mask, jnp.take(fresh, place, axis=0, mode="clip"), stale)

    return jax.tree.map(merge, incoming["rows"], resident["rows"])


def scatter(bank, ids, rows):
    """Writes `rows` `[K, ...]` back; a place that is no row is dropped."""
    return jax.tree.map(
        lambda leaf, new: leaf.at[ids].set(new.astype(leaf.dtype), mode="drop", unique_indices=False), bank, rows
    )
