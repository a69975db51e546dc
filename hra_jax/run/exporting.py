"""What a run leaves behind: W/adapter of the methods of adaptation, W/backbone of the others."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import adapter_folder, initial, methods, task_records
from hra_jax.adapters.task_records import CALIBRATION, CENTROID, DECODE, WHITENING
from hra_jax.config.files import config_to_json
from hra_jax.config.settings import boolean, check_settings, one_of, setting
from hra_jax.console import tell
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.dtypes import STORAGE_DTYPES
from hra_jax.run import own_exports, workdirs
from hra_jax.run.foundation import Foundation
from hra_jax.run.place import Run
from hra_jax.run.scoring import accounting
from hra_jax.storage import folders
from hra_jax.storage.files import check_no_link
from hra_jax.storage.trees import flatten
from hra_jax.tasks.names import check_name
from hra_jax.training import agreement, sharding

BEST_PER_TASK = "best_per_task"  # the row of each task as it was when that task was at its best
STEPS = ("last", "best", BEST_PER_TASK)


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """The keys `export.*`."""

    step: str = setting(
        "last",
        one_of(lambda: STEPS),
        "checkpoint that is exported: last; best (on eval.select_suite); best_per_task (each task at its own best; "
        "where nothing that tasks share trains)",
    )
    dtype: str = setting(
        "float32", one_of(lambda: STORAGE_DTYPES), "of an exported backbone (methods full and pretrain)"
    )
    hashes: bool = setting(
        True,
        boolean(),
        "whether exports hold 64 bits of a hash of every utterance that was trained on, by which evaluation refuses a "
        "suite that has it; whoever has a recording can then tell that it was used",
    )
    voices: bool = setting(
        True,
        boolean(),
        "whether an adapter holds how each task sounds, the mean over at most 50 of its utterances, by which the task "
        "__auto__ finds whose voice a recording is",
    )

    def __post_init__(self) -> None:
        check_settings(self, "export")


def as_stored(weights: Any, dtype: str) -> Any:
    """The weights of a backbone with the precision that they are exported with, their dtypes unchanged."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype).astype(leaf.dtype), weights)


def export(
    run: Run,
    *,
    config: ConfigDict,
    dtype: str,
    step: int,
    task_steps: Mapping[str, int],
) -> None:
    """Writes what has been trained; all processes must call it, and process 0 writes.

    Scores come later, with `add_results`: whatever happens to them, what was trained is there.

    Args:
      run: the run, with the state of `step`.
      config: its configuration, which a backbone's folder tells.
      dtype: of an exported backbone.
      step: of the state.
      task_steps: the step of each task's row.
    """
    written = True
    if run.settings.method == "adapter":
        _check_names(run.layout.tasks, run.workdir)
        written = _export_adapter(run, task_steps=task_steps, results=None)
    else:
        _export_backbone(run, config=config, dtype=dtype, step=step)
    if jax.process_index() == 0:
        folder = _folder(run)
        tell(
            f"exported step {step} to {folder}"
            if written
            else f"{folder} is not what this run exported there: it was changed since, and is left as it is; to export "
            f"step {step}, move it away and give the same command again"
        )
    agreement.barrier("exported")


def add_results(run: Run, results: dict[str, Any], *, task_steps: Mapping[str, int]) -> None:
    """Writes the scores of the test suite into what `export` has written; all processes must call it."""
    if run.settings.method == "adapter":
        _export_adapter(run, task_steps=task_steps, results=results)
    elif jax.process_index() == 0:
        backbone_folder.add_info(_folder(run), {"wer": {results["suite"]: results["wer"]}})
    agreement.barrier("results exported")


def add_field(run: Run, field: str, values: Mapping[str, Any], *, task_steps: Mapping[str, int]) -> None:
    """Writes what was found of tasks into what `export` has written; all processes must call it.

    Args:
      run: the run, of an adapter.
      field: of tasks.json, one of `task_records.FIELDS`.
      values: of the tasks that have one; the same in every process.
      task_steps: as for `export`.
    """
    run.fields[field] = dict(values)
    _export_adapter(run, task_steps=task_steps, results=None)
    agreement.barrier(f"{field} exported")


def add_voices(run: Run, voices: task_records.Records, *, task_steps: Mapping[str, int]) -> None:
    """Writes how the tasks sound into what `export` has written; all processes must call it."""
    run.voices = voices
    _export_adapter(run, task_steps=task_steps, results=None)
    agreement.barrier("voices exported")


def _check_names(tasks: Sequence[str], workdir: epath.Path) -> None:
    """Tells the way out of a run, begun before names were looked at, with a task that no adapter may have."""
    try:
        for name in tasks:
            check_name(name)
    except UserError as error:
        raise UserError(
            f"{error}; every step is saved, and is exported by: python -m hra_jax.tasks export-checkpoint "
            f"--workdir {workdir} --output DIR --rename OLD=NEW"
        ) from error


def _folder(run: Run) -> epath.Path:
    return run.workdir / (workdirs.ADAPTER if run.settings.method == "adapter" else workdirs.BACKBONE)


def _export_adapter(run: Run, *, task_steps: Mapping[str, int], results: dict[str, Any] | None) -> bool:
    """Writes W/adapter from what the tasks share, and the rows of the bank; False where it is left as it is."""
    # Every process takes part in reading what may be split over them, and one writes.
    rows = run.bank.rows(run.state, np.arange(len(run.layout.tasks)))
    shared = sharding.to_host(run.state.weights["shared"])
    if jax.process_index():
        return True
    scored, material = _scores(results), run.material
    base, own = material.base, material.own
    earlier, entries = _came_along(run, rows["count"]), []
    for row, (name, trained) in enumerate(zip(run.layout.tasks, rows["count"] > 0, strict=True)):
        # A task that only came along says what it said where it was trained; one that was never drawn says step 0.
        entry = {"step": task_steps[name]} if trained else dict(earlier.get(name, {"step": 0}))
        if results is not None and name in scored:
            entry = {**entry, "wer": scored[name], "suite": results["suite"]}
        if own is not None and own.shared is None:
            entry = {**entry, "vocabulary": own.of(name).to_json()}
        entry |= {field: values[name] for field, values in run.fields.items() if name in values}
        entries.append({**entry, "name": name, "row": row})
    vocabulary = own.shared if own is not None and own.shared is not None else base.vocabulary

    def write(fresh: epath.Path) -> None:
        adapter_folder.write_adapter(
            fresh,
            method=methods.settings(run.layout.method),
            weights={"shared": shared, "tasks": rows["tasks"]},
            tasks=entries,
            backbone={"name": base.name, "fingerprint": base.fingerprint},
            vocabulary=vocabulary.to_json(),
            accounting=accounting(run),
            results=results,
            records=_records(run, shared=_has_moved(run)),
            trained_seconds=run.layout.table.max_seconds,
            durable=False,  # whoever replaces the folder puts it on the disk
        )

    return own_exports.replace_adapter(run.workdir, write, tasks=run.layout.tasks)


def decoded_as_before(run: Run) -> dict[str, Any]:
    """The fields `decode` of the tasks that only came along with `adapter.start`, as `export` keeps them; a collective.

    {} where what all tasks share has been trained: what was tuned holds for the adapter as it was.
    """
    if run.material.start is None:
        return {}
    entries = _came_along(run, run.bank.counts(run.state))
    return {name: entry[DECODE] for name, entry in entries.items() if entry.get(DECODE) is not None}


def _came_along(run: Run, counts: Iterable[int]) -> dict[str, dict[str, Any]]:
    """The entries that the tasks without a step have in the adapter that the run started from, as far as they hold.

    Args:
      run: the run.
      counts: steps that the tasks have had.
    """
    start = run.material.start
    still = {task for task, count in zip(run.layout.tasks, counts, strict=False) if not count}
    # With what all tasks share it is another adapter.
    gone = {CALIBRATION, DECODE} if _has_moved(run) else set()
    return {
        entry["name"]: {field: value for field, value in entry.items() if field not in gone}
        for entry in ([] if start is None else start.tasks_json)
        if entry["name"] in still
    }


def _has_moved(run: Run) -> bool:
    """Whether what all tasks share is trained."""
    return bool(jax.tree.leaves(run.state.weights["shared"])) and not run.state.fixed


def _records(run: Run, *, shared: bool) -> task_records.Records:
    """What is held for each task: what the adapter that the run started from held, and what the run has seen of it.

    Args:
      run: the run.
      shared: whether it trained what all tasks share.
    """
    start, tasks = run.material.start, run.layout.tasks
    if run.hashes is None:
        records = {} if start is None else task_records.without_hashes(start.records)
    else:
        records = initial.started_from(start, tasks, run.material.new_task, trained=_trained(run, tasks, shared=shared))
    if shared:
        # Tasks that only came along no longer sound as they did.
        return task_records.joined(task_records.without_voices(records), run.voices)
    return task_records.joined(
        {WHITENING: run.voices.get(WHITENING, {})}, records, {CENTROID: run.voices.get(CENTROID, {})}
    )


def _trained(run: Run, tasks: Sequence[str], *, shared: bool) -> task_records.Records:
    """The hashes of what the run was given up to its step; `saving.gather_hashes` has brought them here."""
    assert run.hashes is not None, "the caller has looked"
    known = np.flatnonzero(run.hashes.values)
    return task_records.hashes_by_task(run.hashes.values[known], run.layout.table.task[known], tasks, shared=shared)


def _export_backbone(run: Run, *, config: ConfigDict, dtype: str, step: int) -> None:
    """Writes W/backbone from the state, a weight at a time; all processes must call it, and process 0 writes."""
    weights = flatten(run.state.weights["backbone"], separator=".")

    def read(name: str) -> np.ndarray:
        weight: np.ndarray = sharding.to_host(weights[name])
        return weight

    if jax.process_index():
        # In the order in which process 0 asks for them.
        for name in sorted(weights):
            read(name)
        return
    check_no_link(_folder(run))
    trained = {} if run.hashes is None else _trained(run, (), shared=True)
    write_backbone(_folder(run), read, base=run.material.base, config=config, dtype=dtype, step=step, trained=trained)


def write_backbone(
    folder: epath.Path,
    read: Callable[[str], np.ndarray],
    base: Foundation,
    *,
    config: ConfigDict,
    dtype: str,
    step: int,
    trained: task_records.Records,
) -> None:
    """Writes the backbone folder of a run of method 'full' or 'pretrain', or replaces it.

    Args:
      folder: the folder.
      read: gives the weight of a name.
      base: what the run was built on.
      config: its configuration.
      dtype: to store the weights with.
      step: of the weights.
      trained: what is held of the training; what the backbone held that it started from comes to it.
    """
    earlier = {} if base.files is None else base.files.records
    source_license = "" if base.files is None else base.files.info.get("license", "")
    made_by = {"method": config.method, "config": json.loads(config_to_json(config)), "step": step}
    folders.replace_folder(
        folder,
        lambda fresh: backbone_folder.write(
            fresh,
            read,
            features=base.features,
            encoder=base.encoder,
            vocabulary=base.vocabulary.to_json(),
            dtype=dtype,
            info={"name": base.name, "source": made_by, "license": source_license, "wer": None},
            records=task_records.joined(earlier, trained),
        ),
        rewritten=backbone_folder.is_own_file,
    )


def _scores(results: dict[str, Any] | None) -> dict[str, float]:
    """The word error rate of each adapter task that one task of the suite is recognised with."""
    rates: dict[str, list[float]] = {}
    for task in () if results is None else results["tasks"].values():
        rates.setdefault(task["adapter_task"], []).append(task["wer"])
    return {name: wers[0] for name, wers in rates.items() if len(wers) == 1}
