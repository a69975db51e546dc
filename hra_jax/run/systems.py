"""Systems: what a suite is run on. An exported adapter, a checkpoint of a run, or a backbone by itself.

Nothing here needs training data or the state of an optimizer. What is read before the first use of a device tells
whether a suite fits, and whether it was scored already; weights of backbones are read when they are needed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hra_jax import api
from hra_jax.adapters import adapter_folder, initial, task_records
from hra_jax.adapters.base import Adapter
from hra_jax.config.keys import group
from hra_jax.decoding.language_models import NOTHING_HELD, Held, held
from hra_jax.decoding.words import calibration_errors
from hra_jax.errors import UserError
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import checkpoint_export, foundation, own_models
from hra_jax.run.checkpoint_export import stored_hashes
from hra_jax.run.foundation import Foundation
from hra_jax.run.place import backbone_weights
from hra_jax.run.saving import take
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.tasks import library
from hra_jax.tasks.descriptions import is_untrained
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.training import placement, sharding, train_state
from hra_jax.training.agreement import first_alone
from hra_jax.training.checkpoints import Checkpoints

BASE = "__base__"  # the name of the system that all others are compared with: the frozen backbone by itself


@dataclasses.dataclass(frozen=True)
class System:
    """Something that recognises speech, as far as it is known before it runs.

    Attributes:
      name: what results are reported under, unique in an evaluation.
      base: what its encoder is built on.
      method: the adaptation method; the identity where it is a backbone.
      beside: whether it is compared with the frozen base; not so what is a base itself.
      own: the vocabularies of tasks that have their own, or None.
      tasks: names of the adapter's rows, in order; () of a backbone.
      untrained: those of them that no training step has reached.
      idle: those of them that cannot act yet: these, and those whose output layer is still as it was made.
      accounting: parameter counts and the fingerprint of the backbone, as results have them.
      facts: more fields of its results, such as the step.
      digest: a hash that is another one where its weights or their meaning are others.
      set_aside: tasks that are recognised by the backbone alone.
      voices: what an adapter holds of how its tasks sound.
      where: the folder of an exported adapter.
      trained_on: hashes of the utterances that it was trained on, as far as they are known, by what was trained.
      trained_seconds: of the longest utterances that it was trained on; 0 where that is not known.
      weights: gives, for a mesh, {'shared', 'tasks'} with all rows, whole in every process; of a backbone
        {'backbone'} on the mesh.
      averaged: how many of its first rows have a part in their mean; 0 for all.
      folder: gives the folder of an adapter with its rows, for which it may write to the path that it is given; None
        where it is no adapter.
      held: what is stored of decoding beside its weights.
    """

    name: str
    base: Foundation
    method: Adapter
    beside: bool
    own: OwnVocabularies | None
    tasks: tuple[str, ...]
    untrained: tuple[str, ...]
    idle: tuple[str, ...]
    accounting: dict[str, Any]
    facts: dict[str, Any]
    digest: str
    trained_on: dict[str, np.ndarray] = dataclasses.field(repr=False)
    trained_seconds: float
    weights: Callable[[Mesh], dict[str, Any]] = dataclasses.field(repr=False)
    averaged: int = 0
    folder: Callable[[epath.Path], epath.PathLike] | None = dataclasses.field(default=None, repr=False)
    set_aside: frozenset[str] = frozenset()
    voices: task_records.Records = dataclasses.field(default_factory=dict, repr=False)
    where: str = ""
    held: Held = dataclasses.field(default=NOTHING_HELD, repr=False)

    @property
    def is_adapter(self) -> bool:
        """Whether it has task rows, if only none yet; otherwise it is a backbone."""
        return self.facts["method"] == "adapter"


def of_backbone(name: str, base: Foundation, *, dtype: str) -> System:
    """A backbone by itself."""
    return System(
        name=name,
        base=base,
        method=Adapter(),
        beside=False,
        own=None,
        tasks=(),
        untrained=(),
        idle=(),
        accounting=dict.fromkeys(("trainable_parameters", "shared_parameters", "parameters_per_task"), 0)
        | {"backbone_parameters": train_state.count(base.shapes()), "backbone_fingerprint": base.fingerprint},
        facts={"method": "none"},
        digest=base.fingerprint,
        trained_on=_trained_on(base),
        trained_seconds=0.0 if base.files is None else base.files.trained_seconds,
        weights=lambda mesh: {"backbone": backbone_weights(base, mesh, dtype=compute_dtype(dtype))},
    )


def of_adapter(name: str, folder: epath.PathLike, base: Foundation) -> System:
    """An exported adapter.

    Args:
      name: of the system.
      folder: the adapter folder.
      base: the backbone that it was trained on.

    Raises:
      UserError: not an adapter folder, a damaged one, or one that was trained on another backbone.
    """
    exported = adapter_folder.read_adapter(folder)
    assert base.files is not None, "a backbone that is read has files"
    # The rows alone are wanted of it: the backbone's weights come later.
    model = api.load_adapter(folder, api.Backbone(base.files, {}, np.dtype(np.float32)))
    meaning = {"method": exported.config["method"], "vocabulary": exported.config["vocabulary"]}
    aside = model.set_aside
    meaning |= {"set_aside": sorted(aside)} if aside else {}
    meaning |= {"tasks": [[entry["name"], entry.get("vocabulary")] for entry in exported.tasks_json]}
    untrained = tuple(entry["name"] for entry in exported.tasks_json if is_untrained(entry))
    return System(
        name=name,
        base=base,
        method=model.adapter,
        beside=True,
        own=model.own,
        tasks=model.tasks,
        untrained=untrained,
        set_aside=aside,
        idle=tuple(sorted({*untrained, *aside})),
        accounting=library.accounting(exported, len(exported.tasks)) | {"backbone_fingerprint": base.fingerprint},
        facts={"method": "adapter"}
        | ({"set_aside": sorted(aside)} if aside else {})
        | ({"calibration": errors} if (errors := calibration_errors(exported.tasks_json)) else {}),
        digest=sha256_of_json({"weights": initial.content_hash(str(folder)), "meaning": meaning}),
        trained_on=_trained_on(base, **{f"the adapter {str(folder)!r}": task_records.all_hashes(exported.records)}),
        trained_seconds=model.trained_seconds or base.files.trained_seconds,
        weights=lambda mesh: {"shared": model.shared, "tasks": model.rows},
        folder=lambda place: folder,
        voices=task_records.only_voices(exported.records),
        where=str(folder),
        held=held(exported.tasks_json, exported.records, where=str(folder)),
    )


def of_checkpoint(
    name: str, checkpoints: Checkpoints, step: int | str, config: ConfigDict, base: Foundation, mesh: Mesh
) -> System:
    """A checkpoint of a run; all processes must call it.

    Args:
      name: of the system; `{step}` in it stands for the number of the checkpoint.
      checkpoints: those of the run, open for reading.
      step: a number, 'last' (the newest that is whole) or 'best'.
      config: the configuration of the run.
      base: what its encoder is built on, from `base_of_run`.
      mesh: where a backbone that was trained is placed.

    Raises:
      UserError: no such checkpoint, a damaged one, or one that was trained on another backbone.
    """
    return take(checkpoints, step, lambda number: _of_checkpoint(name, checkpoints, number, config, base, mesh))[1]


def base_of_run(config: ConfigDict, workdir: epath.Path, backbone: str | None = None) -> Foundation:
    """What the encoder of a run is built on; for method 'pretrain' what it has exported, or laid out again.

    Args:
      config: the configuration of the run.
      workdir: the work directory.
      backbone: the folder of its backbone, or builtin:NAME; None takes what the run names.
    """
    if config.method == "pretrain":
        return checkpoint_export.new_base(workdir, config)
    return foundation.load(backbone or config.backbone)


def _of_checkpoint(
    name: str, checkpoints: Checkpoints, step: int, config: ConfigDict, base: Foundation, mesh: Mesh
) -> System:
    sums = checkpoints.checksum(step)
    known = {"checksum": sums} if sums is not None else {"directory": str(checkpoints.directory), "step": step}
    common: dict[str, Any] = {
        "name": name.replace("{step}", str(step)),
        "base": base,
        "beside": config.method != "pretrain",
        "facts": {"step": step, "seed": config.seed, "method": config.method},
        "digest": sha256_of_json(known),
    }
    start_tasks, start_hashes = _start(config.adapter.start)
    hashes = {f"the adapter {config.adapter.start!r}": start_hashes, "this run": stored_hashes(checkpoints, step)[0]}
    common["trained_on"] = _trained_on(base, **hashes)
    common["held"] = own_models.held_in(checkpoints.directory.parent)
    common["trained_seconds"] = config.data.max_seconds or group(config, "batch").edges[-1]
    if config.method != "adapter":
        return System(**common, **_stored_backbone(checkpoints, step, config, base, mesh))
    stored = checkpoint_export.stored_adapter(checkpoints, step, config, base)
    counts = dict(zip(stored.tasks, stored.counts.tolist(), strict=True))
    # A new output layer that all tasks share is zero: no gradient passes it in the first step.
    new_layer = "shared" in stored.vocabularies and not config.adapter.start
    untrained, idle = (
        tuple(task for task, count in counts.items() if count < steps and task not in start_tasks)
        for steps in (1, 2 if new_layer else 1)
    )
    return System(
        **common,
        method=stored.method,
        own=stored.own(base),
        tasks=tuple(stored.tasks),
        untrained=untrained,
        idle=idle,
        accounting=stored.accounting | {"backbone_fingerprint": base.fingerprint},
        weights=lambda mesh: stored.weights,
        folder=functools.partial(_exported, checkpoints.directory.parent, step, base),
    )


def _exported(workdir: epath.Path, step: int, base: Foundation, place: epath.Path) -> epath.Path:
    """The adapter of a checkpoint, exported to a folder; a collective."""
    backbone = None if base.files is None else str(base.files.folder)
    first_alone(lambda: checkpoint_export.export_checkpoint(workdir, place, step=step, backbone=backbone))
    return place


def _stored_backbone(
    checkpoints: Checkpoints, step: int, config: ConfigDict, base: Foundation, mesh: Mesh
) -> dict[str, Any]:
    """What a System has of a checkpoint with a backbone of its own."""
    if config.method != "pretrain":
        checkpoint_export.check_base(checkpoints, step, base)
    shapes, shardings = base.shapes(), placement.backbone_shardings(mesh, base.features, base.encoder)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )
    # Damage is found now, while another checkpoint may still be taken.
    weights = checkpoints.restore_part(step, {"trainable": {"backbone": placed}})["trainable"]
    numbers = train_state.accounting({"backbone": shapes}, 0, train_state.count(shapes))
    return {
        "method": Adapter(),
        "own": None,
        "tasks": (),
        "untrained": (),
        "idle": (),
        "accounting": {name: value for name, value in numbers.items() if name != "tasks"}
        | {"backbone_fingerprint": base.fingerprint},
        "weights": lambda mesh: weights,
    }


def _start(folder: str) -> tuple[frozenset[str], np.ndarray]:
    """The tasks of the adapter that a run started from, and what these were trained on, as far as it is still there."""
    try:
        exported = adapter_folder.read_adapter(folder, shapes=False) if folder else None
    except UserError:
        exported = None
    if exported is None:
        return frozenset(), np.zeros(0, np.uint64)
    return frozenset(exported.tasks), task_records.all_hashes(exported.records)


def _trained_on(base: Foundation, **more: np.ndarray) -> dict[str, np.ndarray]:
    """The hashes of what was trained on, those of the backbone among them; none that stand for nothing."""
    backbone = {} if base.files is None else base.files.records
    found = {f"the backbone {base.name!r}": task_records.all_hashes(backbone), **more}
    known = {what: np.unique(hashes[hashes != 0]) for what, hashes in found.items()}
    return {what: hashes for what, hashes in known.items() if len(hashes)}


def suite_weights(weights: dict[str, Any], tasks: int, runner: SuiteRunner, mesh: Mesh) -> dict[str, Any]:
    """What `SuiteRunner.run` takes: of the rows of a system those that the suite uses, and their mean, on the mesh.

    Args:
      weights: from `System.weights`.
      tasks: how many of the rows are of tasks.
      runner: of the suite.
      mesh: where they are placed.
    """
    if "backbone" in weights:
        return weights

    def chosen(leaf: Any) -> np.ndarray:
        rows = np.asarray(leaf)
        mean = [rows[:tasks].mean(axis=0, keepdims=True, dtype=np.float32)] if runner.needs_mean else []
        return np.concatenate([rows[list(runner.rows)], *mean])

    bank = jax.tree.map(chosen, weights["tasks"])
    return sharding.place({"shared": weights["shared"], "tasks": bank}, sharding.replicated(mesh))
