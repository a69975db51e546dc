"""An exported adapter as a library of tasks: tasks come, go, change their names, and move between adapters.

Every function takes an `ExportedAdapter` and gives a new one. The tensors of tasks that a change is not about stay the
same bytes, entries of tasks.json keep all their fields, rows are numbered anew without gaps, in their order, and the
accounting follows. `write` puts an adapter in the place of the folder that it came from.

Letters: D width, V vocabulary.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hra_jax.adapters import adapter_folder, initial, methods, task_rows
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.console import near_matches
from hra_jax.errors import UserError
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import BASE_TASK, RESERVED_NAMES

_COUNTS = ("trainable_parameters", "shared_parameters", "parameters_per_task", "backbone_parameters")
_OWN_FILES = (
    adapter_folder.CONFIG_FILE,
    adapter_folder.WEIGHTS_FILE,
    adapter_folder.TASKS_FILE,
    adapter_folder.CARD_FILE,
)
_MOST_LISTED = 10  # names in an error


# --- Names ------------------------------------------------------------------------------------------------------------


def _hint(name: str, known: Sequence[str]) -> str:
    """The end of an error line: near matches, or what there is."""
    hint = near_matches(name, known)
    if hint.startswith("did you mean"):
        return hint
    more = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
    return f"allowed: {', '.join(known[:_MOST_LISTED]) or 'none, it has no task'}{more}"


def check_tasks(exported: ExportedAdapter, names: Iterable[str]) -> None:
    """Refuses what is no task of the adapter, naming near matches, and a name given twice."""
    names = list(names)
    for name in names:
        if name not in exported.tasks:
            raise UserError(f"unknown task {name!r}; {_hint(name, list(exported.tasks))}")
        if names.count(name) > 1:
            raise UserError(f"task {name!r} is given twice; allowed: each task once")


def check_name(name: str, taken: Collection[str]) -> None:
    """Refuses a name that no new task can have: a reserved one, one that is not printable, or one of `taken`."""
    reserved = RESERVED_NAMES
    if name in reserved or not name.isprintable():
        allowed = f"printable characters, and none of {', '.join(map(repr, reserved))}"
        raise UserError(f"a task cannot have the name {name!r}; allowed: {allowed}")
    if name in taken:
        raise UserError(f"task {name!r} is there already; allowed: a name that is not in use")


def check_start(exported: ExportedAdapter, init: str) -> None:
    """Refuses what a new task cannot start as: anything but zero, mean (of at least one task), and a task's name."""
    if init not in (*initial.NEW_TASKS, *exported.tasks):
        raise UserError(
            f"a new task cannot start as {init!r}: neither zero, mean nor a task; "
            f"{_hint(init, [*initial.NEW_TASKS, *exported.tasks])}"
        )
    if init == "mean" and not exported.tasks:
        raise UserError("a new task cannot start as 'mean' of no tasks; allowed: zero")


# --- Counts -----------------------------------------------------------------------------------------------------------


def parameters(exported: ExportedAdapter) -> tuple[int, int]:
    """The number of shared parameters, and of one task's."""
    declared = exported.config["tensors"]
    shared, task = (sum(math.prod(e["shape"]) for e in declared[part].values()) for part in ("shared", "task"))
    return shared, task


def _accounting(exported: ExportedAdapter, tasks: int) -> dict:
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


def norm(tree: Mapping) -> float:
    """The Euclidean norm of all parameters in a tree."""
    leaves = flatten(tree).values()
    return math.sqrt(sum(float(np.sum(np.square(leaf.astype(np.float64)))) for leaf in leaves))


def described(exported: ExportedAdapter) -> dict:
    """What the adapter is, and each of its tasks, as JSON values.

    Returns:
      {"method", "backbone", "shared_parameters", "parameters_per_task", "backbone_parameters", "shared_norm", "tasks"}.
      A task has its entry of tasks.json, "step" and "wer" None where it records none, "parameters" and "norm".
    """
    shared, task = parameters(exported)
    config = exported.config
    entries = [
        {"step": None, "wer": None, **entry, "parameters": task, "norm": norm(exported.tasks[entry["name"]])}
        for entry in exported.tasks_json
    ]
    return {
        "method": config["method"],
        "backbone": config["backbone"],
        "shared_parameters": shared,
        "parameters_per_task": task,
        "backbone_parameters": _accounting(exported, len(entries))["backbone_parameters"],
        "shared_norm": norm(exported.shared),
        "tasks": entries,
    }


def described_task(exported: ExportedAdapter, name: str) -> dict:
    """What `described` has for one task, and "tensors": {path: {"shape", "dtype", "norm", "largest", "sha256"}}."""
    check_tasks(exported, [name])
    (entry,) = (entry for entry in described(exported)["tasks"] if entry["name"] == name)
    tensors = {
        path: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "norm": norm({path: leaf}),
            "largest": float(np.abs(leaf.astype(np.float64)).max(initial=0.0)),
            "sha256": _digest(leaf),
        }
        for path, leaf in flatten(exported.tasks[name], separator=".").items()
    }
    return entry | {"tensors": tensors}


# --- Tasks come and go ------------------------------------------------------------------------------------------------


def _with_tasks(exported: ExportedAdapter, entries: Iterable[Mapping], tasks: Mapping[str, dict]) -> ExportedAdapter:
    """The adapter with these tasks in this order; of an entry only the row is made anew."""
    kept = ({key: value for key, value in entry.items() if key != "file"} for entry in entries)  # the writer names it
    entries = [{**entry, "row": row} for row, entry in enumerate(kept)]
    config = exported.config | {"accounting": _accounting(exported, len(entries))}
    return ExportedAdapter(config, exported.shared, {e["name"]: tasks[e["name"]] for e in entries}, entries)


def started(exported: ExportedAdapter, init: str, encoder=None, *, seed: int = 0) -> dict:
    """The parameters that a new task starts with, in the dtypes of the adapter; see `initial.started_rows`.

    Args:
      exported: the adapter.
      init: 'zero' (drawn by the method, without effect: what a run of this seed draws for the next row), 'mean' of the
        tasks, or the name of a task.
      encoder: the `EncoderConfig` of the backbone; needed for 'zero' alone.
      seed: of what is drawn.

    Raises:
      UserError: `init` is none of these.
    """
    check_start(exported, init)
    adapter = methods.from_folder(exported.config)
    if adapter.own_vocabulary and not adapter.shared_output and init in initial.NEW_TASKS:
        raise UserError(
            f"a new task cannot start as {init!r} without training texts: every task has a vocabulary of its own; "
            f"allowed: {', '.join(list(exported.tasks)[:_MOST_LISTED])}"
        )
    declared = exported.config["tensors"]["task"]
    flat = {path: np.zeros((1, *entry["shape"]), jnp.dtype(entry["dtype"])) for path, entry in declared.items()}
    if init == "zero":
        _, key = jax.random.split(jax.random.key(seed))
        drawn = task_rows.init_rows(adapter, key, encoder, jnp.array([len(exported.tasks)]))
        for path, leaf in flatten(drawn, separator=".").items():
            flat[path][:] = leaf
    rows = no_parameters() | unflatten(flat, separator=".")
    # A reserved name, so that it is none of the adapter's tasks.
    initial.started_rows(rows, [BASE_TASK], exported, new_task=init)
    return unflatten({path: leaf[0] for path, leaf in flat.items()}, separator=".")


def added(exported: ExportedAdapter, name: str, tree: Mapping, *, entry: Mapping) -> ExportedAdapter:
    """The adapter with one task more, in the last row.

    Args:
      exported: the adapter.
      name: of the new task.
      tree: its parameters; they are stored in the dtypes of the adapter.
      entry: what else tasks.json says of it.

    Raises:
      UserError: a name that is not allowed or in use.
      ValueError: tensors that a task of this adapter does not have, or of another shape.
    """
    check_name(name, exported.tasks)
    declared = exported.config["tensors"]["task"]
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tree, separator=".").items()}
    shapes = {path: list(leaf.shape) for path, leaf in flat.items()}
    if shapes != {path: specification["shape"] for path, specification in declared.items()}:
        raise ValueError(f"a task of this adapter has the tensors {declared}; got {shapes}")
    own = {path: leaf.astype(jnp.dtype(declared[path]["dtype"])) for path, leaf in flat.items()}
    tasks = exported.tasks | {name: unflatten(own, separator=".")}
    return _with_tasks(exported, [*exported.tasks_json, {**entry, "name": name}], tasks)


def removed(exported: ExportedAdapter, names: Sequence[str]) -> ExportedAdapter:
    """The adapter without these tasks; what the tasks share stays even where none is left.

    Raises:
      UserError: an unknown task, or one given twice.
    """
    check_tasks(exported, names)
    return _with_tasks(exported, [e for e in exported.tasks_json if e["name"] not in names], exported.tasks)


def picked(exported: ExportedAdapter, names: Sequence[str]) -> ExportedAdapter:
    """The adapter with these tasks alone, in the order of their rows.

    Raises:
      UserError: an unknown task, or one given twice.
    """
    check_tasks(exported, names)
    return _with_tasks(exported, [e for e in exported.tasks_json if e["name"] in names], exported.tasks)


def renamed(exported: ExportedAdapter, old: str, new: str) -> ExportedAdapter:
    """The adapter with another name for one of its tasks.

    Raises:
      UserError: an unknown task, or a new name that is not allowed or in use.
    """
    check_tasks(exported, [old])
    check_name(new, exported.tasks)
    entries = [entry | {"name": new} if entry["name"] == old else entry for entry in exported.tasks_json]
    return _with_tasks(exported, entries, exported.tasks | {new: exported.tasks[old]})


# --- Tasks of another adapter -----------------------------------------------------------------------------------------


def _digest(leaf: np.ndarray) -> str:
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
        **{f"the SHA-256 of the shared {path!r}": _digest(leaf)[:16] for path, leaf in shared.items()},
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
    """The adapter with tasks of another one behind its own.

    Args:
      exported: the adapter.
      other: where the tasks come from.
      names: tasks of `other`; its row order is kept.
      new_name: what the task is called here; for one task alone.

    Raises:
      UserError: `check_same_base` refuses; an unknown task; a name in use.
    """
    check_same_base(exported, other)
    check_tasks(other, names)
    if new_name is not None and len(names) != 1:
        raise UserError(f"{len(names)} tasks cannot all have the name {new_name!r}; allowed: one task")
    for entry in picked(other, names).tasks_json:
        name = entry["name"] if new_name is None else new_name
        exported = added(exported, name, other.tasks[entry["name"]], entry=entry)
    return exported


# --- Merging into the backbone ----------------------------------------------------------------------------------------


def why_not_merged(adapter: Adapter) -> str | None:
    """Why a task of this method cannot become a part of the backbone's weights; None where it can."""
    if not adapter.defines("merged"):
        return (
            f"{adapter.name} cannot be merged: its correction depends on activations and is not linear in what a layer "
            "gives, so no other weights of the layer equal it"
        )
    if adapter.own_vocabulary:
        if adapter.shared_output:
            return "the task cannot be merged: its output layer, in another vocabulary, is shared by all tasks"
        return "the task cannot be merged: it has a vocabulary and an output layer of its own"
    return None


def merged_weights(exported: ExportedAdapter, name: str, params: Mapping, encoder) -> dict:
    """The backbone's weights with one task merged into them, float32.

    Args:
      exported: an adapter of a method that can be merged, see `why_not_merged`.
      name: one of its tasks.
      params: the weights of the backbone.
      encoder: the `EncoderConfig`.

    Raises:
      UserError: an unknown task.
    """
    check_tasks(exported, [name])
    adapter = methods.from_folder(exported.config)
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params, separator=".").items()}
    row = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), no_parameters() | exported.tasks[name])
    layers = unflatten(flat, separator=".")["encoder"]["layers"]
    # The product of two low-rank factors would be rounded to fewer bits on an accelerator.
    with jax.default_matmul_precision("highest"):
        changed = jax.device_get(adapter.merged(layers, row, encoder))
    flat |= {".".join(("encoder", "layers", *path)): leaf for path, leaf in changed.items()}
    if adapter.output == "task":
        for part, correction in row["all_layers"]["output"].items():
            flat[f"output.{part}"] = flat[f"output.{part}"] + correction
    return unflatten(flat, separator=".")


# --- Storage ----------------------------------------------------------------------------------------------------------


def _write_files(folder: epath.Path, exported: ExportedAdapter) -> None:
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
        per_task_files=config["one_file_per_task"],
    )


def write(folder: epath.PathLike, exported: ExportedAdapter) -> None:
    """Writes an adapter folder, in place of one that is there already.

    A reader finds the old folder or the new one: the new one is written beside it, and then they change places. Other
    files that lie in the folder stay. On object storage, where folders cannot be moved, it is replaced file by file.

    Raises:
      UserError: as `export.write_adapter`.
      OSError: it cannot be written; the folder is then what it was.
    """
    folder = epath.Path(folder)
    if "://" in os.fspath(folder):
        _write_files(folder, exported)
        return
    folder = epath.Path(os.path.realpath(folder))  # a link to the folder stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.parent / f".{folder.name}.{what}-{os.getpid()}" for what in ("new", "old"))
    try:
        if folder.exists():
            shutil.copytree(folder, fresh, ignore=_own_files(folder), symlinks=True)
        _write_files(fresh, exported)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        for leftover in (fresh, old):
            if leftover.exists() and folder.exists():
                leftover.rmtree()


def _own_files(folder: epath.Path):
    """For `shutil.copytree`: passes over what an adapter's writer writes."""

    def ignore(place: str, names: list[str]) -> list[str]:
        if epath.Path(place) == folder:
            return [name for name in names if name in _OWN_FILES]
        in_tasks = epath.Path(place) == folder / adapter_folder.TASK_FOLDER
        return [name for name in names if in_tasks and name.endswith(".safetensors")]

    return ignore
