"""Paths in buckets (`gs://`, `s3://`): errors of every client as OSError, and acts tried again while storage is away.

Importing this module has `epath.Path` give paths of this kind, to this library and to those that it uses: work
directories, backbones, manifests, recordings and the compile cache all go this way. What does not answer is asked
again, with growing pauses, for HRA_STORAGE_SECONDS; what is not there or not allowed is said at once. `epath.Path` then
also takes `file://` for the local path that it is, and refuses all other schemes with a UserError.

A file is written to this machine first and goes to the bucket whole, when it is closed; where the `with` block ends
with an error it does not go there at all.
"""

import contextlib
import errno
import io
import os
import random
import re
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import IO, Any, Self, TypeVar

from etils import epath
from etils.epath import register

from hra_jax.errors import UserError

SECONDS_VARIABLE = "HRA_STORAGE_SECONDS"
UNAVAILABLE = 75  # exit status (EX_TEMPFAIL): the same command may find the storage again
_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds
_BUFFER = 1 << 20  # bytes that are asked for at least
SCHEMES = ("gs", "s3")  # of buckets
_STARTS = tuple(f"{scheme}://" for scheme in SCHEMES)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# TensorFlow's client asks again by itself, first for minutes and in silence; here all clients wait alike.
os.environ.setdefault("GCS_RETRY_CONFIG_MAX_RETRIES", "2")
os.environ.setdefault("GCS_REQUEST_CONNECTION_TIMEOUT_SECS", "20")
# It also asks for 64 MB where a few bytes are read, such as a part of a long recording.
os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "2")
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "20")

_T = TypeVar("_T")


class StorageUnavailable(OSError):
    """Storage does not answer, or says that it is too busy; later it may. Commands end with status 75."""


# The canonical codes of Google's libraries, which TensorFlow and TensorStore share, by number.
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_AWAY = {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE"} | {
    "DATA_LOSS"
}
_KINDS: dict[str, tuple[type[OSError], int]] = {
    "NOT_FOUND": (FileNotFoundError, errno.ENOENT),
    "ALREADY_EXISTS": (FileExistsError, errno.EEXIST),
    "PERMISSION_DENIED": (PermissionError, errno.EACCES),
    "UNAUTHENTICATED": (PermissionError, errno.EACCES),
    "UNIMPLEMENTED": (OSError, errno.EPROTONOSUPPORT),
} | {code: (StorageUnavailable, errno.EAGAIN) for code in _AWAY}
_HTTP = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED"} | {
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
}
_CLIENT_ERRORS = (
    ("tensorflow.python.framework.errors_impl", "OpError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
# How TensorStore begins, which raises ValueError for everything, and what it says where it was about HTTP.
_TENSORSTORE = re.compile(rf"\s*({'|'.join(_CODES[1:])}): ")
_CODE = re.compile(rf"\b({'|'.join(_CODES[1:])}): ")
_OF_HTTP = re.compile(r"gs://|\"gcs\"|http_response_code|CURL|googleapis")


def _code_of(error: BaseException) -> str | None:
    """The canonical code of an error of a storage client; None for every other error."""
    package = type(error).__module__.partition(".")[0]
    if package == "tensorflow":
        number = getattr(error, "error_code", None)
        return _CODES[number] if isinstance(number, int) and 0 < number < len(_CODES) else None
    if type(error).__module__.startswith("google.auth"):
        return "UNAVAILABLE" if type(error).__name__ == "TransportError" else "UNAUTHENTICATED"
    if type(error).__module__.startswith(("google.api_core", "google.cloud")):
        status = getattr(error, "code", None)
        if not isinstance(status, int):  # such as RetryError
            return "UNAVAILABLE"
        return _HTTP.get(status, "UNAVAILABLE" if status >= 500 else "FAILED_PRECONDITION")
    if type(error) in (ValueError, RuntimeError, KeyError):
        text = str(error)
        found = _TENSORSTORE.match(text)
        return found[1] if found and _OF_HTTP.search(text) else None
    return None


def as_os_error(error: BaseException, path: epath.PathLike = "") -> OSError | None:
    """An error of a client of storage as the OSError that local files would give.

    Args:
      error: of TensorFlow, TensorStore, google-cloud-storage, or any other.
      path: what was asked for.

    Returns:
      FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, StorageUnavailable or
      a plain OSError, each with one line as its `strerror`; None where the error is none of a client of storage.
    """
    if isinstance(error, OSError):
        return error
    code = _code_of(error)
    if code is None:
        return None
    text = " ".join(str(error).split())
    kind, number = _KINDS.get(code, (OSError, errno.EIO))
    if code == "FAILED_PRECONDITION":
        if "not a directory" in text.lower():
            kind, number = NotADirectoryError, errno.ENOTDIR
        elif "is a directory" in text.lower():
            kind, number = IsADirectoryError, errno.EISDIR
    reason = text[:300] or code
    if kind is StorageUnavailable:
        reason = f"the storage does not answer: {reason}"
    elif kind is FileNotFoundError:
        reason = "no such file" if "bucket" not in text.lower() else text[:300]
    return kind(number, reason, os.fspath(path) or None)


def code_in(text: str) -> str | None:
    """The first canonical code that a message of Google's libraries names, such as NOT_FOUND; None without one."""
    found = _CODE.search(text)
    return found[1] if found else None


def client_errors() -> tuple[type[Exception], ...]:
    """What clients of storage raise, those that are loaded: for an `except` that then asks `as_os_error`."""
    found: list[type[Exception]] = [OSError, ValueError, RuntimeError, KeyError]
    for module, name in _CLIENT_ERRORS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def unavailable(error: BaseException | None) -> StorageUnavailable | None:
    """The StorageUnavailable that an error comes from, by way of its causes; None where that is not why."""
    while error is not None:
        found = as_os_error(error)
        if isinstance(found, StorageUnavailable):
            return found
        error = error.__cause__ or error.__context__
    return None


def seconds_to_wait() -> float:
    """For how long storage that does not answer is asked again: HRA_STORAGE_SECONDS, or a minute."""
    try:
        return max(0.0, float(os.environ.get(SECONDS_VARIABLE) or _SECONDS))
    except ValueError:
        return _SECONDS


def pauses() -> list[float]:
    """Seconds between the tries for a client that is to ask again by itself for `seconds_to_wait`."""
    found: list[float] = []
    pause = _FIRST_PAUSE
    while sum(found) + pause <= seconds_to_wait():
        found.append(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return found


def retried(act: Callable[[], _T], path: epath.PathLike) -> _T:
    """Does something that may be done twice, again and again while the storage does not answer.

    Args:
      act: what to do.
      path: what it is done to, for the error.

    Raises:
      OSError: as `as_os_error` gives it; StorageUnavailable once `seconds_to_wait` are over.
    """
    end, pause = time.monotonic() + seconds_to_wait(), _FIRST_PAUSE
    while True:
        try:
            return act()
        except client_errors() as error:
            known = as_os_error(error, path)
            if known is None:
                raise
            if not isinstance(known, StorageUnavailable) or time.monotonic() + pause > end:
                raise known from error
        # Hosts of a pod that lost the storage together do not come back together.
        time.sleep(pause * random.uniform(0.7, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE)


def answers(path: epath.PathLike) -> bool:
    """Whether the bucket of a path answers at all: where it does, only this one object is unreachable.

    A recording that is unreachable by itself is left out; storage that is away ends the command.
    """
    scheme, _, rest = os.fspath(path).partition("://")
    bucket = f"{scheme}://{rest.partition('/')[0]}/"
    try:
        _gfile().stat(bucket)
    except client_errors() as error:
        if as_os_error(error) is None:
            raise
        return not isinstance(as_os_error(error), StorageUnavailable)
    return True


# --- Schemes ----------------------------------------------------------------------------------------------------------


def local_path(path: str) -> str:
    """A path as the operating system has it: `file:///a%20b.wav` becomes `/a b.wav`; all others stay as they are."""
    found = _SCHEME.match(path)
    if found is None or found[1].lower() != "file":
        return path
    host, slash, rest = path[found.end() :].partition("/")
    return urllib.parse.unquote(slash + rest) if host.lower() in ("", "localhost") and slash else path


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path has a scheme, and is no file of this machine; `file://` is one."""
    return _SCHEME.match(local_path(os.fspath(path))) is not None


def why_unreachable(path: str) -> str | None:
    """Why nothing can be read or written at a path, whatever is there; None where something can."""
    found = _SCHEME.match(local_path(path))
    if found is None or found[1] in SCHEMES:
        return None
    if found[1].lower() == "file":
        return "file:// of another machine is not read here; allowed: file:///PATH"
    return f"{found[0]} is not read here; allowed: a path, {', '.join(('file://', *_STARTS))}"


def _path_of_no_bucket(path: str) -> epath.Path:
    """The local path that a path with `://` in it is. Raises UserError where it is none."""
    why = why_unreachable(path)
    if why is not None:
        raise UserError(f"{path!r}: {why}")
    return _LocalOfAddress(local_path(path))


class _Classes(dict):
    """The classes of `epath.Path` by how paths start; epath has nothing to register for all other starts."""

    def __missing__(self, start: str) -> Callable[[str], epath.Path]:
        return _path_of_no_bucket


# --- Paths ------------------------------------------------------------------------------------------------------------

_Local: Any = type(epath.Path("/"))
_Parent: Any = type(epath.Path("gs://bucket"))


class _LocalOfAddress(_Local):
    """The local path of a `file://` address."""

    if sys.version_info >= (3, 12):
        # `epath.Path(address)` calls it once more on what it has made of the address, with the address itself.
        def __init__(self, *parts: epath.PathLike):
            super().__init__(*(local_path(os.fspath(part)) for part in parts))


# Of az:// and hf:// epath knows too, and has no client for them here.
register._URI_PREFIXES_TO_CLS = _Classes(
    {start: cls for start, cls in register._URI_PREFIXES_TO_CLS.items() if cls is not _Parent or start in _STARTS}
)


@epath.register_path_cls(_STARTS)
class BucketPath(_Parent):
    """`epath.Path` for buckets, with the errors of local paths, and with files that are read and written whole."""

    def _retried(self, act: Callable[[], _T]) -> _T:
        return retried(act, self)

    def exists(self) -> bool:
        """Whether there is an object, or a folder, of this name."""
        parent: Any = super()
        return self._retried(parent.exists)

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        # TensorFlow's `isdir` takes storage that is away for a folder that is not there.
        try:
            return bool(self.stat().is_directory)
        except FileNotFoundError:
            return False

    def iterdir(self) -> Iterator[Self]:
        """What lies directly below; FileNotFoundError where nothing is."""
        parent: Any = super()

        def entries() -> list[Self]:
            try:
                return list(parent.iterdir())
            except client_errors() as error:
                # TensorFlow's `listdir` says the same of storage that is away.
                if isinstance(as_os_error(error), FileNotFoundError) and self.is_dir():
                    raise StorageUnavailable(errno.EAGAIN, "the storage does not list it", os.fspath(self)) from error
                raise

        # Folders are listed with a slash, and the mark of the folder itself without a name.
        found: list[Self] = self._retried(entries)
        return iter([entry for entry in found if entry != self])

    def glob(self, pattern: str) -> Iterator[Self]:
        """What matches a pattern without `**`."""
        parent: Any = super()
        return iter(self._retried(lambda: list(parent.glob(pattern))))

    def walk(self, **keywords: Any) -> Iterator[tuple[Self, list[str], list[str]]]:
        """As pathlib's."""
        parent: Any = super()
        return iter(self._retried(lambda: list(parent.walk(**keywords))))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the mark of a folder; a bucket needs none, but those who look for one find it."""
        del mode, parents  # there are none
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(self))

        def make() -> None:
            # Not `makedirs`, which looks for ever where there is no such bucket.
            try:
                _gfile().mkdir(os.fspath(self))
            except client_errors() as error:
                if not isinstance(as_os_error(error), FileExistsError):
                    raise

        self._retried(make)

    def rmdir(self) -> None:
        """Removes the mark of an empty folder."""
        parent: Any = super()
        self._retried(parent.rmdir)

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes everything below this name."""
        parent: Any = super()

        def remove() -> None:
            parent.rmtree(missing_ok=missing_ok)
            # TensorFlow passes over what it could not remove.
            if self.is_dir():
                raise StorageUnavailable(errno.EAGAIN, "the storage has not removed all of it", os.fspath(self))

        _again(remove, self, done=lambda: not self.is_dir())

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        parent: Any = super()
        _again(lambda: parent.unlink(missing_ok=missing_ok), self, done=lambda: not parent.exists())

    def rename(self, target: epath.PathLike) -> Self:
        """Copies everything below this name, and removes it here; other readers see every stage of it."""
        parent: Any = super()
        there = self._new(target)
        _again(lambda: parent.rename(there), self, done=lambda: there.exists() and not parent.exists())
        return there

    def replace(self, target: epath.PathLike) -> Self:
        """As `rename`; what is there is replaced."""
        parent: Any = super()
        there = self._new(target)
        _again(lambda: parent.replace(there), self, done=lambda: there.exists() and not parent.exists())
        return there

    def copy(self, dst: epath.PathLike, overwrite: bool = False) -> Self:
        """Copies an object."""
        parent: Any = super()
        return self._retried(lambda: parent.copy(dst, overwrite=overwrite))

    def stat(self) -> Any:
        """Size and time of an object."""
        parent: Any = super()
        return self._retried(parent.stat)

    def open(
        self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, **keywords: Any
    ) -> IO[Any]:
        """Opens an object for reading (`r`), for replacing (`w`) or for adding to its end (`a`), as text or `b`ytes.

        Raises:
          OSError: here where there is nothing to read, in `read` or `close` where the storage goes away.
          ValueError: another mode.
        """
        del keywords  # buffering and line ends are as they are
        kind = mode.replace("b", "").replace("t", "")
        if kind not in ("r", "w", "a"):
            raise ValueError(f"mode={mode!r}; allowed: r, w or a, with or without b")
        path = os.fspath(self)
        file: Any = io.BufferedReader(_Reading(path), _BUFFER) if kind == "r" else Upload(path, keep=kind == "a")
        return file if "b" in mode else _Text(file, encoding=encoding or "utf-8", errors=errors)


def _again(act: Callable[[], _T], path: epath.PathLike, *, done: Callable[[], bool]) -> None:
    """`retried` for an act that is not there to be done twice: where the answer was lost, `done` says that it was."""
    tries = [0]

    def once_more() -> None:
        tries[0] += 1
        try:
            act()
        except (FileNotFoundError, FileExistsError):
            if tries[0] == 1 or not done():
                raise

    retried(once_more, path)


class _Text(io.TextIOWrapper):
    """Text of an object; what a failed `with` block wrote is dropped."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None and isinstance(self.buffer, Upload):
            self.buffer.discard()
        super().__exit__(kind, error, traceback)


class _Reading(io.RawIOBase):
    """The bytes of an object. Where reading breaks off it goes on from the same place."""

    def __init__(self, path: str):
        """Opens it; FileNotFoundError where there is none."""
        super().__init__()
        self._path, self._position = path, 0
        self._file: Any = None
        self._size = retried(lambda: _gfile().stat(path).length, path)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position; nothing is asked of the storage."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads as much as there is room for."""
        count = max(0, min(len(buffer), self._size - self._position))
        if not count:
            return 0
        content = retried(lambda: self._read(count), self._path)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:
        """The rest, by one request."""
        rest = bytearray(max(0, self._size - self._position))
        count = self.readinto(rest)
        return bytes(rest[:count])

    def _read(self, count: int) -> bytes:
        if self._file is None:
            self._file = _gfile().GFile(self._path, "rb")
        try:
            if self._file.tell() != self._position:
                self._file.seek(self._position)
            return self._file.read(count)
        except client_errors():
            self._file = None
            raise

    def close(self) -> None:
        """Lets go of the object."""
        self._file = None
        super().close()


class Upload(io.BufferedWriter):
    """A file on this machine that becomes an object when it is closed."""

    def __init__(self, path: str, *, keep: bool = False):
        """Opens it; `keep`: what the object holds already comes first."""
        self._path, self._dropped = path, False
        # A file without a name in any folder: of a process that is killed nothing stays behind.
        self._local = tempfile.TemporaryFile(prefix="hra_jax-upload-", buffering=0)  # noqa: SIM115  # closed with it
        super().__init__(self._local, _BUFFER)
        if keep:
            with contextlib.suppress(FileNotFoundError), epath.Path(path).open("rb") as file:
                self.write(file.read())

    def discard(self) -> None:
        """Leaves the object as it is."""
        self._dropped = True

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def close(self) -> None:
        """Uploads what was written. Raises OSError; the object is then what it was."""
        if self.closed:
            return
        try:
            if not self._dropped:
                self.flush()
                # The client is handed a name, and reads from it again at every try.
                name = f"/proc/self/fd/{self._local.fileno()}"
                retried(lambda: self._copy(name), self._path)
        finally:
            with contextlib.suppress(OSError):  # what a full disk has no room for
                super().close()

    def _copy(self, name: str) -> None:
        _gfile().copy(name, self._path, overwrite=True)
        if _gfile().stat(self._path).length != os.fstat(self._local.fileno()).st_size:
            raise StorageUnavailable(errno.EAGAIN, "the storage has not taken all of it", self._path)


def _gfile() -> Any:
    import tensorflow  # late: it takes seconds, and most commands have no path in a bucket

    return tensorflow.io.gfile
