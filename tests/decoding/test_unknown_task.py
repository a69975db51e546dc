"""Which task recognises an utterance where nobody says so: centroids, confidence, the choice."""

import itertools

import numpy as np
import pytest

from hra_jax.adapters import task_records
from hra_jax.adapters.task_records import CENTROID, SHARED, WHITENING
from hra_jax.decoding import unknown_task
from hra_jax.decoding.unknown_task import Heard, choose, decide, records_of, text_log_probs, voices_of
from hra_jax.errors import UserError
from hra_jax.models.ctc import labels_of_path

_BLANK = 2


def _log_probs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    logits = rng.normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _over_all_paths(log_probs: np.ndarray, blank: int) -> float:
    """The log-probability of the greedy text, path by path."""
    frames, size = log_probs.shape
    text = labels_of_path(log_probs.argmax(axis=-1), blank)
    total = [
        sum(log_probs[t, label] for t, label in enumerate(path))
        for path in itertools.product(range(size), repeat=frames)
        if labels_of_path(np.array(path), blank) == text
    ]
    return float(np.log(np.exp(total).sum()))


@pytest.mark.parametrize("blank", [0, _BLANK])
def test_the_log_probability_of_a_text_is_the_sum_over_all_its_paths(blank):
    rng = np.random.default_rng(0)
    given = 2 * _log_probs(rng, 12, 5, 3)
    given -= np.log(np.exp(given).sum(axis=-1, keepdims=True))
    found = text_log_probs(given, np.full(12, 5), [blank] * 12)
    np.testing.assert_allclose(found, [_over_all_paths(row, blank) for row in given], atol=1e-12)


def test_the_log_probability_of_a_text_depends_on_no_other_row_and_no_padding():
    rng = np.random.default_rng(1)
    given, lengths = _log_probs(rng, 4, 9, 3), np.array([9, 4, 1, 0])
    together = text_log_probs(given, lengths, [_BLANK] * 4)
    alone = [text_log_probs(given[n : n + 1, :length], [length], [_BLANK])[0] for n, length in enumerate(lengths)]
    np.testing.assert_allclose(together, alone, atol=1e-12)
    assert together[3] == 0


def test_a_symbol_that_a_vocabulary_does_not_have_costs_no_text_its_probability():
    given = _log_probs(np.random.default_rng(2), 3, 6, 3)
    wider = np.concatenate([given, np.full((3, 6, 1), -np.inf)], axis=-1)
    lengths, blanks = np.full(3, 6), [_BLANK] * 3
    np.testing.assert_array_equal(text_log_probs(wider, lengths, blanks), text_log_probs(given, lengths, blanks))


def _voices(rng: np.random.Generator, tasks: int, each: int) -> tuple[np.ndarray, list[str]]:
    """Voices that differ in one direction in which they hardly spread, beside others in which they spread a lot."""
    means = np.zeros((tasks, 6))
    means[:, 0] = 0.1 * np.arange(tasks)
    spread = np.array([0.01, 3, 3, 3, 3, 3.0])
    names = [f"t{n}" for n in range(tasks)]
    given = means.repeat(each, axis=0) + spread * rng.normal(size=(tasks * each, 6))
    return given, [name for name in names for _ in range(each)]


def test_the_whitening_makes_the_covariance_within_tasks_the_identity_but_for_the_shrinkage():
    given, tasks = _voices(np.random.default_rng(3), 4, 200)
    records = records_of(given, tasks)
    centroids = np.stack([records[CENTROID][task] for task in tasks])
    white = (given - centroids) @ records[WHITENING][SHARED].astype(np.float64)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=0.12)
    for name in set(tasks):
        np.testing.assert_allclose(
            records[CENTROID][name], given[np.array(tasks) == name].mean(axis=0), rtol=1e-5, atol=1e-6
        )


def test_voices_are_told_apart_in_a_direction_that_loud_ones_would_drown():
    rng = np.random.default_rng(4)
    given, tasks = _voices(rng, 4, 50)
    records = records_of(given, tasks)
    voices = voices_of(records, ("t2", "t0", "t3", "t1"), where="A")
    fresh, of = _voices(rng, 4, 50)
    nearest = [voices.tasks[n] for n in voices.distances(fresh).argmin(axis=1)]
    assert np.mean(np.array(nearest) == of) > 0.95
    names, centroids = zip(*records[CENTROID].items(), strict=True)
    plain = np.square(fresh[:, None] - np.stack(centroids)[None]).sum(axis=-1).argmin(axis=1)
    assert np.mean(np.array([names[n] for n in plain]) == of) < 0.5


def test_what_never_varies_leaves_distances_finite():
    given = np.zeros((6, 3))
    given[:, 0] = np.arange(6)
    voices = voices_of(records_of(given, ["a", "b"] * 3), ("a", "b"), where="A")
    assert np.isfinite(voices.distances(given)).all()


@pytest.mark.parametrize("records", [{}, {CENTROID: {"a": np.zeros(2, np.float32)}}])
def test_an_adapter_without_centroids_names_the_command_that_adds_them(records):
    with pytest.raises(UserError, match=r"runs/A .*'a'.*python -m hra_jax.tasks centroids runs/A --manifest"):
        voices_of(records, ("a",), where="runs/A")


def test_tasks_that_are_set_aside_are_no_candidates_and_need_no_centroid():
    records = records_of(np.random.default_rng(5).normal(size=(8, 2)), ["a", "b"] * 4)
    assert voices_of(records, ("a", "x", "b"), where="A", aside={"x"}).tasks == ("a", "b")
    with pytest.raises(UserError, match="no task to choose from"):
        voices_of(records, ("x",), where="A", aside={"x"})


def test_centroids_go_where_their_task_goes_and_the_whitening_stays():
    records = records_of(np.random.default_rng(6).normal(size=(8, 2)), ["a", "b"] * 4)
    moved = task_records.renamed(task_records.kept(records, ["a"]), {"a": "new"})
    assert set(moved[CENTROID]) == {"new"}
    np.testing.assert_array_equal(moved[WHITENING][SHARED], records[WHITENING][SHARED])
    assert task_records.of_copy(records, ["a"], "copy") == {}
    back = task_records.joined(task_records.kept(records, ["b"]), task_records.of_task(records, "a"))
    assert set(back[CENTROID]) == {"a", "b"}


def test_the_distance_decides_between_heads_that_are_equally_sure_and_confidence_between_near_ones():
    candidates = [("a", 0), ("b", 1)]
    assert decide(np.array([9.0, 4.0]), {"a": -1.0, "b": -1.0}, candidates, base=None) == "b"
    assert decide(np.array([9.0, 4.0]), {"a": -0.5, "b": -1.0}, candidates, base=None) == "a"
    margin = unknown_task.BASE_MARGIN
    assert decide(np.array([9.0, 4.0]), {"a": -2.0, "b": -1.0}, candidates, base=-1.0 + 0.9 * margin) == "b"
    assert decide(np.array([9.0, 4.0]), {"a": -2.0, "b": -1.0}, candidates, base=-1.0 + 1.1 * margin) == "__base__"


class _World:
    """Speakers whose utterances hold their number in every sample; heads that are sure of their own speaker."""

    def __init__(self, tasks: int, *, noise: float = 0.0):
        rng = np.random.default_rng(7)
        self.names = tuple(f"t{n}" for n in range(tasks))
        given = np.arange(tasks).repeat(10)[:, None] + max(noise, 0.1) * rng.normal(size=(10 * tasks, 1))
        self.voices = voices_of(records_of(given, [self.names[n] for n in np.arange(tasks).repeat(10)]), self.names,
                                where="A")  # fmt: skip
        self.noise, self.rng, self.heard = noise, rng, 0
        self.recognised: list[tuple[float, str]] = []

    def wave(self, speaker: int, samples: int) -> np.ndarray:
        return np.full(samples, speaker, np.float32)

    def _sure(self, sureness: list[float], waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(wave) for wave in waves])
        found = np.zeros((len(waves), lengths.max(), 3))
        found[:, :, 0] = np.array(sureness)[:, None]
        return found - np.log(np.exp(found).sum(axis=-1, keepdims=True)), lengths

    def listen(self, waves: list[np.ndarray]) -> Heard:
        self.heard += len(waves)
        log_probs, lengths = self._sure([0.1] * len(waves), waves)
        voices = np.array([[wave[0] + self.noise * self.rng.normal()] for wave in waves])
        return Heard(voices, log_probs, lengths)

    def recognise(self, waves: list[np.ndarray], tasks: list[str]) -> tuple[np.ndarray, np.ndarray]:
        self.recognised += [(float(wave[0]), task) for wave, task in zip(waves, tasks, strict=True)]
        return self._sure([6.0 if task == f"t{int(wave[0])}" else 1.0 for wave, task in zip(waves, tasks, strict=True)],
                          waves)  # fmt: skip

    def choose(self, parts, sessions) -> list[unknown_task.Choice]:
        return choose(
            parts,
            sessions,
            voices=self.voices,
            listen=self.listen,
            recognise=self.recognise,
            blank_of=lambda task: _BLANK,
        )


@pytest.mark.parametrize("tasks", [2, 8, 64])
def test_each_utterance_gets_its_own_task_in_at_most_six_passes_however_many_tasks_there_are(tasks):
    world = _World(tasks)
    speakers = [n % tasks for n in range(40)]
    found = world.choose([[world.wave(speaker, 3 + n % 5)] for n, speaker in enumerate(speakers)], range(40))
    assert [choice.task for choice in found] == [f"t{speaker}" for speaker in speakers]
    assert all(choice.passes == 1 + min(unknown_task.CANDIDATES, tasks) < 6 for choice in found)
    assert world.heard + len(world.recognised) == sum(choice.passes for choice in found)
    assert all(choice.candidates[-1] == "__base__" and choice.task in choice.candidates for choice in found)


def test_a_session_pools_what_single_utterances_leave_open():
    world = _World(8, noise=2.5)
    parts = [[world.wave(n // 12, 4)] for n in range(96)]
    single = world.choose(parts, range(96))
    pooled = world.choose(parts, [n // 12 for n in range(96)])
    share = [np.mean([choice.task == f"t{n // 12}" for n, choice in enumerate(found)]) for found in (single, pooled)]
    assert share[0] < 0.9 < share[1]
    assert len({choice.task for choice in pooled[:12]}) == 1


def test_a_long_session_is_heard_in_parts_that_are_spread_over_it():
    world = _World(4)
    parts = [[world.wave(1, 5)] * 30, [world.wave(1, 5)] * 70, [world.wave(2, 5)]]
    found = world.choose(parts, ["long", "long", "short"])
    assert [choice.task for choice in found] == ["t1", "t1", "t2"]
    assert world.heard == unknown_task.MOST_HEARD + 1


def test_an_utterance_in_which_nothing_is_said_is_left_to_the_base():
    world = _World(4)
    found = world.choose([[], [world.wave(3, 4)]], ["silent", "other"])
    assert [choice.task for choice in found] == ["__base__", "t3"]
    assert found[0].passes == 0
