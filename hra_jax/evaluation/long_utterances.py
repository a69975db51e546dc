"""Utterances that are too long to be recognised at once: cut into parts at their pauses, and scored whole.

The parts are rows of the table of a suite, no longer than its last bucket, so the programs of short utterances serve
them. What is recognised in a part is kept as its path, the likeliest label of every frame, in writing: a text comes of
all paths of an utterance only.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hra_jax.data import audio, pauses
from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.models import ctc
from hra_jax.text.vocabularies import Vocabulary

_MUCH_SECONDS = 600.0  # of audio, above which one file at a time is in memory
_much = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part(Utterance):
    """A part of a long utterance: its file, its key, its text and its tags are those of the whole.

    Attributes:
      whole: the utterance.
      chunk: where in the samples of the whole it lies.
    """

    labelled: ClassVar[bool] = False
    whole: Utterance
    chunk: pauses.Chunk

    @property
    def name(self) -> str:
        """A name that no other part of its task has."""
        return f"{self.key} [{self.chunk.start}, {self.chunk.stop})"


def name_of(utterance: Utterance) -> str:
    """The key of an utterance, or the name of a part."""
    return utterance.name if isinstance(utterance, Part) else utterance.key


def whole_of(utterance: Utterance) -> Utterance:
    """The utterance itself, or that of which it is a part."""
    return utterance.whole if isinstance(utterance, Part) else utterance


def lengths(suite: Suite, *, last_bucket: float, trained_seconds: float) -> tuple[float, float]:
    """(seconds above which an utterance is cut, seconds of its longest part).

    Args:
      suite: which may say both.
      last_bucket: seconds; what fits is recognised at once, unless the suite says otherwise.
      trained_seconds: of the longest utterances that were trained on; 0 where that is not known.

    Raises:
      UserError: the suite wants parts that no bucket holds.
    """
    if suite.chunk_seconds > last_bucket:
        raise UserError(
            f"suite {suite.name!r}: decode has chunk_seconds = {suite.chunk_seconds:g}; allowed: at most "
            f"{last_bucket:g}, the last length bucket"
        )
    if suite.chunk_seconds:
        return suite.chunk_seconds, suite.chunk_seconds
    return last_bucket, min(trained_seconds or last_bucket, last_bucket)


def cut(
    task: SuiteTask,
    adapter: str,
    *,
    limit: float,
    longest_seconds: float,
    sample_rate: int,
    hop: int,
    threads: int,
    report: DataReport,
) -> TableSource:
    """The utterances of a task in their order, those that are too long in parts.

    Args:
      task: which.
      adapter: what it is recognised with.
      limit: seconds; longer ones are cut.
      longest_seconds, sample_rate, hop: as for `parts_of`.
      threads: that decode.
      report: gets the long ones that cannot be read; they are left out.
    """
    found: list[Utterance] = []
    refused: list[Refused] = []
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="cut")
    try:
        parts = functools.partial(parts_of, longest_seconds=longest_seconds, sample_rate=sample_rate, hop=hop)
        waiting = {at: pool.submit(parts, row) for at, row in enumerate(task.utterances) if row.duration > limit}
        for at, row in enumerate(task.utterances):
            try:
                found += waiting.pop(at).result() if at in waiting else [row]
            except audio.AudioError as error:
                report.add(error.kind, f"{task.name}: {row.key}", error.detail)
                refused.append(Refused(row.key, f"{error.kind}: {error.detail}", row.tags))
    finally:
        pool.shutdown(cancel_futures=True)
    return TableSource(task.name, found, task=adapter, refused=refused)


def parts_of(utterance: Utterance, *, longest_seconds: float, sample_rate: int, hop: int) -> list[Part]:
    """The parts of an utterance, at least one.

    Args:
      utterance: which.
      longest_seconds: of a part.
      sample_rate: Hz, at which it is recognised.
      hop: samples of an encoder frame.

    Raises:
      AudioError: as `audio.decode`.
    """
    with _much if utterance.duration > _MUCH_SECONDS else contextlib.nullcontext():
        waveform = audio.decode(utterance, sample_rate)
        chunks = pauses.chunks(waveform, hop, sample_rate=sample_rate, longest_seconds=longest_seconds)
    if not chunks:  # nothing is said, and that is scored: a part of which no frame counts
        chunks = [pauses.Chunk(0, min(len(waveform), int(longest_seconds * sample_rate)), 0, 0, after_pause=True)]
    line = utterance.as_line()  # of an utterance in shards it names the record
    return [
        Part(
            audio_filepath=line["audio_filepath"],
            duration=min((chunk.stop - chunk.start) / sample_rate, longest_seconds),
            text=utterance.text,
            offset=line.get("offset", 0.0) + chunk.start / sample_rate,
            tags=utterance.tags,
            key=utterance.key,
            source=utterance.source,
            line=utterance.line,
            whole=utterance,
            chunk=chunk,
        )
        for chunk in chunks
    ]


def parts_in(table: UtteranceTable) -> list[dict[int, Part]]:
    """The parts of each long utterance in the table of a suite, in their order, by their number there."""
    numbered = [(at, row) for at, row in enumerate(table.utterances) if isinstance(row, Part)]
    # Two tasks may have the same utterance.
    same = itertools.groupby(numbered, key=lambda entry: (table.source[entry[0]], id(entry[1].whole)))
    return [dict(some) for _, some in same]


def recognised(utterance: Utterance, path: np.ndarray, vocabulary: Vocabulary) -> str:
    """What a path says, int `[frames]`, the likeliest label of each frame; of a part the path itself, in writing."""
    if isinstance(utterance, Part):
        return " ".join(map(str, path.tolist()))
    return vocabulary.decode(ctc.labels_of_path(path, vocabulary.blank_id))


def text_of(parts: Sequence[Part], written: Sequence[str], vocabulary: Vocabulary) -> str:
    """What a whole utterance says, from what `recognised` gave of each of its parts."""
    paths = [np.array(path.split(), np.int32) for path in written]
    return pauses.text([part.chunk for part in parts], paths, vocabulary)
