"""AdamW twice: dense for what all tasks share, and per row for the task bank.

Letters: A tasks in the bank, K rows that a step touches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hra_jax.adapters import task_rows
from hra_jax.config.settings import check_settings, integer, number, one_of, setting
from hra_jax.models.layers import STATISTICS

# Biases, norm scales and recurrent weights, by the end of their names, are not decayed; nor are the stored statistics
# of a BatchNorm, which have no gradient either and so stay as they are.
NOT_DECAYED = ("bias", "scale", "recurrent", *STATISTICS)


Scalar = int | float | jax.Array

# After the warm-up: (peak learning rate, steps that are left, at least 1, final share of the peak) -> schedule.
SCHEDULES: dict[str, Callable[[Scalar, int, float], optax.Schedule]] = {
    "cosine": lambda peak, steps, final: optax.cosine_decay_schedule(peak, steps, alpha=final),
    "constant": lambda peak, steps, final: optax.constant_schedule(peak),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) with linear warm-up and one decay: the keys `optimizer.*`."""

    steps: int  # of the whole run
    learning_rate: float = setting(2e-3, number(0, above=True), "peak, per step")
    warmup_steps: int = setting(100, integer(0), "steps of linear warm-up from 0")
    schedule: str = setting("cosine", one_of(SCHEDULES.keys), "after the warm-up")
    final_fraction: float = setting(
        0.05, number(0, 1), "learning rate at the last step, as a share of the peak; cosine only"
    )
    b1: float = setting(0.9, number(0, 1), "AdamW, decay of the first moment")
    b2: float = setting(0.98, number(0, 1), "AdamW, decay of the second moment")
    eps: float = setting(1e-8, number(0, above=True), "AdamW, added to the root of the second moment")
    weight_decay: float = setting(1e-4, number(0), "AdamW, per step, times the learning rate")
    clip: float = setting(
        1.0,
        number(0),
        "largest gradient norm: of the shared part of an adapter, of each task row, or of the whole backbone (methods "
        "full and pretrain); 0 for no clipping",
    )
    max_skipped_steps: int = setting(
        10,
        integer(1),
        "steps in a row with a loss or gradient that is not finite, which change nothing, after which the run ends",
    )

    def __post_init__(self) -> None:
        check_settings(self, "optimizer")


def jump(config: OptimizerConfig, steps: int, *, step: int) -> tuple[float, float] | None:
    """The learning rate of a step before and after the steps of a run were changed; None where it stays the same.

    Args:
      config: the settings now.
      steps: how many steps the run was to have before.
      step: 0-based.
    """
    before, after = (float(learning_rate(dataclasses.replace(config, steps=n))(step)) for n in (steps, config.steps))
    return None if math.isclose(before, after, rel_tol=0.01) else (before, after)


def learning_rate(config: OptimizerConfig, *, peak: Scalar | None = None) -> optax.Schedule:
    """The schedule: global step (0-based) -> learning rate; `peak` is used in place of `config.learning_rate`."""
    peak = config.learning_rate if peak is None else peak
    warmup = max(1, min(config.warmup_steps, config.steps))
    decay = SCHEDULES[config.schedule](peak, max(1, config.steps - warmup), config.final_fraction)
    # The first step already moves: (step + 1) / warmup of the peak.
    start = peak / warmup
    schedule: optax.Schedule = optax.join_schedules(
        [optax.linear_schedule(start, peak, warmup - 1), decay], [warmup - 1]
    )
    return schedule


def decay_mask(tree: Any) -> Any:
    """A tree of bool: True at the leaves that weight decay reaches, by the last name of their path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(NOT_DECAYED), tree)


def dense(config: OptimizerConfig, *, peak: Scalar | None = None) -> optax.GradientTransformation:
    """AdamW for a tree that takes part in every step, clipped by its own global norm; `peak` as for `learning_rate`."""
    adamw: optax.GradientTransformation = optax.adamw(
        learning_rate(config, peak=peak),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if not config.clip:
        return adamw
    clipped: optax.GradientTransformation = optax.chain(optax.clip_by_global_norm(config.clip), adamw)
    return clipped


def init_rows(tasks: Any) -> dict[str, Any]:
    """Optimizer state of a bank: first and second moments like the bank, and a step count per row `[A]`."""
    leaves = jax.tree.leaves(tasks)
    count = jnp.zeros((leaves[0].shape[0] if leaves else 0,), jnp.int32)
    return {"mu": jax.tree.map(jnp.zeros_like, tasks), "nu": jax.tree.map(jnp.zeros_like, tasks), "count": count}


def global_norm(tree: Any) -> jax.Array:
    """Norm over all leaves: float32 scalar."""
    return jnp.sqrt(sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)))


def row_norms(rows: Any) -> jax.Array:
    """Norm of each row over all leaves `[K, ...]`: float32 `[K]`."""
    squares = [jnp.square(leaf).reshape(leaf.shape[0], -1).sum(axis=1) for leaf in jax.tree.leaves(rows)]
    return jnp.sqrt(sum(squares))


def _per_row(values: jax.Array, leaf: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def update_rows(
    grads: Any,
    ids: jax.Array,
    *,
    state: dict[str, Any],
    tasks: Any,
    step: jax.Array,
    config: OptimizerConfig,
    peak: Scalar | None = None,
) -> tuple[Any, dict[str, Any]]:
    """One AdamW step on the rows that are present; every other row, its moments and its count stay as they are.

    Each row is clipped by its own norm and has its own count for the bias correction; the learning rate follows the
    global step.

    Args:
      grads: gradients of the gathered rows, leaves `[K, ...]`.
      ids: int32 `[K]`, their numbers in the bank; a slot that names no row is dropped.
      state: as `init_rows` gives it.
      tasks: the bank, leaves `[A, ...]`.
      step: int32 scalar, the global step (0-based).
      config: the settings.
      peak: as for `learning_rate`.

    Returns:
      The new bank and the new state.
    """
    if config.clip:
        norms = row_norms(grads)
        # As optax.clip_by_global_norm: only what exceeds the limit is scaled.
        factor = jnp.where(norms < config.clip, 1.0, config.clip / jnp.maximum(norms, 1e-30))
        grads = jax.tree.map(lambda g: g * _per_row(factor, g), grads)
    rows, mu, nu = (task_rows.gather(tree, ids) for tree in (tasks, state["mu"], state["nu"]))
    count = task_rows.gather(state["count"], ids) + 1
    mu = jax.tree.map(lambda m, g: config.b1 * m + (1 - config.b1) * g, mu, grads)
    nu = jax.tree.map(lambda n, g: config.b2 * n + (1 - config.b2) * jnp.square(g), nu, grads)
    rate: jax.Array = learning_rate(config, peak=peak)(step)
    first, second = 1 - config.b1 ** count.astype(jnp.float32), 1 - config.b2 ** count.astype(jnp.float32)

    def move(row: jax.Array, m: jax.Array, n: jax.Array, decayed: bool) -> jax.Array:
        update = (m / _per_row(first, m)) / (jnp.sqrt(n / _per_row(second, n)) + config.eps)
        return row - rate * (update + config.weight_decay * row if decayed else update)

    rows = jax.tree.map(move, rows, mu, nu, decay_mask(rows))
    state = {
        "mu": task_rows.scatter(state["mu"], ids, mu),
        "nu": task_rows.scatter(state["nu"], ids, nu),
        "count": task_rows.scatter(state["count"], ids, count),
    }
    return task_rows.scatter(tasks, ids, rows), state
