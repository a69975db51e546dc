"""One stored checkpoint, as files: its JSON values and its checksums, read and compared. Nothing here needs Orbax."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from etils import epath

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage.checksums import of_json
from hra_jax.storage.json_files import check_fields, read_object, read_text
from hra_jax.training.checksums import Checksum
from hra_jax.training.sharding import leaf_name

METRIC = "wer_macro"  # the lower the better
ITEMS = ("position", "best", "run", "rows")  # each of them one JSON object
CHECKSUMS = "checksums"

_LOG = re.compile(r"[a-z]+")
# TensorStore's words for storage that may answer later, or that this user may not read: nothing is damaged then.
_AWAY = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED")


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
            if (self.folder / CHECKSUMS / "metadata").exists() or self._tells_of_checksums():
                found = self._parsed(CHECKSUMS)
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

    def _tells_of_checksums(self) -> bool:
        """Whether Orbax's own list of what is in a checkpoint names the checksums; so a damaged list is taken."""
        try:
            text = read_text(self.folder / "_CHECKPOINT_METADATA")
        except (OSError, UserError):
            return True
        return '"checksums"' in text or '"item_handlers"' not in text

    def _parsed(self, name: str) -> dict[str, Any]:
        try:
            return read_object(self.folder / name / "metadata")
        except (OSError, UserError) as error:
            # Storage that does not answer now has damaged nothing.
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise self.damage(reason(error).removeprefix(f"{self.folder}/"), error=cause) from error

    def metrics(self) -> dict[str, float] | None:
        """{'wer_macro': ...}, from the checksums or else from Orbax's own file; None without any that can be read."""
        for name in (f"{CHECKSUMS}/metadata", "metrics/metrics"):
            try:
                found = read_object(self.folder / name)
                if name != "metrics/metrics":
                    if found.pop("self", None) != of_json(found):
                        continue
                    found = found["metrics"]
                return (
                    None if found is None else {METRIC: float(check_fields(found, {METRIC: float}, where="")[METRIC])}
                )
            except (OSError, UserError, LookupError):
                continue
        return None

    def damage(self, what: str, *, error: BaseException | None = None) -> UserError:
        """What to tell where it cannot be used: a DamagedError, unless storage may yet give what it holds."""
        away = isinstance(error, PermissionError | TimeoutError | ConnectionError) or _AWAY.search(str(error or ""))
        kind = UserError if away else DamagedError
        return kind(f"{self.folder.parent}: checkpoint {self.step} cannot be read: {what}")


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
    }
    return found | {"self": of_json(found)}


def leaf_kinds(tree: Any) -> dict[str, str]:
    """{'trainable/tasks/kernel': 'float32[6, 64, 144]'} of a tree of arrays, shapes or Orbax's metadata."""
    # Orbax gives dicts and lists for whatever containers were saved; the names along the path stay the same.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


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
    number = re.search(r"os_error_code='(\d+)'", text)
    if number:
        return os.strerror(int(number.group(1)))
    return (text.splitlines() or [type(error).__name__])[0][:300]
