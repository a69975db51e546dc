"""Locks on folders: one process at a time writes a work directory or an adapter, whatever machine it runs on.

A lock is a small file that names its owner and that the owner renews. On a disk, a network disk included, it is made in
one act that fails where it is there. Its owner is dead when it was a process of this machine that is gone, or when it
is seen not to renew the lock for `STALE_SECONDS`; clocks are never compared. Whoever finds a dead owner takes over.

Object stores have no such act here: a lock is written, and read again after a while. Two processes that start within
the same seconds can then both hold it if the writing of one takes longer than `SETTLE_SECONDS`; the next renewal of the
one that was overwritten sees it, and `Lock.check` says so.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from hra_jax.console import tell
from hra_jax.errors import UserError
from hra_jax.storage import writing
from hra_jax.storage.files import is_remote, make_folder, naming, real_path, remove_file
from hra_jax.storage.json_files import parse_json

RENEW_SECONDS = {False: 5.0, True: 20.0}  # of a lock on a disk, and on an object store
STALE_SECONDS = {False: 60.0, True: 120.0}
SETTLE_SECONDS = 5.0
NAME = ".lock"  # of the file in a folder that is locked
_MOST_BYTES = 4096
_LOOK_SECONDS = 0.2  # between two looks at a lock on a disk
_PATIENCE_SECONDS = 3.0
# What says that a file system has no second names.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)

_held: dict[str, "Lock"] = {}
_guard = threading.Lock()


class _Found(NamedTuple):
    """What a lock file says."""

    content: bytes
    owner: dict[str, Any]  # empty where it cannot be read

    @property
    def token(self) -> object:
        return self.owner.get("token")


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: epath.Path, owner: dict[str, Any]):
        self.path = path
        self.times = 1  # it is held, one inside another
        self._owner = owner
        self._process = os.getpid()
        self._count = 0
        self._lost = False
        self._begun = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, name="lock", daemon=True)

    @property
    def token(self) -> str:
        """What tells it from all other locks."""
        token: str = self._owner["token"]
        return token

    def start(self) -> None:
        """Begins to renew it; a signal that ends the process gives it up."""
        self._begun = writing.begin(self.release, patience=writing.Patience.NONE)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that nobody has taken it over: before something is written that must not be mixed.

        Raises:
          UserError: this process stood still for so long that another one has it.
        """
        if self._lost:
            raise UserError(f"{self.path}: another process has taken this lock over while this one stood still")

    def release(self) -> None:
        """Gives it up; in a process that was forked from the owner's nothing happens."""
        if os.getpid() != self._process:
            return
        writing.end(self._begun)
        self._ended.set()
        self._thread.join(_PATIENCE_SECONDS)  # it may wait for storage that does not answer
        _remove_own(self.path, self.token)

    def _renew_on(self) -> None:
        remote, renewed = is_remote(self.path), _seconds()
        while not self._ended.wait(RENEW_SECONDS[remote]) and not self._lost:
            # Storage that does not answer now may answer the next time.
            with contextlib.suppress(OSError, UserError):
                found = _read(self.path)
                # Somebody tidied up; but who stood still may have missed a whole life of another lock.
                tidied = found is None and _seconds() - renewed < STALE_SECONDS[remote]
                if not tidied and (found is None or found.token != self._owner["token"]):
                    self._lost = True
                    return
                self._count += 1
                content = _content(self._owner, self._count)
                if not tidied or remote:
                    _overwrite(self.path, content)
                elif not _made(self.path, content):
                    continue
                renewed = _seconds()
                if self._ended.is_set():
                    remove_file(self.path)  # it was given up while storage took its time


def _seconds() -> float:
    """Seconds since some moment, those included in which the machine slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextlib.contextmanager
def hold(folder: epath.PathLike, what: str, *, patient: bool = False) -> Iterator[Lock]:
    """Holds the lock of a folder, in the file `.lock` in it; the folder is made where it is absent.

    Of a run of several processes only process 0 may take it. Within one process the same lock may be held again.

    Args:
      folder: the folder.
      what: what it is held for, for the error of others: 'training', 'tasks add'.
      patient: whether to wait for another process until it has done.

    Raises:
      UserError: another process holds it; names the process and what it does.
      OSError: the lock cannot be written.
    """
    make_folder(folder)
    place = real_path(folder)
    with _holding(place / NAME, what, folder=folder, patient=patient) as lock:
        yield lock


@contextlib.contextmanager
def hold_beside(folder: epath.PathLike, what: str, *, patient: bool = False) -> Iterator[Lock]:
    """As `hold`, in the file `.NAME.lock` beside a folder NAME, which may be absent or be replaced meanwhile."""
    path = _beside(folder)
    make_folder(path.parent)
    with _holding(path, what, folder=folder, patient=patient) as lock:
        yield lock


def check_free(folder: epath.PathLike) -> None:
    """Refuses a folder whose lock another process holds; nothing is written.

    A lock of another machine is watched for a little longer than its owner needs to renew it; `hold` waits longer.

    Raises:
      UserError: another process holds it; names the process and what it does.
      OSError: the lock cannot be read.
    """
    path = (epath.Path(folder) if is_remote(folder) else epath.Path(os.path.realpath(folder))) / NAME
    found = _read(path)
    if found is not None and os.fspath(path) not in _held:
        _wait_for(path, found, folder, quiet=False, seconds=1.5 * RENEW_SECONDS[is_remote(path)])


def is_held_beside(folder: epath.PathLike) -> bool:
    """Whether the lock beside a folder is there; its owner may be dead. Raises OSError."""
    return _beside(folder).exists()


def _beside(folder: epath.PathLike) -> epath.Path:
    place = real_path(folder)
    return place.parent / f".{place.name}{NAME}"


def check_held(folder: epath.PathLike) -> None:
    """`Lock.check` for the lock of a folder, where this process holds it: before something that must not be mixed.

    Raises:
      UserError: this process stood still for so long that another one has taken the lock over.
    """
    place = real_path(folder)
    lock = _held.get(os.fspath(place / NAME))
    if lock is not None:
        lock.check()


def is_held(folder: epath.PathLike) -> bool:
    """Whether any process, this one included, holds the lock of a folder, as far as one look tells.

    Raises:
      UserError: something else has the name of the lock.
      OSError: it cannot be read.
    """
    place = real_path(folder)
    found = _read(place / NAME)
    return found is not None and not _is_dead(found.owner)


@contextlib.contextmanager
def _holding(path: epath.Path, what: str, *, folder: epath.PathLike, patient: bool = False) -> Iterator[Lock]:
    key = os.fspath(path)
    with _guard:
        lock = _held.get(key)
        if lock is not None and lock._process == os.getpid():
            lock.times += 1
        else:
            lock = _held[key] = _taken(path, _this_process(what), folder, patient=patient)
    try:
        yield lock
    finally:
        with _guard:
            lock.times -= 1
            if not lock.times and _held.get(key) is lock:
                del _held[key]
                lock.release()


@atexit.register
def _release_all() -> None:
    for lock in list(_held.values()):
        lock.release()
    _held.clear()


# --- Owners -----------------------------------------------------------------------------------------------------------


def _this_process(what: str) -> dict[str, Any]:
    process = os.getpid()
    return {
        "process": process,
        "host": socket.gethostname(),
        "machine": _machine(),
        "started": _started(process),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),  # for people
        "what": what,
        "token": secrets.token_hex(16),
    }


def _machine() -> str:
    """What tells this machine and its numbering of processes from others: hosts and containers may share a name."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """When a process was started, as the system counts; '' where there is none, or it does not say."""
    try:
        line = pathlib.Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return ""
    fields = line.rpartition(b")")[2].split()
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie does nothing any more


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether an owner was a process of this machine that is gone; False where nobody knows."""
    process = owner.get("process")
    if owner.get("machine") != _machine() or type(process) is not int or process <= 0:
        return False
    if process == os.getpid() and owner.get("started") == _started(process):
        # What this process does not know of, it was interrupted in taking.
        return owner.get("token") not in [lock.token for lock in list(_held.values())]
    if os.path.exists("/proc/self/stat"):
        return _started(process) != owner.get("started")  # a number may be given to another process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _refusal(found: _Found, folder: epath.PathLike, path: epath.Path) -> UserError:
    owner = {name: f"{found.owner.get(name, '?')}"[:80] for name in ("what", "process", "host", "since")}
    return _InUse(
        f"{os.fspath(folder)!r} is in use: {owner['what']!r}, process {owner['process']!r} on {owner['host']!r} since "
        f"{owner['since']!r}; allowed: one process at a time ({os.fspath(path)} is its lock)"
    )


def _say_waiting(found: _Found, folder: epath.PathLike, seconds: float) -> None:
    host = f"{found.owner.get('host', '?')}"[:80]
    tell(
        f"{os.fspath(folder)!r} was in use by a process on {host!r}; waiting up to {seconds:.0f} s for a sign of life, "
        "as from here nobody sees whether it is alive; without one it counts as dead, and this command goes on",
        to=sys.stderr,
    )


# --- The file ---------------------------------------------------------------------------------------------------------


def _content(owner: dict[str, Any], count: int) -> bytes:
    return json.dumps(owner, sort_keys=True).encode() + f"\n{count:016d}\n".encode()


def _read(path: epath.Path) -> _Found | None:
    """What a lock file says; None where there is none.

    Raises:
      UserError: there is a link, or no regular file.
      OSError: it cannot be read.
    """
    try:
        if is_remote(path) and not path.exists():
            return None
        content = path.read_bytes() if is_remote(path) else _read_local(path)
    except FileNotFoundError:
        return None
    owner: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        value = parse_json(content.partition(b"\n")[0], where=os.fspath(path))
        owner = value if isinstance(value, dict) else {}
    return _Found(content, owner)


def _read_local(path: epath.Path) -> bytes:
    try:
        descriptor = _no_link(os.fspath(path), os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise _no_lock(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_lock(path)
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def _no_lock(path: epath.Path) -> UserError:
    return UserError(f"{os.fspath(path)!r} is no regular file; allowed: a lock that hra_jax wrote, or nothing")


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _overwrite(path: epath.Path, content: bytes) -> None:
    """Renews a lock: the same content with another count."""
    if is_remote(path):
        path.write_bytes(content)
        return
    descriptor = _no_link(os.fspath(path), os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)  # as long as it was
    finally:
        os.close(descriptor)


def _renewed(path: epath.Path, found: _Found, seconds: float, *, look: float) -> bool:
    """Watches a lock for so many seconds: whether anything happens to it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(look)
        now = _read(path)
        if now is None or now.content != found.content:
            return True
    return False


def _remove_own(path: epath.Path, token: str) -> None:
    """Removes a lock file with this token. Storage that is gone keeps a lock that nobody renews."""
    with contextlib.suppress(OSError, UserError):
        found = _read(path)
        if found is not None and found.token == token:  # who took it over keeps it
            remove_file(path)


def _look_seconds(path: epath.Path) -> float:
    """The time between two looks at a lock."""
    return RENEW_SECONDS[True] / 4 if is_remote(path) else _LOOK_SECONDS


def _wait_for(
    path: epath.Path, found: _Found, folder: epath.PathLike, *, quiet: bool, seconds: float | None = None
) -> None:
    """Returns when the owner of a lock is dead or has let go; says that it waits, unless it is to be quiet.

    Args:
      path: the lock.
      found: what it says.
      folder: what is locked.
      quiet: whether to wait without a word.
      seconds: for how long it is watched where its owner cannot be looked at; None for as long as `STALE_SECONDS`.

    Raises:
      UserError: it is alive.
    """
    if _is_dead(found.owner):
        return
    if found.owner.get("machine") == _machine() and "token" in found.owner:
        raise _refusal(found, folder, path)  # the process is there
    seconds = STALE_SECONDS[is_remote(path)] if seconds is None else seconds
    if not quiet:
        _say_waiting(found, folder, seconds)
    if _renewed(path, found, seconds, look=_look_seconds(path)):
        now = _read(path)
        if now is not None:
            raise _refusal(now, folder, path)


class _InUse(UserError):
    """Another process holds the lock."""


def _taken(path: epath.Path, owner: dict[str, Any], folder: epath.PathLike, *, patient: bool) -> Lock:
    with contextlib.ExitStack() as undo:
        # Where this is interrupted after the lock was written, nobody would renew or remove it.
        undo.callback(_remove_own, path, owner["token"])
        _take(path, owner, folder, patient=patient)
        lock = Lock(path, owner)
        lock.start()
        undo.pop_all()
    return lock


def _take(path: epath.Path, owner: dict[str, Any], folder: epath.PathLike, *, patient: bool) -> None:
    take, told = _take_remote if is_remote(path) else _take_local, False
    while True:
        try:
            take(path, owner, folder, quiet=told)
            return
        except _InUse as refusal:
            if not patient:
                raise
            if not told:
                tell(f"waiting: {refusal}", to=sys.stderr)
            told = True
            time.sleep(_look_seconds(path))


# --- On a disk --------------------------------------------------------------------------------------------------------


def _take_local(path: epath.Path, owner: dict[str, Any], folder: epath.PathLike, *, quiet: bool = False) -> None:
    while not _made(path, _content(owner, 0)):
        found = _read(path)
        if found is not None:
            _wait_for(path, found, folder, quiet=quiet)
            _remove_dead(path, found)
    _remove_leftovers(path)


def _remove_leftovers(path: epath.Path) -> None:
    """Removes what processes left that were killed while they made this lock; for its owner."""
    pattern = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for name in os.listdir(path.parent):
        if pattern.fullmatch(name):
            remove_file(path.parent / name)


def _write_all(descriptor: int, content: bytes) -> None:
    # Of a full disk the first bytes may still fit: a lock whose owner cannot be read would be nobody's, and stay.
    while content:
        content = content[os.write(descriptor, content) :]


def _made(path: epath.Path, content: bytes) -> bool:
    """Makes a lock file with its content in one act; False where there is one already."""
    fresh = f"{os.fspath(path)}.{secrets.token_hex(8)}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with naming(path):
            _write_all(descriptor, content)
            os.fsync(descriptor)  # others may see it now
        os.link(fresh, path)
    except FileNotFoundError:
        return False  # who has just taken the lock took this for a leftover
    except FileExistsError:
        return os.fstat(descriptor).st_nlink == 2  # a network may have lost the answer to the act
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _made_without_links(path, content)
    finally:
        os.close(descriptor)
        remove_file(fresh)
    return True


def _made_without_links(path: epath.Path, content: bytes) -> bool:
    """As `_made`, on file systems without second names: for a moment the file is there and empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with naming(path):
            _write_all(descriptor, content)
    except OSError:
        remove_file(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _remove_dead(path: epath.Path, dead: _Found) -> None:
    """Removes the lock of a dead owner, unless another process was faster.

    Two that found the same dead owner must not both remove: the second one would remove the new lock of the first. The
    system's own lock on the dead file lets one of them through, and ends with its process.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=_no_link) as file:
        with contextlib.suppress(OSError):  # a network disk may have none
            fcntl.flock(file, fcntl.LOCK_EX)
        now = _read(path)
        same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        if same and now is not None and now.content == dead.content:
            os.unlink(path)


# --- On an object store -----------------------------------------------------------------------------------------------


def _take_remote(path: epath.Path, owner: dict[str, Any], folder: epath.PathLike, *, quiet: bool = False) -> None:
    found = _read(path)
    if found is not None:
        _wait_for(path, found, folder, quiet=quiet)
    path.write_bytes(_content(owner, 0))
    time.sleep(SETTLE_SECONDS)
    now = _read(path)
    if now is None or now.token != owner["token"]:
        raise _refusal(now or _Found(b"", {}), folder, path)
