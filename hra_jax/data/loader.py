"""From references to batches of arrays, for training (endless, restorable) and for evaluation (each utterance once).

Every host forms the same global batches and decodes its own rows of them, in threads, a few batches ahead. A batch is
a dict of numpy arrays; B is the rows per host, S the samples of the bucket, U its label capacity:

    waveform       float32 [B, S], full scale 1, zeros after num_samples
    num_samples    int32 [B]
    labels         int32 [B, U], zeros after label_lengths
    label_lengths  int32 [B]
    task           int32 [B], row of the adapter bank; -1 is `__base__` (no adapter)
    weight         float32 [B], 1; 0 for padding and for audio that could not be used
    utterance      int64 [B], index into the table; -1 is padding
    symbols        int32 [B, O], only where tasks have vocabularies of their own: see data/vocabularies.py

A row of weight 0 has task -1, no samples and no labels; where audio failed, `utterance` still says whose it was.
"""

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from hra_jax.data import audio, batching, mixtures
from hra_jax.data.groups import Part, parts_of
from hra_jax.data.report import DataReport
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.data.turns import Turns
from hra_jax.data.utterance_table import BASE_ID, UtteranceTable
from hra_jax.errors import UserError

Batch = dict[str, np.ndarray]
PADDING = -1
PREFETCH = 4  # training batches decoded ahead of the one handed out
# By how much decoded audio may be longer than its bucket, seconds: it is cut there. Manifests and resampling round.
_SLACK_SECONDS = 0.02
# So many different utterances failing in a row mean that the data is not there, long before a large epoch is over.
_HOPELESS = 1000


class _Job(NamedTuple):
    """A batch in the making."""

    batch: Batch
    futures: list[Future]
    position: Callable[[], dict] | None
    tasks: tuple[int, ...]  # of the global batch, ascending, `__base__` left out
    seconds: float  # of audio in the global batch, as the manifests say
    hashes: np.ndarray  # uint64 [B], of the rows that were decoded for the first time; 0 for all others

    def result(self) -> Batch:
        for future in self.futures:
            future.result()
        return self.batch


class _Assembler:
    """Fills the arrays of one host's rows in a thread pool. Which thread does what changes nothing in a batch."""

    def __init__(
        self,
        table: UtteranceTable,
        *,
        buckets: Sequence[float],
        rows: Sequence[int],
        capacities: Sequence[int],
        threads: int,
        report: DataReport,
        local_rows: Callable[[int], np.ndarray],
        known: np.ndarray | None = None,
    ):
        """As `TrainLoader` and `eval_batches`; `known`: uint64 [N], 0 for utterances whose samples are to be hashed."""
        if threads < 1:
            raise UserError(f"data threads {threads} must be at least 1")
        if table.duration.max() > buckets[-1]:
            longest = f"{table.duration.max():g} s"
            raise UserError(f"the longest utterance allowed has {longest}, the last bucket ends at {buckets[-1]:g} s")
        self._table, self._report, self._capacities, self._known = table, report, capacities, known
        self._samples = [round(seconds * table.sample_rate) for seconds in buckets]
        self._slack = round(_SLACK_SECONDS * table.sample_rate)
        self._rows, self._local = rows, [local_rows(number) for number in rows]
        self._threads, self._closed = threads, False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def submit(
        self, bucket: int, indices: Sequence[int] | np.ndarray, *, position: Callable[[], dict] | None = None
    ) -> _Job:
        """Starts on the global batch of these utterances, padded to the bucket's rows."""
        everyones = np.full(self._rows[bucket], PADDING, np.int64)
        everyones[: len(indices)] = indices
        mine = everyones[self._local[bucket]]
        share = len(mine)
        batch = {
            "waveform": np.zeros((share, self._samples[bucket]), np.float32),
            "num_samples": np.zeros(share, np.int32),
            "labels": np.zeros((share, self._capacities[bucket]), np.int32),
            "label_lengths": np.zeros(share, np.int32),
            "task": np.full(share, BASE_ID, np.int32),
            "weight": np.zeros(share, np.float32),
            "utterance": mine,
        }
        if self._table.symbols is not None:
            batch["symbols"] = np.repeat(self._table.symbols[-1:], share, axis=0)
        hashes = np.zeros(share, np.uint64)
        filled = np.flatnonzero(mine != PADDING)
        shares = [filled[first :: self._threads].tolist() for first in range(self._threads)]
        futures = [self._pool.submit(self._fill, batch, rows, hashes) for rows in shares if rows]
        numbers = np.asarray(indices, np.int64)
        tasks = np.unique(self._table.task[numbers])
        seconds = float(self._table.duration[numbers].sum())
        return _Job(batch, futures, position, tuple(tasks[tasks != BASE_ID].tolist()), seconds, hashes)

    def _fill(self, batch: Batch, rows: Sequence[int], hashes: np.ndarray) -> None:
        """Decodes some rows in place: a task of a thread for each row would cost more than short audio does."""
        for row in rows:
            if self._closed:
                return
            self._fill_row(batch, row, hashes)

    def _fill_row(self, batch: Batch, row: int, hashes: np.ndarray) -> None:
        """Decodes one row in place; audio that fails leaves it as padding is, and is reported."""
        index = int(batch["utterance"][row])
        try:
            samples, found = self._samples_of(index, limit=batch["waveform"].shape[1])
        except audio.AudioError as error:
            self._report.add(error.kind, self._table.name(index), error.detail)
            return
        labels = self._table.labels(index)
        batch["waveform"][row, : samples.size] = samples
        batch["num_samples"][row] = samples.size
        batch["labels"][row, : labels.size] = labels
        batch["label_lengths"][row] = labels.size
        batch["task"][row] = self._table.task[index]
        if self._table.symbols is not None:
            batch["symbols"][row] = self._table.symbols[self._table.task[index]]
        batch["weight"][row] = 1.0
        hashes[row] = found

    def _samples_of(self, index: int, *, limit: int) -> tuple[np.ndarray, int]:
        """(float32 [S], S at most `limit`; their hash, 0 where it is known or nobody asks).

        Raises:
          AudioError: the audio is bad, or not as long as its manifest promised.
        """
        table, found = self._table, 0
        if self._known is None or self._known[index]:
            samples = audio.decode(table.utterances[index], table.sample_rate)
        else:
            samples, found = audio.decode_hashed(table.utterances[index], table.sample_rate)
        if samples.size > limit + self._slack:
            seconds, allowed = samples.size / table.sample_rate, limit / table.sample_rate
            raise audio.AudioError("too_long", f"{seconds:g} s of audio; its bucket ends at {allowed:g} s")
        samples = samples[:limit]
        # The table has seen to it that as much as the manifest promised is enough.
        if table.for_training and samples.size < round(table.duration[index] * table.sample_rate):
            frames, needed = int(table.output_length(np.asarray(samples.size))), int(table.frames_needed[index])
            if frames < needed:
                raise audio.AudioError("too_short", f"{frames} frames of audio; its labels need {needed}")
        return samples, found

    @property
    def share(self) -> float:
        """Which part of the global batches one host decodes, above 0 to 1."""
        return len(self._local[0]) / self._rows[0]

    def close(self) -> None:
        """Stops the threads, each after the row that it is at: storage that is away may hold it for a minute."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)


def _capacities(table: UtteranceTable, buckets: Sequence[float]) -> tuple[int, ...]:
    inside = batching.bucket_of(table.duration, buckets)
    kept = inside < len(buckets)
    return batching.label_capacities(inside[kept], table.label_lengths[kept], buckets=len(buckets))


# Of each batch: its bucket, its utterances, and what gives the position after it, which is seldom asked for.
_Plans = Iterator[tuple[int, Sequence[int], Callable[[], dict]]]


def _utterances_in_turn(
    table: UtteranceTable,
    *,
    parts: Sequence[Part],
    seed: int,
    buckets: Sequence[float],
    rows: Sequence[int],
    max_tasks: int,
    position: Mapping,
) -> _Plans:
    """Batches of a mixture of the parts, each of whose epochs covers each of its utterances once."""
    batcher = batching.Batcher(buckets, rows=rows, max_tasks=max_tasks, lookup=table.lookup)
    batcher.restore(position["waiting"])
    counted = position.get("parts")
    drawn = None if counted is None else [counted[part.spec.name][1] for part in parts]
    specs = [part.spec for part in parts]
    stream = mixtures.ReferenceStream(specs, seed=seed, start=position["consumed"], drawn=drawn)

    def plans() -> _Plans:
        while True:
            plan = batcher.pop()
            while plan is None:
                part, row, _ = next(stream)
                batcher.add(*table.place(int(parts[part].utterances[row])))
                plan = batcher.pop()
            indices = [table.index(source, row) for source, row in plan.rows]
            position_after = functools.partial(
                _position, parts, stream.consumed, tuple(stream.drawn), batcher.snapshot()
            )
            yield plan.bucket, indices, position_after

    return plans()


def _position(parts: Sequence[Part], consumed: int, drawn: Sequence[int], waiting: batching.Snapshot) -> dict:
    return {"consumed": consumed, "waiting": batching.waiting_of(waiting)} | _counted(parts, drawn)


def _counted(parts: Sequence[Part], drawn: Sequence[int]) -> dict:
    """What a position says of several parts: {"parts": {name: [utterances, references drawn, rate]}}."""
    if len(parts) == 1:
        return {}
    counts = zip(parts, drawn, strict=True)
    return {"parts": {part.spec.name: [part.spec.rows, count, part.spec.weight] for part, count in counts}}


def _tasks_in_turn(
    table: UtteranceTable,
    *,
    parts: Sequence[Part],
    seed: int,
    buckets: Sequence[float],
    rows: Sequence[int],
    max_tasks: int,
    position: Mapping,
) -> _Plans:
    """Batches in which every task has its turn equally often; nothing is mixed."""
    del parts
    turns = Turns(
        table.duration,
        table.task,
        names=table.task_names,
        buckets=buckets,
        rows=rows,
        max_tasks=max_tasks,
        seed=seed,
        start=position["consumed"],
    )
    return (
        (turn.bucket, turn.utterances, functools.partial(dict, consumed=turns.consumed, waiting={})) for turn in turns
    )


class TrainLoader(Iterator[Batch]):
    """Endless training batches, per host; the global batches are the same for any number of hosts and threads.

    Every epoch of a part of the mixture, or of a task where tasks are drawn in turn, covers each of its usable
    utterances once. Use it as a context manager, or call `close`.

    Attributes:
      parts: what the mixture draws from; none where tasks are drawn in turn.
      wait_seconds: time spent inside `next` so far: what training waited for its input.
      tasks: the tasks of the global batch last handed out, ascending, `__base__` left out.
      audio_seconds: audio in the global batch last handed out, as the manifests say.
    """

    def __init__(
        self,
        table: UtteranceTable,
        *,
        seed: int,
        batch_seconds: float,
        buckets: Sequence[float],
        multiple: int,
        max_tasks: int,
        threads: int,
        draw: str = "utterances",
        parts: Sequence[Part] = (),
        prefetch: int = PREFETCH,
        report: DataReport,
        position: Mapping | None = None,
        local_rows: Callable[[int], np.ndarray] = np.arange,
        hashes: UtteranceHashes | None = None,
    ):
        """Starts at the beginning, or at a position.

        Args:
          table: the training utterances.
          seed: decides permutations and mixing.
          batch_seconds: audio of a global batch, padding included, seconds.
          buckets: the longest utterance of each bucket, seconds, ascending.
          multiple: the rows of every global batch divide by it.
          max_tasks: most distinct tasks in a global batch.
          threads: decoding threads.
          draw: a value of `data.sources.DRAWS`: what is drawn in turn.
          parts: what is mixed, and at what rates; the sources at their own rates if none is given.
          prefetch: batches decoded ahead of the one handed out.
          report: names audio that fails.
          position: what `position()` of an earlier loader gave, from any number of hosts.
          local_rows: gives the rows of a global batch that one host decodes, ascending, from the number of its rows
            (`training.sharding.local_rows`); all of them if not given.
          hashes: gets the hash of every utterance that this host hands out for the first time; None computes none.

        Raises:
          UserError: settings that do not fit together or with the table, a source without a usable utterance, or a
            position made with other data.
        """
        if prefetch < 0:
            raise UserError(f"data prefetch {prefetch} must be at least 0")
        rows = batching.bucket_rows(buckets, batch_seconds=batch_seconds, multiple=multiple)
        self._table, self._report, self._prefetch, self._seed = table, report, prefetch, seed
        self._usable_rows = {spec.name: spec.rows for spec in table.specs()}
        self.parts = () if draw == "tasks" else tuple(parts) or parts_of(table)
        begin = self._checked(position)
        self._position: Callable[[], dict] = lambda: begin
        plans = _tasks_in_turn if draw == "tasks" else _utterances_in_turn
        self._plans = plans(
            table,
            parts=self.parts,
            seed=seed,
            buckets=buckets,
            rows=rows,
            max_tasks=max_tasks,
            position=begin,
        )
        self._assembler = _Assembler(
            table,
            buckets=buckets,
            rows=rows,
            capacities=_capacities(table, buckets),
            threads=threads,
            report=report,
            local_rows=local_rows,
            known=None if hashes is None else hashes.values,
        )
        self._hashes = hashes
        self._jobs: deque[_Job] = deque()
        self._failed: set[int] = set()  # utterances that failed since one last succeeded
        self._hopeless = min(_HOPELESS, math.ceil(len(table) * self._assembler.share))
        self._closed = False
        self.wait_seconds = self.audio_seconds = 0.0
        self.tasks: tuple[int, ...] = ()

    def _checked(self, position: Mapping | None) -> dict:
        if position is None:
            return {"consumed": 0, "waiting": {}, "rows": self._usable_rows}
        missing = [key for key in ("consumed", "waiting", "rows") if key not in position]
        if missing:
            raise UserError(f"the data position lacks {missing[0]!r}; it holds {sorted(position)}")
        if position["rows"] != self._usable_rows:
            raise UserError(
                f"the data position was made with the usable utterances {position['rows']}, now there are"
                f" {self._usable_rows}: restore the manifests, or start in another work directory"
            )
        # Earlier versions stored none: the stream then counts them itself.
        stored = position.get("parts", {})
        before = {name: rows for name, (rows, *_) in stored.items()}
        now = {part.spec.name: part.spec.rows for part in self.parts}
        if before and before != now:
            changed = sorted(name for name in before | now if before.get(name) != now.get(name))[0]
            raise UserError(
                f"the data position was made with {before.get(changed, 0)} utterances in the group {changed!r}, now"
                f" there are {now.get(changed, 0)}: restore the manifests, or start in another work directory"
            )
        # The configuration holds the rates of sources, but those of a seqio Mixture stand in a module of the user's.
        for part in self.parts if before else ():
            name, rate = part.spec.name, stored[part.spec.name][2]
            if rate != part.spec.weight:
                raise UserError(
                    f"the data position was made with the rate {rate:g} of {name!r}, now it is {part.spec.weight:g}: "
                    "restore the rates of the Mixture, or start in another work directory"
                )
        return dict(position)

    def __next__(self) -> Batch:
        """The host's rows of the next global batch.

        Raises:
          UserError: audio failed for every utterance of an epoch, or for a thousand different ones, without a single
            success; or anything was bad while the report is strict.
          ValueError: the loader is closed.
        """
        if self._closed:
            raise ValueError("the loader is closed")
        started = time.perf_counter()
        while len(self._jobs) <= self._prefetch:
            bucket, indices, position = next(self._plans)
            self._jobs.append(self._assembler.submit(bucket, indices, position=position))
        job = self._jobs.popleft()
        batch = job.result()
        self._watch(batch)
        if self._hashes is not None:
            # Only now: what is decoded ahead has trained nothing yet, and how far ahead depends on the machine.
            new = job.hashes != 0
            self._hashes.put(batch["utterance"][new], job.hashes[new])
        assert job.position is not None  # `_plan` gives every training batch one
        self._position, self.tasks, self.audio_seconds = job.position, job.tasks, job.seconds
        self.wait_seconds += time.perf_counter() - started
        return batch

    def _watch(self, batch: Batch) -> None:
        """Raises UserError once it is plain that no audio can be had."""
        if batch["weight"].any():
            self._failed.clear()
            return
        self._failed.update(batch["utterance"][batch["utterance"] != PADDING].tolist())
        if len(self._failed) >= self._hopeless:
            raise UserError(
                f"no usable audio: {len(self._failed)} utterances in a row failed, of {len(self._table)} in the"
                f" training sources ({self._report.summary()})"
            )

    def position(self) -> dict:
        """Where to go on after the batch last handed out: small, JSON-able, valid for any number of hosts.

        Returns:
          {"consumed": references read, "waiting": {bucket: [[source, row], ...]}, "rows": {source: usable utterances}}
          and, of a mixture of several parts, "parts": {name: [utterances, references read, rate]}; where tasks are
          drawn in turn, "consumed" counts batches, and nothing waits.
        """
        return self._position() | {"rows": self._usable_rows}

    @property
    def drawn(self) -> list[int]:
        """How many references of each part have been read for the batches handed out."""
        if not self.parts:
            return []
        position = self._position()
        counted = position.get("parts")
        if counted is None:
            specs = [part.spec for part in self.parts]
            return mixtures.draws_before(specs, position["consumed"], seed=self._seed)
        return [counted[part.spec.name][1] for part in self.parts]

    def close(self) -> None:
        """Stops the decoding threads; batches not handed out are dropped."""
        self._closed = True
        self._jobs.clear()
        self._assembler.close()

    def __enter__(self) -> "TrainLoader":
        """The loader itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the loader."""
        self.close()


def eval_plans(
    table: UtteranceTable, *, batch_seconds: float, buckets: Sequence[float], multiple: int
) -> list[tuple[int, np.ndarray]]:
    """The batches of `eval_batches`, which has the same arguments: every utterance of the table once.

    Returns:
      (bucket, indices) of each global batch, by bucket, then by length, then as in the table.
    """
    rows = batching.bucket_rows(buckets, batch_seconds=batch_seconds, multiple=multiple)
    bucket_ids = batching.bucket_of(table.duration, buckets)
    order = np.lexsort((np.arange(len(table)), table.duration, bucket_ids))
    plans = []
    for bucket, count in enumerate(rows):
        inside = order[bucket_ids[order] == bucket]
        plans += [(bucket, inside[first : first + count]) for first in range(0, len(inside), count)]
    return plans


def eval_batches(
    table: UtteranceTable,
    *,
    batch_seconds: float,
    buckets: Sequence[float],
    multiple: int,
    threads: int,
    report: DataReport,
    prefetch: int = 2,
    label_capacities: Sequence[int] | None = None,
    local_rows: Callable[[int], np.ndarray] = np.arange,
    plans: Sequence[tuple[int, np.ndarray]] | None = None,
) -> Generator[Batch, None, None]:
    """Batches that hold every utterance of the table exactly once over all hosts, short and similar ones together.

    The last batch of a bucket is padded with rows of weight 0 and utterance -1, so all batches of a bucket have one
    shape. Every host gets the same number of batches.

    Args:
      table: what to evaluate; its `for_training` should be False.
      batch_seconds: audio of a global batch, padding included, seconds.
      buckets: the longest utterance of each bucket, seconds, ascending.
      multiple: the rows of every global batch divide by it.
      threads: decoding threads.
      report: names audio that fails (weight 0, `utterance` kept).
      prefetch: batches decoded ahead.
      label_capacities: U of each bucket; None takes the longest of the table. Give the same to several tables, and
        they have the same shapes.
      local_rows: as for TrainLoader.
      plans: some of `eval_plans` of the same table and settings, where not all batches are wanted.

    Raises:
      UserError: settings that do not fit together or with the table; while iterating, anything bad if the report is
        strict.
    """
    rows = batching.bucket_rows(buckets, batch_seconds=batch_seconds, multiple=multiple)
    needed = _capacities(table, buckets)
    capacities = needed if label_capacities is None else tuple(label_capacities)
    if len(capacities) != len(needed) or any(have < need for have, need in zip(capacities, needed, strict=True)):
        raise UserError(f"label capacities {list(capacities)} do not hold the labels, which need {list(needed)}")
    assembler = _Assembler(
        table,
        buckets=buckets,
        rows=rows,
        capacities=capacities,
        threads=threads,
        report=report,
        local_rows=local_rows,
    )
    if plans is None:
        plans = eval_plans(table, batch_seconds=batch_seconds, buckets=buckets, multiple=multiple)
    return _run(assembler, plans, prefetch=prefetch)


def _run(
    assembler: _Assembler, plans: Sequence[tuple[int, np.ndarray]], *, prefetch: int
) -> Generator[Batch, None, None]:
    jobs: deque[_Job] = deque()
    try:
        for bucket, indices in plans:
            jobs.append(assembler.submit(bucket, indices))
            if len(jobs) > prefetch:
                yield jobs.popleft().result()
        while jobs:
            yield jobs.popleft().result()
    finally:
        assembler.close()
