"""When each word was said, and how sure it is: from the path of what was decoded, a label or the blank for each frame.

CTC puts a label where it is recognised, not where it begins or ends, and the blank between labels. So two words that
follow one another are taken to meet in the middle of the gap between their labels, and a word beside a pause to reach
a little beyond its labels. All labels may come late, or early, by the lag of the encoder, which is measured on joined
utterances (`decoding.calibration`) and taken off.

A word is as sure as its labels together: the product of what each label has where it is likeliest, of the spaces beside
it too, as what belongs to a word hangs on them. Where a search has weighed hypotheses, with a language model or without
one, it is the share of them, by their scores, that have the word. The temperature of a calibration makes either the
share of such words that are right.

Words are what has spaces around it: a text without spaces is one word.

Letters: T frames, V vocabulary.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import kaldialign
import numpy as np

from hra_jax.adapters import task_records
from hra_jax.config.settings import is_number
from hra_jax.console import printable
from hra_jax.data.pauses import Chunk
from hra_jax.errors import UserError
from hra_jax.text.vocabularies import Vocabulary

_ADJOINING_SECONDS = 0.5  # the longest gap between the labels of two words with no pause between them
_REACH_SECONDS = 0.05  # of a word beyond its labels, beside a pause: half of what it is between words
_LEAST = 1e-9  # of a share of hypotheses
# For a temperature no word is surer than this, right or wrong: all hypotheses may have a word, and it be wrong.
LEAST_POSTERIOR = 1e-6
NO_WORD = "\0"  # beside which an alignment puts what the other text does not have
_BLOCK = 64  # labels whose texts are told apart at once


@dataclasses.dataclass(frozen=True)
class Word:
    """A word that was recognised.

    Attributes:
      text: without spaces.
      start, end: seconds from the beginning of the recording.
      confidence: from 0 to 1; where the task is calibrated, the share of such words that are right.
    """

    text: str
    start: float
    end: float
    confidence: float


class Calibration(NamedTuple):
    """What is known of the words of a task, or NOT_CALIBRATED.

    Attributes:
      temperature: by which the log odds of a word's posterior are divided.
      lag_seconds: by which labels come late.
      search_temperature: as `temperature`, where the text was searched for; None where that was not calibrated.
      search_digest: of the language model and the weights that it was searched for with, `Decoder.search_digest`; None
        where that is not known.
    """

    temperature: float = 1.0
    lag_seconds: float = 0.0
    search_temperature: float | None = None
    search_digest: str | None = None

    def temperature_of_search(self, digest: str) -> float | None:
        """The temperature of words that were searched for with this; None where they are not calibrated."""
        return self.search_temperature if self.search_digest in (None, digest) else None


NOT_CALIBRATED = Calibration()


def stored_calibrations(entries: Iterable[Mapping[str, Any]], *, where: str) -> dict[str, Calibration]:
    """The calibrations in the entries of tasks.json, by task; of tasks without one, nothing.

    Raises:
      UserError: something else than finite numbers, a temperature that is not above 0, or a digest that is no text.
    """
    found = {}
    for entry in entries:
        facts = entry.get(task_records.CALIBRATION)
        if facts is None:
            continue
        values = {field: facts[field] for field in Calibration._fields if field in facts}
        for field, value in values.items():
            if field == "search_digest":
                right, allowed = isinstance(value, str), "a text"
            else:
                least = -math.inf if field == "lag_seconds" else 0
                right = is_number(value) and math.isfinite(value) and value > least
                allowed = "finite numbers" + ("" if field == "lag_seconds" else " above 0")
            if not right:
                raise UserError(
                    f"{where}: task {printable(entry['name'], most=80)!r}: calibration has {field} {value!r:.40}; "
                    f"allowed: {allowed}"
                )
        found[entry["name"]] = Calibration(**values)
    return found


def calibration_errors(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By how much the confidences of tasks were off where they were calibrated, from the entries of tasks.json.

    Returns:
      {task: {"suite", "ece_before", "ece_after"}}, of words that were searched for with "search_ece_before",
      "search_ece_after" and "search_digest" beside them; without tasks that do not say so much.
    """
    found = {}
    for entry in entries:
        facts = entry.get(task_records.CALIBRATION) or {}
        errors = {
            f"{prefix}ece_{when}": facts.get(f"{prefix}ece_{when}")
            for prefix in ("", "search_")
            for when in ("before", "after")
        }
        known = {name: value for name, value in errors.items() if is_number(value)}
        if isinstance(digest := facts.get("search_digest"), str):
            known["search_digest"] = digest
        if {"ece_before", "ece_after"} <= known.keys() and isinstance(facts.get("suite"), str):
            found[entry["name"]] = {"suite": facts["suite"], **known}
    return found


def words_of(
    path: np.ndarray,
    log_probs: np.ndarray,
    vocabulary: Vocabulary,
    *,
    frame_seconds: float,
    offset: float = 0.0,
    calibration: Calibration = NOT_CALIBRATED,
) -> tuple[Word, ...]:
    """The words that a path says.

    Args:
      path: int `[T]`, the label or the blank of each frame.
      log_probs: float `[T, V]`, or those of the path alone, `[T]`, for which `agreed_log_probs` may stand.
      vocabulary: of the labels.
      frame_seconds: of an encoder frame.
      offset: seconds at which the first frame begins.
      calibration: of the task.
    """
    starts, stops = _runs(path, vocabulary.blank_id)
    spans = word_labels(path[starts].tolist(), vocabulary)
    if not spans:
        return ()
    values = path_log_probs(path, log_probs)
    peaks = np.array([values[start:stop].max() for start, stop in zip(starts, stops, strict=True)])
    begins = frame_seconds * starts[[span.first for span in spans]] - calibration.lag_seconds
    ends = frame_seconds * stops[[span.last for span in spans]] - calibration.lag_seconds
    gaps = begins[1:] - ends[:-1]
    reach = np.where(gaps <= _ADJOINING_SECONDS, gaps / 2, _REACH_SECONDS)
    begins -= np.concatenate([[_REACH_SECONDS], reach])
    ends += np.concatenate([reach, [_REACH_SECONDS]])
    times = np.clip(np.stack([begins, ends]), 0, frame_seconds * path.size) + offset
    found = []
    for number, (span, start, end) in enumerate(zip(spans, *times.tolist(), strict=True)):
        first = spans[number - 1].last + 1 if number else 0
        stop = spans[number + 1].first if number + 1 < len(spans) else len(peaks)
        posterior = math.exp(peaks[min(first, span.first) : max(stop, span.last + 1)].sum())
        confidence = calibrated(posterior, temperature=calibration.temperature)
        found.append(Word(span.text, start, max(end, start), confidence))
    return tuple(found)


def _runs(path: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames [start, stop) of each label that a path says, int `[U]` each."""
    edges = np.flatnonzero(path[1:] != path[:-1]) + 1
    starts = np.concatenate([[0], edges])[: path.size]
    stops = np.concatenate([edges, [path.size]])[: path.size]
    said = path[starts] != blank
    return starts[said], stops[said]


def path_log_probs(path: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """The log-probabilities of a path, float32 `[T]`, from those of all labels `[T, V]`, or the path's themselves."""
    found = np.asarray(log_probs, np.float32)
    return found if found.ndim == 1 else np.take_along_axis(found[: len(path)], np.asarray(path)[:, None], 1)[:, 0]


def agreed_log_probs(path: np.ndarray, rivals: Sequence[tuple[str, float]], vocabulary: Vocabulary) -> np.ndarray:
    """What stands for the log-probabilities of a path that was searched for, float32 `[T]`.

    Their sum over the labels of a word is the log of the share of the hypotheses, each with the exponential of its
    score, that have the word where the path has it, in the alignment with the least errors.

    Args:
      path: of the best hypothesis, int `[T]`.
      rivals: text and score of the hypotheses, the best one among them.
      vocabulary: of the labels.
    """
    starts, stops = _runs(path, vocabulary.blank_id)
    spans = word_labels(path[starts].tolist(), vocabulary)
    scores = np.array([score for _, score in rivals], np.float64)
    weights = np.exp(scores - scores.max())
    shares = np.zeros(len(spans))
    for (text, _), weight in zip(rivals, weights / weights.sum(), strict=True):
        pairs = kaldialign.align([span.text for span in spans], text.split(), NO_WORD)
        shares += weight * np.array([one == other for one, other in pairs if one != NO_WORD], bool)
    found = np.zeros(len(path), np.float32)
    for span, share in zip(spans, shares, strict=True):
        for label in range(span.first, span.last + 1):
            found[starts[label] : stops[label]] = math.log(max(share, _LEAST)) / (span.last + 1 - span.first)
    return found


def words_of_chunks(
    chunks: Sequence[Chunk],
    paths: Sequence[np.ndarray],
    log_probs: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    *,
    hop: int,
    sample_rate: int,
    calibration: Calibration = NOT_CALIBRATED,
) -> tuple[Word, ...]:
    """The words of a waveform that was recognised in chunks, with their times in it; as `data.pauses.text`.

    Args:
      chunks: of the waveform.
      paths: of each chunk the label of each frame that it hears, int `[frames]`.
      log_probs: of each chunk, as for `words_of`.
      vocabulary: of the labels.
      hop: samples of an encoder frame.
      sample_rate: Hz.
      calibration: of the task.
    """
    found: list[Word] = []
    for first, last in _stretches(chunks):
        parts = [(chunks[at], paths[at], path_log_probs(paths[at], log_probs[at])) for at in range(first, last)]
        kept = [[array[chunk.first : chunk.last] for array in arrays] for chunk, *arrays in parts]
        start, stop = chunks[first].start + hop * chunks[first].first, chunks[last - 1].stop
        words = words_of(
            np.concatenate([path for path, _ in kept]),
            np.concatenate([values for _, values in kept]),
            vocabulary,
            frame_seconds=hop / sample_rate,
            offset=start / sample_rate,
            calibration=calibration,
        )
        # The last frame may reach beyond the samples.
        most = stop / sample_rate
        found += [dataclasses.replace(word, start=min(word.start, most), end=min(word.end, most)) for word in words]
    return tuple(found)


def _stretches(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """The numbers [first, last) of the chunks between two pauses; none where all of it is a pause."""
    edges = [number for number, chunk in enumerate(chunks) if chunk.after_pause]
    return list(itertools.pairwise([*edges, len(chunks)]))


def calibrated(posterior: float, *, temperature: float) -> float:
    """A posterior from 0 to 1 with its log odds divided by the temperature; see `LEAST_POSTERIOR`."""
    if temperature == 1.0:
        return min(max(posterior, 0.0), 1.0)
    posterior = min(max(posterior, LEAST_POSTERIOR), 1 - LEAST_POSTERIOR)
    odds = (math.log(posterior) - math.log1p(-posterior)) / temperature
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def confidence_of(words: Sequence[Word]) -> float | None:
    """How sure a text is: the share of its words that are expected to be right; None where there is none."""
    return sum(word.confidence for word in words) / len(words) if words else None


# --- Which labels write which word ------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A word, and the numbers of the first and the last label that write it."""

    text: str
    first: int
    last: int


def word_labels(labels: Sequence[int], vocabulary: Vocabulary) -> list[Span]:
    """The words of a text, and the labels that write each; a label that writes of two words is in both.

    Args:
      labels: what a path says.
      vocabulary: of any kind; what it decodes from the first labels tells what each of them adds.
    """
    texts = vocabulary.decode(labels).split()
    written = _written(labels, vocabulary)
    spans, begun = [], 0
    for text in texts:
        first, last = bisect.bisect_right(written, begun), bisect.bisect_left(written, begun + len(text))
        spans.append(Span(text, first, last))
        begun += len(text)
    return spans


def _written(labels: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """How many characters, without spaces, are written after each label."""

    def count(ids: Sequence[int]) -> int:
        return len("".join(vocabulary.decode(ids).split()))

    found: list[int] = []
    # In blocks, as the time for one is quadratic in its length.
    for start in range(0, len(labels), _BLOCK):
        block, before = labels[start : start + _BLOCK], found[-1] if found else 0
        found += [before + count(block[: size + 1]) for size in range(len(block))]
    if found and found[-1] != count(labels):  # a character that several labels write lies in two blocks
        found = [count(labels[: size + 1]) for size in range(len(labels))]
    # Of several labels that write one character, some are decoded to more until the last one is there.
    for at in range(len(found) - 2, -1, -1):
        found[at] = min(found[at], found[at + 1])
    return found
