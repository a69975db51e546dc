"""Folders that are replaced whole: a reader finds the old folder or the new one, after a crash too.

The new folder is written beside the old one, under a hidden random name, and is on the disk before the two change
places in one act of the file system. Where it has no such act, two renames do it, and `recover` completes them when the
process was killed between. Object stores have no folders: there files are replaced one by one, see `staging`.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage import locks, staging, writing
from hra_jax.storage.files import check_no_links, is_remote, real_path, remove_folder, rename_folder, sync_folder
from hra_jax.storage.json_files import read_text

_Result = TypeVar("_Result")
_RENAMES_SECONDS = 2.0  # for which a reader waits at most for a second rename
_LOOK_SECONDS = 0.05
_REPLACED_SECONDS = 60.0  # and for who replaces files one by one
_READINGS = 5  # of a folder that is replaced again and again
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What says that this system or this file system cannot exchange two names.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


@writing.going_on()
def replace_folder(
    folder: epath.PathLike,
    write: Callable[[epath.Path], _Result],
    *,
    rewritten: Callable[[str], bool] | None = None,
    last: str | None = None,
) -> _Result:
    """Writes a folder, in place of one that is there already.

    It holds the lock beside the folder meanwhile, as whoever decides by what is there does already: readers that find
    nothing between two renames must not think that a killed process left it so. A link to a folder stays one: its
    target is replaced.

    Args:
      folder: the folder; those that it lies in are made.
      write: writes all files of the new folder into the folder that it is given. On object storage that may be
        `folder` itself, so it must write the file that makes the others count last.
      last: the name of that file, where what a process leaves half done on object storage must be completed by
        `recover`: everything is then written twice there.
      rewritten: takes the path of an old file, relative to the folder and with "/"; whether `write` takes care of it.
        All others are in the new folder too. None: the new folder holds what `write` writes and nothing else.

    Returns:
      What `write` returned.

    Raises:
      UserError: a file has the name of the folder, a link lies in the old folder, or another process has removed the
        new one.
      OSError: it cannot be written; the folder is then what it was. So it is whatever else `write` raises.
    """
    if is_remote(folder):
        if last is not None:
            return staging.replace(folder, write, last=last, rewritten=rewritten)
        return write(epath.Path(folder))
    place = real_path(folder)
    if os.path.lexists(place) and not place.is_dir():
        raise UserError(f"{os.fspath(folder)!r} is there and is no folder; allowed: a folder, or nothing")
    with locks.hold_beside(place, "replace", patient=True):
        return _replaced(place, write, rewritten, named=os.fspath(folder))


def _replaced(
    place: epath.Path, write: Callable[[epath.Path], _Result], rewritten: Callable[[str], bool] | None, *, named: str
) -> _Result:
    place.parent.mkdir(parents=True, exist_ok=True)
    recover(place)
    token = secrets.token_hex(8)
    fresh, old = (_beside(place, kind, token) for kind in ("new", "old"))
    # Fails where anything has the name, a link included. What was private is at no moment anything else.
    os.mkdir(fresh, 0o700 if place.exists() else 0o777)
    made = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)  # while it is open, no other folder gets its number
    try:
        if place.exists():
            check_no_links(place)
            if rewritten is not None:
                _take_over(place, fresh, rewritten)
        written = write(fresh)
        sync_tree(fresh)
        _check_same(fresh, made, named)
        if place.exists():
            _keep_modes(place, fresh)
            _exchange(fresh, place, old)
        else:
            rename_folder(fresh, place)
    except OSError as error:
        if str(error.filename).startswith(f"{fresh}{os.sep}"):
            error.filename = str(error.filename).replace(str(fresh), str(place), 1)  # the name that people know
        raise
    finally:
        os.close(made)
        # After an exchange it is the old one. Between two renames it is the only complete one.
        if place.exists() or not old.exists():
            remove_folder(fresh)
    return written


def recover(folder: epath.PathLike, *, last: str | None = None) -> None:
    """Mends what a process left that was killed in `replace_folder`; for who holds the lock of the folder.

    Where the folder is gone, the new one is put there if it was complete, else the old one. Hidden copies are removed.
    On object storage this is done where `last` is given, as it was to `replace_folder`.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(folder):
        if last is not None:
            staging.complete(folder, last=last)
        return
    place = real_path(folder)
    if not place.parent.is_dir():
        return
    left = _leftovers(place)
    if not os.path.lexists(place):
        # The old one gives up its name when the new one is complete, and not before.
        for token in sorted(left["old"]):
            complete = "new" if token in left["new"] else "old"
            rename_folder(_beside(place, complete, token), place)
            break
    if os.path.lexists(place):
        for kind, tokens in left.items():
            for token in tokens:
                remove_folder(_beside(place, kind, token))
    elif left["new"]:
        # There was no folder before, and the first one was never complete.
        for token in left["new"]:
            remove_folder(_beside(place, "new", token))


def is_to_be_mended(folder: epath.PathLike) -> bool:
    """Whether `recover` would find anything to do; false alarms while another process is in `replace_folder`."""
    if is_remote(folder):
        return staging.is_left(folder)
    place = real_path(folder)
    return place.parent.is_dir() and any(_leftovers(place).values())


def put_back(folder: epath.PathLike) -> None:
    """`recover` for who only reads, where the folder is gone: who replaces it is waited for, who was killed is not.

    Raises:
      UserError: it is gone so, and cannot be put back: another process is at it, or nothing may be written there.
    """
    end = time.monotonic() + _RENAMES_SECONDS
    while _is_between_renames(folder):
        with contextlib.suppress(UserError, OSError), locks.hold_beside(folder, "recovery"):
            recover(folder)
        if not _is_between_renames(folder):
            return
        if time.monotonic() > end:
            (token, *_) = sorted(_leftovers(real_path(folder))["old"]) or [""]
            raise UserError(
                f"{os.fspath(folder)!r} is gone: a process replaces it, or was killed while it did, and it cannot be "
                f"put back here; {os.fspath(_beside(real_path(folder), 'old', token))!r} is what it was"
            )
        time.sleep(_LOOK_SECONDS)


def read_whole(folder: epath.PathLike, last: str, read: Callable[[], _Result]) -> _Result:
    """Reads a folder whose files belong together; one that is replaced meanwhile is read again.

    Args:
      folder: the folder; `put_back` looks after it first.
      last: its file that is written last, and is another one whenever any of them is.
      read: reads what is wanted.

    Returns:
      What `read` returned.

    Raises:
      UserError: from `read` or `put_back`.
    """
    path = epath.Path(folder) / last
    for _ in range(_READINGS - 1):
        put_back(folder)
        before = _version(path)
        try:
            found = read()
        except UserError:
            if not _is_replaced(folder, path, before):
                raise
        else:
            if _version(path) == before:
                return found
    return read()


def _version(path: epath.Path) -> object:
    """Something that is another one whenever a file is: by its text, and on a disk if the same text came back."""
    try:
        found = None if is_remote(path) else os.stat(path)
        return read_text(path), found and (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
    except (UserError, FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _is_replaced(folder: epath.PathLike, path: epath.Path, before: object) -> bool:
    """Whether the last file is another one than before; waits for who writes in a bucket."""
    put_back(folder)
    end = time.monotonic() + _REPLACED_SECONDS
    while is_remote(folder) and locks.is_held_beside(folder) and time.monotonic() < end:
        if _version(path) != before:
            return True
        time.sleep(1.0)
    if is_remote(folder) and staging.is_left(folder):
        with contextlib.suppress(UserError, OSError), locks.hold_beside(folder, "recovery"):
            recover(folder, last=path.name)
            return True
    return _version(path) != before


def _is_between_renames(folder: epath.PathLike) -> bool:
    if is_remote(folder) or os.path.lexists(folder):
        return False
    place = real_path(folder)
    return place.parent.is_dir() and bool(_leftovers(place)["old"])


def _beside(folder: epath.Path, kind: str, token: str) -> epath.Path:
    return folder.parent / f".{folder.name}.{kind}-{token}"


def _leftovers(folder: epath.Path) -> dict[str, set[str]]:
    """The tokens of hidden copies of a folder, by kind."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(new|old)-([0-9a-f]{{16}})")
    found: dict[str, set[str]] = {"new": set(), "old": set()}
    with os.scandir(folder.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                found[match[1]].add(match[2])
    return found


def _check_same(fresh: epath.Path, made: int, folder: epath.PathLike) -> None:
    """Refuses a folder that was removed while it was written, and made again by what was written after that."""
    try:
        same = os.path.samestat(os.lstat(fresh), os.fstat(made))
    except FileNotFoundError:
        same = False
    if not same:
        raise UserError(f"{os.fspath(folder)!r}: another process has removed {fresh.name!r}, so it stays as it is")


def _take_over(old: epath.Path, new: epath.Path, rewritten: Callable[[str], bool]) -> None:
    """Puts the files that stay as they are into the new folder too."""
    for place, folders, names in os.walk(old):
        relative = os.path.relpath(place, old)
        start = "" if relative == "." else f"{relative}/".replace(os.sep, "/")
        kept = [name for name in names if not rewritten(start + name)]
        if start and (kept or not (names or folders)):
            os.makedirs(new / relative, exist_ok=True)
        for name in kept:
            _link_or_copy(os.path.join(place, name), new / relative / name)


def _keep_modes(old: epath.Path, new: epath.Path) -> None:
    """Gives the files and folders of `new` the permissions of those that had their names."""
    for place, folders, names in os.walk(new, topdown=False):
        before = old / os.path.relpath(place, new)
        for name in (*folders, *names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.chmod(os.path.join(place, name), stat.S_IMODE(os.lstat(before / name).st_mode))
    os.chmod(new, stat.S_IMODE(os.stat(old).st_mode))


def _link_or_copy(file: str, copy: epath.Path) -> None:
    # A second name costs nothing. File systems without them get a copy.
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy, follow_symlinks=False)


def sync_tree(folder: epath.PathLike) -> None:
    """Puts a folder of this machine and everything in it on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            # Not every file can be opened, and not every file system can.
            with contextlib.suppress(OSError), open(os.path.join(place, name), "rb", opener=_without_waiting) as file:
                os.fsync(file.fileno())
        sync_folder(place)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer


def _exchange(fresh: epath.Path, folder: epath.Path, old: epath.Path) -> None:
    """Puts `fresh` in the place of `folder`; the old one is then at `fresh`, or gone."""
    if exchange_names(fresh, folder):
        sync_folder(folder.parent)
        return
    rename_folder(folder, old)
    try:
        rename_folder(fresh, folder)
    except OSError:
        rename_folder(old, folder)
        raise
    remove_folder(old)


def exchange_names(first: epath.PathLike, second: epath.PathLike) -> bool:
    """Exchanges two names of this machine in one act; False, with nothing done, where that is impossible.

    Raises:
      OSError: it is possible here, and failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = [os.fsencode(os.fspath(name)) for name in (first, second)]
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), os.fspath(first), None, os.fspath(second))
