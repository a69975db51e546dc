"""Length buckets: references become batches of one static shape per bucket.

Which rows form a batch follows from the references, their durations and tasks alone. Devices, hosts and threads have
no part in it, so a position (what has been read, what waits) is valid for any number of them.
"""

import bisect
import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from hra_jax.config.settings import Rule, check_settings, integer, is_number, number, setting
from hra_jax.errors import UserError

LABEL_MULTIPLE = 8
# How many rows may wait in a bucket, beyond a batch of them, for a batch with room for their task. It bounds the size
# of a position; past it a batch goes out with rows unfilled.
WAITING_LIMIT = 4096


class BatchPlan(NamedTuple):
    """The rows of one global batch.

    Attributes:
      bucket: index of the length bucket.
      rows: (source, row) of each; fewer than the bucket's rows where too many tasks compete (see `Batcher`).
    """

    bucket: int
    rows: tuple[tuple[int, int], ...]


def _are_buckets(value: Any) -> bool:
    numbers = isinstance(value, tuple) and bool(value) and all(is_number(edge) and edge > 0 for edge in value)
    return numbers and all(low < high for low, high in zip(value, value[1:], strict=False))


_NUMBER_OF_BUCKETS = integer(1, 64)


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """The keys `batch.*`: the size of global batches."""

    seconds: float = setting(
        64.0, number(0, above=True, unit=" (seconds of audio)"), "seconds of audio in a global batch, padding included"
    )
    multiple: int = setting(
        1, integer(1), "utterances; every batch has a multiple of it; the data part of the mesh must divide it"
    )
    max_tasks: int = setting(32, integer(1), "distinct tasks in a global batch at most")
    buckets: int | tuple[float, ...] = setting(
        (2.0, 4.0, 8.0, 16.0),
        Rule(
            lambda: f"a tuple of ascending numbers above 0 (seconds), at least one, or {_NUMBER_OF_BUCKETS.describe()}",
            lambda value: _are_buckets(value) or _NUMBER_OF_BUCKETS.accepts(value),
            types=(tuple, int),
        ),
        "length buckets, seconds, ascending; the last is the longest utterance taken. A number: so many, as they pad "
        "the training data least; a run writes what it finds into its config.json",
    )

    def __post_init__(self) -> None:
        check_settings(self, "batch")

    @property
    def edges(self) -> tuple[float, ...]:
        """The longest utterance of each bucket, seconds, ascending.

        Raises:
          UserError: they are still to be found in the training data.
        """
        if isinstance(self.buckets, int):
            raise UserError(
                f"batch.buckets = {self.buckets}: a run finds them in its training data when it begins, so they are "
                "not known here; allowed: a tuple of seconds"
            )
        return self.buckets


def set_buckets(config: ConfigDict, edges: tuple[float, ...]) -> None:
    """Sets the ends of the buckets (seconds) in a configuration, in place of their number.

    A `data.max_seconds` above the last one says no more than they do, and would be refused beside them: it becomes 0.
    """
    with config.unlocked(), config.batch.ignore_type():
        config.batch.buckets = edges
        if config.data.max_seconds > edges[-1]:
            config.data.max_seconds = 0.0


def check_buckets(buckets: Sequence[float]) -> tuple[float, ...]:
    """The buckets (seconds) as floats; UserError unless they are positive and ascending."""
    seconds = tuple(float(bucket) for bucket in buckets)
    if not _are_buckets(seconds):
        raise UserError(f"buckets {list(buckets)} must be positive seconds in ascending order, at least one")
    return seconds


def bucket_rows(buckets: Sequence[float], *, batch_seconds: float, multiple: int) -> tuple[int, ...]:
    """Rows of a batch of each bucket: as many as fit in `batch_seconds`, rounded down to a multiple.

    Args:
      buckets: the longest utterance of each bucket, seconds, ascending.
      batch_seconds: audio of a global batch, padding included, seconds.
      multiple: the rows of every batch divide by it.

    Raises:
      UserError: the buckets are not ascending, or one of them has no row.
    """
    buckets = check_buckets(buckets)
    if multiple < 1:
        raise UserError(f"batch multiple {multiple} must be at least 1")
    rows = []
    for seconds in buckets:
        # The small term keeps 1.2 s in buckets of 0.4 s at 3 rows.
        fit = math.floor(batch_seconds / seconds + 1e-6)
        if fit < multiple:
            raise UserError(
                f"{batch_seconds:g} s of audio per batch hold {max(fit, 0)} rows of the {seconds:g} s bucket, fewer"
                f" than the batch multiple {multiple}: at least {multiple * seconds:g} s are needed"
            )
        rows.append(fit // multiple * multiple)
    return tuple(rows)


def bucket_of(durations: ArrayLike, buckets: Sequence[float]) -> np.ndarray:
    """Index of the shortest bucket that holds each duration; `len(buckets)` where none does.

    Args:
      durations: seconds, a scalar or an array.
      buckets: seconds, ascending.

    Returns:
      int64, in the shape of `durations`.
    """
    return np.searchsorted(np.asarray(buckets, np.float64), np.asarray(durations, np.float64), side="left")


def label_capacities(bucket_ids: np.ndarray, label_lengths: np.ndarray, *, buckets: int) -> tuple[int, ...]:
    """U of each bucket: its longest label sequence, rounded up to a multiple of LABEL_MULTIPLE (at least one multiple).

    Args:
      bucket_ids: int [N], the bucket of each utterance.
      label_lengths: int [N], its number of labels.
      buckets: how many buckets there are.
    """
    longest = np.ones(buckets, np.int64)
    np.maximum.at(longest, bucket_ids, label_lengths)
    return tuple(int(n) for n in -(-longest // LABEL_MULTIPLE) * LABEL_MULTIPLE)


class _Waiting:
    """What waits in one bucket: rows in order of arrival, grouped by task."""

    def __init__(self) -> None:
        self.by_task: dict[int, list[tuple[int, tuple[int, int]]]] = {}  # arrival number and row
        self.count = 0
        # No batch is possible while fewer wait than this: each row that comes fills at most one slot of a batch that
        # lacked so many. Most calls of `take` end here, without a search.
        self._promising = 0

    def add(self, arrival: int, row: tuple[int, int], task: int) -> None:
        self.by_task.setdefault(task, []).append((arrival, row))
        self.count += 1

    def take(self, wanted: int, *, max_tasks: int, limit: int) -> list[tuple[int, int]] | None:
        """Removes and returns `wanted` rows of at most `max_tasks` tasks; fewer once `limit` rows wait, else None."""
        if self.count < limit and self.count < max(wanted, self._promising):
            return None
        tasks = list(self.by_task)
        if len(tasks) > max_tasks:
            # No tasks have more rows than the largest ones: with many tasks most searches end here, at once.
            lacking = wanted - sum(heapq.nlargest(max_tasks, map(len, self.by_task.values())))
            if lacking > 0 and self.count < limit:
                self._promising = self.count + lacking
                return None
            # The oldest row goes, so that none waits for ever; the other slots go to the tasks with the most rows,
            # and among equals to the one whose first row is older.
            oldest = min(tasks, key=lambda task: self.by_task[task][0])
            others = [(len(rows), -rows[0][0], task) for task, rows in self.by_task.items() if task != oldest]
            tasks = [oldest, *(task for *_, task in heapq.nlargest(max_tasks - 1, others))]
            lacking = wanted - sum(len(self.by_task[task]) for task in tasks)
            if lacking > 0 and self.count < limit:
                self._promising = self.count + lacking
                return None
        taken = sorted(entry for task in tasks for entry in self.by_task[task])[:wanted]
        for task in tasks:
            left = [entry for entry in self.by_task[task] if entry > taken[-1]]
            if left:
                self.by_task[task] = left
            else:
                del self.by_task[task]
        self.count -= len(taken)
        self._promising = 0
        return [row for _, row in taken]


Snapshot = list[list[tuple[int, tuple[int, int]]]]  # of each bucket: arrival numbers and rows, in no order


def waiting_of(snapshot: Snapshot) -> dict[str, list[list[int]]]:
    """What `Batcher.waiting` would have given when the snapshot was made."""
    return {str(bucket): [list(row) for _, row in sorted(rows)] for bucket, rows in enumerate(snapshot) if rows}


class Batcher:
    """Collects references in length buckets and gives a batch when a bucket has one.

    A batch holds at most `max_tasks` distinct tasks: that of the row that has waited longest, then those with the most
    rows waiting. All other rows stay, in order. With more tasks than `max_tasks` a bucket may hold WAITING_LIMIT rows
    beyond a batch; then the batch goes out with fewer rows than the bucket has, and nothing is lost.
    """

    def __init__(
        self,
        buckets: Sequence[float],
        *,
        rows: Sequence[int],
        max_tasks: int,
        lookup: Callable[[int, int], tuple[float, int]],
    ):
        """Starts with nothing waiting.

        Args:
          buckets: the longest utterance of each bucket, seconds, ascending.
          rows: rows of a batch of each bucket (`bucket_rows`).
          max_tasks: most distinct tasks in a batch.
          lookup: gives the duration (seconds) and the task (any int) of a (source, row).

        Raises:
          UserError: `max_tasks` below 1, or buckets that are not ascending.
        """
        if max_tasks < 1:
            raise UserError(f"batch max_tasks {max_tasks} must be at least 1")
        self._buckets = check_buckets(buckets)
        self._rows = tuple(rows)
        self._max_tasks = max_tasks
        self._lookup = lookup
        self._waiting = [_Waiting() for _ in self._buckets]
        self._arrivals = 0

    def add(self, source: int, row: int) -> None:
        """Takes one reference. ValueError if it is longer than the last bucket: such rows must not be fed."""
        duration, task = self._lookup(source, row)
        bucket = bisect.bisect_left(self._buckets, duration)
        if bucket == len(self._buckets):
            raise ValueError(
                f"row {row} of source {source} has {duration} s; the last bucket ends at {self._buckets[-1]} s"
            )
        self._waiting[bucket].add(self._arrivals, (source, row), task)
        self._arrivals += 1

    def pop(self) -> BatchPlan | None:
        """The next batch, or None while no bucket has one. Call it until None before each `add`."""
        for bucket, waiting in enumerate(self._waiting):
            wanted = self._rows[bucket]
            taken = waiting.take(wanted, max_tasks=self._max_tasks, limit=wanted + WAITING_LIMIT)
            if taken:
                return BatchPlan(bucket, tuple(taken))
        return None

    def waiting(self) -> dict[str, list[list[int]]]:
        """What waits, for JSON: {bucket: [[source, row], ...] in order of arrival}, buckets with nothing left out."""
        return waiting_of(self.snapshot())

    def snapshot(self) -> Snapshot:
        """What waits now, in a form that is made quickly however much it is: `waiting_of` turns it into that for JSON.

        A position follows every batch, and few of them are asked for.
        """
        return [list(itertools.chain.from_iterable(waiting.by_task.values())) for waiting in self._waiting]

    def restore(self, waiting: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Takes back what `waiting` gave; the batches that follow are those that would have followed then."""
        for bucket in sorted(waiting, key=int):
            for source, row in waiting[bucket]:
                self.add(int(source), int(row))
