"""Requests to results: decoded in threads, recognised in batches that mix tasks, given out in their order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from hra_jax.api import Backbone, Model
from hra_jax.errors import UserError
from hra_jax.tasks.names import MEAN_TASK
from hra_jax.transcription.batches import Decoded, Decoding
from hra_jax.transcription.outputs import Result
from hra_jax.transcription.requests import Request

TOGETHER: Final = 16  # recordings that are recognised at a time
_THREADS: Final = 4  # that decode


class Options(NamedTuple):
    """How recordings are recognised.

    Attributes:
      chunk_seconds: the longest that is recognised at once; None for as long as what was trained on.
      words: whether words are wanted, with their times.
    """

    chunk_seconds: float | None = None
    words: bool = False


class Recogniser:
    """A backbone with an adapter or without, for requests of any of its tasks."""

    def __init__(self, backbone: Backbone, model: Model | None, options: Options | None = None):
        """Takes what recognises.

        Args:
          backbone: the backbone.
          model: with the adapter; None for the backbone alone.
          options: how.
        """
        self._backbone, self._model, self._options = backbone, model, options or Options()

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms."""
        return self._backbone.sample_rate

    def kind(self, request: Request) -> str:
        """Only requests of one kind share a batch: the mean of all tasks is a model of its own."""
        return MEAN_TASK if request.task == MEAN_TASK else ""

    def results(self, decoded: Sequence[Decoded]) -> list[Result]:
        """What becomes of recordings of one kind.

        Raises:
          UserError: not for one recording alone, but for a model that cannot be used.
        """
        waveforms = [one.samples for one in decoded]
        requests = [one.request for one in decoded]
        tasks = [request.task for request in requests]
        options = self._options
        if self._model is None:
            texts = self._backbone.transcribe(
                waveforms, sample_rate=self.sample_rate, chunk_seconds=options.chunk_seconds
            )
        else:
            model = self._model.mean() if tasks[0] == MEAN_TASK else self._model
            texts = model.transcribe(
                waveforms, sample_rate=self.sample_rate, tasks=tasks, chunk_seconds=options.chunk_seconds
            )
        return [
            Result(request, waveform.size / self.sample_rate, text, request.task)
            for request, waveform, text in zip(requests, waveforms, texts, strict=True)
        ]


def results(requests: Iterator[Request], recogniser: Recogniser, *, together: int = TOGETHER) -> Iterator[Result]:
    """The results of requests, in their order, as soon as each and all before it are there.

    Args:
      requests: any number of them.
      recogniser: what recognises.
      together: how many at a time.

    Raises:
      UserError: the first batch gives no numbers for any of its recordings, which is the fault of the model.
    """
    waiting: dict[int, Result] = {}
    given, good = 0, False
    with Decoding(requests, sample_rate=recogniser.sample_rate, threads=_THREADS) as decoding:
        while batch := decoding.take(together, kind=recogniser.kind):
            fine = [one for one in batch if not one.error]
            for one in batch:
                if one.error:
                    waiting[one.number] = Result(one.request, 0.0, None, one.request.task, one.error)
            for one, result in zip(fine, _each(recogniser.results, fine, all_may_fail=good), strict=True):
                waiting[one.number] = result
            good = good or bool(fine)
            while given in waiting:
                yield waiting.pop(given)
                given += 1


def _each(
    recognised: Callable[[Sequence[Decoded]], list[Result]], batch: Sequence[Decoded], *, all_may_fail: bool
) -> list[Result]:
    """The result of each; those that overflow cost no other its text, unless it is all of them."""
    if not batch:
        return []
    try:
        return recognised(batch)
    except UserError:
        alone: list[Result] = []
        for one in batch:
            try:
                alone += recognised([one])
            except UserError as error:
                seconds = 0.0
                alone.append(Result(one.request, seconds, None, one.request.task, str(error)))
        if all_may_fail or any(result.text is not None for result in alone):
            return alone
        raise
