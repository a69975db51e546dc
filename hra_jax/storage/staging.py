"""Folders in buckets that are replaced whole: where a process dies meanwhile, the next command completes what it began.

A bucket has no act that replaces several objects. So all of them are first written beside the folder, under a hidden
name, the file that makes the others count last; from then on they are moved, that one last again. Until it is there
nothing has been changed, and as long as it is there what is left can be moved by anybody. Readers meanwhile find files
that do not belong together, and notice.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from hra_jax.storage.files import remove_file, remove_folder

_Result = TypeVar("_Result")


def replace(
    folder: epath.PathLike,
    write: Callable[[epath.Path], _Result],
    *,
    last: str,
    rewritten: Callable[[str], bool] | None = None,
) -> _Result:
    """Writes a folder in a bucket, in place of one that is there; for who holds its lock.

    Args:
      folder: the folder.
      write: writes all files of the new folder into the folder that it is given.
      last: the name of the file that it writes last.
      rewritten: takes the path of an old file in the folder; whether it goes where `write` has not written it.

    Returns:
      What `write` returned.

    Raises:
      OSError: the storage fails; the folder is what it was, or `complete` makes it the new one. What `write` raises.
    """
    complete(folder, last=last)
    written = write(_beside(folder))
    names = _names(_beside(folder))
    assert last in names, f"the file that counts, {last!r}, was not written"
    _move(folder, last=last)
    for name in _names(folder) if rewritten is not None else ():
        if rewritten is not None and name not in names and rewritten(name):
            remove_file(epath.Path(folder) / name)
    return written


def is_left(folder: epath.PathLike) -> bool:
    """Whether a process is in `replace`, or died there."""
    return _beside(folder).is_dir()


def complete(folder: epath.PathLike, *, last: str) -> None:
    """Completes what a process that died in `replace` has begun, or clears it away; for who holds the lock."""
    if not is_left(folder):
        return
    if (_beside(folder) / last).exists():
        _move(folder, last=last)
    remove_folder(_beside(folder))


def _beside(folder: epath.PathLike) -> epath.Path:
    path = epath.Path(folder)
    return path.parent / f".{path.name}.new"


def _names(folder: epath.PathLike) -> list[str]:
    """The paths of all files below a folder, relative to it."""
    start = len(os.fspath(epath.Path(folder)).rstrip("/")) + 1
    return sorted(
        os.fspath(epath.Path(place) / name)[start:] for place, _, names in epath.Path(folder).walk() for name in names
    )


def _move(folder: epath.PathLike, *, last: str) -> None:
    for name in sorted(_names(_beside(folder)), key=lambda name: (name == last, name)):
        (_beside(folder) / name).replace(epath.Path(folder) / name)
    remove_folder(_beside(folder))
