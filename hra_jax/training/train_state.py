"""What a run trains: the trainable tree and its optimizer state, and their accounting.

method 'adapter':          trainable = {'shared': ..., 'tasks': ...}, the backbone is frozen; with `train='tasks'` what
                           the tasks share is `fixed`: part of the adapter, but neither differentiated nor moved
method 'full', 'pretrain': trainable = {'backbone': ...}, nothing is frozen but the stored statistics of norms
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.models.layers import STATISTICS
from hra_jax.storage.trees import flatten
from hra_jax.training.optimizer import OptimizerConfig, dense, init_rows

TRAINED = {"all": (), "tasks": ("shared",)}  # `adapter.train`: what stays as it is; the rows of tasks always train


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes, and what else belongs to the result."""

    step: jax.Array  # int32 scalar, steps done
    trainable: Any
    optimizer: Any
    fixed: Any = flax.struct.field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Any]:
        """All weights that the run owns, trained or not."""
        return {**self.fixed, **self.trainable}


def without_bank(state: TrainState) -> TrainState:
    """The state but for the rows of the tasks and their moments."""
    trainable, optimizer = (
        {name: part for name, part in tree.items() if name != "tasks"} for tree in (state.trainable, state.optimizer)
    )
    return state.replace(trainable=trainable, optimizer=optimizer)


def with_bank(state: TrainState, rows: dict[str, Any]) -> TrainState:
    """The inverse of `without_bank`; `rows` is {'tasks', 'mu', 'nu', 'count'}."""
    moments = {name: rows[name] for name in ("mu", "nu", "count")}
    return state.replace(
        trainable=state.trainable | {"tasks": rows["tasks"]}, optimizer=state.optimizer | {"tasks": moments}
    )


def bank_of(state: TrainState) -> dict[str, Any]:
    """The rows of the tasks, their moments and their step counts: {'tasks', 'mu', 'nu', 'count'}, leaves `[A, ...]`."""
    return {"tasks": state.trainable["tasks"], **state.optimizer["tasks"]}


def bank_like(tasks: Any) -> dict[str, Any]:
    """What `bank_of` gives where the parameters are `tasks`, arrays or shapes; the rest of it as shapes."""
    return {"tasks": tasks, **jax.eval_shape(init_rows, tasks)}


def create(weights: dict[str, Any], config: OptimizerConfig, *, train: str = "all") -> TrainState:
    """A state at step 0.

    Args:
      weights: {'backbone'}, or {'shared', 'tasks'} of an adapter, without 'tasks' where its bank lives elsewhere.
      config: optimizer settings.
      train: a key of TRAINED.
    """
    fixed = {name: part for name, part in weights.items() if name in TRAINED[train]}
    trainable = {name: part for name, part in weights.items() if name not in fixed}
    optimizer: dict[str, Any]
    if "backbone" in trainable:
        optimizer = {"backbone": dense(config).init(trainable["backbone"])}
    else:
        optimizer = {"tasks": init_rows(trainable["tasks"])} if "tasks" in trainable else {}
        if "shared" in trainable:
            optimizer["shared"] = dense(config).init(trainable["shared"])
    return TrainState(step=jnp.zeros((), jnp.int32), trainable=trainable, optimizer=optimizer, fixed=fixed)


def count(tree: Any) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def moving(tree: Any) -> dict[str, Any]:
    """What training moves in a trainable tree of arrays or shapes, {'a.b.c': leaf}: all but the statistics of norms."""
    leaves = flatten(tree, separator=".")
    return {path: leaf for path, leaf in leaves.items() if path.rpartition(".")[2] not in STATISTICS}


def accounting(
    weights: dict[str, Any], tasks: int, backbone_parameters: int, *, train: str = "all", learning: int | None = None
) -> dict[str, int]:
    """What is trained, in numbers.

    Args:
      weights: {'backbone'}, or {'shared', 'tasks'} of an adapter, its bank with any number of rows.
      tasks: the number of tasks.
      backbone_parameters: of the whole backbone.
      train: as for `create`.
      learning: tasks that have data to train on; None for all.

    Returns:
      {'trainable_parameters', 'shared_parameters', 'parameters_per_task', 'backbone_parameters', 'tasks'}: for an
      adapter, trainable = shared + tasks x per task, of which only what trains is counted: no shared ones that stay
      as they are, and no tasks without data.
    """
    if "backbone" in weights:
        shared, per_task = count(moving(weights["backbone"])), 0
    else:
        rows = next((leaf.shape[0] for leaf in jax.tree.leaves(weights["tasks"])), 1)
        shared, per_task = count(weights["shared"]), count(weights["tasks"]) // max(rows, 1)
    return {
        "trainable_parameters": (0 if "shared" in TRAINED[train] else shared)
        + (tasks if learning is None else learning) * per_task,
        "shared_parameters": shared,
        "parameters_per_task": per_task,
        "backbone_parameters": backbone_parameters,
        "tasks": tasks,
    }


def describe(trainable: dict[str, Any], *, most: int = 24) -> list[str]:
    """One line per trained leaf: its name, shape and number of parameters; printed at start and at resume."""
    lines = [f"{name}  {tuple(leaf.shape)}  {int(np.prod(leaf.shape)):,}" for name, leaf in moving(trainable).items()]
    return lines[:most] + ([f"... and {len(lines) - most} more leaves"] if len(lines) > most else [])
