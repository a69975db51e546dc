"""Standard error, kept free of the notes of a library that can be silenced only where it writes.

Meanwhile a file stands in for it, and what others write there follows when the block ends. Who ends the process, or
says why it ends, writes to what `duplicate` gives.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_stand_in: "_StandIn | None" = None


class _StandIn:
    """A file that stands in for standard error."""

    def __init__(self, notes: re.Pattern[bytes]):
        """Puts it in place. Raises OSError where there is no standard error."""
        self.users = 0
        self.real = os.dup(2)
        self._notes = notes
        self._file = _unnamed_file()
        os.dup2(self._file, 2)

    def remove(self) -> None:
        """Puts standard error back."""
        os.dup2(self.real, 2)
        self._pass_on()
        os.close(self.real)

    def renew(self) -> None:
        """Writes to standard error what is in the file, and puts an empty one in its place."""
        if os.fstat(self._file).st_size:
            fresh = _unnamed_file()
            os.dup2(fresh, 2)
            self._pass_on()
            self._file = fresh

    def _pass_on(self) -> None:
        """Writes to standard error what others have written to the file, and closes it."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.close(self._file)
        lines = content.splitlines(keepends=True)
        others = [line for line in lines if not self._notes.match(line)]
        if len(others) < len(lines):
            others = [line for line in others if line.strip()]  # each note comes with an empty line
        if others:
            with contextlib.suppress(OSError):
                os.write(self.real, b"".join(others))


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stderr")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextlib.contextmanager
def without(notes: re.Pattern[bytes]) -> Iterator[None]:
    """Keeps lines from standard error, whoever writes them while the block lasts; threads may be in it together.

    A message with which the process aborts is lost meanwhile: blocks must be few and short.

    Args:
      notes: what such lines begin with; of several blocks at a time that of the first one counts.
    """
    global _stand_in
    with _lock:
        if _stand_in is None:
            with contextlib.suppress(OSError):  # there is no standard error to keep anything from
                _stand_in = _StandIn(notes)
        mine = _stand_in
        if mine is not None:
            mine.users += 1
    try:
        yield
    finally:
        if mine is not None:
            with _lock:
                mine.users -= 1
                if mine.users:
                    mine.renew()
                else:
                    _stand_in = None
                    mine.remove()


def duplicate() -> int:
    """A new descriptor of the real standard error, whatever stands in for it. Raises OSError where there is none."""
    with _lock:
        return os.dup(2 if _stand_in is None else _stand_in.real)


def pass_on() -> None:
    """Writes to the real standard error, now, what others have written to what stands in for it."""
    with _lock:
        if _stand_in is not None:
            _stand_in.renew()
