"""What is being written at the moment: whoever is about to end the process waits for it, or clears it away.

Nothing here is needed for files to be whole: a process that is killed at any moment leaves them so. But where there is
time, what has been begun is finished, and what cannot be finished leaves no half-written file behind.
"""

import contextlib
import enum
import functools
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Patience(enum.IntEnum):
    """How long an end waits for something."""

    NONE = 0
    SECONDS = 1
    ANY = 2  # a checkpoint; unless the user has lost patience


class _Begun(NamedTuple):
    clear: Callable[[], object] | None
    patience: Patience


# One operation on a dict at a time needs no lock, and the thread that ends the process may not wait for one.
_going_on: dict[int, _Begun] = {}
_numbers = itertools.count()


def begin(clear: Callable[[], object] | None = None, *, patience: Patience = Patience.SECONDS) -> int:
    """Notes that something is being written from now on.

    Args:
      clear: removes what is half-written. It is called from another thread, where the process ends before `end`.
      patience: how long an end of the process is to wait.

    Returns:
      What `end` takes.
    """
    number = next(_numbers)
    _going_on[number] = _Begun(clear, patience)
    return number


def end(number: int) -> None:
    """Notes that it is written, or given up; a second call does nothing."""
    _going_on.pop(number, None)


@contextlib.contextmanager
def going_on(clear: Callable[[], object] | None = None, *, patience: Patience = Patience.SECONDS) -> Iterator[None]:
    """`begin` and `end` around a block."""
    number = begin(clear, patience=patience)
    try:
        yield
    finally:
        end(number)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is removed after the block, and where a signal ends the process inside."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        clear = functools.partial(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(going_on(clear, patience=Patience.NONE))
        yield folder


def worth_waiting(least: Patience = Patience.SECONDS) -> bool:
    """Whether anything is being written that an end waits for at least so long."""
    return any(begun.patience >= least for begun in list(_going_on.values()))


def clear_away() -> None:
    """Removes what is half-written, for a process that is about to end."""
    for begun in reversed(list(_going_on.values())):  # what a lock protects before the lock
        if begun.clear is not None:
            with contextlib.suppress(OSError, ValueError):
                begun.clear()
