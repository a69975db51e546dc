"""What became of requests so far: a bar while they are recognised, and a table at the end."""

import collections
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from tqdm import tqdm

from hra_jax.console import duration, error_line, listed, table
from hra_jax.transcription.outputs import Result

_MOST_TOLD: Final = 100  # errors of one kind that are told one by one
_MOST_TASKS: Final = 30  # rows of the table


class Summary:
    """Counts results; use it in a `with` block, in which it shows a bar.

    Attributes:
      failed: how many could not be recognised.
    """

    def __init__(self, count: int, *, done: Callable[[], int] = lambda: 0, shown: bool = True):
        """Starts the clock.

        Args:
          count: of all requests.
          done: how many of them an earlier run has recognised, as far as they are known by now.
          shown: whether there is a bar, where standard error is a terminal.
        """
        self._done, self._start = done, time.monotonic()
        self._bar: tqdm[Any] = tqdm(total=count, desc="transcribing", unit="utterance", disable=None if shown else True)
        self._counts: collections.Counter[str] = collections.Counter()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._errors: collections.Counter[tuple[str, str]] = collections.Counter()  # by task and kind
        self.failed = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the bar."""
        self._bar.close()

    def add(self, result: Result) -> None:
        """Takes a result; what is wrong with it is told on standard error."""
        self._counts[result.task] += 1
        self._seconds[result.task] += result.seconds
        if result.error:
            self.failed += 1
            kind = _kind(result.error)
            self._errors[result.task, kind] += 1
            if sum(n for (_, other), n in self._errors.items() if other == kind) <= _MOST_TOLD:
                with tqdm.external_write_mode(file=sys.stderr):
                    error_line(f"{result.request.key}: {result.error}")
        self._bar.update(self._counts.total() + self._done() - self._bar.n)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{self._speed():.3g} x real time", refresh=False)

    def _speed(self) -> float:
        """Seconds of audio a second."""
        return sum(self._seconds.values()) / max(time.monotonic() - self._start, 1e-9)

    def lines(self) -> tuple[list[str], Any | None]:
        """Lines that sum it up, and a table of the tasks; None for no more than one."""
        seconds, audio = time.monotonic() - self._start, sum(self._seconds.values())
        count = self._counts.total()
        if not count:
            return [f"nothing is missing: {self._done():,} were there"], None
        told = [
            f"{count - self.failed:,} of {count:,} recognised, {audio:,.1f} s of audio in {duration(seconds)}: "
            f"{self._speed():.3g} x real time"
        ]
        if self._done():
            told[0] += f"; {self._done():,} were there"
        kinds: collections.Counter[str] = collections.Counter()
        for (_, kind), number in self._errors.items():
            kinds[kind] += number
        if kinds:
            told.append(f"not recognised: {', '.join(f'{number:,} {kind}' for kind, number in kinds.most_common())}")
        return told, self._table() if len(self._counts) > 1 else None

    def _table(self) -> Any:
        rows = []
        for task, count in self._counts.most_common(_MOST_TASKS):
            errors = [f"{n} {kind}" for (name, kind), n in sorted(self._errors.items()) if name == task]
            rows.append(
                [task, f"{count:,}", f"{self._seconds[task]:,.1f} s", listed(errors, show=str) if errors else "-"]
            )
        more = len(self._counts) - len(rows)
        rows += [[f"and {more} more", "", "", ""]] if more else []
        return table(["task", "utterances", "audio", "errors"], rows, left=["errors"])


def _kind(error: str) -> str:
    """The kind of an error, which begins it, as those of recordings do; of any other that it is one."""
    kind, colon, _ = error.partition(": ")
    return kind if colon and kind.replace("_", "").isalpha() and kind.islower() else "error"
