"""How sure words are, and by how much their labels come late: measured for the tasks of an adapter on a suite.

The suite is one of validation data, which neither the adapter was trained on nor its error rates are told of.

A word's posterior becomes the share of such words that are right by a temperature that its log odds are divided by (Guo
et al., On Calibration of Modern Neural Networks, ICML 2017). It is fitted by likelihood: one for all tasks, and that of
each task near it, the nearer the fewer its words are. The order of words by confidence stays as it is.

The lag is measured where the time of a boundary is known: two utterances of a task, without the silence at the ends
that meet, are put together, and what is said in them is aligned. It is the median, over all tasks, of how far behind
the joint the boundary between the words on its two sides comes.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import kaldialign
import numpy as np

from hra_jax.adapters import task_records
from hra_jax.data import audio
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import ADAPTER
from hra_jax.decoding.words import LEAST_POSTERIOR, NO_WORD, Word, calibrated, words_of
from hra_jax.errors import UserError
from hra_jax.evaluation.suites import Suite
from hra_jax.models import alignment
from hra_jax.text.normalization import normalize_text
from hra_jax.text.vocabularies import Vocabulary
from hra_jax.training.agreement import shared_out

if TYPE_CHECKING:
    from hra_jax.api import Model

_Row = TypeVar("_Row")
_MOST_UTTERANCES = 200  # of a task
_MOST_JOINTS, _MOST_OF_ALL = 40, 400  # of a task, and of all tasks together unless there are more of them
_LEAST_JOINTS = 10  # of all tasks, for a lag
_TOGETHER = 16  # recognised at a time
_BINS = 10  # of the expected calibration error
_PRIOR = 2.0  # on the square of the distance of log temperatures: as much as some tens of words say
_LOG_TEMPERATURES = np.linspace(-3, 3, 601)
_SILENCE_DB = 35.0  # below the loudest of an utterance
_LEVEL_SECONDS = 0.01  # over which a level is taken


class NothingSaid(UserError):
    """No word was recognised that could be judged."""


class Judged(NamedTuple):
    """Words of a task: posteriors, float64 `[N]`, and whether each was right, bool `[N]`."""

    posteriors: np.ndarray
    right: np.ndarray


# --- The temperature --------------------------------------------------------------------------------------------------


def fit_temperature(words: Judged, *, near: float = 1.0) -> float:
    """The temperature under which it is likeliest that these words are right or wrong, as they are.

    Args:
      words: any number, all of them right or wrong included.
      near: what the temperature is without a word, and not far from which it is with few.
    """
    posteriors = np.clip(words.posteriors, LEAST_POSTERIOR, 1 - LEAST_POSTERIOR)
    odds = np.log(posteriors) - np.log1p(-posteriors)
    # Of a word that is right, the log of its confidence; of another one, that of the rest.
    signed = np.where(words.right, odds, -odds)
    likelihoods = [-np.logaddexp(0, -signed / math.exp(value)).sum() for value in _LOG_TEMPERATURES]
    penalties = _PRIOR * np.square(_LOG_TEMPERATURES - math.log(near))
    return float(np.exp(_LOG_TEMPERATURES[np.argmax(likelihoods - penalties)]))


def calibration_error(words: Judged, *, temperature: float = 1.0) -> float:
    """The expected calibration error: by how much confidence and share right differ, over ten bins of confidence.

    Returns:
      The mean over words of the difference in their bin (Naeini et al., AAAI 2015), from 0 to 1; NaN for no words.
    """
    confidences = np.array([calibrated(float(one), temperature=temperature) for one in words.posteriors])
    bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    differences = np.bincount(bins, confidences - words.right, minlength=_BINS)
    return float(np.abs(differences).sum() / len(bins)) if len(bins) else math.nan


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(model: "Model", suite: Suite, *, decoder: Decoder | None = None) -> dict[str, dict[str, Any]]:
    """The calibration of each task of a model that a suite scores, for its entry in tasks.json; a collective.

    Args:
      model: a backbone with an adapter. Tasks that are set aside are left out.
      suite: of data that nothing was trained on. Of a task at most 200 utterances are recognised.
      decoder: of which the tasks that are searched are calibrated as well; None for that with the language models of
        the adapter.

    Returns:
      Of each task: `temperature`; `lag_seconds`, the same for all of them, where there are joints enough; `words`
      and `right`, how many there were and the share that was right; `ece_before` and `ece_after`, the expected
      calibration error of these words without the temperature and with it; `joints`, of all tasks; `suite`. Of tasks
      that are searched, `search_temperature` and the others of these once more, and `search_digest`, with what they
      were.

    Raises:
      NothingSaid: no word is recognised as a task of the model.
    """
    chosen, normalizer = utterances_of(model, suite), suite.normalizer
    model = not_calibrated(model)
    judged = judged_words(model, chosen, normalizer=normalizer)
    if not judged:
        tasks = ", ".join(model.tasks[:10]) or "none"
        raise NothingSaid(
            f"suite {suite.name!r}: no word is recognised in its utterances as a task of the adapter; the tasks that "
            f"can be calibrated: {tasks}"
        )
    models = model.records.get(task_records.LM, {})
    held = {
        task: rows
        for task, rows in chosen.items()
        if (task in models or task_records.SHARED in models if decoder is None else decoder.searches(task))
    }
    if decoder is None and held:
        decoder = model.decoder({"lm": ADAPTER}, held)
    searched = judged_words(model, held, normalizer=normalizer, decode=decoder)
    searched = {task: words for task, words in searched.items() if task in judged}
    errors = lateness(model, chosen)
    common: dict[str, Any] = {"joints": len(errors), "suite": suite.name}
    if len(errors) >= _LEAST_JOINTS:
        common["lag_seconds"] = round(float(np.median(errors)), 4)
    found = {task: dict(common) for task in judged}
    for prefix, words_by_task in (("", judged), ("search_", searched)):
        for task, facts in _fitted(words_by_task).items():
            found[task] |= {f"{prefix}{name}": value for name, value in facts.items()}
    for task in searched:
        assert decoder is not None  # there is none where nothing is searched for
        found[task]["search_digest"] = decoder.search_digest(task)
    return found


def not_calibrated(model: "Model") -> "Model":
    """The model, whose words then have the confidences that a temperature is fitted to."""
    calibration = task_records.CALIBRATION
    bare = {
        task: {name: value for name, value in entry.items() if name != calibration}
        for task, entry in model.entries.items()
    }
    return dataclasses.replace(model, entries=bare)


def _fitted(judged: Mapping[str, Judged]) -> dict[str, dict[str, Any]]:
    """The temperature of each task, and what it does to the words that it was fitted to."""
    if not judged:
        return {}
    whole = fit_temperature(joined(judged.values()))
    found = {}
    for task, words in judged.items():
        temperature = fit_temperature(words, near=whole)
        found[task] = {
            "temperature": round(temperature, 4),
            "words": len(words.right),
            "right": round(float(words.right.mean()), 4),
            "ece_before": round(calibration_error(words), 4),
            "ece_after": round(calibration_error(words, temperature=temperature), 4),
        }
    return found


def joined(several: Iterable[Judged]) -> Judged:
    """The words of several tasks."""
    parts = list(several)
    return Judged(*(np.concatenate([part[field] for part in parts]) for field in (0, 1)))


def utterances_of(model: "Model", suite: Suite) -> dict[str, list[Utterance]]:
    """What is recognised of a suite, by task of the model: utterances that fit in a chunk, spread over all of them."""
    found: dict[str, list[Utterance]] = {}
    for task in suite.tasks:
        if task.adapter_task in model.tasks and task.adapter_task not in model.set_aside:
            fitting = [row for row in task.utterances if row.duration <= model.chunk_seconds]
            found.setdefault(task.adapter_task, []).extend(fitting)
    return {task: rows[:: -(-len(rows) // _MOST_UTTERANCES)] for task, rows in found.items() if rows}


def judged_words(
    model: "Model",
    utterances: Mapping[str, Sequence[Utterance]],
    *,
    normalizer: str,
    decode: Mapping[str, Any] | Decoder | None = None,
) -> dict[str, Judged]:
    """The words that are recognised in the utterances of each task, and whether they are right.

    Tasks in which no word is recognised are left out, as are utterances that cannot be read: the report of an
    evaluation names them. A collective: each process recognises its share.

    Args:
      model: a backbone with an adapter.
      utterances: by task.
      normalizer: of what was said and what was recognised.
      decode: as for `Model.recognise`.
    """

    def judged(part: Sequence[tuple[str, Utterance]]) -> list[tuple[str, float, bool]]:
        readable = [(*pair, samples) for pair in part if (samples := _samples(pair[1], model)) is not None]
        if not readable:
            return []
        tasks, said, sounds = zip(*readable, strict=True)
        rate = model.backbone.sample_rate
        recognised = model.recognise(sounds, sample_rate=rate, tasks=tasks, decode=decode, words=True)
        return [
            (task, *pair)
            for task, row, recognition in zip(tasks, said, recognised, strict=True)
            for pair in judge(row.text, recognition.words, normalizer=normalizer)
        ]

    found: dict[str, list[tuple[float, bool]]] = {}
    rows = sorted(((task, row) for task, rows in utterances.items() for row in rows), key=lambda pair: pair[1].duration)
    for task, posterior, right in itertools.chain(*shared_out(_parts(rows), judged)):
        found.setdefault(task, []).append((posterior, right))
    return {task: Judged(*map(np.array, zip(*found[task], strict=True))) for task in utterances if found.get(task)}


def _parts(rows: Sequence[_Row]) -> list[Sequence[_Row]]:
    """What is recognised at a time."""
    return [rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER)]


def judge(text: str, words: Sequence[Word], *, normalizer: str) -> list[tuple[float, bool]]:
    """The confidence of each word, and whether it is right, in the alignment with the least errors.

    Args:
      text: what was said.
      words: what was recognised.
      normalizer: which is applied to every word by itself. One of which it leaves nothing is passed over; one of which
        it makes several is right where all of them are.
    """
    said = [part for word in text.split() for part in normalize_text(word, normalizer).split()]
    parts = [
        (number, part) for number, word in enumerate(words) for part in normalize_text(word.text, normalizer).split()
    ]
    pairs = kaldialign.align(said, [part for _, part in parts], NO_WORD)
    same = [one == other for one, other in pairs if other != NO_WORD]
    right: dict[int, bool] = {}
    for (number, _), found in zip(parts, same, strict=True):
        right[number] = right.get(number, True) and found
    return [(words[number].confidence, found) for number, found in right.items()]


def lateness(model: "Model", utterances: Mapping[str, Sequence[Utterance]]) -> np.ndarray:
    """By how many seconds the boundary of words comes behind the joint of two utterances of a task, float64 `[N]`.

    Those that cannot be read are passed over, as is what says nothing, or is too long together for a chunk. A
    collective: each process aligns its share.
    """
    rate = model.backbone.sample_rate
    most = min(_MOST_JOINTS, math.ceil(_MOST_OF_ALL / max(len(utterances), 1)))

    def late(part: Sequence[tuple[str, Utterance, Utterance]]) -> list[float]:
        pairs = [pair for one in part if (pair := _pair(model, *one)) is not None]
        if not pairs:
            return []
        log_probs, lengths = _log_probs(model, [(pair.task, np.concatenate(pair.sounds)) for pair in pairs])
        vocabularies = [model.vocabulary(pair.task) for pair in pairs]
        blanks = np.array([vocabulary.blank_id for vocabulary in vocabularies])
        paths, scores = alignment.align(log_probs, lengths, [pair.labels for pair in pairs], blanks)
        found = []
        for pair, vocabulary, path, score in zip(pairs, vocabularies, paths, scores, strict=True):
            boundary = boundary_after(path, vocabulary, pair.words, frame_seconds=_frame_seconds(model))
            if math.isfinite(score) and boundary is not None:
                found.append(boundary - len(pair.sounds[0]) / rate)
        return found

    chosen = [(task, *pair) for task, rows in utterances.items() for pair in _short_pairs(rows, most=most)]
    return np.array(list(itertools.chain(*shared_out(_parts(chosen), late))), np.float64)


def boundary_after(path: np.ndarray, vocabulary: Vocabulary, count: int, *, frame_seconds: float) -> float | None:
    """The middle of the gap after the first `count` words of a path, seconds; None where no word comes after them."""
    words = words_of(path, np.zeros(len(path)), vocabulary, frame_seconds=frame_seconds)
    return (words[count - 1].end + words[count].start) / 2 if 0 < count < len(words) else None


class _Pair(NamedTuple):
    """Two utterances that are put together: their samples, the labels of both, and how many words the first has."""

    task: str
    sounds: tuple[np.ndarray, np.ndarray]
    labels: list[int]
    words: int


def _short_pairs(utterances: Sequence[Utterance], *, most: int) -> Iterator[tuple[Utterance, Utterance]]:
    # Of short ones more fit together.
    short = sorted(utterances, key=lambda row: row.duration)[: 2 * most]
    return zip(short[::2], short[1::2], strict=False)


def _pair(model: "Model", task: str, first: Utterance, second: Utterance) -> _Pair | None:
    vocabulary, rate = model.vocabulary(task), model.backbone.sample_rate
    texts = [_written(row.text, vocabulary) for row in (first, second)]
    sounds = [_samples(row, model) for row in (first, second)]
    if sounds[0] is None or sounds[1] is None or not all(texts):
        return None
    before, after = trimmed(sounds[0], rate, end=True), trimmed(sounds[1], rate, end=False)
    if len(before) + len(after) > model.chunk_seconds * rate:
        return None
    return _Pair(task, (before, after), vocabulary.encode(" ".join(texts)), len(texts[0].split()))


def _written(text: str, vocabulary: Vocabulary) -> str:
    """A text as the vocabulary writes it: as it is where that can be, and else without what `basic` takes away."""
    if vocabulary.unknown_characters(text):
        text = normalize_text(text, "basic")
    return vocabulary.decode(vocabulary.encode(text))


def trimmed(samples: np.ndarray, sample_rate: int, *, end: bool) -> np.ndarray:
    """An utterance, float32 `[S]`, without the silence at its end, or else at its beginning."""
    size = max(round(_LEVEL_SECONDS * sample_rate), 1)
    count = max(len(samples) // size, 1)
    powers = np.array([np.square(block).mean() for block in np.array_split(samples.astype(np.float64), count)])
    (loud,) = np.nonzero(powers >= powers.max() * 10 ** (-_SILENCE_DB / 10))
    return samples[: size * (int(loud[-1]) + 1)] if end else samples[size * int(loud[0]) :]


def _samples(utterance: Utterance, model: "Model") -> np.ndarray | None:
    try:
        return audio.decode(utterance, model.backbone.sample_rate)
    except audio.AudioError:
        return None


def _log_probs(model: "Model", sounds: Sequence[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    tasks, waveforms = zip(*sounds, strict=True)
    return model.log_probs(waveforms, sample_rate=model.backbone.sample_rate, tasks=tasks)


def _frame_seconds(model: "Model") -> float:
    return model.backbone.hop / model.backbone.sample_rate
