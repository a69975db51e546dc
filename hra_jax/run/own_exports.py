"""What a run has exported, so that an adapter that was changed since is left alone.

`python -m hra_jax.tasks` changes W/adapter in place. W/exported.json holds a hash of what the run itself wrote there,
and the run replaces nothing else.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from hra_jax.adapters import adapter_folder
from hra_jax.console import tell
from hra_jax.errors import UserError
from hra_jax.run import workdirs
from hra_jax.storage import folders, locks
from hra_jax.storage.checksums import pieces
from hra_jax.storage.files import check_no_link, is_remote, write_file
from hra_jax.storage.json_files import json_text, read_object

_FIELDS = {"adapter": list, "unfinished": bool}


def replace_adapter(workdir: epath.PathLike, write: Callable[[epath.Path], None], *, tasks: Sequence[str]) -> bool:
    """Writes W/adapter, unless somebody else has changed the one that is there; for process 0.

    Args:
      workdir: the work directory.
      write: writes the adapter folder that it is given.
      tasks: the names that the adapter gets. An adapter of a run that kept no hash is its own if it has these.

    Returns:
      Whether it was written.

    Raises:
      UserError: a link lies there, or what `write` raises.
    """
    workdir = epath.Path(workdir)
    folder = workdir / workdirs.ADAPTER
    check_no_link(folder)
    # Who changes the adapter at the moment has done so afterwards, and it is left alone.
    with locks.hold_beside(folder, "export", patient=True):
        folders.recover(folder, last=adapter_folder.CONFIG_FILE)
        record = _record(workdir)
        if folder.exists() and any(folder.iterdir()) and not _is_own(folder, record, tasks):
            return False
        # A kill between the act and the note of it leaves an adapter that is among those noted. On an object store,
        # where files are replaced one by one, it leaves a mixture: the note says that it is the run's.
        remote = is_remote(folder)
        if remote:
            _note(workdir, record["adapter"], unfinished=True)

        def written(fresh: epath.Path) -> None:
            write(fresh)
            if not remote:
                _note(workdir, [*record["adapter"], content_hash(fresh)], unfinished=False)

        folders.replace_folder(folder, written, rewritten=adapter_folder.is_written)
        _note(workdir, [content_hash(folder)], unfinished=False)
    return True


def content_hash(folder: epath.PathLike) -> str:
    """The SHA-256 of all files of an adapter folder; files that are no part of the adapter do not count."""
    digest, place = hashlib.sha256(), epath.Path(folder)
    names = [path.name for path in place.iterdir()]
    tasks = place / adapter_folder.TASK_FOLDER
    if tasks.is_dir():
        names += [f"{adapter_folder.TASK_FOLDER}/{path.name}" for path in tasks.iterdir()]
    for name in sorted(filter(adapter_folder.is_written, names)):
        path = place / name
        if not is_remote(path) and not os.path.isfile(path):
            digest.update(f"{name}\nis no file\n".encode())  # no run has written that
            continue
        digest.update(f"{name}\n{path.stat().length}\n".encode())
        with path.open("rb") as stream:
            for piece in pieces(stream):
                digest.update(piece)
    return digest.hexdigest()


def _record(workdir: epath.Path) -> dict[str, Any]:
    nothing = {"adapter": [], "unfinished": False}
    path = workdir / workdirs.EXPORTED
    try:
        return read_object(path, _FIELDS) if path.exists() else nothing
    except UserError as error:
        tell(f"{error}; it is not counted")  # what is trained is worth more than this
        return nothing


def _note(workdir: epath.Path, hashes: Sequence[str], *, unfinished: bool) -> None:
    write_file(workdir / workdirs.EXPORTED, json_text({"adapter": list(hashes), "unfinished": unfinished}))


def _is_own(folder: epath.Path, record: dict[str, Any], tasks: Sequence[str]) -> bool:
    if record["unfinished"]:
        return True
    if record["adapter"]:
        return content_hash(folder) in record["adapter"]
    try:
        found = read_object(folder / adapter_folder.TASKS_FILE, {"tasks": list})["tasks"]
    except UserError:
        return not (folder / adapter_folder.CONFIG_FILE).exists()  # what an older version left unfinished
    return [entry.get("name") for entry in found if isinstance(entry, dict)] == list(tasks)
