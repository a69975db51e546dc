"""How the tasks of an exported adapter sound: their centroids, by which `__auto__` finds the task of a recording."""

from collections.abc import Sequence

import numpy as np

from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.config.keys import group
from hra_jax.console import listed, tell
from hra_jax.data import audio
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings, read_source, read_sources
from hra_jax.data.utterance import Utterance
from hra_jax.decoding import unknown_task
from hra_jax.errors import UserError
from hra_jax.tasks import library
from hra_jax.tasks.backbone import resolve_backbone

_TOGETHER = 16  # recordings that run at a time


def utterances_of(
    manifest: str | None, workdir: str | None, *, tag: str | None
) -> tuple[list[Sequence[Utterance]], str]:
    """The recordings of a manifest, or of what a run was trained on, and the tag that has their tasks.

    Raises:
      UserError: neither or both are given; a manifest that cannot be read.
    """
    if (manifest is None) == (workdir is None):
        raise UserError("centroids needs --manifest, recordings of the tasks, or else --workdir, the run that has them")
    report = DataReport()
    if manifest is not None:
        found = [read_source(manifest, report=report)[0]]
        wanted = tag or DataSettings.task_tag
    else:
        from hra_jax.run.workdirs import stored_config  # it imports what training needs

        data = group(stored_config(str(workdir)), "data")
        # Not `data.modules`: the work directory may be a stranger's, and none of its modules is run.
        found = [source.utterances for source in read_sources(data.sources, report=report, data_dir=data.dir)]
        wanted = tag or data.task_tag
    if any(report.counts().values()):
        tell(f"left out {report.summary()}")
    return found, wanted


def with_centroids(
    adapter: str, exported: ExportedAdapter, sources: Sequence[Sequence[Utterance]], *, tag: str, backbone: str | None
) -> tuple[ExportedAdapter, list[str]]:
    """The adapter with the centroids of the tasks that have recordings, and these; others keep theirs, all the units.

    Args:
      adapter: its folder.
      exported: what `read_adapter` read there.
      sources: recordings.
      tag: of them, which has the task.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.

    Raises:
      UserError: no recording of any task, or none that can be read of one that would have no centroid.
    """
    rows = [row for source in sources for row in source]
    numbers = {name: number for number, name in enumerate(exported.tasks)}
    tasks = np.array([numbers.get(row.tag(tag) or "", -1) for row in rows], np.int64)
    earlier = exported.records.get(task_records.CENTROID, {})
    silent = [name for name, n in numbers.items() if not (tasks == n).any() and name not in earlier]
    if silent:
        raise UserError(
            f"no recording has {tag}={silent[0]!r}{f', and so with {len(silent) - 1} more tasks' * (len(silent) > 1)}; "
            f"needed: recordings of {listed(silent)}, whose tag --tag names"
        )
    chosen = unknown_task.sample(tasks)
    names = list(exported.tasks)
    voices, heard = _voices(adapter, exported, [rows[n] for n in chosen], backbone=backbone)
    found = [names[tasks[chosen[n]]] for n in heard]
    now = set(found)
    told = [name for name in names if name in now]
    lost = [name for name in names if name not in now and name not in earlier]
    if lost:
        raise UserError(f"no recording of {listed(lost)} could be read; needed: one of each task that was never heard")
    records = unknown_task.records_of(voices, found)
    # How far tasks spread is told better by what was heard of all of them than by a few.
    units = exported.records.get(task_records.WHITENING, {}) if len(told) < len(names) else {}
    records = task_records.joined(records, {task_records.WHITENING: units})
    return library.with_records(exported, records), told


def _voices(
    adapter: str, exported: ExportedAdapter, rows: Sequence[Utterance], *, backbone: str | None
) -> tuple[np.ndarray, list[int]]:
    """The voices of recordings, and which of them could be read; each as far as is recognised at once."""
    # Late: who gives no recordings waits for no JAX.
    from hra_jax.api import load_adapter, load_backbone
    from hra_jax.run.jax_setup import setup_jax

    setup_jax()
    base = load_backbone(resolve_backbone(exported, backbone))
    model = load_adapter(adapter, base)
    most = int(model.chunk_seconds * base.sample_rate)
    order = sorted(range(len(rows)), key=lambda n: rows[n].duration)  # little padding
    voices: list[np.ndarray] = []
    heard: list[int] = []
    for start in range(0, len(order), _TOGETHER):
        waves = []
        for number in order[start : start + _TOGETHER]:
            try:
                waves.append(audio.decode(rows[number], base.sample_rate)[:most])
                heard.append(number)
            except audio.AudioError as error:
                tell(f"{rows[number].key}: {error}")
        if waves:
            voices.extend(model.voices(waves, sample_rate=base.sample_rate).voices)
    if not voices:
        raise UserError("none of the recordings could be read")
    return np.array(voices), heard
