"""How a run is going, for the person who waits: a bar on a terminal, a line now and then elsewhere."""

import collections
import functools
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

import jax
from tqdm import tqdm

from hra_jax.console import printable, tell

_WINDOW_SECONDS = 60.0  # speeds are means over this long


class Progress:
    """Shows loss, steps per second, seconds of audio per second and the time left.

        with Progress(steps, start_step=restored) as progress:
            for step in ...:
                progress.update(step, audio_seconds=..., loss=...)

    On a terminal it is a bar that redraws itself; elsewhere (log files, notebooks) one line every `every_seconds`. Only
    process 0 shows anything.
    """

    def __init__(
        self,
        steps: int,
        *,
        start_step: int = 0,
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        compiling: Callable[[], float] | None = None,
    ):
        """Starts the clock.

        Args:
          steps: number of steps of the whole run.
          start_step: steps already done when this process starts.
          every_seconds: seconds between two lines where there is no terminal.
          stream: where to write, stdout if None.
          clock: seconds, rising.
          compiling: seconds that programs have been compiled for, rising: time that says nothing about the speed. Those
            that jax tells of if None.
        """
        self._steps = steps
        self._every, self._clock = every_seconds, clock
        self._compiling = _compile_seconds() if compiling is None else compiling
        self._stream = sys.stdout if stream is None else stream
        self._shown = jax.process_index() == 0
        self._loss: float | None = None
        self._audio = 0.0
        self._last_line = clock()
        self._last_step = self._last_line_step = start_step
        self._last_seen = (self._last_line, self._compiling())
        # (time without compilation, step, seconds of audio so far); the first entry is the start of the window.
        self._marks = collections.deque([(0.0, start_step, 0.0)])
        self._first_step = True
        self._bar = None
        if self._shown and self._stream.isatty():
            layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(
                total=steps, initial=start_step, file=self._stream, bar_format=layout, dynamic_ncols=True, unit="step"
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def update(self, step: int, *, audio_seconds: float, loss: float | None = None) -> None:
        """Notes that `step` is done.

        Args:
          step: steps done so far.
          audio_seconds: seconds of audio in the global batch of this step.
          loss: the latest loss on the host, if there is a new one: fetching it at every step would stall the device.
        """
        if not self._shown:
            return
        now = self._clock()
        worked = self._marks[-1][0] + self._work(now)
        self._loss = self._loss if loss is None else float(loss)
        self._audio += audio_seconds
        self._last_step = step
        self._marks.append((worked, step, self._audio))
        if self._first_step and len(self._marks) > 2:
            # The first step was mostly tracing and compilation: it says nothing about the speed.
            self._marks.popleft()
            self._first_step = False
        while len(self._marks) > 2 and worked - self._marks[1][0] >= _WINDOW_SECONDS:
            self._marks.popleft()
        if self._bar is not None:
            self._bar.set_postfix_str(self.status(), refresh=False)
            self._bar.update(step - self._bar.n)
            self._last_line_step = step
        elif now - self._last_line >= self._every:
            self._line(now)

    def _work(self, now: float) -> float:
        """Seconds since the last call that no program was compiled in."""
        (then, before), compiled = self._last_seen, self._compiling()
        self._last_seen = (now, compiled)
        # JAX reads the clock of the day, which may be set meanwhile: what cannot be says nothing of this step.
        return now - then - (compiled - before) if 0.0 <= compiled - before <= now - then else 0.0

    def status(self) -> str:
        """The figures in one line, without the step."""
        (then, old_step, old_audio), (now, step, audio) = self._marks[0], self._marks[-1]
        seconds = now - then
        parts = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        if seconds > 0 and step > old_step:
            speed = (step - old_step) / seconds
            left = tqdm.format_interval((self._steps - step) / speed)
            heard = (audio - old_audio) / seconds
            parts += [f"{_figure(speed)} steps/s", f"{_figure(heard)} s audio/s", f"{left} left"]
        return ", ".join(parts)

    def note(self, text: str) -> None:
        """Writes a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(printable(text, most=None), file=self._stream)
        elif self._shown:
            tell(text, to=self._stream)

    def close(self) -> None:
        """Leaves the last state on the screen. May be called twice."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        elif self._shown and self._last_step > self._last_line_step:
            self._line(self._clock())
        self._bar = None

    def _line(self, now: float) -> None:
        tell(f"step {self._last_step}/{self._steps}: {self.status()}", to=self._stream)
        self._last_line, self._last_line_step = now, self._last_step


@functools.cache
def _compile_seconds() -> Callable[[], float]:
    """What tells how long this process has compiled since this was first called, seconds."""
    total = [0.0]

    def heard(event: str, duration_secs: float, **unused: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            total[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(heard)
    return lambda: total[0]


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
