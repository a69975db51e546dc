"""The third stage of a run: weights, state and bank are made, and lie on the mesh."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from hra_jax.adapters import initial, task_records
from hra_jax.adapters.base import no_parameters
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.data.report import DataReport
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.models import backbone_folder
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import foundation, programs
from hra_jax.run.layout import Layout
from hra_jax.run.read import Material
from hra_jax.run.settings import RunSettings
from hra_jax.training import placement, sharding, task_bank, train_state
from hra_jax.training.best_rows import BestRows
from hra_jax.training.step import SOUNDS


@dataclasses.dataclass
class Run:
    """A run at some step.

    Attributes:
      settings: the top-level keys of its configuration.
      workdir: the work directory.
      report: where unusable data goes.
      material: what it has read.
      layout: how it lies on its devices.
      state: weights and optimizer state.
      bank: the task rows, and the step that advances them.
      frozen: the backbone's weights on the devices; None where the backbone itself is trained.
      best: best so far on the selection suite, JSON: macro, by task, by row.
      best_rows: the rows of those steps, where each task is exported at its own best.
      hashes: of the utterances that were trained on; None where nobody is to know them.
      fields: what was found of tasks after the last step, `{field: {task: value}}` of `task_records.FIELDS`.
      voices: how the tasks sound, found after the last step; {} where that is not known.
      failures: validations and reports that failed; the run goes on without them.
    """

    settings: RunSettings
    workdir: epath.Path
    report: DataReport
    material: Material
    layout: Layout
    state: train_state.TrainState
    bank: task_bank.TaskBank
    frozen: dict[str, Any] | None
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_rows: BestRows = dataclasses.field(default_factory=BestRows)
    hashes: UtteranceHashes | None = None
    fields: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    voices: task_records.Records = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)


def place(
    material: Material,
    layout: Layout,
    *,
    settings: RunSettings,
    adapter: AdapterSettings,
    workdir: epath.Path,
    report: DataReport,
    hashes: bool = False,
) -> Run:
    """Makes or reads the weights, and puts them on the mesh with what training keeps beside them.

    Args:
      material: from `read.read_material`.
      layout: from `layout.lay_out`.
      settings, adapter: top-level keys and group `adapter` of a validated configuration.
      workdir, report: of the run.
      hashes: whether the samples that it trains on are to be hashed.

    Raises:
      UserError: `adapter.new_task` is no task of the adapter to start from, or a weight cannot be read.
    """
    state, bank = start_weights(material, layout, settings=settings, adapter=adapter)
    frozen = None
    if settings.method == "adapter":
        frozen = backbone_weights(material.base, layout.mesh, dtype=compute_dtype(settings.backbone_dtype))
    return Run(
        settings=settings,
        workdir=workdir,
        report=report,
        material=material,
        layout=layout,
        state=state,
        bank=bank,
        frozen=frozen,
        hashes=UtteranceHashes(len(layout.table)) if hashes else None,
    )


def start_weights(
    material: Material, layout: Layout, *, settings: RunSettings, adapter: AdapterSettings
) -> tuple[train_state.TrainState, task_bank.TaskBank]:
    """Makes or reads the weights that are trained, and puts them on the mesh: state and bank before the first step.

    Arguments and errors are those of `place`.
    """
    laid_out, base = layout.programs, material.base
    weights, started = _initial_weights(material, layout, settings=settings, adapter=adapter)
    on_devices = programs.on_devices(weights, laid_out.bank)
    state = train_state.create(on_devices, laid_out.optimizer, train=programs.trained_part(settings, adapter))
    replicated = sharding.replicated(layout.mesh)
    hyper: dict[str, Any] = {
        "seed": np.uint32(settings.seed),
        "learning_rate": np.float32(laid_out.optimizer.learning_rate),
    }
    hyper |= {SOUNDS: material.sounds} if material.sounds else {}

    def draw() -> dict[str, Any]:
        return dict(_new_adapter(layout, base, seed=settings.seed)["tasks"])

    bank = laid_out.bank.make(
        task_bank.BankSetup(
            train_step=laid_out.train,
            tasks=weights.get("tasks", {}),
            hyper=sharding.place(hyper, replicated),
            max_tasks=laid_out.max_tasks,
            draw=draw,
            replicated=replicated,
            state_shardings=laid_out.shardings,
        )
    )
    bank.touch(started)
    return sharding.place(state, laid_out.shardings), bank


def backbone_weights(base: foundation.Foundation, mesh: Mesh, *, dtype: Any) -> dict[str, Any]:
    """The weights of a backbone on the mesh, read from its folder, of which every process reads its part."""
    assert base.files is not None, "only pre-training has no files, and reads none"
    shardings = placement.backbone_shardings(mesh, base.features, base.encoder)
    weights: dict[str, Any] = backbone_folder.load_params(base.files, shardings, dtype=dtype)
    return weights


def _initial_weights(
    material: Material, layout: Layout, *, settings: RunSettings, adapter: AdapterSettings
) -> tuple[dict[str, Any], list[int]]:
    """What a run starts from, and the rows of the bank that the seed alone would not give again.

    Numpy, but for a backbone that is trained further: that lies on the mesh.
    """
    base, start = material.base, material.start
    if settings.method == "full":
        return {"backbone": backbone_weights(base, layout.mesh, dtype=np.float32)}, []
    if settings.method == "pretrain":
        return {"backbone": jax.tree.map(np.asarray, foundation.random_weights(base, settings.seed))}, []
    weights, started = _new_adapter(layout, base, seed=settings.seed), []
    if start is not None:
        weights["shared"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), no_parameters() | start.shared)
        started = initial.started_rows(weights["tasks"], layout.tasks, start, new_task=adapter.new_task)
    return weights, started


def _new_adapter(layout: Layout, base: foundation.Foundation, *, seed: int) -> dict[str, Any]:
    """A new adapter as the seed gives it, numpy, its bank with every row that is laid out."""
    weights: dict[str, Any] = initial.new_weights_on_host(
        layout.method, jax.random.key(seed), base.encoder, layout.programs.bank_rows
    )
    return weights
