"""Files that are replaced whole: a reader sees the old content or the new, never a part of either.

Beside them files that grow, and the other acts on names: folders made, files and folders removed and renamed. Only
`hra_jax.storage` writes files, and nothing here writes through a link.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from typing import IO, Any

from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage import remote, writing

_REMOTE_SECONDS = 60.0  # between two uploads of a file that grows
_MOST_NAME = 200  # bytes of a name of which a temporary one is made; file systems allow 255
_TEMPORARY = re.compile(r"\.(.+?)(\.[0-9a-f]{16})?\.tmp")  # 0.1.0 left the random part out


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object in a bucket (`gs://`), and no file of this machine."""
    return remote.is_remote(path)


def real_path(path: epath.PathLike) -> epath.Path:
    """A path of this machine without links and absolute; one in a bucket as it is."""
    found = epath.Path(path)
    return found if is_remote(found) else epath.Path(os.path.realpath(found))


def check_no_link(path: epath.PathLike) -> None:
    """Refuses a symbolic link where a command is about to write; buckets have none.

    Raises:
      UserError: the path itself is a link, to whatever.
    """
    if not is_remote(path) and os.path.islink(epath.Path(path)):
        raise UserError(f"{os.fspath(path)!r} is a link, and nothing is written through links; allowed: a copy of it")


def check_no_links(folder: epath.PathLike) -> None:
    """`check_no_link` for a path and for everything in it where it is a folder; links are not followed."""
    check_no_link(folder)
    if is_remote(folder):
        return
    for place, folders, names in os.walk(epath.Path(folder)):
        for name in (*folders, *names):
            check_no_link(os.path.join(place, name))


def check_output(path: epath.PathLike, *, name: str) -> None:
    """Refuses the path of a file to write that would not be one, before any work is done for it.

    Args:
      path: what the user has given; the folders that it lies in may be links.
      name: what it was given as, for the error, such as `--json`.

    Raises:
      UserError: there is a folder, a link, or another thing that is no file, such as /dev/stdout.
    """
    text = os.fspath(path)
    if not text or text.endswith("/") or epath.Path(text).is_dir():
        what = "a folder"
    elif is_remote(text) or not os.path.lexists(epath.Path(text)):
        return
    elif os.path.islink(epath.Path(text)):
        what = "a link, and nothing is written through links"
    elif os.path.isfile(epath.Path(text)):
        return
    else:
        what = "no file"
    raise UserError(f"{name}={text!r} is {what}; allowed: the path of a file to write")


class Replacement:
    """A file that is written under a temporary name beside its destination, and takes its place when it is complete.

    On a local disk the temporary file has a new, random name that cannot be a link, the content is on the disk before
    the file is renamed, and the permissions of a file that is replaced are kept. A destination that is a symbolic link
    is replaced itself; what it points at stays as it is. In a bucket (`gs://`) an object is whole as soon as it is
    there: the content waits on this machine until `commit`.

    Use it in a `with` block, which removes the temporary file unless `commit` was called.

    Attributes:
      path: the destination; its folder is made.
      stream: what the content is written to, as bytes.
      written: the same file by its name on this machine, for a library that opens what it writes to.
    """

    def __init__(self, path: epath.PathLike, *, durable: bool = True):
        """Opens the temporary file.

        Args:
          path: the destination.
          durable: whether the content must survive a loss of power right after `commit`. Waiting for the disk takes
            milliseconds, too long for thousands of files that can be made again.

        Raises:
          OSError: it cannot be made.
        """
        self.path = epath.Path(path)
        make_folder(self.path.parent)
        name = os.fsencode(self.path.name)[:_MOST_NAME].decode(errors="ignore")
        self._temporary = self.path.parent / f".{name}.{secrets.token_hex(8)}.tmp"
        self._local = not is_remote(self.path)
        self._begun = writing.begin((lambda: self._temporary.unlink(missing_ok=True)) if self._local else None)
        self._durable = durable and self._local
        with contextlib.ExitStack() as undo:
            undo.callback(writing.end, self._begun)
            self.stream: IO[bytes] = (
                _new_local_file(self._temporary, self.path) if self._local else remote.Upload(os.fspath(self.path))
            )
            self.written = os.fspath(self._temporary) if self._local else f"/proc/self/fd/{self.stream.fileno()}"
            undo.pop_all()

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    def close(self) -> None:
        """Completes the temporary file; it stays under its temporary name until `commit`. Raises OSError."""
        if self._local and not self.stream.closed:
            if self._durable:
                self.stream.flush()
                with naming(self.path):
                    os.fsync(self.stream.fileno())
            self.stream.close()

    def commit(self) -> None:
        """Moves the complete file to its destination. Raises OSError; the destination is then what it was."""
        if self._local:
            self.close()
            self._temporary.replace(self.path)
            if self._durable:
                sync_folder(self.path.parent)
        else:
            self.stream.close()
        writing.end(self._begun)

    def discard(self) -> None:
        """Removes the temporary file; nothing is left to do after `commit`."""
        if isinstance(self.stream, remote.Upload):
            self.stream.discard()
        # A full disk may refuse what is still buffered; nobody wants it any more.
        with contextlib.suppress(OSError):
            self.stream.close()
        if self._local:
            self._temporary.unlink(missing_ok=True)
        writing.end(self._begun)


def _new_local_file(path: epath.Path, replaced: epath.Path) -> IO[bytes]:
    """A new file, with the permissions of the regular file that it will replace, if there is one."""
    # O_EXCL never opens what is there, a link included.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with contextlib.ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        undo.callback(os.close, descriptor)
        with contextlib.suppress(FileNotFoundError):
            before = os.lstat(replaced)
            if stat.S_ISREG(before.st_mode):
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        stream = io.BufferedWriter(_NamedFile(descriptor, replaced, "wb"))
        undo.pop_all()
    return stream


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Has an error of the disk, such as a full one, name a file: where a write fails, the system names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


class _NamedFile(io.FileIO):
    """A file that is written, and which errors name."""

    def __init__(self, descriptor: int, path: epath.PathLike, mode: str):
        super().__init__(descriptor, mode)
        self._path = path

    def write(self, data: Any, /) -> int:
        with naming(self._path):
            return super().write(data)


def sync_folder(folder: epath.PathLike) -> None:
    """Puts the names in a folder on the disk, on file systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(epath.Path(folder), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: epath.PathLike, content: bytes | str, *, durable: bool = True, mark: bool = True) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part; makes its folder.

    Text is stored as UTF-8. `Replacement` says what `durable` means. Without `mark` a bucket gets the object alone, and
    no mark of its folder, which would stay when the object is removed.

    Raises:
      OSError: it cannot be written; the old file, if there was one, is then still there.
    """
    if is_remote(path) and not mark:
        epath.Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        return
    with Replacement(path, durable=durable) as replacement:
        replacement.stream.write(content.encode() if isinstance(content, str) else content)
        replacement.commit()


def replaced_name(name: str) -> str | None:
    """The name of the file that a temporary file would have replaced; None for a name that is not a temporary one."""
    found = _TEMPORARY.fullmatch(name)
    return found and found[1]


def remove_leftovers(folder: epath.PathLike, names: Collection[str]) -> None:
    """Deletes the temporary files that killed processes left of some files in a folder.

    Args:
      folder: the folder; no other process may be writing these files.
      names: of the files.
    """
    for file in list(epath.Path(folder).iterdir()):
        if replaced_name(file.name) in names:
            remove_file(file)


class GrowingFile:
    """A file that only grows. Object stores cannot append: there the content is kept here and uploaded whole."""

    def __init__(self, path: epath.PathLike, *, content: bytes = b""):
        """Opens the file for more.

        Args:
          path: the file; it is made where it is absent.
          content: what it holds already.

        Raises:
          UserError: it is a link.
          OSError: it cannot be written, or is no regular file.
        """
        self._path = epath.Path(path)
        self._remote = is_remote(path)
        self._content = bytearray(content) if self._remote else bytearray()
        self._uploaded = time.monotonic()
        self._handle: IO[bytes] | None = None if self._remote else open_to_grow(self._path)

    def write(self, data: bytes) -> None:
        """Adds bytes; readers see them after `flush`. Raises OSError."""
        if self._handle is None:
            self._content += data
        else:
            self._handle.write(data)

    def flush(self) -> None:
        """Makes everything that was written visible to readers. Raises OSError."""
        if self._handle is None:
            self._path.write_bytes(bytes(self._content))
            self._uploaded = time.monotonic()
        else:
            self._handle.flush()

    def flush_if_cheap(self) -> bool:
        """`flush`, but to an object store once a minute at most; whether it did. Raises OSError."""
        cheap = not self._remote or time.monotonic() - self._uploaded > _REMOTE_SECONDS
        if cheap:
            self.flush()
        return cheap

    def close(self) -> None:
        """Flushes and closes. Raises OSError."""
        if self._handle is None:
            self.flush()
        else:
            self._handle.close()


def open_to_grow(path: epath.PathLike) -> IO[bytes]:
    """Opens a file of this machine to add to it; it is made where it is absent.

    Raises:
      UserError: it is a link.
      OSError: it cannot be written, or is no regular file.
    """
    path = epath.Path(path)
    check_no_link(path)
    # Who puts a link or a pipe there after the check is refused by the two flags.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EEXIST, "no regular file", os.fspath(path))
    return io.BufferedWriter(_NamedFile(descriptor, path, "ab"))


# --- Names ------------------------------------------------------------------------------------------------------------


def make_folder(folder: epath.PathLike) -> None:
    """Makes a folder and those that it lies in; one that is there stays as it is. Raises OSError."""
    epath.Path(folder).mkdir(parents=True, exist_ok=True)


def remove_file(file: epath.PathLike) -> None:
    """Removes a file, or a link and not what it points at; nothing where it is absent. Raises OSError."""
    epath.Path(file).unlink(missing_ok=True)


def remove_folder(folder: epath.PathLike) -> None:
    """Removes a folder with all that is in it, without following links; nothing where it is absent. Raises OSError."""
    folder = epath.Path(folder)
    if is_remote(folder):
        if folder.exists():
            folder.rmtree()
    elif os.path.islink(folder) or os.path.isfile(folder):
        os.unlink(folder)
    elif os.path.lexists(folder):
        shutil.rmtree(folder)


def remove_empty_folder(folder: epath.PathLike) -> None:
    """Removes a local folder that nothing lies in; another one stays."""
    with contextlib.suppress(OSError):
        os.rmdir(epath.Path(folder))


def rename_folder(folder: epath.PathLike, new: epath.PathLike) -> None:
    """Gives a folder another name, which nothing has; on the disk when this returns. Raises OSError.

    In a bucket its files are copied one by one, and other readers see every stage of it.
    """
    folder, new = epath.Path(folder), epath.Path(new)
    if is_remote(folder):
        start = len(os.fspath(folder).rstrip("/")) + 1
        for parent, _, names in folder.walk():
            for name in names:
                file = epath.Path(parent) / name
                file.replace(new / os.fspath(file)[start:])
        remove_folder(folder)
        return
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    os.rename(folder, new)
    sync_folder(new.parent)


def check_regular(path: epath.PathLike) -> None:
    """Refuses what is no file with an end, such as a pipe, which would be waited for without end.

    Raises:
      OSError: it is there and is no regular file.
    """
    text = os.fspath(epath.Path(path))
    if not is_remote(text) and os.path.exists(text) and not os.path.isfile(text):
        raise OSError(errno.EINVAL, "not a regular file", text)


def stamp(path: epath.PathLike) -> tuple[int, int, int] | None:
    """What is another where a local file was written again; None where there is none, and for a path of a bucket."""
    try:
        found = os.stat(remote.local_path(os.fspath(path)))
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_bytes(path: epath.PathLike, *, what: str = "", most_bytes: int) -> bytes:
    """The content of a file that somebody else may have made.

    Args:
      path: of the file.
      what: is needed there, for errors.
      most_bytes: that it may have.

    Raises:
      UserError: there is no file, or it is too large, no regular file, or cannot be read.
    """
    path = epath.Path(path)
    needed = f"; needed is {what}" if what else ""
    try:
        if not path.exists() or path.is_dir():
            raise UserError(f"{path} is not a file{needed}")
        check_regular(path)
        length = path.stat().length
        if length > most_bytes:
            raise UserError(f"{path}: {length:,} bytes; allowed: at most {most_bytes:,}")
        content: bytes = path.read_bytes()
    except remote.StorageUnavailable:
        raise  # which says nothing of the file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}){needed}") from error
    return content
