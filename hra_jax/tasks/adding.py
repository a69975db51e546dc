"""A new task of an exported adapter: started as zero, the mean or another task, or trained on recordings.

Training changes the task's own parameters alone; everything that tasks share stays frozen.
"""

import contextlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import initial, methods, task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter, read_adapter
from hra_jax.adapters.base import no_parameters
from hra_jax.config.files import load_config, validate_config
from hra_jax.config.keys import group
from hra_jax.console import listed, tell
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_source
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.run import workdirs
from hra_jax.run.jax_setup import setup_jax
from hra_jax.storage import locks
from hra_jax.storage.files import write_file
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.storage.writing import temporary_folder
from hra_jax.tasks import library
from hra_jax.tasks.backbone import load_backbone, resolve_backbone
from hra_jax.tasks.names import BASE_TASK

STEPS = 300  # where none are given
TASK_TAG = "task"  # of the copy of the manifest


# --- Started ----------------------------------------------------------------------------------------------------------


def check_start(exported: ExportedAdapter, init: str) -> None:
    """Refuses what a new task cannot start as: anything but zero, mean (of at least one task), and a task's name."""
    initial.check_new_task(init, exported.tasks, where=f"a new task cannot start as {init!r}")


def started(
    exported: ExportedAdapter, init: str, encoder: EncoderConfig | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """The parameters that a new task starts with, in the dtypes of the adapter; see `initial.started_rows`.

    Args:
      exported: the adapter.
      init: 'zero' (drawn by the method, without effect: what a run of this seed draws for the next row), 'mean' of the
        tasks, or the name of a task.
      encoder: the geometry of the backbone; needed for 'zero' alone.
      seed: of what is drawn.

    Raises:
      UserError: `init` is none of these.
    """
    check_start(exported, init)
    adapter = methods.from_folder(exported.config)
    if adapter.own_vocabulary and not adapter.shared_output and init in initial.NEW_TASKS:
        raise UserError(
            f"a new task cannot start as {init!r} without training texts: every task has a vocabulary of its own; "
            f"allowed: {listed(exported.tasks, show=str)}"
        )
    declared = exported.config["tensors"]["task"]
    flat = {path: np.zeros((1, *entry["shape"]), jnp.dtype(entry["dtype"])) for path, entry in declared.items()}
    if init == "zero":
        assert encoder is not None, "a task that starts as zero is drawn for the geometry of the backbone"
        drawn = initial.new_rows(adapter, jax.random.key(seed), encoder, jnp.array([len(exported.tasks)]))
        for path, leaf in flatten(drawn, separator=".").items():
            flat[path][:] = leaf
    rows = no_parameters() | unflatten(flat, separator=".")
    # A reserved name, so that it is none of the adapter's tasks.
    initial.started_rows(rows, [BASE_TASK], exported, new_task=init)
    return unflatten({path: leaf[0] for path, leaf in flat.items()}, separator=".")


def started_task(exported: ExportedAdapter, task: str, *, init: str, backbone: str | None = None) -> ExportedAdapter:
    """The adapter with a new task that is not trained.

    Args:
      exported: the adapter.
      task: the name of the new task.
      init: as for `started`.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names. Read for 'zero' alone.

    Raises:
      UserError: as `started`; a name that is not allowed or in use; another backbone.
    """
    encoder = load_backbone(exported, backbone).encoder if init == "zero" else None
    copied = task_records.copied_fields(library.extras(exported, init)) if init in exported.tasks else {}
    entry = {"step": 0, **copied, "init": init}
    records = initial.started_records(exported, task, init)
    return library.added(exported, task, started(exported, init, encoder), entry=entry, records=records)


# --- Trained ----------------------------------------------------------------------------------------------------------


def trained_task(
    adapter: str,
    exported: ExportedAdapter,
    task: str,
    *,
    init: str,
    manifest: str,
    backbone: str | None,
    **training: Any,
) -> tuple[int, ExportedAdapter | None]:
    """The adapter with a new task that was trained; see `train_task` for the arguments and what is raised.

    Args:
      adapter: the folder.
      exported: what `read_adapter` read there.

    Returns:
      The exit status of the training, and the adapter; None where the run was stopped (75, 130).
    """
    location = resolve_backbone(exported, backbone)
    status, trained = train_task(adapter, task, init=init, manifest=manifest, backbone=location, **training)
    if trained is None:
        return status, None
    # What was trained is worth nothing if another command has changed the shared part meanwhile.
    fresh = read_adapter(adapter)
    library.check_same_base(exported, fresh)
    entry = {**library.extras(trained, task), "init": init}
    records = task_records.of_task(trained.records, task)
    return status, library.added(fresh, task, trained.tasks[task], entry=entry, records=records)


def train_task(
    adapter: str,
    task: str,
    *,
    init: str,
    manifest: str,
    backbone: str,
    steps: int | None = None,
    learning_rate: float | None = None,
    workdir: str | None = None,
) -> tuple[int, ExportedAdapter | None]:
    """Trains a task that an adapter folder does not have; the folder itself is only read.

    Args:
      adapter: the folder.
      task: the new task.
      init: as `adapter.new_task` of a configuration.
      manifest: the recordings; all of them are this task's, whatever their tags say.
      backbone: folder of the adapter's backbone, or builtin:NAME.
      steps: optimizer steps; None is STEPS.
      learning_rate: peak; None is that of the configuration `own`.
      workdir: work directory, with which a stopped run is continued; None for a temporary one.

    Returns:
      The exit status, and the adapter with the new task in its last row; None where the run was stopped (75, 130).

    Raises:
      UserError: as `hra_jax.train.train`.
    """
    # Late: training needs TensorFlow, what only starts a task does not.
    from hra_jax import train

    setup_jax()
    with contextlib.ExitStack() as stack:
        folder = workdirs.named(stack.enter_context(temporary_folder()) if workdir is None else workdir)
        config = task_config(read_adapter(adapter), steps=steps, learning_rate=learning_rate)
        config.backbone = backbone
        config.adapter.update({"start": adapter, "new_task": init})
        copy = folder / workdirs.MANIFEST
        config.data.update({"sources": ((task, str(copy), 1.0),), "tasks": (task,)})
        validate_config(config)
        workdirs.check_ours(folder)
        stack.enter_context(locks.hold(folder, "tasks add"))
        copy_manifest(manifest, copy, task)
        status = train.train(config, folder)
        return status, None if status else read_adapter(folder / workdirs.ADAPTER)


def copy_manifest(manifest: str, copy: epath.Path, task: str) -> None:
    """Copies a manifest with every utterance tagged as the task's, and prints what cannot be used.

    Raises:
      UserError: the manifest cannot be read; or another file lies in the place of the copy, and no run beside it.
    """
    report = DataReport()
    lines = []
    for found in read_source(manifest, report=report)[0]:
        lines.append(json.dumps({**found.tags, **found.as_line(), TASK_TAG: task}, ensure_ascii=False) + "\n")
    if any(report.counts().values()):
        tell(f"{manifest}: left out {report.summary()}")
    content = "".join(lines)
    # Without a configuration beside it, it is a copy whose run never began, or somebody's.
    if copy.exists() and not (copy.parent / workdirs.CONFIG).exists() and copy.read_bytes() != content.encode():
        raise UserError(f"{str(copy)!r} is there already; allowed: a work directory that is new, or of a run")
    write_file(copy, content)


def task_config(exported: ExportedAdapter, *, steps: int | None, learning_rate: float | None) -> ConfigDict:
    """The configuration `own` for the method of an exported adapter, of which one task trains; without data."""
    config = load_config("own")
    config.steps = STEPS if steps is None else steps
    settings = methods.settings(methods.from_folder(exported.config))
    config.adapter.name = settings.pop("name")
    for key, value in settings.items():
        node = config.adapter if key in config.adapter else config[config.adapter.name]
        node[key] = tuple(value) if isinstance(value, list) else value
    config.adapter.train = "tasks"
    config.data.task_tag = TASK_TAG
    config.eval.update({"suite": "", "select_suite": ""})
    config.export.step = "last"
    if learning_rate is not None:
        config.optimizer.learning_rate = learning_rate
    # Every batch must divide by the devices, and who adds a task should not have to think of them.
    devices = jax.device_count()
    config.batch.multiple = devices
    config.batch.seconds = max(config.batch.seconds, devices * group(config, "batch").edges[-1])
    config.batch.max_tasks = 1
    return config
