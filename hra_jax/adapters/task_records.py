"""What an export holds for each task beside its weights, and how that follows the task wherever it goes.

This is the one place that says so; `tasks`, runs and exports all go through it. There are two kinds:

  fields   JSON values in the task's entry of tasks.json, such as the step that it was trained at: `FIELDS`
  arrays   in task_records.safetensors, as `<record>.<quoted task>`: `ARRAYS`

A task that is renamed, exported or imported keeps all of them, those of a later version that this one does not know
included. The file is in adapter folders and in backbone folders, where there is anything to be held. A record of the
task '' is that of what all tasks share: in an adapter of tasks that are gone, in a backbone of everything.
"""

import hashlib
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import safetensors
from hra_jax.storage.files import check_regular, remove_file, write_file
from hra_jax.storage.json_files import COUNT, Kind
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.tasks.names import quote_task

RECORDS_FILE = "task_records.safetensors"
SHARED = ""  # the task of what all tasks share

# {record: {task: array}}
Records = dict[str, dict[str, np.ndarray]]

HASHES, OWN_HASHES = "hashes", "own_hashes"
CENTROID, WHITENING = "centroid", "whitening"
# Why a task is recognised by the backbone alone, as `tasks gate` found it: {"suite", "metric", "rate", "base_rate",
# "tolerance"}; absent where the adapter is used.
SET_ASIDE = "set_aside"
# How the task is decoded best, as `lm tune` found it: {"lm": {"name", "digest"}, "beam", "lm_weight", "token_bonus",
# "phrase_weight", "suite", "wer"}.
DECODE = "decode"
# The bytes of a language model, where somebody has put it there: it gives back the texts that it was made from.
LM = "lm"
# How sure words are and when they were said, as `decoding.calibration` measures it on a validation suite: its facts.
CALIBRATION = "calibration"


class FieldRecord(NamedTuple):
    """A field of tasks.json.

    Attributes:
      kind: what it must be, where it is there and not null.
      copied: whether a task that starts as a copy of another one has it too.
    """

    kind: Kind
    copied: bool = False


class ArrayRecord(NamedTuple):
    """An array for each task.

    Attributes:
      dtype, axes: what it must be.
      outlives: whether it stays, as that of what all tasks share, when the task is removed.
      copied: whether a task that starts as a copy of another one has it too; a mean of tasks has that of all of them.
      merged: whether it goes with the weights when the task becomes a part of the backbone.
    """

    dtype: str
    axes: int
    outlives: bool = False
    copied: bool = False
    merged: bool = False


FIELDS: dict[str, FieldRecord] = {
    "step": FieldRecord(COUNT),
    "wer": FieldRecord(float),
    "suite": FieldRecord(str),
    "init": FieldRecord(str),
    "vocabulary": FieldRecord(dict, copied=True),
    SET_ASIDE: FieldRecord(dict),
    DECODE: FieldRecord(dict),
    CALIBRATION: FieldRecord(dict),
}
# 64-bit hashes of utterances (data/sample_hashes.py), sorted, each once: of those that also trained what tasks share,
# and of those that trained the task's own parameters alone.
ARRAYS: dict[str, ArrayRecord] = {
    HASHES: ArrayRecord("uint64", 1, outlives=True, copied=True, merged=True),
    OWN_HASHES: ArrayRecord("uint64", 1, copied=True, merged=True),
    # How a task sounds, and, of what all share, in which units that is compared: see `decoding.unknown_task`. A copy of
    # a task is there for another voice.
    CENTROID: ArrayRecord("float32", 1),
    WHITENING: ArrayRecord("float32", 2),
    LM: ArrayRecord("uint8", 1),
}
_MOST_BYTES = 2**33  # of the file
# What a record of a later version is taken for.
_UNKNOWN = ArrayRecord("", 0)


# --- Where tasks go ---------------------------------------------------------------------------------------------------


def kept(records: Records, tasks: Iterable[str]) -> Records:
    """The records of these tasks and of what all share, to which what outlives a task goes where that is left out."""
    names = {*tasks, SHARED}
    return _tidy(
        {
            record: {
                **{task: array for task, array in by_task.items() if task in names},
                SHARED: _union(
                    array
                    for task, array in by_task.items()
                    if task == SHARED or (task not in names and _rule(record).outlives)
                ),
            }
            for record, by_task in records.items()
        }
    )


def of_task(records: Records, task: str) -> Records:
    """The records of one task alone, without what outlives others."""
    return _tidy({record: {task: by_task[task]} for record, by_task in records.items() if task in by_task})


def renamed(records: Records, names: Mapping[str, str]) -> Records:
    """The records with other names, {old: new}, for some tasks."""
    return {
        record: {names.get(task, task): array for task, array in by_task.items()} for record, by_task in records.items()
    }


def without_hashes(records: Records) -> Records:
    """The records but for the hashes of utterances."""
    return without(records, HASHES, OWN_HASHES)


def without(records: Records, *some: str) -> Records:
    """The records but for some."""
    return {record: by_task for record, by_task in records.items() if record not in some}


def each_its_own(records: Records, record: str, tasks: Iterable[str]) -> Records:
    """Records in which these tasks have what one record holds for all, as their own, and nothing is for all."""
    by_task = records.get(record, {})
    own = {task: by_task[task if task in by_task else SHARED] for task in tasks if by_task.keys() & {task, SHARED}}
    return _tidy({**records, record: own})


def without_voices(records: Records) -> Records:
    """The records but for what they say of how tasks sound."""
    return {record: by_task for record, by_task in records.items() if record not in (CENTROID, WHITENING)}


def only_voices(records: Records) -> Records:
    """What the records say of how tasks sound."""
    return {record: by_task for record, by_task in records.items() if record in (CENTROID, WHITENING)}


def joined(*several: Records) -> Records:
    """All records together; of a task in several of them the union of hashes, and else what comes last."""
    found: Records = {}
    for records in several:
        for record, by_task in records.items():
            here = found.setdefault(record, {})
            for task, array in by_task.items():
                both = task in here and record in (HASHES, OWN_HASHES)
                here[task] = _union([here[task], array]) if both else array
    return _tidy(found)


def of_copy(records: Records, sources: Iterable[str], new: str) -> Records:
    """The records of a new task that starts as a copy of another one, or as a mean of several."""
    names = set(sources)
    return _tidy(
        {
            record: {new: _union(array for task, array in by_task.items() if task in names)}
            for record, by_task in records.items()
            if _rule(record).copied
        }
    )


def merged(records: Records, task: str) -> Records:
    """The records of a backbone into which a task is merged: its own, and those of what it shared."""
    return _tidy(
        {
            record: {SHARED: _union(by_task[name] for name in (task, SHARED) if name in by_task)}
            for record, by_task in records.items()
            if _rule(record).merged
        }
    )


def copied_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the entry of a task in tasks.json passes on to one that starts as its copy."""
    return {name: value for name, value in entry.items() if name in FIELDS and FIELDS[name].copied}


def measured(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the entry of a task says of how it is recognised, which holds for as long as its weights are the same."""
    return {name: entry[name] for name in (DECODE, CALIBRATION) if entry.get(name) is not None}


def set_aside(entries: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The tasks that are recognised by the backbone alone, from the entries of tasks.json."""
    return frozenset(entry["name"] for entry in entries if entry.get(SET_ASIDE) is not None)


def all_hashes(records: Records) -> np.ndarray:
    """The hashes of all utterances that anything here was trained on: uint64 `[N]`, sorted, each once."""
    return _union(array for record in (HASHES, OWN_HASHES) for array in records.get(record, {}).values())


def hashes_by_task(values: np.ndarray, tasks: np.ndarray, names: Collection[str], *, shared: bool) -> Records:
    """The records of a run.

    Args:
      values: uint64 `[N]`, the hashes of the utterances that were trained on.
      tasks: int `[N]`, the number of each one's task; -1 for none.
      names: the tasks by number.
      shared: whether what all tasks share was trained; if not, utterances without a task have trained nothing.
    """
    record = HASHES if shared else OWN_HASHES
    found = {name: np.unique(values[tasks == number]) for number, name in enumerate(names)}
    return _tidy({record: found | ({SHARED: np.unique(values[tasks < 0])} if shared else {})})


def _rule(record: str) -> ArrayRecord:
    return ARRAYS.get(record, _UNKNOWN)


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    found = list(arrays)
    return np.unique(np.concatenate(found)) if len(found) > 1 else found[0] if found else np.zeros(0, np.uint64)


def _tidy(records: Records) -> Records:
    """Without records that hold nothing."""
    full = {
        record: {task: array for task, array in by_task.items() if array.size} for record, by_task in records.items()
    }
    return {record: by_task for record, by_task in full.items() if by_task}


# --- Storage ----------------------------------------------------------------------------------------------------------


def to_bytes(records: Records) -> bytes | None:
    """The content of the file; None where there is nothing to hold."""
    arrays = {
        f"{record}.{quote_task(task)}": array for record, by_task in records.items() for task, array in by_task.items()
    }
    return safetensors.to_bytes(arrays) if arrays else None


def put(folder: epath.Path, content: bytes | None, *, durable: bool = True) -> None:
    """Writes what `to_bytes` gave, or removes the file."""
    if content is not None:
        write_file(folder / RECORDS_FILE, content, durable=durable)
    elif (folder / RECORDS_FILE).exists():
        remove_file(folder / RECORDS_FILE)


def read(folder: epath.PathLike, hashes: Mapping[str, Any], *, tasks: Collection[str] = ()) -> Records:
    """The records of a folder.

    Args:
      folder: an adapter folder or a backbone folder.
      hashes: the SHA-256 of its files by name. A file that is not among them is none of the folder's: an earlier
        version has written the folder again, and left it.
      tasks: those that the folder has; none for a backbone.

    Raises:
      UserError: the file is missing or broken, or holds what it cannot hold.
      DamagedError: it is not what was exported.
    """
    path = epath.Path(folder) / RECORDS_FILE
    if RECORDS_FILE not in hashes and (hashes or not path.exists()):
        return {}
    try:
        if not path.exists() or path.is_dir():
            raise UserError(f"{path} is not a file; needed is what the settings beside it name")
        check_regular(path)
        if path.stat().length > _MOST_BYTES:
            raise UserError(f"{path}: has {path.stat().length:,} bytes; allowed: at most {_MOST_BYTES:,}")
        content = path.read_bytes()
    except StorageUnavailable:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if hashes and hashlib.sha256(content).hexdigest() != hashes[RECORDS_FILE]:
        raise DamagedError(f"{path}: is not what was exported, its SHA-256 differs")
    found: Records = {}
    names = {quote_task(name): name for name in (SHARED, *tasks)}
    for name, array in safetensors.from_bytes(content, where=str(path)).items():
        record, _, quoted = name.partition(".")
        if quoted not in names:
            task = urllib.parse.unquote(quoted)
            raise UserError(f"{path}: {name!r:.80} is of the task {task!r:.80}, which is not there")
        rule = ARRAYS.get(record)
        if rule is not None and (array.dtype.name != rule.dtype or array.ndim != rule.axes):
            shape = f"{array.dtype.name} with {array.ndim} axes"
            raise UserError(f"{path}: {name!r:.80} is {shape}; allowed: {rule.dtype} with {rule.axes}")
        found.setdefault(record, {})[names[quoted]] = array
    return found
