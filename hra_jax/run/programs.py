"""The compiled programs of a run and where their arguments live: the same for training and for compiling ahead of time.

Everything here works on shapes; no weights are read or made.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hra_jax.adapters import initial
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.errors import UserError
from hra_jax.models import attention_parts
from hra_jax.models.asr import AsrModel
from hra_jax.models.augmentation import NO_AUGMENTATION, AugmentConfig
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run.foundation import Foundation
from hra_jax.run.settings import RunSettings
from hra_jax.text.vocabularies import BLANK_ID
from hra_jax.training import placement, sharding, task_bank, train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import make_evaluation_step, make_train_step, make_voice_step


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Pins `[B, T, D]` activations to the mesh at block boundaries; hashable, so that equal models are one program."""

    mesh: Mesh

    def __call__(self, x: jax.Array) -> jax.Array:
        return sharding.constrain(x, self.mesh, ("batch", "time", "embed"))


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run compiles, before it is compiled.

    Attributes:
      train: jitted `train_step(state, frozen, batch, hyper)` of `training.step.make_train_step`, or with a bank in host
        memory the step of `make_host_rows_step`; its state is donated.
      counted: the train step without rematerialisation, not jitted: the model FLOPs of a step, whatever `remat` says.
      evaluation: jitted step of `training.step.make_evaluation_step`.
      recognition: the same without the base beside it, for utterances of which that is known.
      decoded: both once more, with the log-probabilities that a decoder takes.
      bank: the kind of task bank.
      weights: shapes of all weights that the run owns: {'backbone'}, or {'shared', 'tasks'} of an adapter.
      state: shapes of the state that `train` starts from, without a bank in host memory.
      shardings: of `state`.
      bank_rows: rows of the bank, 0 without one.
      max_tasks: K, the most task rows of one batch.
      optimizer: its settings.
    """

    train: Callable[..., Any]
    counted: Callable[..., Any]
    evaluation: Callable[..., Any]
    recognition: Callable[..., Any]
    decoded: tuple[Callable[..., Any], Callable[..., Any]]
    bank: type[task_bank.TaskBank]
    weights: dict[str, Any]
    state: train_state.TrainState
    shardings: train_state.TrainState
    bank_rows: int
    max_tasks: int
    optimizer: OptimizerConfig


def model_on(
    mesh: Mesh, base: Foundation, method: Adapter, *, settings: RunSettings, augment: AugmentConfig = NO_AUGMENTATION
) -> AsrModel:
    """The model of a run on the devices of a mesh, absent ones too.

    Args:
      mesh: from `layout.open_mesh`.
      base: what the encoder is built on.
      method: the adaptation method.
      settings: the top-level keys of a validated configuration.
      augment: augmentation, which acts only where keys are given, as dropout does.
    """
    block: int | attention_parts.Budget = settings.attention_block
    if settings.attention_block < 0:
        platform = mesh.devices.flat[0].platform
        block = attention_parts.for_platform(platform, devices=mesh.size, tensor=mesh.shape["tensor"])
    return AsrModel(
        features=base.features,
        encoder=base.encoder,
        adapter=method,
        augment=augment,
        dropout=settings.dropout,
        remat=settings.remat,
        attention_block=block,
        dtype=compute_dtype(settings.backbone_dtype),
        constrain=Constraint(mesh),
    )


def bank_rows(adapter: AdapterSettings, tasks: int) -> int:
    """Rows of the bank of so many tasks, those that `adapter.slots` reserves included.

    Raises:
      UserError: fewer slots than tasks.
    """
    if 0 < adapter.slots < tasks:
        raise UserError(f"adapter.slots = {adapter.slots}: there are {tasks} tasks; allowed are 0 or at least as many")
    return adapter.slots or tasks


def trained_part(settings: RunSettings, adapter: AdapterSettings) -> str:
    """Which part of an adapter trains, a key of `train_state.TRAINED`; all there is, where it is the backbone."""
    return adapter.train if settings.method == "adapter" else "all"


def blank_of(base: Foundation, method: Adapter) -> int:
    """The blank among the outputs of a batch: 0 where tasks have vocabularies of their own, else the backbone's."""
    return BLANK_ID if method.own_vocabulary else base.vocabulary.blank_id


def new_weights_shapes(base: Foundation, method: Adapter, rows: int) -> dict[str, Any]:
    """Shapes of a new adapter: {'shared', 'tasks'}, a bank of so many rows."""
    return jax.eval_shape(lambda: initial.new_weights(method, jax.random.key(0), base.encoder, rows))


def lay_out_programs(
    base: Foundation,
    method: Adapter,
    *,
    mesh: Mesh,
    tasks: int,
    settings: RunSettings,
    adapter: AdapterSettings,
    max_tasks: int,
    augment: AugmentConfig,
    optimizer: OptimizerConfig,
) -> Programs:
    """The programs of a run.

    Args:
      base: what the encoder is built on; its weights are not read.
      method: the adaptation method.
      mesh: from `layout.open_mesh`.
      tasks: the number of tasks.
      settings, adapter: top-level keys and group `adapter` of a validated configuration.
      max_tasks: `batch.max_tasks`.
      augment: augmentation in training.
      optimizer: its settings.
    """
    adapted = settings.method == "adapter"
    rows = bank_rows(adapter, tasks) if adapted else 0
    weights = new_weights_shapes(base, method, rows) if adapted else {"backbone": base.shapes()}
    kind: type[task_bank.TaskBank] = task_bank.BANKS[adapter.bank] if adapted else task_bank.NoBank
    has_rows = bool(jax.tree.leaves(weights.get("tasks", {})))
    most = min(max_tasks, rows) if has_rows else 1
    model = model_on(mesh, base, method, settings=settings, augment=augment)
    blank_id, replicated = blank_of(base, method), sharding.replicated(mesh)
    evaluation, recognition = evaluation_steps(model, mesh, blank_id=blank_id)
    decoded = evaluation_steps(model, mesh, blank_id=blank_id, log_probs=True)
    train_step, counted = (
        make_train_step(
            form,
            optimizer,
            blank_id=blank_id,
            seed=settings.seed,
            max_tasks=most,
            accumulate=settings.accumulate,
        )
        for form in (model, model.clone(remat="none", attention_block=0))
    )
    state = jax.eval_shape(
        lambda tree: train_state.create(tree, optimizer, train=trained_part(settings, adapter)),
        on_devices(weights, kind),
    )
    shardings = placement.state_shardings(mesh, state, base.features, base.encoder)
    return Programs(
        train=kind.compiled(train_step, shardings, replicated),
        counted=counted,
        evaluation=evaluation,
        recognition=recognition,
        decoded=decoded,
        bank=kind,
        weights=weights,
        state=state,
        shardings=shardings,
        bank_rows=rows,
        max_tasks=most,
        optimizer=optimizer,
    )


def evaluation_steps(
    model: AsrModel, mesh: Mesh, *, blank_id: int, log_probs: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The evaluation steps of a model from `model_on`, jitted: with the base beside it, and without."""
    out = sharding.replicated(mesh)
    both, alone = (
        jax.jit(make_evaluation_step(model, blank_id=blank_id, beside=beside, log_probs=log_probs), out_shardings=out)
        for beside in (True, False)
    )
    return both, alone


def voice_step(model: AsrModel, mesh: Mesh) -> Callable[..., Any]:
    """The step that hears whose voice it is, jitted."""
    return jax.jit(make_voice_step(model), out_shardings=sharding.replicated(mesh))


def on_devices(weights: dict[str, Any], kind: type[task_bank.TaskBank]) -> dict[str, Any]:
    """The weights that are on the devices all the time: without a bank that is not part of the state."""
    return {name: part for name, part in weights.items() if kind.in_state or name != "tasks"}
