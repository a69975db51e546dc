"""Trains one more task of an exported adapter: its own parameters alone, everything that tasks share stays frozen."""

import contextlib
import json
import tempfile

import jax
from etils import epath

from hra_jax import cli, train
from hra_jax.adapters import methods
from hra_jax.adapters.adapter_folder import ExportedAdapter, read_adapter
from hra_jax.config.files import load_config, validate_config
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.storage.files import write_file

STEPS = 300  # where none are given
TASK_TAG = "task"  # of the copy of the manifest


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
      The exit status, and the adapter with the new task in its last row; None where the run was stopped (75).

    Raises:
      UserError: as `train.train`.
    """
    cli.setup_jax()
    with contextlib.ExitStack() as stack:
        folder = epath.Path(stack.enter_context(tempfile.TemporaryDirectory()) if workdir is None else workdir)
        config = task_config(read_adapter(adapter), steps=steps, learning_rate=learning_rate)
        config.backbone = backbone
        config.adapter.update({"start": adapter, "new_task": init})
        copy = folder / "manifest.jsonl"
        config.data.update({"sources": ((task, str(copy), 1.0),), "tasks": (task,)})
        validate_config(config)
        copy_manifest(manifest, copy, task)
        status = train.train(config, folder)
        return status, None if status else read_adapter(folder / "adapter")


def copy_manifest(manifest: str, copy: epath.Path, task: str) -> None:
    """Writes a manifest anew with every utterance tagged as the task's, and prints what cannot be used.

    Raises:
      UserError: the manifest cannot be read.
    """
    report = DataReport()
    lines = []
    for found in load_manifest(manifest, report=report):
        row = {"audio_filepath": found.audio_filepath, "duration": found.duration, "text": found.text}
        row |= {"offset": found.offset} if found.offset else {}
        lines.append(json.dumps({**found.tags, **row, TASK_TAG: task}, ensure_ascii=False) + "\n")
    if any(report.counts().values()):
        print(f"{manifest}: left out {report.summary()}", flush=True)
    write_file(copy, "".join(lines))


def task_config(exported: ExportedAdapter, *, steps: int | None, learning_rate: float | None):
    """The configuration `own` for the method of an exported adapter, of which one task trains; without data."""
    config = load_config("own")
    config.steps = STEPS if steps is None else steps
    settings = methods.settings(methods.from_folder(exported.config))
    config.adapter.name = settings.pop("name")
    for key, value in settings.items():
        group = config.adapter if key in config.adapter else config[config.adapter.name]
        group[key] = tuple(value) if isinstance(value, list) else value
    config.adapter.train = "tasks"
    config.data.task_tag = TASK_TAG
    config.eval.update({"suite": "", "select_suite": ""})
    config.export["from"] = "last"
    if learning_rate is not None:
        config.optimizer.learning_rate = learning_rate
    # Every batch must divide by the devices, and who adds a task should not have to think of them.
    devices = jax.device_count()
    config.batch.multiple = devices
    config.batch.seconds = max(config.batch.seconds, devices * config.batch.buckets[-1])
    config.batch.max_tasks = 1
    return config
