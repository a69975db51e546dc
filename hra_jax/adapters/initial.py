"""The weights that an adapter run starts with: new ones, or those of an exported adapter, with rows for new tasks."""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hra_jax.adapters import adapter_folder, methods, task_records, task_rows
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.console import near_matches
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.storage.checksums import pieces
from hra_jax.storage.files import check_regular
from hra_jax.storage.remote import StorageUnavailable

_CHUNK = 4096  # rows drawn at once
NEW_TASKS = ("zero", "mean")


def new_weights(adapter: Adapter, key: jax.Array, encoder: EncoderConfig, tasks: int) -> dict[str, Any]:
    """The weights of a new adapter, {'shared', 'tasks'}, float32; row i does not depend on the number of tasks."""
    shared_key, task_key = jax.random.split(key)
    rows = task_rows.init_rows(adapter, task_key, encoder, jnp.arange(tasks))
    return {"shared": adapter.init_common(shared_key, encoder), "tasks": rows}


def new_weights_on_host(adapter: Adapter, key: jax.Array, encoder: EncoderConfig, tasks: int) -> dict[str, Any]:
    """The same as numpy arrays; the device never holds more than some thousand rows."""
    shared_key, task_key = jax.random.split(key)
    draw = jax.jit(lambda ids: task_rows.init_rows(adapter, task_key, encoder, ids))
    size = min(tasks, _CHUNK)
    parts = [jax.device_get(draw(jnp.arange(first, first + size))) for first in range(0, tasks, size)]
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:tasks], *parts)
    return {"shared": jax.device_get(adapter.init_common(shared_key, encoder)), "tasks": rows}


def new_rows(adapter: Adapter, key: jax.Array, encoder: EncoderConfig, ids: jax.Array) -> dict[str, Any]:
    """The rows of those numbers alone, as `new_weights` draws them."""
    _, task_key = jax.random.split(key)
    rows: dict[str, Any] = task_rows.init_rows(adapter, task_key, encoder, ids)
    return rows


def check_new_task(new_task: str, tasks: Collection[str], *, where: str, source: str = "") -> None:
    """Refuses what a new task cannot start as: anything but zero, mean (of at least one task), and a task's name.

    Args:
      new_task: what the user asks for.
      tasks: the tasks that there are.
      where: the start of the error line.
      source: where the tasks are, for the error line: ` of adapter.start`.

    Raises:
      UserError: one line.
    """
    if new_task not in (*NEW_TASKS, *tasks):
        hint = near_matches(new_task, [*NEW_TASKS, *tasks])
        raise UserError(f"{where}: neither zero, mean nor a task{source}; {hint}")
    if new_task == "mean" and not tasks:
        raise UserError(f"{where}: there is no task{source} to take the mean of; allowed: zero")


def read_start(folder: str, *, fingerprint: str, encoder: EncoderConfig) -> adapter_folder.ExportedAdapter:
    """The exported adapter that a run starts from, whose backbone has this fingerprint and geometry.

    Raises:
      UserError: not an adapter folder, or one of another backbone.
    """
    exported, where = adapter_folder.read_adapter(folder), f"adapter.start = {folder!r}"
    adapter_folder.check_backbone(exported, fingerprint, name="this run's", where=where)
    adapter_folder.check_geometry(exported, encoder, where=where)
    return exported


def check_start(exported: adapter_folder.ExportedAdapter, adapter: Adapter, *, folder: str) -> None:
    """Checks that an exported adapter has the settings of this run's method.

    Raises:
      UserError: it does not.
    """
    found, wanted = methods.settings(methods.from_folder(exported.config)), methods.settings(adapter)
    for key in sorted(found.keys() | wanted.keys()):
        there, here = (repr(side[key]) if key in side else "absent" for side in (found, wanted))
        if there != here:
            raise UserError(f"adapter.start = {folder!r}: {key} is {there} there, but {here} in this run")


def content_hash(folder: str) -> str:
    """A hash of the weights of an adapter folder: what a resumed run must start from again.

    Raises:
      UserError: one of its files of weights cannot be read, or is none.
    """
    root, digest = epath.Path(folder), hashlib.sha256()
    found = [*root.glob("*.safetensors"), *root.glob("*/*.safetensors")]
    for path in sorted(path for path in found if path.name != task_records.RECORDS_FILE):
        digest.update(path.name.encode())
        try:
            check_regular(path)
            with path.open("rb") as stream:
                for piece in pieces(stream):
                    digest.update(piece)
        except StorageUnavailable:
            raise
        except OSError as error:
            raise UserError(
                f"adapter.start = {folder!r}: {path.name} cannot be read ({error.strerror or error})"
            ) from error
    return digest.hexdigest()


def started_rows(
    rows: dict[str, Any], names: Iterable[str], start: adapter_folder.ExportedAdapter, *, new_task: str
) -> list[int]:
    """Fills a bank of new rows with what an exported adapter has for them; a task it lacks starts as `new_task` says.

    Args:
      rows: numpy, leaves `[rows, ...]`; written in place.
      names: the tasks in the order of their rows.
      start: the exported adapter.
      new_task: 'zero', 'mean' (of its tasks), or the name of one of its tasks.

    Returns:
      The numbers of the rows that were filled.

    Raises:
      UserError: `new_task` is neither of the words nor a task of the exported adapter.
    """
    check_new_task(new_task, start.tasks, where=f"adapter.new_task = {new_task!r}", source=" of adapter.start")
    given = {name: no_parameters() | tree for name, tree in start.tasks.items()}
    template = None
    if new_task == "mean":
        trees = list(given.values())
        template = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves).astype(np.float32), axis=0), *trees)
    elif new_task != "zero":
        template = given[new_task]
    filled = []
    for number, name in enumerate(names):
        source = given.get(name, template)
        if source is not None:
            jax.tree.map(lambda leaf, value, n=number: leaf.__setitem__(n, value), rows, source)
            filled.append(number)
    return filled


def started_records(start: adapter_folder.ExportedAdapter, name: str, new_task: str) -> task_records.Records:
    """What is held for a task that starts as `new_task` says, for it has what its sources were trained on."""
    sources = {"zero": (), "mean": tuple(start.tasks)}.get(new_task, (new_task,))
    return task_records.of_copy(start.records, sources, name)


def started_from(
    start: adapter_folder.ExportedAdapter | None, tasks: Iterable[str], new_task: str, *, trained: task_records.Records
) -> task_records.Records:
    """What is held for tasks that were trained, beside what the adapter that they started from held for them.

    Args:
      start: that adapter; None for none.
      tasks: their names.
      new_task: what those started as that it lacks.
      trained: what is held of the training.
    """
    if start is None:
        return trained
    new = [started_records(start, name, new_task) for name in tasks if name not in start.tasks]
    return task_records.joined(start.records, *new, trained)
