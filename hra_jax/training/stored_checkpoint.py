"""One stored checkpoint, as files: its JSON values and its checksums, read and compared. Nothing here needs Orbax."""

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from etils import epath

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import remote
from hra_jax.storage.checksums import files_of, of_json
from hra_jax.storage.files import is_remote
from hra_jax.storage.json_files import MOST_BYTES, check_fields, parse_json
from hra_jax.storage.trees import flatten
from hra_jax.training.checksums import Checksum
from hra_jax.training.sharding import leaf_name

METRIC = "wer_macro"  # the lower the better
ITEMS = ("position", "best", "run", "rows")  # each of them one JSON object
CHECKSUMS = "checksums"
COMPLETE = "commit_success.txt"  # Orbax's mark, in buckets, of a folder that is complete

_ROOM, _MOST_PACKED = 1 << 28, 100  # bytes of arrays: so many in any file, and so many for each that is stored
_LOG = re.compile(r"[a-z]+")
# What storage says, here or in the network, of what is not what was written. With all other codes it has not read it.
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_DAMAGE = {"NOT_FOUND", "DATA_LOSS", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"}
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class StoredCheckpoint:
    """The folder of one checkpoint."""

    def __init__(self, folder: epath.Path):
        """Reads nothing yet."""
        self.folder, self.step = folder, int(folder.name)
        self._sums: dict[str, Any] | None = None
        self._known = False

    def item(self, name: str) -> dict[str, Any]:
        """A JSON value, `name` of ITEMS. Raises DamagedError where it is not what was written."""
        sums, value = self.checksums(), self._parsed(name)
        if sums is not None and of_json(value) != sums["items"].get(name):
            raise self.damage(f"{name}/metadata is not what was written")
        return value

    def segments(self) -> dict[str, list[str]]:
        """The item `rows`: for each log of rows the names of its segments. Raises DamagedError."""
        found = self.item("rows")
        for log, names in found.items():
            if not _LOG.fullmatch(log) or not isinstance(names, list) or any(type(name) is not str for name in names):
                raise self.damage(f"rows/metadata: {log!r:.80}: {names!r:.80} are no segments of a log")
        return found

    def checksums(self) -> dict[str, Any] | None:
        """What `checksums_of` has stored; None for a checkpoint of 0.1.0, which has none.

        Raises:
          DamagedError: it is missing where it should be, or not what was written.
        """
        if not self._known:
            found = self._parsed_checksums()
            if found is not None:
                if found.pop("self", None) != of_json(found) or found.get("step") != self.step:
                    raise self.damage(f"{CHECKSUMS}/metadata is not what was written")
                try:
                    check_fields(found, {"items": dict, "state": dict}, where=f"{CHECKSUMS}/metadata")
                    for leaf, entry in found["state"].items():
                        _check_entry(entry, where=f"{CHECKSUMS}/metadata: {leaf!r:.80}")
                except UserError as error:
                    raise self.damage(str(error)) from error
                self._sums = found
            self._known = True
        return self._sums

    def _parsed_checksums(self) -> dict[str, Any] | None:
        try:
            return self._parsed(CHECKSUMS)
        except DamagedError as error:
            if isinstance(error.__cause__, _MISSING) and not self._tells_of_checksums():
                return None
            raise

    def _tells_of_checksums(self) -> bool:
        """Whether Orbax's own list of the contents names the checksums; a damaged list counts as if it did."""
        try:
            text = self._bytes("_CHECKPOINT_METADATA")
        except DamagedError:
            return True
        return b'"checksums"' in text or b'"item_handlers"' not in text

    def _parsed(self, name: str) -> dict[str, Any]:
        where = f"{name}/metadata"
        content = self._bytes(where)
        try:
            return check_fields(parse_json(content, where=where), {}, where=where)
        except UserError as error:
            raise self.damage(reason(error)) from error

    def _bytes(self, name: str) -> bytes:
        """The content of a file, which must have an end that is worth waiting for."""
        file = self.folder / name
        try:
            if not is_remote(file) and not os.path.isdir(file):
                if os.path.exists(file) and not os.path.isfile(file):
                    raise self.damage(f"{name} is not a regular file")
                if os.path.getsize(file) > MOST_BYTES:
                    raise self.damage(f"{name} has {os.path.getsize(file):,} bytes; allowed: at most {MOST_BYTES:,}")
            content: bytes = file.read_bytes()
        except OSError as error:
            raise self.damage(f"{name}: {reason(error)}", error=error) from error
        return content

    def metrics(self) -> dict[str, float] | None:
        """{'wer_macro': ...}, from the checksums or else from Orbax's own file; None where both are missing or damaged.

        Raises:
          UserError: storage does not give them now.
        """
        for name in (f"{CHECKSUMS}/metadata", "metrics/metrics"):
            try:
                found = check_fields(parse_json(self._bytes(name), where=name), {}, where=name)
                if name != "metrics/metrics":
                    if found.pop("self", None) != of_json(found):
                        continue
                    found = found["metrics"]
                return (
                    None if found is None else {METRIC: float(check_fields(found, {METRIC: float}, where="")[METRIC])}
                )
            except UserError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error, DamagedError):
                    raise
            except LookupError:
                continue
        return None

    def check_sizes(self, tree: Any) -> None:
        """Refuses arrays that its files cannot hold, before room is made for them: what no file has counts as zeros.

        Args:
          tree: arrays of the state as they are stored, with shapes and dtypes.

        Raises:
          DamagedError: they are larger than any that were ever packed so; nothing is known of those in a bucket.
        """
        if is_remote(self.folder):
            return
        state = self.folder / "state"
        stored = sum(os.path.getsize(state / name) for name in files_of(state))
        needed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
        if needed > _ROOM + _MOST_PACKED * stored:
            raise self.damage(f"state: arrays of {needed:,} bytes in files of {stored:,}")

    def damage(self, what: str, *, error: BaseException | None = None) -> UserError:
        """The error for one that cannot be used: a DamagedError, unless storage may still give what it holds."""
        text = f"{self.folder.parent}: checkpoint {self.step} cannot be read: {what}"
        trouble = error if error is not None and not _is_damage(error) else self._unreadable() if error else None
        if trouble is None:
            return DamagedError(text)
        why = "" if trouble is error else f" ({reason(trouble)})"
        return UserError(f"{text}{why}; as far as is known it is not damaged: try again once it can be read")

    def _unreadable(self) -> OSError | None:
        """What keeps some file from being read now, if anything: Orbax takes what it cannot look at for missing."""
        try:
            if is_remote(self.folder):
                self.folder.exists()
                return None
            for parent, _, names in os.walk(self.folder, onerror=_raise_trouble):
                for name in names:
                    if os.path.exists(os.path.join(parent, name)) and not os.path.isfile(os.path.join(parent, name)):
                        continue  # a pipe: it would be waited for
                    try:
                        with epath.Path(parent, name).open("rb") as stream:
                            stream.read(1)
                    except _MISSING:
                        continue
        except OSError as error:
            return error
        return None


def _raise_trouble(error: OSError) -> None:
    if not isinstance(error, _MISSING):
        raise error


def _is_damage(error: BaseException) -> bool:
    """Whether an error says that what is stored is gone or not what was written, and not that it was not read."""
    found: BaseException | None = error
    while found is not None:
        if _passes(found):
            return False
        found = found.__cause__ or found.__context__
    return True


def _passes(error: BaseException) -> bool:
    """Whether an error is of storage that may answer later, or of what this machine lacks."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, _MISSING)
    text = str(error)
    number = _OS_ERROR.search(text)
    if number:
        return int(number[1]) not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    code = remote.code_in(text)
    if code is not None:
        return code not in _DAMAGE
    known = remote.as_os_error(error)
    return "start new thread" in text or (known is not None and _passes(known))


def _check_entry(entry: object, *, where: str) -> None:
    if not (isinstance(entry, list) and list(map(type, entry)) == [str, int]):
        raise UserError(f"{where} is {entry!r:.80}; allowed: [kind, checksum]")


def checksums_of(
    step: int,
    items: Mapping[str, Any],
    state: Any,
    sums: Mapping[str, Checksum],
    *,
    metrics: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What a checkpoint stores of itself: JSON.

    Args:
      step: its step.
      items: its JSON values, by name.
      state: its arrays.
      sums: their checksums, by name of the leaf.
      metrics: as for `Checkpoints.save`.
    """
    found = {
        "step": step,
        "state": {name: [kind, sums[name].value] for name, kind in leaf_kinds(state).items()},
        "items": {name: of_json(item) for name, item in items.items()},
        "metrics": metrics,
        "finite": all(found.finite for found in sums.values()),
    }
    return found | {"self": of_json(found)}


def leaf_kinds(tree: Any) -> dict[str, str]:
    """{'trainable/tasks/kernel': 'float32[6, 64, 144]'} of a tree of arrays, shapes or Orbax's metadata."""
    # Orbax gives dicts and lists for whatever containers were saved; the names along the path stay the same.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def unlike_rows(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Leaves in which two trees of rows, [n, ...] and [A, ...], differ: (path, what it is there, what it is here)."""
    old, new = (
        {path: f"{leaf.dtype.name}{list(leaf.shape[1:])}" for path, leaf in flatten(side).items()}
        for side in (there, here)
    )
    found = [(path, old.get(path, "absent"), new.get(path, "absent")) for path in sorted(old.keys() | new.keys())]
    return [entry for entry in found if entry[1] != entry[2]]


def plain(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy through JSON; TypeError for what is not JSON."""
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(value, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be JSON: {error}") from error


def reason(error: BaseException) -> str:
    """The cause of a storage error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    # TensorStore nests paths and operations around the one thing that helps.
    number = _OS_ERROR.search(text)
    if number:
        return os.strerror(int(number[1]))
    return (text.splitlines() or [type(error).__name__])[0][:300]
