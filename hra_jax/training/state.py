"""What a run trains: the trainable tree and its optimizer state, and their accounting.

method 'adapter':          trainable = {'shared': ..., 'tasks': ...}, the backbone is frozen
method 'full', 'pretrain': trainable = {'backbone': ...}, nothing is frozen
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters import bank
from hra_jax.training import optimizer as optim

METHODS = ("adapter", "full", "pretrain")


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes."""

    step: jax.Array  # int32 scalar, steps done
    trainable: Any
    optimizer: Any


def init_trainable(adapter, rng, encoder, tasks: int) -> dict:
    """A new adapter: shared parameters and a bank of `tasks` rows, float32."""
    shared_rng, task_rng = jax.random.split(rng)
    return {
        "shared": adapter.init_shared(shared_rng, encoder),
        "tasks": bank.init_bank(adapter, task_rng, encoder, tasks),
    }


def create(trainable: dict, config: optim.OptimizerConfig) -> TrainState:
    """A state at step 0 around a trainable tree."""
    if "backbone" in trainable:
        optimizer = {"backbone": optim.dense(config, config.clip_norm).init(trainable["backbone"])}
    else:
        optimizer = {
            "shared": optim.dense(config, config.clip_controller).init(trainable["shared"]),
            "tasks": optim.init_rows(trainable["tasks"]),
        }
    return TrainState(step=jnp.zeros((), jnp.int32), trainable=trainable, optimizer=optimizer)


def count(tree) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def accounting(trainable: dict, tasks: int, backbone_parameters: int) -> dict:
    """What is trained, in numbers.

    Returns:
      {'trainable_parameters', 'shared_parameters', 'parameters_per_task', 'backbone_parameters', 'tasks'}: for an
      adapter, trainable = shared + tasks x per task.
    """
    if "backbone" in trainable:
        shared, per_task = count(trainable["backbone"]), 0
    else:
        shared, per_task = count(trainable["shared"]), count(trainable["tasks"]) // max(tasks, 1)
    return {
        "trainable_parameters": count(trainable),
        "shared_parameters": shared,
        "parameters_per_task": per_task,
        "backbone_parameters": backbone_parameters,
        "tasks": tasks,
    }


def describe(trainable: dict, *, most: int = 24) -> list[str]:
    """One line per trained leaf: its name, shape and number of parameters; printed at start and at resume."""
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    lines = [
        f"{'.'.join(key.key for key in path)}  {tuple(leaf.shape)}  {int(np.prod(leaf.shape)):,}"
        for path, leaf in leaves
    ]
    return lines[:most] + ([f"... and {len(lines) - most} more leaves"] if len(lines) > most else [])
