"""Recordings decoded in threads while the device runs, and put together by length.

Some are decoded ahead, as many as a bound on their number and on their samples allows. A batch is the recording that
has waited longest and those nearest to it in length: little padding, few shapes to compile, and nobody waits long.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Self

import numpy as np

from hra_jax.data.audio import AudioError
from hra_jax.models.padding import padded_size
from hra_jax.transcription.requests import Request

AHEAD: Final = 128  # recordings that are decoded and wait
_MOST_SAMPLES: Final = 2**25  # of them together: 35 minutes at 16 kHz
_PATIENCE_SECONDS: Final = 1.0  # after which a batch is made of what there is


class Decoded(NamedTuple):
    """A request with its samples, or the reason why it has none.

    Attributes:
      number: in the order of the requests, from 0.
      request: the request.
      samples: float32 [S]; [0] where there is an error.
      error: "kind: detail", or ''.
    """

    number: int
    request: Request
    samples: np.ndarray
    error: str


class Kind(NamedTuple):
    """What tells which requests share a batch.

    Attributes:
      shares: only those with the same.
      group: those with the same come together, as far as they wait; '' for none. Groups stand one after the other.
    """

    shares: str
    group: str = ""


ANY: Final = Kind("")


class Decoding:
    """Requests that are decoded ahead; use it in a `with` block, after which nothing more is."""

    def __init__(self, requests: Iterator[Request], *, sample_rate: int, threads: int, ahead: int = AHEAD):
        """Starts.

        Args:
          requests: in their order.
          sample_rate: Hz.
          threads: that decode.
          ahead: how many may wait.
        """
        self._requests = enumerate(requests)
        self._rate, self._ahead = sample_rate, ahead
        self._changed = threading.Condition()
        self._ready: list[Decoded] = []
        self._samples = 0  # of those
        self._decoding = 0  # in the threads
        self._ended = False  # there is no further request, or nobody wants it
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._threads: list[Future[None]] = [self._pool.submit(self._decode_on) for _ in range(threads)]

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the threads."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def take(self, most: int, *, kind: Callable[[Request], Kind] = lambda request: ANY) -> list[Decoded]:
        """The next batch; [] after the last one.

        Args:
          most: recordings of a batch. What could not be decoded comes beside them.
          kind: of each request.

        Raises:
          Whatever but AudioError a thread met, such as storage in the network that does not answer.
        """
        with self._changed:
            while not self._changed.wait_for(self._is_best, _PATIENCE_SECONDS) and not self._ready:
                pass
            for thread in self._threads:
                if thread.done():
                    thread.result()  # raises what it met
            failed = [one for one in self._ready if one.error]
            good = [one for one in self._ready if not one.error]
            batch = failed + (self._nearest(good, most, kind) if good else [])
            taken = {one.number for one in batch}
            self._ready = [one for one in self._ready if one.number not in taken]
            self._samples -= sum(one.samples.size for one in batch)
            self._changed.notify_all()
        return batch

    def _is_best(self) -> bool:
        """Whether no batch would be a better one for waiting."""
        if any(thread.done() and thread.exception() for thread in self._threads):
            return True
        over = self._ended and not self._decoding
        return over or (bool(self._ready) and not self._has_room())

    def _has_room(self) -> bool:
        return len(self._ready) + self._decoding < self._ahead and self._samples < _MOST_SAMPLES

    def _decode_on(self) -> None:
        """What each thread does."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._has_room())
                taken = None if self._ended else next(self._requests, None)
                if taken is None:
                    self._ended = True
                    self._changed.notify_all()
                    return
                self._decoding += 1
            try:
                found = self._decoded(*taken)
                with self._changed:
                    self._ready.append(found)
                    self._samples += found.samples.size
            finally:
                with self._changed:
                    self._decoding -= 1
                    self._changed.notify_all()

    def _decoded(self, number: int, request: Request) -> Decoded:
        nothing = np.zeros(0, np.float32)
        if request.error:
            return Decoded(number, request, nothing, request.error)
        try:
            return Decoded(number, request, request.samples(self._rate), "")
        except AudioError as error:
            return Decoded(number, request, nothing, str(error))

    def _nearest(self, waiting: list[Decoded], most: int, kind: Callable[[Request], Kind]) -> list[Decoded]:
        """The recording that has waited longest and at most `most` - 1 others: none that its batch must grow for first.

        Among those the nearest to it in length.
        """
        first = min(waiting)
        own, size = kind(first.request), padded_size(first.samples.size, self._rate)
        alike = [one for one in waiting if kind(one.request).shares == own.shares]
        if own.group:
            return _whole_groups(sorted(alike), most, lambda one: kind(one.request).group)

        def price(one: Decoded) -> tuple[bool, int, int]:
            longer = padded_size(one.samples.size, self._rate) > size
            return longer, abs(one.samples.size - first.samples.size), one.number

        return sorted(alike, key=price)[:most]


def _whole_groups(waiting: list[Decoded], most: int, group: Callable[[Decoded], str]) -> list[Decoded]:
    """Of what waits, in its order, the first group and those after it as far as `most` allows, and no more of one."""
    groups = [list(members)[:most] for _, members in itertools.groupby(waiting, group)]
    batch = groups[0]
    # More of the last one may still be decoded.
    for members in groups[1:-1]:
        if len(batch) + len(members) > most:
            break
        batch = batch + members
    return batch
