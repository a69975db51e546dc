"""A profile of a few steps, for TensorBoard or Perfetto."""

from types import TracebackType
from typing import Any

import jax
from etils import epath


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
            jax.profiler.start_trace(self._folder)
            self._running = True

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
