"""Recordings to what they say: cut into chunks, run a few at a time, decoded, and put together again."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hra_jax.data import pauses
from hra_jax.decoding.decoder import Alternative, Decoder
from hra_jax.decoding.words import (
    NOT_CALIBRATED,
    Calibration,
    Word,
    agreed_log_probs,
    confidence_of,
    path_log_probs,
    words_of_chunks,
)
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
    alternatives: tuple[Alternative, ...] = ()
    chunks: tuple[pauses.Chunk, ...] = ()
    paths: tuple[np.ndarray, ...] = dataclasses.field(default=(), repr=False)


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
    paths: dict[int, np.ndarray] = {}
    of_paths: dict[int, np.ndarray] = {}  # their log-probabilities
    searched: set[int] = set()  # waveforms
    alternatives: dict[int, tuple[Alternative, ...]] = {}
    for start in range(0, len(order), _TOGETHER):
        together = order[start : start + _TOGETHER]
        rows = [parts[n][0] for n in together]
        heard = [waveforms[i][parts[n][1].start : parts[n][1].stop] for n, i in zip(together, rows, strict=True)]
        log_probs, lengths = run(heard, rows)
        own = None if phrases is None else [phrases[i] for i in rows]
        rivals = _RIVALS if words else 1
        decoded = decoder.paths(log_probs, lengths, [tasks[i] for i in rows], phrases=own, rivals=rivals)
        paths |= zip(together, decoded.paths, strict=True)
        alternatives |= zip(together, decoded.alternatives, strict=True)
        if words:
            for n, i, path, values, others in zip(
                together, rows, decoded.paths, log_probs, decoded.rivals, strict=True
            ):
                of_paths[n] = path_log_probs(path, values)
                if len(others) > 1:
                    scored = [(other.text, other.score) for other in others]
                    of_paths[n] = agreed_log_probs(path, scored, vocabularies[tasks[i]])
                    searched.add(i)
    numbers = iter(range(len(parts)))
    found = []
    for number, (waveform, chunks, task) in enumerate(zip(waveforms, cut, tasks, strict=True)):
        mine = [next(numbers) for _ in chunks]
        said: tuple[Word, ...] = ()
        if words:
            calibration = (calibrations or {}).get(task, NOT_CALIBRATED)
            said = words_of_chunks(
                chunks,
                [paths[n] for n in mine],
                [of_paths[n] for n in mine],
                vocabularies[task],
                hop=hop,
                sample_rate=sample_rate,
                calibration=calibration.of_search() if number in searched else calibration,
            )
        found.append(
            Recognition(
                pauses.text(chunks, [paths[n] for n in mine], vocabularies[task]),
                task,
                len(waveform) / sample_rate,
                words=said,
                confidence=confidence_of(said),
                alternatives=alternatives[mine[0]] if len(mine) == 1 else (),
                chunks=tuple(chunks),
                paths=tuple(paths[n] for n in mine),
            )
        )
    return found
