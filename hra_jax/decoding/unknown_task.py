"""Whose voice is it? Which task of an adapter recognises an utterance, where nobody says so.

One pass without a head tells the voice of an utterance (`Adapter.voice`), as mean and standard deviation over its
frames. An adapter holds the mean of it over recordings of each task, its centroid, and what makes all tasks spread
alike. The tasks with the nearest centroids are the candidates; each is heard in one pass, and that one is taken whose
text is likeliest, the distance of its centroid counted in. The backbone alone, `__base__`, is a candidate without a
centroid, and costs no pass more. Audio-AdapterFusion (arXiv 2310.13015) weighs all adapters by a trained network.

Utterances of one session are heard together: their voices and the confidence of each head are means over all frames.

Letters: B utterances, T frames, V vocabulary, S numbers of a voice, A tasks.
"""

import collections
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.adapters.task_records import CENTROID, SHARED, WHITENING, Records
from hra_jax.console import listed
from hra_jax.errors import UserError
from hra_jax.models.ctc import labels_of_path
from hra_jax.tasks.names import BASE_TASK

# Chosen on validation utterances, see docs/decoding.md.
CANDIDATES = 3  # tasks that are heard, beside `__base__`
DISTANCE_WEIGHT = 0.005  # nats a frame for a squared distance of 1
BASE_MARGIN = 0.01  # nats a frame, by which `__base__` must be likelier than the best task
MOST_HEARD = 16  # parts of a session that decide; more are spread evenly over it
_SHRINKAGE = 0.1  # of correlations within tasks, towards none
_TOGETHER = 16  # parts that run at a time
_SAMPLED = (10, 50)  # recordings of a task from which its centroid is taken
_MOST_SAMPLED = 4000  # of all tasks, where each still has the fewest


class Voices(NamedTuple):
    """The voices of an adapter's tasks.

    Attributes:
      tasks: their names.
      centroids: float64 `[A, S]`, in units in which each task has a variance of about 1 in every direction.
      whitening: float64 `[S, S]`, by which a voice comes to these units.
    """

    tasks: tuple[str, ...]
    centroids: np.ndarray
    whitening: np.ndarray

    def distances(self, voices: np.ndarray) -> np.ndarray:
        """Squared distances of voices `[B, S]` from the centroids: float64 `[B, A]`."""
        given = voices.astype(np.float64) @ self.whitening
        return np.square(given[:, None] - self.centroids[None]).sum(axis=-1)


class Choice(NamedTuple):
    """What an utterance is recognised with.

    Attributes:
      task: a task, or `__base__`.
      candidates: those that were heard, the nearest first, then `__base__` where that is one.
      passes: how often each utterance ran through the encoder to find out.
    """

    task: str
    candidates: tuple[str, ...]
    passes: int


# --- Centroids --------------------------------------------------------------------------------------------------------


def records_of(voices: np.ndarray, tasks: Sequence[str]) -> Records:
    """What an adapter holds of voices.

    Args:
      voices: float `[N, S]`, of recordings.
      tasks: of each of them.

    Returns:
      The centroid of each task, float32 `[S]`; and for all of them the whitening, float32 `[S, S]`: the inverse square
      root of the covariance within tasks, its correlations shrunk by a tenth (Ledoit and Wolf, 2004, with their weight
      fixed).
    """
    given = np.asarray(voices, np.float64)
    names = sorted(set(tasks))
    numbers = np.array([names.index(task) for task in tasks])
    centroids = np.stack([given[numbers == n].mean(axis=0) for n in range(len(names))])
    within = given - centroids[numbers]
    covariance = within.T @ within / len(given)
    variances = np.diag(np.diag(covariance))
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * variances
    # What never varies tells nothing, and must not become infinite.
    size = len(covariance)
    covariance += max(1e-6 * np.trace(covariance) / size, 1e-12) * np.eye(size)
    values, vectors = np.linalg.eigh(covariance)
    return {
        CENTROID: {name: row.astype(np.float32) for name, row in zip(names, centroids, strict=True)},
        WHITENING: {SHARED: (vectors / np.sqrt(values)).astype(np.float32)},
    }


def voices_of(records: Records, tasks: Sequence[str], *, where: str, aside: Collection[str] = ()) -> Voices:
    """The voices of the tasks of an adapter.

    Args:
      records: what the adapter holds.
      tasks: its tasks.
      where: its folder, for the error.
      aside: tasks that are none of the candidates.

    Raises:
      UserError: a task without a centroid, in one line with the command that adds it; or no task.
    """
    wanted = [task for task in tasks if task not in aside]
    centroids, shared = records.get(CENTROID, {}), records.get(WHITENING, {}).get(SHARED)
    missing = [task for task in wanted if task not in centroids]
    if missing or shared is None:
        raise UserError(
            f"{where or 'the adapter'} does not say how its tasks {listed(missing or wanted)} sound; needed once: "
            f"python -m hra_jax.tasks centroids {where or 'ADAPTER'} --manifest M.jsonl"
        )
    if not wanted:
        raise UserError(f"{where or 'the adapter'} has no task to choose from; allowed: {BASE_TASK!r}")
    rows = np.stack([centroids[task] for task in wanted]).astype(np.float64)
    if shared.shape != (rows.shape[1],) * 2 or not np.isfinite(shared).all() or not np.isfinite(rows).all():
        raise UserError(f"{where or 'the adapter'}: what it says of the voices of its tasks does not fit together")
    whitening = shared.astype(np.float64)
    return Voices(tuple(wanted), rows @ whitening, whitening)


def sample(tasks: np.ndarray) -> np.ndarray:
    """Recordings from which centroids are taken: of each task at most 50, fewer where there are very many tasks.

    Args:
      tasks: int `[N]`, the number of the task of each recording; below 0 for none.

    Returns:
      Their numbers, int64, ascending; those of a task are spread evenly over its recordings.
    """
    names, counts = np.unique(tasks[tasks >= 0], return_counts=True)
    most = int(np.clip(_MOST_SAMPLED // max(len(names), 1), *_SAMPLED))
    order = np.argsort(tasks, kind="stable")[int((tasks < 0).sum()) :]
    starts = np.cumsum(counts) - counts
    found = [
        order[start + np.arange(min(count, most)) * count // min(count, most)]
        for start, count in zip(starts, counts, strict=True)
    ]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)


# --- Confidence -------------------------------------------------------------------------------------------------------


def text_log_probs(log_probs: np.ndarray, lengths: np.ndarray, blank_ids: Sequence[int]) -> np.ndarray:
    """Log-probability of the greedy text of each utterance: the sum over all of its alignments.

    The likeliest path alone is much less of a measure: a wrong head spreads a text over many.

    Args:
      log_probs: float `[B, T, V]`.
      lengths: int `[B]`, frames.
      blank_ids: of each utterance.

    Returns:
      float64 `[B]`; 0 where there is no frame. The forward recursion of Graves et al. (2006), section 4.1.
    """
    blanks, lengths = np.asarray(blank_ids), np.asarray(lengths)
    paths = log_probs.argmax(axis=-1)
    texts = [
        labels_of_path(path[:length], int(blank)) for path, length, blank in zip(paths, lengths, blanks, strict=True)
    ]
    size = 2 * max((len(text) for text in texts), default=0) + 1
    states = np.repeat(blanks[:, None], size, axis=1)
    ends = np.array([2 * len(text) for text in texts])
    for row, text in enumerate(texts):
        states[row, 1 : 2 * len(text) : 2] = text
    rows = np.arange(len(states))
    # A label may follow another one directly, where it is another label.
    skips = np.zeros(states.shape, bool)
    skips[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    # alpha[:, 2 + n] is that of state n; the two before it are never reached.
    alpha = np.full((len(states), size + 2), -np.inf)
    found = np.zeros(len(states))
    for frame in range(log_probs.shape[1]):
        before = np.logaddexp(np.logaddexp(alpha[:, 2:], alpha[:, 1:-1]), np.where(skips, alpha[:, :-2], -np.inf))
        if frame == 0:
            before[:, :2] = 0.0
        alpha[:, 2:] = before + np.take_along_axis(log_probs[:, frame].astype(np.float64), states, axis=1)
        last = lengths == frame + 1
        end = np.logaddexp(alpha[rows, 2 + ends], np.where(ends > 0, alpha[rows, 1 + ends], -np.inf))
        found = np.where(last, end, found)
    return found


def decide(
    distances: np.ndarray, confidence: Mapping[str, float], candidates: Sequence[tuple[str, int]], *, base: float | None
) -> str:
    """The task of a session.

    Args:
      distances: float `[A]`, squared, of its voice from all centroids.
      confidence: of each candidate, log-probability of its text in nats a frame.
      candidates: (task, its number among the centroids).
      base: the same of `__base__`; None where that is none.
    """
    scores = {task: confidence[task] - DISTANCE_WEIGHT * float(distances[number]) for task, number in candidates}
    best = max(scores, key=lambda task: scores[task])
    if base is not None and base > confidence[best] + BASE_MARGIN:
        return BASE_TASK
    return best


# --- Choosing ---------------------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """What a pass without a head gives.

    Attributes:
      voices: float `[B, S]`.
      log_probs: float `[B, T, V]`, of `__base__`; None where the backbone has no outputs of its own.
      lengths: int `[B]`, frames.
    """

    voices: np.ndarray
    log_probs: np.ndarray | None
    lengths: np.ndarray


def choose(
    parts: Sequence[Sequence[np.ndarray]],
    sessions: Sequence[Hashable],
    *,
    voices: Voices,
    listen: Callable[[list[np.ndarray]], Heard],
    recognise: Callable[[list[np.ndarray], list[str]], tuple[np.ndarray, np.ndarray]],
    blank_of: Callable[[str], int],
) -> list[Choice]:
    """The task of each of some utterances.

    Args:
      parts: the waveforms of each utterance, several where it is too long to be recognised at once.
      sessions: of each utterance; those with the same one get the same task.
      voices: of the tasks.
      listen: the pass without a head of some waveforms.
      recognise: log-probabilities and lengths of some waveforms, each through its task.
      blank_of: the blank's id in the log-probabilities of a task.

    Returns:
      A choice for each utterance.
    """
    members: dict[Hashable, list[np.ndarray]] = collections.OrderedDict()
    for waveforms, session in zip(parts, sessions, strict=True):
        members.setdefault(session, []).extend(waveforms)
    listened = {session: _spread(found) for session, found in members.items()}
    order = [(session, wave) for session, found in listened.items() for wave in found]
    order.sort(key=lambda entry: len(entry[1]))  # little padding
    voice, base = _heard(order, listen, blank_of)
    chosen: dict[Hashable, Choice] = {}
    near: dict[Hashable, list[tuple[str, int]]] = {}
    distances: dict[Hashable, np.ndarray] = {}
    for session in members:
        if session not in voice:  # there is nothing to hear
            chosen[session] = Choice(BASE_TASK, (), 0)
            continue
        distances[session] = voices.distances(voice[session][None])[0]
        nearest = np.argsort(distances[session], kind="stable")[:CANDIDATES]
        near[session] = [(voices.tasks[n], int(n)) for n in nearest]
    confidences = _confidences(order, near, recognise, blank_of)
    for session, candidates in near.items():
        task = decide(distances[session], confidences[session], candidates, base=base.get(session))
        names = tuple(name for name, _ in candidates) + ((BASE_TASK,) if session in base else ())
        chosen[session] = Choice(task, names, 1 + len(candidates))
    return [chosen[session] for session in sessions]


def _spread(parts: list[np.ndarray]) -> list[np.ndarray]:
    """At most `MOST_HEARD` of the parts, spread evenly."""
    if len(parts) <= MOST_HEARD:
        return parts
    return [parts[n * len(parts) // MOST_HEARD] for n in range(MOST_HEARD)]


def _heard(
    order: Sequence[tuple[Hashable, np.ndarray]],
    listen: Callable[[list[np.ndarray]], Heard],
    blank_of: Callable[[str], int],
) -> tuple[dict[Hashable, np.ndarray], dict[Hashable, float]]:
    """The voice of each session, and the confidence of `__base__`: means over its frames."""
    sums: dict[Hashable, np.ndarray] = {}
    frames: collections.Counter[Hashable] = collections.Counter()
    base: dict[Hashable, float] = {}
    for start in range(0, len(order), _TOGETHER):
        some = order[start : start + _TOGETHER]
        heard = listen([wave for _, wave in some])
        found = None
        if heard.log_probs is not None:
            found = text_log_probs(heard.log_probs, heard.lengths, [blank_of(BASE_TASK)] * len(some))
        for row, (session, _) in enumerate(some):
            length = int(heard.lengths[row])
            if length:
                sums[session] = sums.get(session, 0.0) + length * heard.voices[row].astype(np.float64)
                frames[session] += length
                if found is not None:
                    base[session] = base.get(session, 0.0) + float(found[row])
    return (
        {session: total / frames[session] for session, total in sums.items()},
        {session: total / frames[session] for session, total in base.items()},
    )


def _confidences(
    order: Sequence[tuple[Hashable, np.ndarray]],
    near: Mapping[Hashable, Sequence[tuple[str, int]]],
    recognise: Callable[[list[np.ndarray], list[str]], tuple[np.ndarray, np.ndarray]],
    blank_of: Callable[[str], int],
) -> dict[Hashable, dict[str, float]]:
    """Of each session and each of its candidates the confidence, a mean over the frames."""
    wanted = [(session, wave, task) for session, wave in order if session in near for task, _ in near[session]]
    sums: dict[Hashable, dict[str, float]] = {session: collections.defaultdict(float) for session in near}
    frames: dict[Hashable, dict[str, int]] = {session: collections.defaultdict(int) for session in near}
    for start in range(0, len(wanted), _TOGETHER):
        some = wanted[start : start + _TOGETHER]
        tasks = [task for _, _, task in some]
        log_probs, lengths = recognise([wave for _, wave, _ in some], tasks)
        found = text_log_probs(log_probs, lengths, [blank_of(task) for task in tasks])
        for row, (session, _, task) in enumerate(some):
            sums[session][task] += float(found[row])
            frames[session][task] += int(lengths[row])
    return {
        session: {task: sums[session][task] / max(frames[session][task], 1) for task, _ in candidates}
        for session, candidates in near.items()
    }
