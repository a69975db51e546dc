"""Files that have no end, and a limit for tests of what reads them."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

KINDS = ("pipe", "link")


def put(path: Path, kind: str) -> None:
    """Puts a pipe that nobody writes to, or a link to a device that never ends, in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@contextlib.contextmanager
def bounded(seconds: float = 20.0) -> Iterator[None]:
    """Ends a block that waits for longer, in the main thread, with an error."""

    def late(*_: object) -> None:
        raise AssertionError(f"it has not ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
