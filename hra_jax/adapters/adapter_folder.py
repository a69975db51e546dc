"""Exported adapters: a small folder that, beside its backbone, is all that recognition needs.

  adapter_config.json         format version, version of hra_jax, method, backbone (name, fingerprint), vocabulary, the
                              shape and dtype of every tensor, and the SHA-256 of every file
  adapter_model.safetensors   `shared.<path>` for what all tasks share, `tasks.<quoted task>.<path>` for each task's own
  tasks.json                  the tasks in the order of their rows
  task_records.safetensors    what else is held for each task, see adapters/task_records.py; absent where nothing is
  README.md                   the model card

Folders that hra_jax 0.1.0 wrote may hold each task's own tensors in `tasks/<quoted task>.safetensors` instead; they are
read, and written again with one file.

A task name is percent-quoted in tensor and file names. The same weights and settings give the same bytes: keys are
sorted, and nothing in the folder depends on the time, the machine or the location. Trees are nested dicts of arrays.

Every field is always written. `_UNSAID` says what a folder means that lacks a field, by its format version: these
values belong to the stored format and never change.
"""

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from hra_jax import __version__
from hra_jax.adapters import task_records
from hra_jax.adapters.declared import check_declared
from hra_jax.adapters.methods import from_folder, peft_types
from hra_jax.adapters.model_card import model_card
from hra_jax.errors import DamagedError, UserError
from hra_jax.models.encoder_config import MOST_TRAINED_SECONDS, EncoderConfig
from hra_jax.storage import checksums, folders, safetensors
from hra_jax.storage.files import (
    check_no_link,
    check_regular,
    is_remote,
    remove_file,
    remove_folder,
    remove_leftovers,
    replaced_name,
    write_file,
)
from hra_jax.storage.json_files import (
    COUNT,
    AtLeast,
    Kind,
    check_fields,
    check_shown,
    count_values,
    json_text,
    read_json,
    read_object,
)
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import check_name, quote_task

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TASKS_FILE = "tasks.json"
CARD_FILE = "README.md"
TASK_FOLDER = "tasks"
OWN_FILES = (WEIGHTS_FILE, TASKS_FILE, CARD_FILE, CONFIG_FILE, task_records.RECORDS_FILE)

_FLOATS = tuple(safetensors.DTYPES[name].name for name in safetensors.FLOATS)
_MOST_BYTES_OF_TASKS = 2**30  # of tasks.json, which may hold a vocabulary for each task
_MOST_VALUES_OF_TASKS = 2**25
_WIDEST: int = max(safetensors.DTYPES[name].itemsize for name in safetensors.FLOATS)  # bytes of a number
_TASK_FILE = re.compile(rf"{TASK_FOLDER}/[A-Za-z0-9_%~-]+\.safetensors")
_NEEDED = f"an adapter folder, which has {CONFIG_FILE}, {WEIGHTS_FILE} and {TASKS_FILE}"
# The fields of adapter_config.json by format version, and what a folder that lacks one of them means.
_FIELDS: dict[int, dict[str, Kind]] = {
    1: {
        "hra_jax": str,
        "method": dict,
        "backbone": dict,
        "vocabulary": dict,
        "tensors": dict,
        "one_file_per_task": bool,
        "accounting": dict,
        "sha256": dict,
        "trained_seconds": float,
    }
}
_ACCOUNTING: dict[str, Kind] = {
    "shared_parameters": COUNT,
    "parameters_per_task": COUNT,
    "backbone_parameters": AtLeast(1),  # shares of it are printed
}
# The release that did not write its version, and no hashes either.
_UNSAID: dict[int, dict[str, Any]] = {1: {"hra_jax": "0.1.0", "sha256": {}, "trained_seconds": 0.0}}


@dataclasses.dataclass(frozen=True)
class ExportedAdapter:
    """What an adapter folder holds.

    Attributes:
      config: the content of adapter_config.json, with what its format version leaves unsaid.
      shared: tree of what all tasks share.
      tasks: tree of each task's own arrays by task name, in the order of their rows, without a row axis.
      tasks_json: the entries of tasks.json: a dict for each task, with at least "name" and "row".
      records: what else is held for each task.
    """

    config: dict[str, Any]
    shared: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    tasks_json: list[dict[str, Any]]
    records: task_records.Records = dataclasses.field(default_factory=dict)


def write_adapter(
    folder: epath.PathLike,
    *,
    method: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, Any]],
    tasks: list[dict[str, Any]],
    backbone: Mapping[str, str],
    vocabulary: Mapping[str, Any],
    accounting: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    records: task_records.Records | None = None,
    trained_seconds: float = 0.0,
    durable: bool = True,
) -> None:
    """Writes an adapter folder; one that is there already is replaced file by file.

    Args:
      folder: where to; made where absent.
      method: JSON settings of the adaptation method, with its "name".
      weights: {"shared": tree, "tasks": tree whose leaves have a leading row axis}; floating-point arrays.
      tasks: a dict for each task: "name", "row" (its index on the row axis), and anything else that is JSON. Rows that
        no task names are not written.
      backbone: "name" and "fingerprint". Of a name that is a path only the last part is kept.
      vocabulary: `Vocabulary.to_json()`.
      accounting: parameter counts, see `hra_jax.evaluation.results.evaluate_results`.
      results: what `evaluate_results` returned, for the model card; None leaves the error rates out.
      records: what else is held for each task.
      trained_seconds: of the longest utterances that were trained on, but for a few; 0 where that is not known. Longer
        audio is recognised in chunks of this length.
      durable: as for `files.Replacement`; `folders.replace_folder` puts its files on the disk itself.

    Raises:
      UserError: an unknown method, a task name that is not allowed or given twice, weights that are not finite, or more
        tasks and vocabularies than `read_adapter` takes.
      ValueError: a row that the bank does not have, or a bank whose leaves differ in rows.
    """
    folder = epath.Path(folder)
    if method["name"] not in peft_types():
        raise UserError(f"method {method['name']!r} has no adapter folder; allowed: {', '.join(peft_types())}")
    _check_tasks(tasks, where="adapter export")
    entries = sorted(
        ({key: value for key, value in task.items() if key != "file"} for task in tasks), key=lambda entry: entry["row"]
    )
    shared, bank = (_arrays(weights[part], part) for part in ("shared", "tasks"))
    config = {
        "format_version": FORMAT_VERSION,
        "hra_jax": __version__,
        "peft_type": peft_types()[method["name"]],
        "method": dict(method),
        "backbone": {"name": _last_part(backbone["name"]), "fingerprint": backbone["fingerprint"]},
        "vocabulary": dict(vocabulary),
        "tensors": {
            "shared": {path: _specification(leaf.shape, leaf.dtype) for path, leaf in shared.items()},
            "task": {path: _specification(leaf.shape[1:], leaf.dtype) for path, leaf in bank.items()},
        },
        "one_file_per_task": False,
        "accounting": dict(accounting),
    } | ({"trained_seconds": float(trained_seconds)} if trained_seconds else {})
    tensors = _named_tensors(shared, bank, entries)
    files = {
        WEIGHTS_FILE: safetensors.to_bytes(tensors),
        TASKS_FILE: _tasks_text(entries).encode(),
        CARD_FILE: model_card(config, [entry["name"] for entry in entries], results, records).encode(),
    }
    content = task_records.to_bytes(records or {})
    if content is not None:
        files[task_records.RECORDS_FILE] = content
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    config["sha256"] = hashes
    hashes[CONFIG_FILE] = own_sha256(config)
    # The configuration comes last: a folder has one only once everything that it describes is there.
    for file, content in files.items():
        if not _is_stored(folder / file, hashes[file]):
            write_file(folder / file, content, durable=durable)
    if task_records.RECORDS_FILE not in files:
        remove_file(folder / task_records.RECORDS_FILE)
    write_file(folder / CONFIG_FILE, json_text(config), durable=durable)
    remove_leftovers(folder, OWN_FILES)
    _remove_task_files(folder)


def _tasks_text(entries: list[dict[str, Any]]) -> str:
    """The content of tasks.json; refuses what `read_tasks` would refuse."""
    text = json_text({"tasks": entries})
    if count_values(text) > _MOST_VALUES_OF_TASKS or len(text.encode()) > _MOST_BYTES_OF_TASKS:
        raise UserError(
            f"nothing exported: {len(entries):,} tasks and their vocabularies are {count_values(text):,} values in "
            f"{len(text):,} characters of {TASKS_FILE}; allowed: {_MOST_VALUES_OF_TASKS:,} in {_MOST_BYTES_OF_TASKS:,}"
        )
    return text


def _is_stored(file: epath.Path, sha256: str) -> bool:
    """Whether an object in a bucket is what would be written: the shorter the files of a folder differ, the better."""
    return is_remote(file) and file.exists() and checksums.sha256(file) == sha256


def own_sha256(config: Mapping[str, Any]) -> str:
    """The SHA-256 of adapter_config.json, whose "sha256" is an object, as it would be without itself among these."""
    hashes = {file: value for file, value in config["sha256"].items() if file != CONFIG_FILE}
    return hashlib.sha256(json_text({**config, "sha256": hashes}).encode()).hexdigest()


def _check_sha256(file: str, content: bytes, hashes: Mapping[str, Any], *, folder: epath.Path) -> None:
    """Checks a file against adapter_config.json; a folder of 0.1.0, or one whose hashes were dropped, has none."""
    _check_hash(file, hashlib.sha256(content).hexdigest(), hashes, folder=folder)


def _check_hash(file: str, found: str, hashes: Mapping[str, Any], *, folder: epath.Path) -> None:
    if hashes and found != hashes.get(file):
        raise DamagedError(
            f"{folder / file}: is not what was exported, its SHA-256 differs; if that is meant, remove 'sha256' from "
            f"{CONFIG_FILE}"
        )


def check_known_files(exported: ExportedAdapter) -> None:
    """Refuses to write an adapter again that a later version wrote, with files that would be lost.

    Files that adapter_config.json does not name are whoever put them there's, and stay.

    Raises:
      UserError: it names a file that this version does not know.
    """
    unknown = sorted(exported.config["sha256"].keys() - set(OWN_FILES))
    unknown = [file for file in unknown if not _TASK_FILE.fullmatch(file)]
    if unknown:
        raise UserError(
            f"{CONFIG_FILE} names the file {unknown[0]!r:.80}, which this version of hra_jax does not know and would "
            f"lose; the adapter was written by {exported.config['hra_jax']!r:.40}: use that version to change it"
        )


def is_written(name: str) -> bool:
    """Whether `write_adapter` takes care of a file, by its path in the folder: it writes or removes it."""
    folder, _, file = name.rpartition("/")
    if folder == TASK_FOLDER:
        return file.endswith(".safetensors")
    return not folder and (replaced_name(file) or file) in OWN_FILES


def _last_part(name: str) -> str:
    """The name of a backbone without the place where it lies: a folder's path would mean nothing elsewhere."""
    return name.rstrip("/").rpartition("/")[2]


def _arrays(tree: Mapping[str, Any], part: str) -> dict[str, np.ndarray]:
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(tree, separator=".").items()}
    for path, array in arrays.items():
        if array.dtype.name not in _FLOATS:
            raise ValueError(f"{part}.{path} is {array.dtype.name}; allowed: {', '.join(_FLOATS)}")
        if not np.isfinite(array).all():
            raise UserError(f"nothing exported: {part}.{path} holds NaN or infinite weights; all must be finite")
    if part == "tasks" and len({array.shape[:1] for array in arrays.values()}) > 1:
        raise ValueError(f"the leaves of a bank must have one number of rows; got {[a.shape for a in arrays.values()]}")
    return arrays


def _named_tensors(
    shared: dict[str, np.ndarray], bank: dict[str, np.ndarray], entries: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """All tensors by the names that they have in the file."""
    tensors = {f"shared.{path}": array for path, array in shared.items()}
    for entry in entries:
        row = entry["row"]
        if any(row >= len(array) for array in bank.values()):
            raise ValueError(f"task {entry['name']!r} has row {row}, which the bank does not have")
        tensors |= {_prefix(entry["name"]) + path: array[row] for path, array in bank.items()}
    return tensors


def _remove_task_files(folder: epath.Path) -> None:
    """Deletes the files of single tasks that an earlier export left in the folder."""
    tasks = folder / TASK_FOLDER
    check_no_link(tasks)
    if tasks.exists():
        found = list(tasks.iterdir())
        ours = [file for file in found if file.name.endswith(".safetensors")]
        for file in ours:
            remove_file(file)
        if len(ours) == len(found) and not is_remote(tasks):  # a bucket has no empty folders
            remove_folder(tasks)


def _specification(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype.name}


def _check_tasks(tasks: list[Any], *, where: str) -> None:
    """Checks the entries of a task list: names and rows there, usable, and each given once."""
    for entry in tasks:
        check_fields(entry, {"name": str, "row": COUNT}, where=f"{where}: a task")
        check_name(entry["name"], where=where)
        for field, record in task_records.FIELDS.items():
            if entry.get(field) is not None:
                check_fields(entry, {field: record.kind}, where=f"{where}: task {entry['name']!r}")
    for key in ("name", "row"):
        value, times = next(iter(collections.Counter(entry[key] for entry in tasks).most_common(1)), (None, 0))
        if times > 1:
            raise UserError(f"{where}: {times} tasks have the {key} {value!r}; each needs its own")


def check_backbone(exported: ExportedAdapter, fingerprint: str, *, name: object, where: str) -> None:
    """Checks that an adapter is used with the backbone that it was trained on.

    Args:
      exported: the adapter.
      fingerprint: of the backbone.
      name: what the error calls the backbone.
      where: the folder or the setting that the adapter comes from, for the error.

    Raises:
      UserError: it was trained on another backbone.
    """
    trained_on = exported.config["backbone"]
    if trained_on["fingerprint"] != fingerprint:
        raise UserError(
            f"{where}: trained on the backbone {trained_on['name']!r} ({trained_on['fingerprint'][:12]}), "
            f"but {name} has the fingerprint {fingerprint[:12]}"
        )


def check_geometry(exported: ExportedAdapter, encoder: EncoderConfig, *, where: str) -> None:
    """Checks that the tensors of an adapter have the shapes that its method has on the encoder of its backbone.

    Args:
      exported: the adapter.
      encoder: the geometry of the backbone.
      where: the folder or the setting that the adapter comes from, for the error.

    Raises:
      UserError: a tensor has another shape, or a setting, such as a layer, does not fit the encoder.
    """
    check_declared(from_folder(exported.config), exported.config["tensors"], encoder, where=where)


def read_tasks(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The entries of tasks.json of an adapter folder, in the order of their rows; no other file is read.

    Raises:
      UserError: there is no such file, or it is broken.
    """
    folders.put_back(folder)
    path = epath.Path(folder) / TASKS_FILE
    most: dict[str, Any] = {"most_bytes": _MOST_BYTES_OF_TASKS, "most_values": _MOST_VALUES_OF_TASKS}
    tasks = read_object(path, {"tasks": list}, what=_NEEDED, **most)["tasks"]
    _check_tasks(tasks, where=str(path))
    return sorted(tasks, key=lambda entry: entry["row"])


def read_adapter(folder: epath.PathLike, *, shapes: bool = True) -> ExportedAdapter:
    """Reads and checks an adapter folder; one that is replaced meanwhile is read again.

    Args:
      folder: what `write_adapter` wrote.
      shapes: whether the declared tensors are compared with the settings of the method; that imports JAX.

    Returns:
      The adapter; its trees hold numpy arrays. Parts of a tree that hold nothing are absent.

    Raises:
      UserError: a file is missing or broken; another kind of adapter or format version; a setting of the method that is
        not allowed; a tensor is missing, not declared, of another shape or dtype than declared or than the method asks
        for, or not finite; a task file that is not in the folder.
      DamagedError: a file is not what was exported.
    """
    return folders.read_whole(folder, CONFIG_FILE, lambda: _read_once(epath.Path(folder), shapes=shapes))


def _read_once(folder: epath.Path, *, shapes: bool) -> ExportedAdapter:
    where = str(folder / CONFIG_FILE)
    written = read_json(folder / CONFIG_FILE, what=_NEEDED)
    config = _checked_config(written, where=where)
    try:
        method = from_folder(config)
    except UserError as error:
        raise UserError(f"{where}: method: {error}") from error
    if shapes:
        check_declared(method, config["tensors"], where=where)
    entries = read_tasks(folder)
    tensors: dict[str, np.ndarray] = {}
    for file, expected in _expected_tensors(config, entries, where=str(folder / TASKS_FILE)).items():
        content = _read_bytes(folder / file, most=_most_bytes(expected))
        found = safetensors.from_bytes(content, where=str(folder / file))
        _check_tensors(found, expected, where=str(folder / file))
        _check_sha256(file, content, config["sha256"], folder=folder)
        tensors |= found
    _check_sha256(TASKS_FILE, (folder / TASKS_FILE).read_bytes(), config["sha256"], folder=folder)
    if config["sha256"]:
        # Last: what is wrong with a field says more than that it was edited.
        _check_hash(CONFIG_FILE, own_sha256(written), config["sha256"], folder=folder)
    return ExportedAdapter(
        config=config,
        shared=_subtree(tensors, config["tensors"]["shared"], "shared."),
        tasks={e["name"]: _subtree(tensors, config["tensors"]["task"], _prefix(e["name"])) for e in entries},
        tasks_json=entries,
        records=task_records.read(folder, config["sha256"], tasks=[entry["name"] for entry in entries]),
    )


def _prefix(task: str) -> str:
    return f"{TASK_FOLDER}.{quote_task(task)}."


def _expected_tensors(
    config: dict[str, Any], entries: list[dict[str, Any]], *, where: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """What every safetensors file must hold, by its path in the folder: {tensor name: {"shape", "dtype"}}."""
    files = {WEIGHTS_FILE: {f"shared.{path}": declared for path, declared in config["tensors"]["shared"].items()}}
    for entry in entries:
        file = _task_file(entry, where=where) if config["one_file_per_task"] else WEIGHTS_FILE
        tensors = {_prefix(entry["name"]) + path: declared for path, declared in config["tensors"]["task"].items()}
        files.setdefault(file, {}).update(tensors)
    return files


def _most_bytes(expected: Mapping[str, dict[str, Any]]) -> int:
    """The bytes that a file of these tensors has at most."""
    numbers: int = sum(math.prod(entry["shape"]) for entry in expected.values())
    return safetensors.LONGEST_HEADER + _WIDEST * numbers


def _read_bytes(path: epath.Path, *, most: int) -> bytes:
    try:
        if not path.exists() or path.is_dir():
            raise UserError(f"{path} is not a file; needed is {_NEEDED}")
        check_regular(path)
        if path.stat().length > most:
            raise UserError(f"{path}: has {path.stat().length:,} bytes; {CONFIG_FILE} and {TASKS_FILE} ask for fewer")
        content: bytes = path.read_bytes()
    except StorageUnavailable:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); needed is {_NEEDED}") from error
    return content


def _checked_config(content: object, *, where: str) -> dict[str, Any]:
    """The content of adapter_config.json, checked, with what its format version leaves unsaid."""
    config = check_fields(content, {"peft_type": str}, where=where)
    types = peft_types()
    if config["peft_type"] not in types.values():
        raise UserError(f"{where}: peft_type {config['peft_type']!r}; allowed: {', '.join(types.values())}")
    version = check_fields(config, {"format_version": int}, where=where)["format_version"]
    if version not in _FIELDS:
        known = ", ".join(map(str, _FIELDS))
        raise UserError(f"{where}: format_version {version!r}; this version of hra_jax reads {known}")
    config = check_fields(_UNSAID[version] | config, _FIELDS[version], where=where)
    check_fields(config["backbone"], {"name": str, "fingerprint": str}, where=f"{where}: backbone")
    for field in ("name", "fingerprint"):
        check_shown(config["backbone"][field], where=f"{where}: backbone.{field}")
    # A command that is given no backbone looks for one of this name.
    if "://" in config["backbone"]["name"]:
        raise UserError(f"{where}: backbone.name is {config['backbone']['name']!r:.80}; allowed: a name, no address")
    check_fields(config["accounting"], _ACCOUNTING, where=f"{where}: accounting")
    if not 0 <= config["trained_seconds"] <= MOST_TRAINED_SECONDS:
        raise UserError(
            f"{where}: trained_seconds is {config['trained_seconds']!r}; allowed: 0 to {MOST_TRAINED_SECONDS}"
        )
    method = check_fields(config["method"], {"name": str}, where=f"{where}: method")["name"]
    if types.get(method) != config["peft_type"]:
        raise UserError(f"{where}: method {method!r} and peft_type {config['peft_type']!r} do not go together")
    check_fields(config["tensors"], {"shared": dict, "task": dict}, where=f"{where}: tensors")
    for part in ("shared", "task"):
        _check_declared(config["tensors"][part], where=f"{where}: tensors.{part}")
    return config


def _check_declared(declared: dict[str, Any], *, where: str) -> None:
    """Checks {path: {"shape", "dtype"}} of adapter_config.json."""
    for path, entry in declared.items():
        check_fields(entry, {"shape": list, "dtype": str}, where=f"{where}.{path}")
        if len(entry["shape"]) > 8 or any(type(size) is not int or not 0 <= size < 2**40 for size in entry["shape"]):
            raise UserError(f"{where}.{path}: the 'shape' must be a list of sizes; got {entry['shape']!r:.80}")
        if entry["dtype"] not in _FLOATS:
            raise UserError(f"{where}.{path}: dtype {entry['dtype']!r}; allowed: {', '.join(_FLOATS)}")
    try:
        unflatten(declared, separator=".")
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _task_file(entry: dict[str, Any], *, where: str) -> str:
    """The file of a task's own tensors; only a plain file of the folder's `tasks/` will do."""
    file = entry.get("file")
    if not isinstance(file, str) or not _TASK_FILE.fullmatch(file):
        raise UserError(
            f"{where}: task {entry['name']!r} has the file {file!r}; allowed: {TASK_FOLDER}/NAME.safetensors"
        )
    return file


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, dict[str, Any]], *, where: str) -> None:
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


def _subtree(tensors: Mapping[str, np.ndarray], paths: Iterable[str], prefix: str) -> dict[str, Any]:
    return unflatten({path: tensors[prefix + path] for path in paths}, separator=".")
