"""A profile of a few steps, for TensorBoard or Perfetto."""

import dataclasses
from types import TracebackType
from typing import Any

import jax
from etils import epath

from hra_jax.config.settings import check_settings, integer, number, setting


@dataclasses.dataclass(frozen=True)
class ProfileSettings:
    """The keys `profile.*`."""

    start_step: int = setting(-1, integer(-1), "first step of a profile in W/profile; -1 for none")
    steps: int = setting(5, integer(1), "steps that are profiled")
    peak_tflops: float = setting(0.0, number(0), "peak TFLOP/s of one device, for train/mfu; 0: that of known chips")

    def __post_init__(self) -> None:
        check_settings(self, "profile")


class Profiler:
    """Traces some steps into a folder.

        with Profiler(folder, start_step=10, steps=5) as profiler:
            for step in ...:
                profiler.before(step, state)
                state = train(state, ...)

    Args:
      folder: where to; only process 0 writes there.
      start_step: the first step that is traced; -1 for none. A run that resumes after it traces nothing.
      steps: how many steps.
    """

    def __init__(self, folder: epath.PathLike, *, start_step: int, steps: int):
        self._folder, self._first, self._after = folder, start_step, start_step + steps
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """Notes that `step` is about to begin; `state` is a tree of arrays, ready when the step before it is done."""
        if step == self._after:
            if self._running:
                jax.block_until_ready(state)
            self._stop()
        if step == self._first and jax.process_index() == 0:
            options = jax.profiler.ProfileOptions()
            # The tracer of Python calls crashes, in jax 0.7, if another thread is at work when it ends: one that saves.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
