"""An exported adapter as a library of tasks: tasks come, go, change their names, and move between adapters.

Every function takes an `ExportedAdapter` and gives a new one. The tensors of tasks that a change is not about stay the
same bytes, what else is held for them follows them (`adapters.task_records`), rows are renumbered without gaps, in
their order, and the accounting follows. `write` puts an adapter in the place of the folder that it came from.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from hra_jax.adapters import adapter_folder, methods, task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.errors import UserError
from hra_jax.storage.folders import replace_folder
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import check_name, check_tasks

_COUNTS = ("trainable_parameters", "shared_parameters", "parameters_per_task", "backbone_parameters")


# --- Counts -----------------------------------------------------------------------------------------------------------


def parameters(exported: ExportedAdapter) -> tuple[int, int]:
    """The number of shared parameters, and of one task's."""
    declared = exported.config["tensors"]
    shared, task = (sum(math.prod(e["shape"]) for e in declared[part].values()) for part in ("shared", "task"))
    return shared, task


def accounting(exported: ExportedAdapter, tasks: int) -> dict[str, Any]:
    """The accounting of the adapter with another number of tasks."""
    earlier = exported.config["accounting"]
    for name in _COUNTS:
        if type(earlier.get(name)) is not int:
            raise UserError(
                f"{adapter_folder.CONFIG_FILE}: needs an integer accounting.{name}; got {earlier.get(name)!r}"
            )
    shared, task = parameters(exported)
    # Whether shared parameters count as trained is for the run to say that made them.
    trained = earlier["trainable_parameters"] + (tasks - len(exported.tasks)) * task
    return earlier | {"trainable_parameters": trained, "shared_parameters": shared, "parameters_per_task": task}


# --- Tasks come and go ------------------------------------------------------------------------------------------------


def extras(exported: ExportedAdapter, task: str) -> dict[str, Any]:
    """What tasks.json says of a task beyond its name and row."""
    (entry,) = (entry for entry in exported.tasks_json if entry["name"] == task)
    return {k: v for k, v in entry.items() if k not in ("name", "row", "file")}


def check_parameters(name: str, given: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses parameters that a task cannot have.

    Args:
      name: of the task.
      given: its parameters by path.
      shapes: the parameters that a task has, by path.

    Raises:
      UserError: a parameter is missing, is none of a task's, has another shape, or is not finite.
    """
    for path in dict.fromkeys((*shapes, *given)):
        there = str(given[path].shape) if path in given else "absent"
        allowed = str(shapes[path]) if path in shapes else "absent"
        if there != allowed:
            raise UserError(f"task {name!r}: the parameter {path!r} is {there}; allowed is {allowed}")
        if not np.isfinite(given[path]).all():
            raise UserError(f"task {name!r}: the parameter {path!r} holds NaN or infinite values; allowed: finite ones")


def _with_tasks(
    exported: ExportedAdapter,
    entries: Iterable[Mapping[str, Any]],
    tasks: Mapping[str, dict[str, Any]],
    *,
    records: task_records.Records,
) -> ExportedAdapter:
    """The adapter with these tasks in this order; of an entry only the row changes.

    Every change of an adapter goes through here; `records` may be of more tasks than there are.
    """
    adapter_folder.check_known_files(exported)
    kept = ({key: value for key, value in entry.items() if key != "file"} for entry in entries)  # the writer names it
    numbered: list[dict[str, Any]] = [{**entry, "row": row} for row, entry in enumerate(kept)]
    config = exported.config | {"accounting": accounting(exported, len(numbered))}
    trees = {entry["name"]: tasks[entry["name"]] for entry in numbered}
    return ExportedAdapter(config, exported.shared, trees, numbered, task_records.kept(records, trees))


def added(
    exported: ExportedAdapter,
    name: str,
    tree: Mapping[str, Any],
    *,
    entry: Mapping[str, Any],
    records: task_records.Records | None = None,
) -> ExportedAdapter:
    """The adapter with one task more, in the last row.

    Args:
      exported: the adapter.
      name: of the new task.
      tree: its parameters; they are stored in the dtypes of the adapter.
      entry: what else tasks.json says of it.
      records: what else is held for it.

    Raises:
      UserError: a name that is not allowed or in use; parameters that a task of this adapter cannot have.
    """
    return _with_more(exported, {name: (tree, entry)}, records or {})


def _with_more(
    exported: ExportedAdapter,
    more: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    records: task_records.Records,
) -> ExportedAdapter:
    """As `added`, for any number of tasks: {name: (its parameters, what else tasks.json says of it)}."""
    declared = exported.config["tensors"]["task"]
    shapes = {path: tuple(specification["shape"]) for path, specification in declared.items()}
    tasks, entries = dict(exported.tasks), list(exported.tasks_json)
    for name, (tree, entry) in more.items():
        check_name(name, exported.tasks)
        flat = {path: np.asarray(leaf) for path, leaf in flatten(tree, separator=".").items()}
        check_parameters(name, flat, shapes)
        own = {path: leaf.astype(jnp.dtype(declared[path]["dtype"])) for path, leaf in flat.items()}
        tasks[name] = unflatten(own, separator=".")
        entries.append({**entry, "name": name})
    return _with_tasks(exported, entries, tasks, records=task_records.joined(exported.records, records))


def removed(exported: ExportedAdapter, names: Sequence[str]) -> ExportedAdapter:
    """The adapter without these tasks; what the tasks share stays even where none is left.

    Raises:
      UserError: an unknown task, or one given twice.
    """
    check_tasks(names, exported.tasks)
    gone = set(names)
    entries = [e for e in exported.tasks_json if e["name"] not in gone]
    return _with_tasks(exported, entries, exported.tasks, records=exported.records)


def picked(exported: ExportedAdapter, names: Sequence[str]) -> ExportedAdapter:
    """The adapter with these tasks alone, in the order of their rows.

    Raises:
      UserError: an unknown task, or one given twice.
    """
    check_tasks(names, exported.tasks)
    kept = set(names)
    entries = [e for e in exported.tasks_json if e["name"] in kept]
    return _with_tasks(exported, entries, exported.tasks, records=exported.records)


def renamed(exported: ExportedAdapter, old: str, new: str) -> ExportedAdapter:
    """The adapter with another name for one of its tasks.

    Raises:
      UserError: an unknown task, or a new name that is not allowed or in use.
    """
    check_tasks([old], exported.tasks)
    check_name(new, exported.tasks)
    entries = [entry | {"name": new} if entry["name"] == old else entry for entry in exported.tasks_json]
    records = task_records.renamed(exported.records, {old: new})
    return _with_tasks(exported, entries, exported.tasks | {new: exported.tasks[old]}, records=records)


def with_records(exported: ExportedAdapter, records: task_records.Records) -> ExportedAdapter:
    """The adapter with more held for its tasks; what comes takes the place of what was there."""
    joined = task_records.joined(exported.records, records)
    return _with_tasks(exported, exported.tasks_json, exported.tasks, records=joined)


# --- Tasks of another adapter -----------------------------------------------------------------------------------------


def digest(leaf: np.ndarray) -> str:
    """The SHA-256 of a tensor's bytes."""
    return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()


def _shown(value: object) -> str:
    """A value in an error line; of a long one the start and a hash."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _facts(exported: ExportedAdapter) -> dict[str, object]:
    """What two adapters must agree on for the tasks of one to work in the other, in words and as JSON values."""
    config = exported.config
    shared = flatten(exported.shared, separator=".")
    return {
        "the backbone's fingerprint": config["backbone"]["fingerprint"],
        **{f"the method's {key}": v for key, v in methods.settings(methods.from_folder(config)).items()},
        "the vocabulary": config["vocabulary"],
        **{f"the tensor {path!r} of a task": entry for path, entry in config["tensors"]["task"].items()},
        **{f"the shape of the shared {path!r}": entry for path, entry in config["tensors"]["shared"].items()},
        # A head is only worth something with the very controller that it was trained on.
        **{f"the SHA-256 of the shared {path!r}": digest(leaf)[:16] for path, leaf in shared.items()},
    }


def check_same_base(exported: ExportedAdapter, other: ExportedAdapter) -> None:
    """Refuses an adapter whose tasks mean nothing here.

    Raises:
      UserError: another backbone, method, setting or vocabulary, or shared tensors that are not the same bytes.
    """
    here, there = _facts(exported), _facts(other)
    for fact in dict.fromkeys((*here, *there)):
        values = [_shown(side[fact]) if fact in side else "absent" for side in (here, there)]
        if values[0] != values[1]:
            raise UserError(
                f"{fact} is {values[0]} in the adapter, but {values[1]} where the tasks come from; it must be the same"
            )


def merged_in(
    exported: ExportedAdapter, other: ExportedAdapter, names: Sequence[str], *, new_name: str | None = None
) -> ExportedAdapter:
    """The adapter with tasks of another one after its own.

    Args:
      exported: the adapter.
      other: where the tasks come from.
      names: tasks of `other`; its row order is kept.
      new_name: what the task is called here; for one task alone.

    Raises:
      UserError: `check_same_base` refuses; an unknown task; a name in use.
    """
    check_same_base(exported, other)
    check_tasks(names, other.tasks)
    if new_name is not None and len(names) != 1:
        raise UserError(f"{len(names)} tasks cannot all have the name {new_name!r}; allowed: one task")
    found = picked(other, names)
    more = {
        entry["name"] if new_name is None else new_name: (other.tasks[entry["name"]], entry)
        for entry in found.tasks_json
    }
    # A language model of all tasks there is none of all tasks here.
    records = task_records.each_its_own(found.records, task_records.LM, found.tasks)
    # The units of voices that the adapter has are those of its own tasks.
    units = exported.records.get(task_records.WHITENING, {})
    records = task_records.joined(records, {task_records.WHITENING: units})
    records = records if new_name is None else task_records.renamed(records, {names[0]: new_name})
    return _with_more(exported, more, records)


# --- Storage ----------------------------------------------------------------------------------------------------------


def write_files(folder: epath.Path, exported: ExportedAdapter) -> None:
    """For `replace_folder`, which puts the files on the disk."""
    config, size = exported.config, len(exported.tasks)
    rows = {
        path: np.zeros((size, *entry["shape"]), jnp.dtype(entry["dtype"]))
        for path, entry in config["tensors"]["task"].items()
    }
    for row, tree in enumerate(exported.tasks.values()):
        for path, leaf in flatten(tree, separator=".").items():
            rows[path][row] = leaf
    adapter_folder.write_adapter(
        folder,
        method=config["method"],
        weights={"shared": exported.shared, "tasks": unflatten(rows, separator=".")},
        tasks=[{**entry, "row": row} for row, entry in enumerate(exported.tasks_json)],
        backbone=config["backbone"],
        vocabulary=config["vocabulary"],
        accounting=config["accounting"],
        records=exported.records,
        trained_seconds=config["trained_seconds"],
        durable=False,
    )


def write(folder: epath.PathLike, exported: ExportedAdapter) -> None:
    """Writes an adapter folder, in place of one that is there already; see `folders.replace_folder`.

    A reader finds the old folder or the new one. On object storage files are replaced one by one, the configuration
    last: `adapter_folder.read_adapter` waits a while for it, and completes what a writer that died left. Files that are
    no part of the adapter stay where they lie; `adapter_folder.check_known_files` says which those are. A folder of
    0.1.0 with a file for each task becomes one with a single file.

    Raises:
      UserError: as `adapter_folder.write_adapter`, or a link lies in the folder.
      OSError: it cannot be written; the folder is then what it was.
    """
    replace_folder(
        folder,
        lambda fresh: write_files(fresh, exported),
        rewritten=adapter_folder.is_written,
        last=adapter_folder.CONFIG_FILE,
    )
