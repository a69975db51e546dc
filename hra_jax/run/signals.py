"""What Ctrl-C and SIGTERM do to a command, from the moment it begins to import.

    Ctrl-C    ends with status 130 within 5 seconds, whatever the command is doing. What is being written is finished
              if a few seconds are enough, and otherwise left as it was; in the loop of a training this means the step
              and its checkpoint. A second Ctrl-C ends at once.
    SIGTERM   ends with status 75 as soon as no file is half-written. In the loop of a training the step and its
              checkpoint are finished, however long they take; so is a checkpoint in flight elsewhere.

Python runs handlers of signals in its main thread, between two bytecodes: never while XLA compiles or a library is
loaded, and an exception there may be swallowed by whoever catches it. So a thread of its own is told of each signal
through a pipe, and ends the process. Nothing is unwound, which is safe because a process that is killed at any moment
leaves everything readable.

Only commands have this (`python -m hra_jax.NAME`, see `starting.py`). In a notebook or another program Python's own
KeyboardInterrupt stays.
"""

import atexit
import contextlib
import ctypes
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from hra_jax.storage import standard_error, writing
from hra_jax.storage.writing import Patience

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
PREEMPTED = 75  # exit status (EX_TEMPFAIL): the command was told to stop; the same command goes on

_PATIENCE_SECONDS = 2.5  # for what is being written, and for the step in the loop; the user is promised 5
_CLEARING_SECONDS = 1.2  # for what is half-written, and for locks, in a bucket perhaps
_LAST_WORDS_SECONDS = 0.4  # for what is still to be printed: nobody may be reading
_FAREWELL_SECONDS = 1.0  # for other processes of the run to be told
_AT_MOST_SECONDS = 4.5  # after Ctrl-C, whatever of all this has come to pass


class _Watcher:
    """The thread that waits for signals, and what it must know of the main thread.

    Attributes:
      in_loop: whether the main thread ends by itself, soon, and has steps to save.
      stopping: whether it has begun to.
      interrupted: whether Ctrl-C has come.
      told_to_stop: whether SIGTERM has come.
      note: what SIGTERM says at the end.
      agree: where several processes train, the handler by which they agree on the step to stop at.
    """

    def __init__(self) -> None:
        self.in_loop = self.stopping = self.interrupted = self.told_to_stop = False
        self.note = "stopped by SIGTERM; the same command goes on"
        self.agree: Callable[[int], None] | None = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._ending = threading.Event()

    def install(self) -> None:
        """Installs the handlers and starts the thread; in the main thread."""
        # Also where a shell has SIGINT ignored, as it does for what it starts in the background: who sends it means it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.in_main_thread)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # Both now: from Python 3.12 on no thread starts once the interpreter has begun to end.
        for target in (self._watch, self._end_at_last):
            threading.Thread(target=target, name="signals", daemon=True).start()
        atexit.register(self._all_done)  # before all others, so that it is called last

    def _all_done(self) -> None:
        if self.interrupted:
            # The loop has saved. What is left, the ends of libraries, takes seconds.
            _flush()
            os._exit(INTERRUPTED)
        # Python is about to take its handlers away, and takes a while for the rest: the status is that of the command.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def in_main_thread(self, number: int, frame: FrameType | None) -> None:
        """The handler; the thread does the work."""
        # Python has written the number to the pipe already, unless a library has put another one in its place.
        if signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) != self._write:
            os.write(self._write, bytes([number]))

    def _next(self, seconds: float | None) -> int | None:
        """The next signal; None where none comes in time."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 1)[0] if ready else None

    def _watch(self) -> None:
        while True:
            number = self._next(None)
            if number == signal.SIGINT:
                self._interrupted()
            elif number == signal.SIGTERM:
                self._told_to_stop()

    def _interrupted(self) -> NoReturn:
        self.interrupted = True
        deadline = time.monotonic() + _PATIENCE_SECONDS
        self._ending.set()
        if self.in_loop:
            _say("interrupted: saving, if a few seconds are enough; again ends at once")
        while time.monotonic() < deadline and (self.in_loop or self.stopping or writing.worth_waiting()):
            if self._next(0.02) == signal.SIGINT:
                break
        end(INTERRUPTED, "error: interrupted", sys.stderr)

    def _end_at_last(self) -> NoReturn:
        self._ending.wait()
        time.sleep(_AT_MOST_SECONDS)
        os._exit(INTERRUPTED)

    def _told_to_stop(self) -> None:
        deadline, told, agreeing = time.monotonic() + _PATIENCE_SECONDS, False, False
        self.told_to_stop = True
        while not self.stopping:
            if self.in_loop and self.agree is not None and not agreeing:
                self.agree(signal.SIGTERM)
                agreeing = True
            late = time.monotonic() > deadline
            if not self.in_loop and not writing.worth_waiting(Patience.ANY if late else Patience.SECONDS):
                end(PREEMPTED, self.note, sys.stdout)
            if not told and (self.in_loop or late):
                _say("SIGTERM: this ends, with status 75, when what is to be saved is saved")
                told = True
            if self._next(0.02) == signal.SIGINT:
                self._interrupted()


_watcher: _Watcher | None = None


def install() -> None:
    """Makes this process a command: Ctrl-C and SIGTERM do what the module says. Once, in the main thread."""
    global _watcher
    if _watcher is None:
        _watcher = _Watcher()
        _watcher.install()


def installed() -> bool:
    """Whether this process is a command."""
    return _watcher is not None


@contextlib.contextmanager
def sigterm_is_taken() -> Iterator[None]:
    """Around what takes SIGTERM with a handler in C, as `jax.distributed` does: in the loop it gets the signal."""
    if _watcher is None:
        yield
        return
    # Python can neither see such a handler nor call it; `signal` of the C library gives the one that it replaces.
    replace = ctypes.CDLL(None).signal
    replace.restype, replace.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = replace(signal.SIGTERM, None)
    replace(signal.SIGTERM, before)
    try:
        yield
    finally:
        taken = replace(signal.SIGTERM, None)
        if taken not in (before, None):
            _watcher.agree = ctypes.CFUNCTYPE(None, ctypes.c_int)(taken)
        signal.signal(signal.SIGTERM, _watcher.in_main_thread)


def all_stop() -> None:
    """Has the processes that train together agree on a step to stop at, as SIGTERM does."""
    if _watcher is not None and _watcher.agree is not None:
        _watcher.agree(signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)


def loop_has_steps() -> None:
    """From now on there are steps to save, and the main thread looks for signals after each of them."""
    if _watcher is not None:
        _watcher.in_loop = True


def told_to_stop() -> bool:
    """Whether SIGTERM has come to this command, before the loop perhaps."""
    return _watcher is not None and _watcher.told_to_stop


def loop_stops() -> None:
    """The main thread has seen the signal: it saves, and ends the process by itself."""
    if _watcher is not None:
        _watcher.stopping = True


def loop_is_over() -> None:
    """The main thread no longer looks for signals."""
    if _watcher is not None:
        _watcher.in_loop = False


@contextlib.contextmanager
def sigterm_says(note: str) -> Iterator[None]:
    """What SIGTERM prints at the end, inside."""
    if _watcher is None:
        yield
        return
    earlier, _watcher.note = _watcher.note, note
    try:
        yield
    finally:
        _watcher.note = earlier


_before_end: list[Callable[[int], None]] = []


def before_end(action: Callable[[int], None]) -> None:
    """Has `action` called with the exit status before a signal ends the process."""
    _before_end.append(action)


def end(status: int, note: str, stream: object) -> NoReturn:
    """Ends the process from any thread: half-written files are cleared away, `note` is printed, nothing is unwound.

    Args:
      status: the exit status.
      note: the last line.
      stream: `sys.stdout` or `sys.stderr`.
    """
    _in_time(writing.clear_away, _CLEARING_SECONDS)
    _in_time(_flush, _LAST_WORDS_SECONDS)
    for action in _before_end:
        _in_time(functools.partial(action, status), _FAREWELL_SECONDS)
    _in_time(standard_error.pass_on, _LAST_WORDS_SECONDS)
    _say(note, 1 if stream is sys.stdout else None)
    os._exit(status)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, broken, or None
        sys.stdout.flush()


def _say(line: str, descriptor: int | None = None) -> None:
    """Prints a line; on standard error where no descriptor is given."""

    # Not through sys.stderr, whose lock the main thread may hold.
    def write() -> None:
        with contextlib.suppress(OSError):
            where = standard_error.duplicate() if descriptor is None else descriptor
            # Below the bar that a terminal may be showing.
            os.write(where, ("\n" if os.isatty(where) else "").encode() + f"{line}\n".encode())

    _in_time(write, _LAST_WORDS_SECONDS)


def _in_time(action: Callable[[], None], seconds: float) -> None:
    """Calls it, and goes on where it takes too long, unless the interpreter ends already."""
    thread = threading.Thread(target=action, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # see `install`
        action()
    else:
        thread.join(seconds)
