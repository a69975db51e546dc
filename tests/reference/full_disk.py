"""A full disk: for this process, or a small one of its own where this process may have one."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MOST_TRIES = 100


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """A disk that takes no more than so many bytes of a file."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Disk:
    """A small disk, of which most may be taken."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._taken = folder / ".taken"

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def leave(self, size: int | None) -> None:
        """Takes all but so many bytes; None gives everything back."""
        self._taken.unlink(missing_ok=True)
        for left in reversed(range(_MOST_TRIES)):
            if size is None or size >= self.free:
                return
            with self._taken.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, self.free - size)
                    return
                except OSError as error:  # others are writing too
                    if error.errno != errno.ENOSPC or not left:
                        raise


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: int = 64) -> Iterator[Disk | None]:
    """A disk at a folder, which is made; None where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield Disk(folder) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
