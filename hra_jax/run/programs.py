"""The compiled programs of a run and where their arguments live: the same for training and for compiling ahead of time.

Everything here works on shapes as it does on arrays.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hra_jax.adapters.base import Adapter
from hra_jax.data import batching
from hra_jax.errors import UserError
from hra_jax.models import attention_parts
from hra_jax.models.asr import AsrModel
from hra_jax.run import build
from hra_jax.text.vocabularies import BLANK_ID
from hra_jax.training import placement, sharding, train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import make_evaluation_step, make_host_rows_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Pins `[B, T, D]` activations to the mesh at block boundaries; hashable, so that equal models are one program."""

    mesh: Any

    def __call__(self, x):
        return sharding.constrain(x, self.mesh, ("batch", "time", "embed"))


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles, before it is compiled.

    Attributes:
      train: jitted `train_step(state, frozen, batch, knobs)` of `training.step.make_train_step`, or with a bank in host
        memory the step of `make_host_rows_step`; its state is donated.
      counted: the train step that computes nothing anew, not jitted: what a step has to compute, whatever `remat` says.
      evaluation: jitted step of `training.step.make_evaluation_step`.
      state: the state that `train` starts from, arrays or shapes as it was given, without a bank in host memory.
      shardings: of `state`.
      places: K, the most task rows of one batch.
      host_bank: whether the bank is in host memory.
      settings: of the optimizer.
    """

    train: Callable
    counted: Callable
    evaluation: Callable
    state: train_state.TrainState
    shardings: train_state.TrainState
    places: int
    host_bank: bool
    settings: OptimizerConfig


def mesh_of(config, devices=None) -> jax.sharding.Mesh:
    """The mesh of a configuration, checked against its batches.

    Args:
      config: a validated configuration.
      devices: all of the processes' if None.

    Raises:
      UserError: the mesh does not fit the devices, or `batch.multiple` the mesh.
    """
    sizes = config.mesh
    mesh = sharding.make_mesh(sizes.data, sizes.fsdp, tensor=sizes.tensor, slices=sizes.slices, devices=devices)
    sharding.check_batch_multiple(mesh, config.batch.multiple)
    return mesh


def model_on(mesh, config, base: build.Foundation, method: Adapter) -> AsrModel:
    """The model of a run on the devices of a mesh, absent ones too."""
    block = config.attention_block
    if block < 0:
        platform = mesh.devices.flat[0].platform
        block = attention_parts.for_platform(platform, devices=mesh.size, tensor=mesh.shape["tensor"])
    return build.model(config, base, method, constrain=Constraint(mesh), attention_block=block)


def check_rows(config, shards: int) -> None:
    """Checks that every bucket has rows, in training and in evaluation, and that `accumulate` divides them.

    Args:
      config: a validated configuration.
      shards: parts that the mesh splits the rows of a batch into.

    Raises:
      UserError: a bucket has no rows, or `accumulate` does not divide those of one device.
    """
    batch = config.batch
    rows = batching.bucket_rows(batch.buckets, batch_seconds=batch.seconds, multiple=batch.multiple)
    for seconds, count in zip(batch.buckets, rows, strict=True):
        if count // shards % config.accumulate:
            each = f" on each of {shards} devices" if shards > 1 else ""
            raise UserError(
                f"accumulate = {config.accumulate}: must divide the {count // shards} rows of the {seconds:g} s "
                f"bucket{each}; change batch.seconds or batch.multiple"
            )
    if config.eval.suite or config.eval.select_suite:
        batching.bucket_rows(batch.buckets, batch_seconds=config.eval.batch_seconds, multiple=batch.multiple)


def slots(config, tasks: int) -> int:
    """Rows of the bank of so many tasks.

    Raises:
      UserError: fewer slots than tasks.
    """
    wanted = config.adapter.slots
    if 0 < wanted < tasks:
        raise UserError(f"adapter.slots = {wanted}: there are {tasks} tasks; allowed are 0 or at least as many")
    return wanted or tasks


def trained_part(config) -> str:
    """Which part of an adapter trains; all there is, where it is the backbone."""
    return config.adapter.train if config.method == "adapter" else "all"


def blank_of(base: build.Foundation, method: Adapter) -> int:
    """The blank among the outputs of a batch: 0 where tasks have vocabularies of their own, else the backbone's."""
    shapes_alone = base.vocabulary is None
    return BLANK_ID if shapes_alone or method.own_vocabulary else base.vocabulary.blank_id


def lay_out(config, base: build.Foundation, method: Adapter, mesh, weights: dict) -> Programs:
    """The programs of a run.

    Args:
      config: a validated configuration.
      base: what the encoder is built on; its weights are not read.
      method: the adaptation method.
      mesh: from `mesh_of`.
      weights: {'backbone'}, or {'shared', 'tasks'} of an adapter, arrays or shapes.
    """
    model = model_on(mesh, config, base, method)
    settings, blank_id = build.optimizer_settings(config), blank_of(base, method)
    everywhere = sharding.replicated(mesh)
    rows = next((leaf.shape[0] for leaf in jax.tree.leaves(weights.get("tasks", {}))), 0)
    places = min(config.batch.max_tasks, rows) if rows else 1
    train_step, counted = (
        make_train_step(
            form, settings, blank_id=blank_id, seed=config.seed, max_tasks=places, accumulate=config.accumulate
        )
        for form in (model, model.clone(remat="none", attention_block=0))
    )
    host_bank = config.method == "adapter" and config.adapter.bank == "host"
    on_device = {name: part for name, part in weights.items() if not (host_bank and name == "tasks")}
    state = _created(on_device, settings, trained_part(config))
    shardings = placement.state_shardings(mesh, state, base.features, base.encoder)
    if host_bank:
        train_step, outputs = make_host_rows_step(train_step), (shardings, everywhere, everywhere)
    else:
        outputs = (shardings, everywhere)
    evaluation_step = make_evaluation_step(model, blank_id=blank_id)
    return Programs(
        train=jax.jit(train_step, donate_argnums=0, out_shardings=outputs),
        counted=counted,
        evaluation=jax.jit(evaluation_step, out_shardings=everywhere),
        state=state,
        shardings=shardings,
        places=places,
        host_bank=host_bank,
        settings=settings,
    )


def _created(weights: dict, settings: OptimizerConfig, train: str) -> train_state.TrainState:
    if all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(weights)):
        return train_state.create(weights, settings, train=train)
    return jax.eval_shape(lambda tree: train_state.create(tree, settings, train=train), weights)
