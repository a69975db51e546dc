"""Requests to results: decoded in threads, recognised in batches that mix tasks, given out in their order."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from hra_jax.api import Backbone, load_adapter, load_backbone
from hra_jax.decoding import unknown_task
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.phrases import Weighted
from hra_jax.decoding.recognition import Recognition
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, MEAN_TASK
from hra_jax.transcription.batches import ANY, Decoded, Decoding, Kind
from hra_jax.transcription.outputs import Result
from hra_jax.transcription.requests import Request

TOGETHER: Final = 16  # recordings that are recognised at a time
_THREADS: Final = 4  # that decode


class Options(NamedTuple):
    """How recordings are recognised.

    Attributes:
      decode: how log-probabilities become text.
      chunk_seconds: the longest that is recognised at once; None for as long as what was trained on.
      words: whether words are wanted, with their times.
    """

    decode: DecodeSettings | None = None
    chunk_seconds: float | None = None
    words: bool = False


class Recogniser:
    """A backbone with an adapter or without, for requests of any of its tasks.

    Everything is checked when it is made; weights of the backbone are read by `load`.

    Attributes:
      fingerprint: of the backbone.
      sample_rate: Hz, of the waveforms.
      sessions: the task of each session of `__auto__` whose voice is known.
    """

    def __init__(self, adapter: str | None, backbone: str, tasks: Collection[str], options: Options | None = None):
        """Reads the adapter and all that decoding needs.

        Args:
          adapter: folder of an exported adapter; None for the backbone alone.
          backbone: folder of the backbone, or `builtin:NAME`.
          tasks: those that will be asked for.
          options: how.

        Raises:
          UserError: an unknown task, an adapter of another backbone; as `Model.decoder`.
        """
        self._location, self._options = backbone, options or Options()
        files = backbone_folder.load(backbone)
        self.fingerprint, self.sample_rate = files.fingerprint, files.features.sample_rate
        bare = Backbone(files, {}, np.dtype(np.float32))
        model = bare.alone() if adapter is None else load_adapter(adapter, bare)
        if adapter is None and any(task != BASE_TASK for task in tasks):
            raise needs_adapter(next(task for task in tasks if task != BASE_TASK))
        mean = [task for task in tasks if task == MEAN_TASK]
        others = [task for task in tasks if task != MEAN_TASK]
        if AUTO_TASK in others:
            # Refuses an adapter that does not say how its tasks sound.
            unknown_task.voices_of(model.records, model.tasks, where=model.folder, aside=model.set_aside)
        self._models = ({MEAN_TASK: model.mean()} if mean else {}) | ({"": model} if others else {})
        asked = {MEAN_TASK: mean, "": others}
        self._decoders = {kind: each.decoder(self._options.decode, asked[kind]) for kind, each in self._models.items()}
        self.sessions: dict[str, str] = {}

    def load(self) -> None:
        """Reads the weights of the backbone. UserError as `load_backbone`."""
        backbone = load_backbone(self._location)
        if backbone.fingerprint != self.fingerprint:
            raise UserError(f"the backbone {self._location!r} was replaced meanwhile; allowed: the same command again")
        self._models = {kind: dataclasses.replace(model, backbone=backbone) for kind, model in self._models.items()}

    def facts(self, *, phrases: bool = False) -> dict[str, Any]:
        """What decodes, as `Decoder.facts` has it; with `phrases`, an utterance that has phrases of its own."""
        found = {kind: decoder.facts(phrases=phrases) for kind, decoder in self._decoders.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    def phrases(self) -> dict[str, Sequence[Weighted]]:
        """The phrases of each task that has any."""
        decoders = self._decoders.values()
        return {task: given for decoder in decoders for task, given in decoder.phrases().items()}

    def kind(self, request: Request) -> Kind:
        """Which requests share a batch: a session whose voice is not known yet is heard together."""
        if request.task == MEAN_TASK:
            return Kind(MEAN_TASK)  # a model of its own
        unknown = bool(request.session) and self._task(request) == AUTO_TASK
        return Kind(AUTO_TASK, request.session) if unknown else ANY

    def checked(self, request: Request) -> Request:
        """The request; with an error where the vocabulary of its task, whichever that is, cannot write its phrases."""
        if request.error or not request.phrases:
            return request
        decoder = self._decoders[MEAN_TASK if request.task == MEAN_TASK else ""]
        refusal = ""
        for task in decoder.tasks if request.task == AUTO_TASK else (request.task,):
            try:
                decoder.check_phrases(task, request.phrases)
            except UserError as error:
                refusal = str(error)
            else:
                return request
        return request._replace(error=f"unknown_phrase: {refusal}")

    def _task(self, request: Request) -> str:
        return self.sessions.get(request.session, AUTO_TASK) if request.task == AUTO_TASK else request.task

    def results(self, decoded: Sequence[Decoded]) -> list[Result]:
        """What becomes of recordings of one kind.

        Raises:
          UserError: the log-probabilities of one of them are not finite.
        """
        requests = [one.request for one in decoded]
        which = MEAN_TASK if requests[0].task == MEAN_TASK else ""
        decoder = self._decoders[which]
        found = self._models[which].recognise(
            [one.samples for one in decoded],
            sample_rate=self.sample_rate,
            tasks=[self._task(request) for request in requests],
            sessions=[one.request.session or one.number for one in decoded],
            decode=decoder,
            phrases=[request.phrases for request in requests] if any(one.phrases for one in requests) else None,
            words=self._options.words,
            chunk_seconds=self._options.chunk_seconds,
        )
        for request, one in zip(requests, found, strict=True):
            if request.task == AUTO_TASK and request.session:
                self.sessions[request.session] = one.task
        return [_result(*pair, decoder) for pair in zip(requests, found, strict=True)]


def _result(request: Request, found: Recognition, decoder: Decoder) -> Result:
    words = [
        dataclasses.replace(word, start=word.start + request.offset, end=word.end + request.offset)
        for word in found.words
    ]
    facts = decoder.facts_of(found.task, request.phrases) | ({"calibrated": found.calibrated} if words else {})
    return Result(
        request, found.seconds, found.text, found.task, "", words, found.confidence, facts, found.alternatives
    )


def needs_adapter(task: str) -> UserError:
    """The error where a task is asked for without an adapter."""
    return UserError(f"task = {task!r} needs --adapter; without one only {BASE_TASK!r} is there")


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
