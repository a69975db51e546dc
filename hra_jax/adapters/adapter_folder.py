"""Exported adapters: a small folder that, beside its backbone, is all that recognition needs.

  adapter_config.json         format version, method, backbone (name, fingerprint), vocabulary, and the shape and dtype
                              of every tensor
  adapter_model.safetensors   `shared.<path>` for what all tasks share, `tasks.<quoted task>.<path>` for each task's own
  tasks.json                  the tasks in the order of their rows
  tasks/<quoted task>.safetensors   each task's own tensors instead, where one file per task was asked for
  README.md                   the model card

A task name is percent-quoted in tensor and file names. The same weights and settings give the same bytes: keys are
sorted, and nothing in the folder depends on the time, the machine or the place. Trees are nested dicts of arrays.
"""

import collections
import dataclasses
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from hra_jax.adapters.methods import peft_types
from hra_jax.adapters.model_card import model_card
from hra_jax.errors import UserError
from hra_jax.storage.files import json_text, write_file
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import RESERVED_NAMES

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TASKS_FILE = "tasks.json"
CARD_FILE = "README.md"
TASK_FOLDER = "tasks"

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_FLOATS = tuple(np.dtype(dtype).name for dtype in _DTYPES.values())
_TASK_FILE = re.compile(rf"{TASK_FOLDER}/[A-Za-z0-9_%~-]+\.safetensors")
_LONGEST_QUOTED = 120  # characters; file systems allow 255 bytes, prefix and extension included


@dataclasses.dataclass(frozen=True)
class ExportedAdapter:
    """What an adapter folder holds.

    Attributes:
      config: the content of adapter_config.json.
      shared: tree of what all tasks share.
      tasks: tree of each task's own arrays by task name, in the order of their rows, without a row axis.
      tasks_json: the entries of tasks.json: a dict for each task, with at least "name" and "row".
    """

    config: dict
    shared: dict
    tasks: dict[str, dict]
    tasks_json: list[dict]


def quote_task(name: str) -> str:
    """A task name with everything but ASCII letters, digits, `-` and `_` percent-quoted; no two names give the same."""
    return urllib.parse.quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def task_file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name (no extension) for each task: its quoted name, unique even where case or length does not count.

    A name that is too long, or differs from another in case only, ends in `~` and a hash; `quote_task` never gives `~`.
    """
    quoted = {name: quote_task(name) for name in names}
    folded = collections.Counter(name.casefold() for name in quoted.values())
    for name, file_name in quoted.items():
        if len(file_name) > _LONGEST_QUOTED or folded[file_name.casefold()] > 1:
            quoted[name] = f"{file_name[:_LONGEST_QUOTED]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return quoted


def tensors_to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of named arrays; the same arrays give the same bytes, whatever their order."""
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    # One metadata key: the order of several would differ from process to process.
    return safetensors.numpy.save(arrays, metadata={"format": "hra_jax"})


def tensors_from_bytes(content: bytes, *, name: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; bfloat16 as ml_dtypes.bfloat16. `name` is the file's, for the message.

    Raises:
      UserError: not a safetensors file, a truncated one, or a tensor that does not hold floating-point numbers.
    """
    try:
        tensors = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise UserError(f"{name} is not a whole safetensors file: {' '.join(str(error).split())}") from error
    for key, tensor in tensors.items():
        if tensor["dtype"] not in _DTYPES:
            raise UserError(f"{name}: tensor {key!r} is {tensor['dtype']}; allowed: {', '.join(_DTYPES)}")
    return {
        key: np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for key, tensor in tensors.items()
    }


def write_adapter(
    folder: epath.PathLike,
    *,
    method: Mapping,
    weights: Mapping[str, Mapping],
    tasks: list[dict],
    backbone: Mapping[str, str],
    vocabulary: Mapping,
    accounting: Mapping,
    results: Mapping | None = None,
    per_task_files: bool = False,
) -> None:
    """Writes an adapter folder; one that is there already is replaced file by file.

    Args:
      folder: where to; made where absent.
      method: JSON settings of the adaptation method; "name" is a registered one.
      weights: {"shared": tree, "tasks": tree whose leaves have a leading row axis}; floating-point arrays.
      tasks: a dict for each task: "name", "row" (its index on the row axis), and anything else that is JSON. Rows that
        no task names are not written.
      backbone: "name" and "fingerprint". Of a name that is a path only the last part is kept.
      vocabulary: `Vocabulary.to_json()`.
      accounting: parameter counts, see `hra_jax.evaluation.report.evaluate_results`.
      results: what `evaluate_results` returned, for the model card; None leaves the error rates out.
      per_task_files: each task's tensors in a file of its own.

    Raises:
      UserError: an unknown method, a task name that is not allowed or given twice, or weights that are not finite.
      ValueError: a row that the bank does not have, or a bank whose leaves differ in rows.
    """
    folder = epath.Path(folder)
    types = peft_types()
    if method["name"] not in types:
        raise UserError(f"method {method['name']!r} has no adapter folder; allowed: {', '.join(types)}")
    _check_tasks(tasks, where="adapter export")
    entries = _task_entries(tasks, per_task_files=per_task_files)
    shared, bank = (_arrays(weights[part], part) for part in ("shared", "tasks"))
    config = {
        "format_version": FORMAT_VERSION,
        "peft_type": types[method["name"]],
        "method": dict(method),
        "backbone": {"name": _last_part(backbone["name"]), "fingerprint": backbone["fingerprint"]},
        "vocabulary": dict(vocabulary),
        "tensors": {
            "shared": {path: _specification(leaf.shape, leaf.dtype) for path, leaf in shared.items()},
            "task": {path: _specification(leaf.shape[1:], leaf.dtype) for path, leaf in bank.items()},
        },
        "one_file_per_task": per_task_files,
        "accounting": dict(accounting),
    }
    files = _weight_files(shared, bank, entries)
    # The configuration comes last: a folder has one only once everything that it describes is there.
    for file, tensors in files.items():
        write_file(folder / file, tensors_to_bytes(tensors))
    write_file(folder / TASKS_FILE, json_text({"tasks": entries}))
    write_file(folder / CARD_FILE, model_card(config, [entry["name"] for entry in entries], results))
    write_file(folder / CONFIG_FILE, json_text(config))
    _remove_stale_task_files(folder, files)


def _last_part(name: str) -> str:
    """The name of a backbone without the place where it lies: a folder's path would mean nothing elsewhere."""
    return name.rstrip("/").rpartition("/")[2]


def _task_entries(tasks: list[dict], *, per_task_files: bool) -> list[dict]:
    """The entries of tasks.json in the order of their rows."""
    entries = [{key: value for key, value in task.items() if key != "file"} for task in tasks]
    if per_task_files:
        names = task_file_names(entry["name"] for entry in entries)
        for entry in entries:
            entry["file"] = f"{TASK_FOLDER}/{names[entry['name']]}.safetensors"
    return sorted(entries, key=lambda entry: entry["row"])


def _arrays(tree: Mapping, part: str) -> dict[str, np.ndarray]:
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(tree, separator=".").items()}
    for path, array in arrays.items():
        if array.dtype.name not in _FLOATS:
            raise ValueError(f"{part}.{path} is {array.dtype.name}; allowed: {', '.join(_FLOATS)}")
        if not np.isfinite(array).all():
            raise UserError(f"nothing exported: {part}.{path} holds NaN or infinite weights; all must be finite")
    if part == "tasks" and len({array.shape[:1] for array in arrays.values()}) > 1:
        raise ValueError(f"the leaves of a bank must have one number of rows; got {[a.shape for a in arrays.values()]}")
    return arrays


def _weight_files(
    shared: dict[str, np.ndarray], bank: dict[str, np.ndarray], entries: list[dict]
) -> dict[str, dict[str, np.ndarray]]:
    """The named tensors of every safetensors file, by its path in the folder."""
    files = {WEIGHTS_FILE: {f"shared.{path}": array for path, array in shared.items()}}
    for entry in entries:
        row = entry["row"]
        if any(row >= len(array) for array in bank.values()):
            raise ValueError(f"task {entry['name']!r} has row {row}, which the bank does not have")
        tensors = files.setdefault(entry.get("file", WEIGHTS_FILE), {})
        tensors |= {_prefix(entry["name"]) + path: array[row] for path, array in bank.items()}
    return files


def _remove_stale_task_files(folder: epath.Path, files: Mapping) -> None:
    """Deletes task files that an earlier export left in the folder."""
    if (folder / TASK_FOLDER).exists():
        for file in (folder / TASK_FOLDER).iterdir():
            if f"{TASK_FOLDER}/{file.name}" not in files and file.name.endswith(".safetensors"):
                file.unlink()


def _specification(shape: tuple[int, ...], dtype: np.dtype) -> dict:
    return {"shape": list(shape), "dtype": dtype.name}


def _check_tasks(tasks: object, *, where: str) -> None:
    """Checks the entries of a task list: names and rows there, usable, and each given once."""
    if not isinstance(tasks, list) or not all(isinstance(entry, dict) for entry in tasks):
        raise UserError(f"{where}: the tasks must be a list of objects; got {tasks!r:.80}")
    for key, kind in (("name", str), ("row", int)):
        for entry in tasks:
            if key not in entry or type(entry[key]) is not kind:
                raise UserError(f"{where}: every task needs a {key!r} ({kind.__name__}); got {entry!r:.80}")
        value, times = next(iter(collections.Counter(entry[key] for entry in tasks).most_common(1)), (None, 0))
        if times > 1:
            raise UserError(f"{where}: {times} tasks have the {key} {value!r}; each needs its own")
    for entry in tasks:
        if entry["name"] in RESERVED_NAMES or not entry["name"].isprintable():
            allowed = f"printable characters, and none of {', '.join(map(repr, RESERVED_NAMES))}"
            raise UserError(f"{where}: a task cannot have the name {entry['name']!r}; allowed: {allowed}")
        if entry["row"] < 0:
            raise UserError(f"{where}: task {entry['name']!r} has row {entry['row']}; allowed: 0 or more")


def read_adapter(folder: epath.PathLike) -> ExportedAdapter:
    """Reads and checks an adapter folder.

    Args:
      folder: what `write_adapter` wrote.

    Returns:
      The adapter; its trees hold numpy arrays. Parts of a tree that hold nothing are absent.

    Raises:
      UserError: a file is missing or broken; another kind of adapter or format version; a tensor is missing, not
        declared, of another shape or dtype than declared, or not finite; a task file that is not in the folder.
    """
    folder = epath.Path(folder)
    config = _read_json(folder / CONFIG_FILE)
    _check_config(config, where=str(folder / CONFIG_FILE))
    listed = _read_json(folder / TASKS_FILE)
    if not isinstance(listed, dict) or "tasks" not in listed:
        raise UserError(f"{folder / TASKS_FILE}: must be an object with 'tasks'; got {listed!r:.80}")
    _check_tasks(listed["tasks"], where=str(folder / TASKS_FILE))
    entries = sorted(listed["tasks"], key=lambda entry: entry["row"])
    tensors: dict[str, np.ndarray] = {}
    for file, expected in _expected_tensors(config, entries, where=str(folder / TASKS_FILE)).items():
        found = tensors_from_bytes(_read_bytes(folder / file), name=str(folder / file))
        _check_tensors(found, expected, where=str(folder / file))
        tensors |= found
    return ExportedAdapter(
        config=config,
        shared=_subtree(tensors, config["tensors"]["shared"], "shared."),
        tasks={e["name"]: _subtree(tensors, config["tensors"]["task"], _prefix(e["name"])) for e in entries},
        tasks_json=entries,
    )


def _prefix(task: str) -> str:
    return f"{TASK_FOLDER}.{quote_task(task)}."


def _expected_tensors(config: dict, entries: list[dict], *, where: str) -> dict[str, dict[str, dict]]:
    """What every safetensors file must hold, by its path in the folder: {tensor name: {"shape", "dtype"}}."""
    files = {WEIGHTS_FILE: {f"shared.{path}": declared for path, declared in config["tensors"]["shared"].items()}}
    for entry in entries:
        file = _task_file(entry, where=where) if config["one_file_per_task"] else WEIGHTS_FILE
        tensors = {_prefix(entry["name"]) + path: declared for path, declared in config["tensors"]["task"].items()}
        files.setdefault(file, {}).update(tensors)
    return files


def _read_bytes(path: epath.Path) -> bytes:
    if not path.exists() or path.is_dir():
        raise UserError(f"{path} is not a file; an adapter folder has {CONFIG_FILE}, {WEIGHTS_FILE} and {TASKS_FILE}")
    return path.read_bytes()


def _read_json(path: epath.Path) -> object:
    try:
        return json.loads(_read_bytes(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not JSON: {error}") from error


def _check_config(config: object, *, where: str) -> None:
    if not isinstance(config, dict) or "peft_type" not in config:
        raise UserError(f"{where}: must be an object with 'peft_type'; got {config!r:.80}")
    types = peft_types()
    if config["peft_type"] not in types.values():
        raise UserError(f"{where}: peft_type {config['peft_type']!r}; allowed: {', '.join(types.values())}")
    fields = {
        "format_version": int,
        "method": dict,
        "backbone": dict,
        "vocabulary": dict,
        "tensors": dict,
        "one_file_per_task": bool,
        "accounting": dict,
    }
    for key, kind in fields.items():
        if key not in config or type(config[key]) is not kind:
            found = f"{config[key]!r:.80}" if key in config else "nothing"
            raise UserError(f"{where}: needs {key!r} ({kind.__name__}); got {found}")
        if key == "format_version" and config[key] != FORMAT_VERSION:
            raise UserError(f"{where}: format_version {config[key]!r}; this version of hra_jax reads {FORMAT_VERSION}")
    for part, keys in {"method": ("name",), "backbone": ("name", "fingerprint")}.items():
        for key in keys:
            if not isinstance(config[part].get(key), str):
                raise UserError(f"{where}: needs a string {part}.{key}; got {config[part].get(key)!r}")
    method, peft_type = config["method"]["name"], config["peft_type"]
    if types.get(method) != peft_type:
        raise UserError(f"{where}: method {method!r} and peft_type {peft_type!r} do not go together")
    for part in ("shared", "task"):
        _check_declared(config["tensors"].get(part), where=f"{where}: tensors.{part}")


def _check_declared(declared: object, *, where: str) -> None:
    """Checks {path: {"shape", "dtype"}} of adapter_config.json."""
    if not isinstance(declared, dict):
        raise UserError(f"{where} must be an object of tensors; got {declared!r:.80}")
    for path, entry in declared.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
            raise UserError(f"{where}.{path}: needs a 'shape', a list of sizes; got {entry!r:.80}")
        if entry.get("dtype") not in _FLOATS:
            raise UserError(f"{where}.{path}: dtype {entry.get('dtype')!r}; allowed: {', '.join(_FLOATS)}")
    try:
        unflatten(declared, separator=".")
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _task_file(entry: dict, *, where: str) -> str:
    """The file of a task's own tensors; only a plain file of the folder's `tasks/` will do."""
    file = entry.get("file")
    if not isinstance(file, str) or not _TASK_FILE.fullmatch(file):
        raise UserError(
            f"{where}: task {entry['name']!r} has the file {file!r}; allowed: {TASK_FOLDER}/NAME.safetensors"
        )
    return file


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, dict], *, where: str) -> None:
    for what, names in (("is missing", expected.keys() - tensors), ("is not declared", tensors.keys() - expected)):
        if names:
            count = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{where}: tensor {min(names)!r}{count} {what}; {CONFIG_FILE} and {TASKS_FILE} list all")
    for name, declared in expected.items():
        found = _specification(tensors[name].shape, tensors[name].dtype)
        if any(found[key] != declared[key] for key in found):
            raise UserError(f"{where}: tensor {name!r} is {found}; {CONFIG_FILE} declares {declared}")
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{where}: tensor {name!r} holds NaN or infinite weights; all must be finite")


def _subtree(tensors: Mapping[str, np.ndarray], paths: Iterable[str], prefix: str) -> dict:
    return unflatten({path: tensors[prefix + path] for path in paths}, separator=".")
