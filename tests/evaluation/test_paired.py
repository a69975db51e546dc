"""Differences of two systems' error rates, and their verdicts."""

import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import interval, make_sample
from hra_jax.evaluation.paired import BETTER, UNDECIDED, WORSE, rate_suite

CONFIDENCE = [0.025, 0.975]


def counts(number, *, seed=0, better=0.1):
    """[number, 3] counts of two systems that fail on the same utterances, B less often by `better`."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 12, size=number)
    difficulty = rng.beta(1, 3, size=number)
    errors_a = rng.binomial(words, difficulty)
    return np.stack([errors_a, rng.binomial(errors_a, 1 - better), words], axis=1)


def rated(tasks, *, samples=1000, seed=0):
    """{name: difference of B from A}, with 'macro' and 'pooled'."""
    made = {
        name: make_sample([(f"{at:04}", None) for at in range(len(some))], some[:, :2], some[:, 2])
        for name, some in ((name, np.asarray(some).reshape(-1, 3)) for name, some in tasks.items())
    }
    found = rate_suite(made, samples=samples, seed=seed)
    parts = found.tasks | {"macro": found.macro, "pooled": found.pooled}
    return {name: part.difference(1, 0) for name, part in parts.items()}


def swapped(tasks):
    return {name: utterances[:, [1, 0, 2]] for name, utterances in tasks.items()}


def rates_difference(utterances):
    """B minus A, by the definition of a rate."""
    errors_a, errors_b, words = utterances.sum(axis=-2).T
    return errors_b / words - errors_a / words


def brute_force(utterances, *, samples, seed):
    """Differences of lists of utterances that are drawn one by one."""
    chosen = np.random.default_rng(seed).integers(0, len(utterances), size=(samples, len(utterances)))
    return rates_difference(utterances[chosen])


def bounds(found):
    return [found["low"], found["high"]]


TASKS = {"a": counts(60), "b": counts(25, seed=1, better=0.4), "c": counts(120, seed=2, better=0.02)}


def test_differences_are_those_of_the_utterances_as_they_are():
    found = rated(TASKS, samples=10)
    for name, utterances in TASKS.items():
        assert found[name]["difference"] == pytest.approx(rates_difference(utterances), abs=1e-12)
    mean = np.mean([rates_difference(utterances) for utterances in TASKS.values()])
    assert found["macro"]["difference"] == pytest.approx(mean, abs=1e-12)
    whole = rates_difference(np.concatenate(list(TASKS.values())))
    assert found["pooled"]["difference"] == pytest.approx(whole, abs=1e-12) and abs(whole - mean) > 0.01


def test_intervals_are_those_of_resampled_lists_of_utterances_and_of_tasks():
    samples = 20_000
    found = rated(TASKS, samples=samples, seed=3)
    drawn = {name: brute_force(TASKS[name], samples=samples, seed=index) for index, name in enumerate(TASKS)}
    rng, columns = np.random.default_rng(8), np.stack(list(drawn.values()))
    chosen = rng.integers(0, 3, size=(samples, 3)), rng.integers(0, samples, size=(samples, 3))
    expected = drawn | {
        "macro": columns[chosen].mean(axis=1),
        "pooled": brute_force(np.concatenate(list(TASKS.values())), samples=samples, seed=9),
    }
    # The standard error of such a percentile of 20,000 resamples is about 2% of their standard deviation.
    for name, differences in expected.items():
        tolerance = 0.1 * np.std(differences)
        np.testing.assert_allclose(bounds(found[name]), np.quantile(differences, CONFIDENCE), atol=tolerance)


def test_tasks_are_resampled_independently():
    # Were the same draws made in all, the interval of the mean would be as wide as that of each.
    alone = rated({"a": TASKS["a"]}, samples=5000)["macro"]
    many = rated({str(index): TASKS["a"] for index in range(16)}, samples=5000)["macro"]
    assert (many["high"] - many["low"]) / (alone["high"] - alone["low"]) == pytest.approx(0.25, rel=0.15)


def test_pairing_sees_a_difference_that_separate_intervals_hide():
    utterances = counts(300, seed=4, better=0.15)
    sample = make_sample([(f"{at:04}", None) for at in range(300)], utterances[:, :2], utterances[:, 2])
    found = rate_suite({"a": sample}, samples=1000, seed=0).tasks["a"]
    assert found.interval(1)[1] > found.interval(0)[0]
    assert found.difference(1, 0)["verdict"] == BETTER
    assert found.interval(0) == interval(found.drawn[:, 0])


def test_identical_systems_differ_by_exactly_0():
    same = {name: utterances[:, [0, 0, 2]] for name, utterances in TASKS.items()}
    for part in rated(same).values():
        assert part == {"difference": 0, "low": 0, "high": 0, "verdict": UNDECIDED}


def test_one_error_less_in_every_utterance_is_better_and_one_more_worse():
    words = np.arange(3, 23)
    less = np.stack([np.full(20, 2), np.full(20, 1), words], axis=1)
    found = rated({"a": less})["a"]
    assert found["verdict"] == BETTER and found["low"] <= found["difference"] <= found["high"] < 0
    found = rated(swapped({"a": less}))["a"]
    assert found["verdict"] == WORSE and 0 < found["low"] <= found["difference"] <= found["high"]


def test_systems_that_differ_by_chance_are_told_apart_about_as_often_as_promised():
    called = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        words = rng.integers(3, 12, size=80)
        errors = rng.binomial(words[:, None], 0.2, size=(80, 2))
        found = rated({"a": np.column_stack([errors, words])}, samples=500, seed=seed)
        called += found["macro"]["verdict"] != UNDECIDED
    assert 2 <= called <= 22  # 5% of 200 is 10


def test_the_order_of_tasks_does_not_matter_and_the_seed_does():
    here, there = (rated(tasks, samples=500, seed=5) for tasks in (TASKS, dict(reversed(TASKS.items()))))
    assert here == there
    other = rated(TASKS, samples=500, seed=6)["macro"]
    assert here["macro"]["low"] != other["low"] and here["macro"]["difference"] == other["difference"]


def test_swapping_the_systems_mirrors_every_difference_exactly():
    found, mirrored = (rated(tasks) for tasks in (TASKS, swapped(TASKS)))
    for name, part in found.items():
        other = mirrored[name]
        assert other["difference"] == -part["difference"]
        np.testing.assert_allclose([-other["high"], -other["low"]], bounds(part), rtol=1e-12)


def test_a_suite_of_one_task_has_one_interval():
    found = rated({"a": TASKS["a"]}, samples=500)
    assert found["a"] == found["macro"] == found["pooled"]


def test_without_resamples_there_are_no_bounds_and_no_verdict():
    part = rated(TASKS, samples=0)["macro"]
    assert part["difference"] < 0 and (part["low"], part["high"], part["verdict"]) == (None, None, None)


def test_what_has_no_rate_and_what_is_not_allowed_is_one_line_that_says_so():
    for match, tasks, changes in (
        ("0 tasks", {}, {}),
        ("task 'a': .* 0 utterances hold 0 words", {"a": []}, {}),
        ("task 'a': .* 2 utterances hold 0 words", {"a": [(1, 0, 0), (0, 0, 0)]}, {}),
        ("must be 0 or more; got -1", TASKS, {"seed": -1}),
    ):
        with pytest.raises(UserError, match=match):
            rated(tasks, **changes)
