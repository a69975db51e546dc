"""Recordings to what they say: cut into chunks, run a few at a time, decoded, and put together again."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hra_jax.data import pauses
from hra_jax.decoding.decoder import Alternative, Decoded, Decoder
from hra_jax.decoding.words import (
    NOT_CALIBRATED,
    Calibration,
    Word,
    agreed_log_probs,
    confidence_of,
    path_log_probs,
    words_of_chunks,
)
from hra_jax.errors import UserError
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.vocabularies import Vocabulary

_RIVALS = 8  # hypotheses that say how sure words are
_TOGETHER = 16  # parts that are run at a time: little padding, bounded memory


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What was recognised in a recording.

    Attributes:
      text: what it says.
      task: the task that it was recognised as.
      seconds: of the recording.
      words: with times and confidences, where they were asked for; else ().
      confidence: the share of them that is expected to be right; None where there are none.
      calibrated: whether their confidences were calibrated for the task; if not, they are posteriors.
      alternatives: the best hypotheses, as many as `decode.n_best` says; () where decoding is greedy, and where the
        recording was recognised in several chunks.
      chunks: the parts that were recognised at once.
      paths: of each chunk the label or the blank of each frame that it hears, int32 `[frames]`.
    """

    text: str
    task: str
    seconds: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    calibrated: bool = False
    alternatives: tuple[Alternative, ...] = ()
    chunks: tuple[pauses.Chunk, ...] = ()
    paths: tuple[np.ndarray, ...] = dataclasses.field(default=(), repr=False)


def one_task_each(recordings: Sequence[Any], tasks: Iterable[str] | None) -> list[str]:
    """The task of each recording, `__base__` where none is said.

    Raises:
      UserError: more or fewer tasks than recordings; no list of them, but a single one.
    """
    samples = isinstance(recordings, np.ndarray | jax.Array) and recordings.ndim == 1 and recordings.dtype.kind in "fiu"
    if samples or isinstance(recordings, str | os.PathLike):
        raise UserError("waveforms is a single recording; allowed: a list of recordings")
    if isinstance(tasks, str):
        raise UserError(f"tasks = {tasks!r}: allowed: a list with a task for each recording")
    names = [BASE_TASK] * len(recordings) if tasks is None else list(tasks)
    if len(names) != len(recordings):
        raise UserError(f"{len(names)} tasks for {len(recordings)} waveforms: one per waveform is needed")
    return names


def recognise(
    waveforms: Sequence[np.ndarray],
    tasks: Sequence[str],
    run: Callable[[Sequence[np.ndarray], Sequence[int]], tuple[np.ndarray, np.ndarray]],
    *,
    decoder: Decoder,
    vocabularies: Mapping[str, Vocabulary],
    phrases: Sequence[Sequence[Any]] | None,
    hop: int,
    sample_rate: int,
    longest_seconds: float,
    words: bool = False,
    calibrations: Mapping[str, Calibration] | None = None,
) -> list[Recognition]:
    """Recognises recordings; what is longer than a chunk is cut at pauses.

    Args:
      waveforms: float32 `[S]` each.
      tasks: of each.
      run: gives the log-probabilities `[B, T, V]` and the frames `[B]` of parts and the numbers of their waveforms.
      decoder: for these tasks.
      vocabularies: of these tasks.
      phrases: of each waveform; None for none.
      hop: samples of an encoder frame.
      sample_rate: Hz.
      longest_seconds: of a chunk.
      words: whether they are wanted.
      calibrations: of the tasks that have one.
    """
    cut = [
        pauses.chunks(waveform, hop, sample_rate=sample_rate, longest_seconds=longest_seconds) for waveform in waveforms
    ]
    parts = [(i, chunk) for i, found in enumerate(cut) for chunk in found]
    # Parts of like length run together, a few at a time: little padding, bounded memory.
    order = sorted(range(len(parts)), key=lambda n: parts[n][1].stop - parts[n][1].start)
    heard: dict[int, _Heard] = {}
    for start in range(0, len(order), _TOGETHER):
        together = order[start : start + _TOGETHER]
        rows = [parts[n][0] for n in together]
        sounds = [waveforms[i][parts[n][1].start : parts[n][1].stop] for n, i in zip(together, rows, strict=True)]
        log_probs, lengths = run(sounds, rows)
        names, own = [tasks[i] for i in rows], None if phrases is None else [phrases[i] for i in rows]
        decoded = decoder.paths(log_probs, lengths, names, phrases=own, rivals=_RIVALS if words else 1)
        heard |= zip(together, _heard(decoded, log_probs, [vocabularies[name] for name in names]), strict=True)
    numbers, found = iter(range(len(parts))), []
    for waveform, chunks, task in zip(waveforms, cut, tasks, strict=True):
        mine = [heard[next(numbers)] for _ in chunks]
        paths = [part.path for part in mine]
        one = Recognition(
            pauses.text(chunks, paths, vocabularies[task]),
            task,
            len(waveform) / sample_rate,
            alternatives=mine[0].alternatives if len(mine) == 1 else (),
            chunks=tuple(chunks),
            paths=tuple(paths),
        )
        if words:
            calibration, temperature = (calibrations or {}).get(task, NOT_CALIBRATED), None
            if any(part.searched for part in mine):
                temperature = calibration.temperature_of_search(decoder.search_digest(task))
            elif calibration is not NOT_CALIBRATED:
                temperature = calibration.temperature
            one = dataclasses.replace(one, calibrated=temperature is not None)
            calibration = calibration._replace(temperature=temperature or 1.0)
            one = _with_words(one, mine, vocabularies[task], calibration, hop=hop, sample_rate=sample_rate)
        found.append(one)
    return found


class _Heard(NamedTuple):
    """What became of a chunk.

    Attributes:
      path, alternatives: as in `Decoded`.
      log_probs: of the path, or what stands for them where it was searched for, float32 `[frames]`.
      searched: whether it was.
    """

    path: np.ndarray
    alternatives: tuple[Alternative, ...]
    log_probs: np.ndarray
    searched: bool


def _heard(decoded: Decoded, log_probs: np.ndarray, vocabularies: Sequence[Vocabulary]) -> list[_Heard]:
    found = []
    for path, alternatives, rivals, values, vocabulary in zip(
        decoded.paths, decoded.alternatives, decoded.rivals, log_probs, vocabularies, strict=True
    ):
        searched = len(rivals) > 1
        scored = [(rival.text, rival.score) for rival in rivals]
        of_path = agreed_log_probs(path, scored, vocabulary) if searched else path_log_probs(path, values)
        found.append(_Heard(path, alternatives, of_path, searched))
    return found


def _with_words(
    one: Recognition,
    heard: Sequence[_Heard],
    vocabulary: Vocabulary,
    calibration: Calibration,
    *,
    hop: int,
    sample_rate: int,
) -> Recognition:
    words = words_of_chunks(
        one.chunks,
        one.paths,
        [part.log_probs for part in heard],
        vocabulary,
        hop=hop,
        sample_rate=sample_rate,
        calibration=calibration,
    )
    return dataclasses.replace(one, words=words, confidence=confidence_of(words))
