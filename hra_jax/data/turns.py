"""Batches in which all tasks take turns: equal numbers of updates, whatever the numbers of their utterances.

In a round every task has its turn once, in an order of chance, and a task is in one batch of a round. So at any time no
two tasks differ by more than one in the batches that they were in: a head with one utterance is updated as often as one
with a hundred. Within its turns a task goes through its utterances in epochs, each a permutation of them.

Which rows form a batch follows from durations, tasks and the seed alone: every host forms the same ones.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.data import batching


class Turn(NamedTuple):
    """One global batch.

    Attributes:
      bucket: index of its length bucket.
      utterances: indices into the table; fewer than the bucket's rows where its tasks have no more.
    """

    bucket: int
    utterances: tuple[int, ...]


class _Epochs:
    """The utterances of one task, in endless epochs; what is left of the epoch waits by bucket."""

    def __init__(self, utterances: np.ndarray, buckets: np.ndarray, *, name: str, seed: int):
        self._utterances, self._buckets, self._name, self._seed = utterances, buckets, name, seed
        self._epoch = self._left = 0
        self._waiting: dict[int, deque[tuple[int, int]]] = {}  # of each bucket: place in the epoch, and utterance

    def begin(self) -> None:
        """Begins the next epoch, if the one before is over."""
        if self._left:
            return
        order = _permutation(len(self._utterances), self._seed, f"task/{self._name}/{self._epoch}")
        for place, number in enumerate(order.tolist()):
            waiting = self._waiting.setdefault(int(self._buckets[number]), deque())
            waiting.append((place, int(self._utterances[number])))
        self._epoch, self._left = self._epoch + 1, len(order)

    def first_bucket(self) -> int:
        """The bucket of the utterance that has waited longest."""
        return min(self._waiting, key=lambda bucket: self._waiting[bucket][0])

    def fits(self, bucket: int) -> bool:
        """Whether an utterance waits that a batch of this bucket holds."""
        return any(other <= bucket for other in self._waiting)

    def take(self, bucket: int) -> int:
        """The utterance that has waited longest of those that a batch of this bucket holds."""
        first = min((other for other in self._waiting if other <= bucket), key=lambda other: self._waiting[other][0])
        _, utterance = self._waiting[first].popleft()
        if not self._waiting[first]:
            del self._waiting[first]
        self._left -= 1
        return utterance


class Turns(Iterator[Turn]):
    """The endless batches of a table.

    The task that is next in the round takes the utterance that has waited longest, whose bucket is that of the batch.
    Tasks that follow in the round join it, as many as `max_tasks` and the rows allow, if an utterance of theirs fits.
    The rows are then filled by each of them in turn, from what is left of its epoch: no utterance is twice in a batch.

    Attributes:
      consumed: batches given so far.
    """

    def __init__(
        self,
        durations: np.ndarray,
        tasks: np.ndarray,
        *,
        names: Sequence[str],
        buckets: Sequence[float],
        rows: Sequence[int],
        max_tasks: int,
        seed: int,
        start: int = 0,
    ):
        """Begins at a batch.

        Args:
          durations: [N], seconds; none is longer than the last bucket.
          tasks: int [N], the task of each utterance, an index into `names`.
          names: of the tasks; one of another name goes through its utterances in another order.
          buckets: the longest utterance of each bucket, seconds, ascending.
          rows: rows of a batch of each bucket.
          max_tasks: most distinct tasks in a batch.
          seed: any int.
          start: how many batches to leave out at the beginning; each is formed, in a fraction of a millisecond.
        """
        self._rows, self._max_tasks, self._seed = tuple(rows), max_tasks, seed
        inside = batching.bucket_of(durations, buckets)
        order = np.argsort(tasks, kind="stable")
        found, firsts = np.unique(tasks[order], return_index=True)
        parts = np.split(order, firsts[1:])
        self._epochs = {
            task: _Epochs(part, inside[part], name=names[task], seed=seed)
            for task, part in zip(found.tolist(), parts, strict=True)
        }
        self._tasks = found
        self._begun, self._left = 0, np.zeros(0, np.int64)  # rounds, and the tasks whose turn is still to come
        self.consumed = 0
        while self.consumed < start:
            next(self)

    def __next__(self) -> Turn:
        """The next batch; never raises StopIteration."""
        if not len(self._left):
            self._left = self._tasks[_permutation(len(self._tasks), self._seed, f"round/{self._begun}")]
            self._begun += 1
        first = self._of(self._left[0])
        bucket = first.first_bucket()
        most = min(self._max_tasks, self._rows[bucket])
        joined: list[int] = []
        later: list[int] = []
        for place, task in enumerate(self._left.tolist()):
            if len(joined) == most:
                later += self._left[place:].tolist()
                break
            (joined if self._of(task).fits(bucket) else later).append(task)
        self._left = np.asarray(later, np.int64)
        self.consumed += 1
        return Turn(bucket, self._filled(joined, bucket))

    @property
    def rounds(self) -> int:
        """Rounds that are over: the turns that every task has had."""
        return self._begun - bool(len(self._left))

    def _of(self, task: int) -> _Epochs:
        epochs = self._epochs[int(task)]
        epochs.begin()
        return epochs

    def _filled(self, tasks: Sequence[int], bucket: int) -> tuple[int, ...]:
        """The utterances of a batch: each task gives one in turn, until the rows are full or nothing more fits."""
        giving = [self._epochs[task] for task in tasks]
        taken: list[int] = []
        while giving:
            for epochs in giving[: self._rows[bucket] - len(taken)]:
                taken.append(epochs.take(bucket))
            if len(taken) == self._rows[bucket]:
                break
            giving = [epochs for epochs in giving if epochs.fits(bucket)]
        return tuple(taken)


def batches_of_rounds(turns: Turns, rounds: int) -> int:
    """The number of batches in which every task has had exactly so many turns; `turns` must be at its beginning."""
    if turns.consumed:
        raise ValueError(f"{turns.consumed} batches have been taken; allowed: none")
    while turns.rounds < rounds:
        next(turns)
    return turns.consumed


def _permutation(count: int, seed: int, name: str) -> np.ndarray:
    """int64 [count], a permutation that depends on seed and name alone, on every machine.

    Sorted words of Philox, whose definition is fixed, while what numpy makes of such words may change.
    """
    if count == 1:
        return np.zeros(1, np.int64)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "big")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
