"""Stopping when asked to: a run that is about to be evicted saves a checkpoint and exits with status PREEMPTED."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from hra_jax.console import tell
from hra_jax.run import signals
from hra_jax.run.signals import INTERRUPTED, PREEMPTED


class PreemptionGuard:
    """Notes SIGTERM and the first Ctrl-C instead of dying from them.

        with PreemptionGuard() as guard:
            for step in ...:
                train(...)
                guard.stepped()
                if guard.requested(step):
                    save(...)
                    sys.exit(guard.status)

    In a command a Ctrl-C leaves a few seconds for that, and a second one none (run/signals.py); a signal before the
    first step is done, while it compiles, ends the command at once. In other programs a second Ctrl-C raises
    KeyboardInterrupt, for who cannot wait. On exit the earlier handlers are put back.

    Where `jax.distributed` is initialised, its own handler keeps SIGTERM (ours would take the signal away from it), and
    the processes agree on one step, soon after, at which `requested` is True in all of them. Ctrl-C in any process
    starts the same agreement. A command passes SIGTERM on to that handler within the loop alone; in other programs the
    handler cannot be removed, and later SIGTERMs have no effect.

    Python handles signals between two bytecodes: a long compilation is finished first. Only the main thread can install
    handlers; elsewhere the guard notes nothing by itself.
    """

    def __init__(self) -> None:
        self._earlier: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._received: signal.Signals | None = None
        self._distributed = False

    def __enter__(self) -> "PreemptionGuard":
        self._distributed = jax.distributed.is_initialized()
        self._received = None
        if threading.current_thread() is threading.main_thread():
            if not self._distributed:
                self._earlier[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
            self._earlier[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._earlier:
            number, handler = self._earlier.popitem()
            # None: the handler was not installed by Python, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signals.loop_is_over()

    @property
    def reason(self) -> str:
        """Name of the signal that the guard saw; '' if jax.distributed or another process took it, or none came."""
        return self._received.name if self._received else ""

    @property
    def status(self) -> int:
        """The exit status of a run that stops: INTERRUPTED after Ctrl-C in this process, else PREEMPTED."""
        return INTERRUPTED if self._received == signal.SIGINT else PREEMPTED

    def stepped(self) -> None:
        """Says that a step is done, which is worth saving: a signal to a command waits for that from now on."""
        signals.loop_has_steps()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step.

        Args:
          step: the step just done. With several processes, every process must ask at every step, and once: the answer
            is True at the agreed step only.
        """
        if self._distributed:
            found = bool(multihost_utils.reached_preemption_sync_point(step))
        else:
            found = self._received is not None or signals.told_to_stop()
        if found:
            signals.loop_stops()
        return found

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None and not signals.installed():
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self._distributed:
            signals.all_stop()


@contextlib.contextmanager
def stops_at_once(note: str) -> Iterator[None]:
    """Where nothing is left to save, SIGTERM prints `note` and ends the process with status PREEMPTED.

    Raises:
      SystemExit: on SIGTERM, where this is no command, which ends by itself (run/signals.py). Outside the main thread,
        and where `jax.distributed` keeps the signal, nothing changes.
    """
    if signals.installed():
        with signals.sigterm_says(note):
            yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        tell(note)
        raise SystemExit(PREEMPTED)

    if threading.current_thread() is not threading.main_thread() or jax.distributed.is_initialized():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)
