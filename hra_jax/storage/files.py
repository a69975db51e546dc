"""Files that are replaced whole: a reader sees the old content or the new, never a part of either."""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Collection
from typing import IO

from etils import epath

from hra_jax.storage import writing

_TEMPORARY = re.compile(r"\.(.+?)(\.[0-9a-f]{16})?\.tmp")  # 0.1.0 left the random part out


class Replacement:
    """A file that is written under a temporary name beside its destination, and takes its place when it is complete.

    On a local disk the temporary file has a new, random name that cannot be a link, the content is on the disk before
    the file is renamed, and the permissions of a file that is replaced are kept. A destination that is a symbolic link
    is replaced itself; what it points at stays as it is. Remote paths (`gs://`) go through epath.

    Use it in a `with` block, which removes the temporary file unless `commit` was called.

    Attributes:
      path: the destination; its folder is made.
      stream: what the content is written to, as bytes.
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.parent / f".{self.path.name}.{secrets.token_hex(8)}.tmp"
        self._begun = writing.begin(lambda: self._temporary.unlink(missing_ok=True))
        self._local = "://" not in os.fspath(self.path)
        self._durable = durable and self._local
        with contextlib.ExitStack() as undo:
            undo.callback(writing.end, self._begun)
            self.stream: IO[bytes] = (
                _new_local_file(self._temporary, self.path) if self._local else self._temporary.open("wb")
            )
            undo.pop_all()

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    def close(self) -> None:
        """Completes the temporary file; it stays under its temporary name until `commit`. Raises OSError."""
        if not self.stream.closed:
            if self._durable:
                self.stream.flush()
                os.fsync(self.stream.fileno())
            self.stream.close()

    def commit(self) -> None:
        """Moves the complete file to its destination. Raises OSError; the destination is then what it was."""
        self.close()
        self._temporary.replace(self.path)
        if self._durable:
            _sync_folder(self.path.parent)
        writing.end(self._begun)

    def discard(self) -> None:
        """Removes the temporary file; nothing is left to do after `commit`."""
        # A full disk may refuse what is still buffered; nobody wants it any more.
        with contextlib.suppress(OSError):
            self.stream.close()
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
        stream = os.fdopen(descriptor, "wb")
        undo.pop_all()
    return stream


def _sync_folder(folder: epath.Path) -> None:
    """Puts the names in a folder on the disk, on file systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: epath.PathLike, content: bytes | str, *, durable: bool = True) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part; makes its folder.

    Text is stored as UTF-8. `Replacement` says what `durable` means.

    Raises:
      OSError: it cannot be written; the old file, if there was one, is then still there.
    """
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
            file.unlink(missing_ok=True)
