"""Paired bootstrap of the difference of two systems' error rates."""

import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation import bootstrap, paired
from hra_jax.evaluation.error_rates import ErrorCounts
from hra_jax.evaluation.paired import PairedDifference, paired_bootstrap

CONFIDENCE = [0.025, 0.975]


def counts(number, *, seed=0, better=0.1):
    """[number, 3] counts of two systems that fail on the same utterances, B less often by `better`."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 12, size=number)
    difficulty = rng.beta(1, 3, size=number)
    errors_a = rng.binomial(words, difficulty)
    return np.stack([errors_a, rng.binomial(errors_a, 1 - better), words], axis=1)


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
    return [found.low, found.high]


TASKS = {"a": counts(60), "b": counts(25, seed=1, better=0.4), "c": counts(120, seed=2, better=0.02)}


def test_differences_are_those_of_the_utterances_as_they_are():
    found = paired_bootstrap(TASKS, samples=10)
    for name, utterances in TASKS.items():
        assert found.tasks[name].difference == pytest.approx(rates_difference(utterances), abs=1e-12)
    mean = np.mean([rates_difference(utterances) for utterances in TASKS.values()])
    assert found.macro.difference == pytest.approx(mean, abs=1e-12)
    whole = rates_difference(np.concatenate(list(TASKS.values())))
    assert found.pooled.difference == pytest.approx(whole, abs=1e-12) and abs(whole - mean) > 0.01


def test_intervals_are_those_of_resampled_lists_of_utterances():
    samples = 20_000
    found = paired_bootstrap(TASKS, samples=samples, seed=3)
    drawn = {name: brute_force(TASKS[name], samples=samples, seed=index) for index, name in enumerate(TASKS)}
    expected = drawn | {
        "macro": np.mean(list(drawn.values()), axis=0),
        "pooled": brute_force(np.concatenate(list(TASKS.values())), samples=samples, seed=9),
    }
    # The standard error of such a percentile of 20,000 resamples is about 2% of their standard deviation.
    for name, differences in expected.items():
        part = found.tasks[name] if name in TASKS else getattr(found, name)
        tolerance = 0.1 * np.std(differences)
        np.testing.assert_allclose(bounds(part), np.quantile(differences, CONFIDENCE), atol=tolerance, err_msg=name)


def test_the_mean_and_spread_of_the_draws_are_those_of_resampled_lists(monkeypatch):
    seen = []
    monkeypatch.setattr(paired, "interval", lambda drawn: seen.append(drawn) or (0.0, 0.0))
    paired_bootstrap({"a": TASKS["a"]}, samples=20_000)
    expected = brute_force(TASKS["a"], samples=20_000, seed=5)
    assert np.mean(seen[0]) == pytest.approx(np.mean(expected), abs=5 * np.std(expected) / 100)
    assert np.std(seen[0]) == pytest.approx(np.std(expected), rel=0.05)


def test_tasks_are_resampled_independently():
    # Were the same draws made in both, the interval of the mean would be as wide as that of each.
    alone = paired_bootstrap({"a": TASKS["a"]}, samples=5000).macro
    both = paired_bootstrap({"a": TASKS["a"], "b": TASKS["a"]}, samples=5000).macro
    assert (both.high - both.low) / (alone.high - alone.low) == pytest.approx(0.5**0.5, rel=0.1)


def test_pairing_sees_a_difference_that_separate_intervals_hide():
    utterances = counts(300, seed=4, better=0.15)
    intervals = []
    for column in (0, 1):
        side = [ErrorCounts(deletions=int(row[column]), words=int(row[2]), utterances=1) for row in utterances]
        intervals.append(bootstrap.bootstrap_interval(side))
    assert intervals[1][1] > intervals[0][0]
    assert paired_bootstrap({"a": utterances}).tasks["a"].significant


def test_identical_systems_differ_by_exactly_0():
    same = {name: utterances[:, [0, 0, 2]] for name, utterances in TASKS.items()}
    found = paired_bootstrap(same, samples=1000)
    for part in (*found.tasks.values(), found.macro, found.pooled):
        assert part == PairedDifference(0.0, 0.0, 0.0) and not part.significant


def test_one_error_less_in_every_utterance_is_significant_and_one_more_as_well():
    words = np.arange(3, 23)
    better = np.stack([np.full(20, 2), np.full(20, 1), words], axis=1)
    found = paired_bootstrap({"a": better}).tasks["a"]
    assert found.significant and found.low <= found.difference <= found.high < 0
    worse = paired_bootstrap(swapped({"a": better})).tasks["a"]
    assert worse.significant and 0 < worse.low <= worse.difference <= worse.high


def test_systems_that_differ_by_chance_are_called_significant_about_as_often_as_promised():
    called = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        words = rng.integers(3, 12, size=80)
        errors = rng.binomial(words[:, None], 0.2, size=(80, 2))
        found = paired_bootstrap({"a": np.column_stack([errors, words])}, samples=500, seed=seed)
        called += found.macro.significant
    assert 2 <= called <= 22  # 5% of 200 is 10


def test_neither_the_order_of_utterances_nor_of_tasks_matters():
    rng = np.random.default_rng(0)
    shuffled = {name: rng.permutation(TASKS[name]) for name in reversed(TASKS)}
    assert paired_bootstrap(shuffled, samples=500) == paired_bootstrap(TASKS, samples=500)


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    first, again, other = (paired_bootstrap(TASKS, samples=500, seed=seed) for seed in (5, 5, 6))
    assert first == again and first.macro.low != other.macro.low and first.macro.difference == other.macro.difference


def test_swapping_the_systems_mirrors_every_difference():
    found, mirrored = (paired_bootstrap(tasks, samples=20_000) for tasks in (TASKS, swapped(TASKS)))
    parts = [(found.tasks[name], mirrored.tasks[name]) for name in TASKS]
    for part, other in (*parts, (found.macro, mirrored.macro), (found.pooled, mirrored.pooled)):
        assert other.difference == -part.difference and part.significant == other.significant
        np.testing.assert_allclose([-other.high, -other.low], bounds(part), atol=0.03 * (part.high - part.low))


def test_draws_in_parts_are_the_draws_in_one_piece(monkeypatch):
    whole = paired_bootstrap(TASKS, samples=1001)
    monkeypatch.setattr(bootstrap, "_CELLS", 700)
    assert paired_bootstrap(TASKS, samples=1001) == whole


def test_a_suite_of_one_task_has_one_interval():
    found = paired_bootstrap({"a": TASKS["a"]}, samples=500)
    assert found.tasks["a"] == found.macro == found.pooled


def test_empty_references_among_others_leave_the_difference_defined():
    found = paired_bootstrap({"a": [(1, 0, 0), (1, 2, 4)]}, samples=100).tasks["a"]
    assert np.isfinite([found.difference, *bounds(found)]).all() and found.difference == 0
    with pytest.raises(UserError, match="none of 1 bootstrap samples holds a reference word"):
        paired_bootstrap({str(i): [(1, 0, 0), (1, 2, 4)] for i in range(30)}, samples=1)


def test_what_has_no_rate_and_what_is_not_allowed_is_one_line_that_says_so():
    for match, tasks, changes in (
        ("0 tasks", {}, {}),
        ("task 'a': .* 0 utterances hold 0 words", {"a": []}, {}),
        ("task 'a': .* 2 utterances hold 0 words", {"a": [(1, 0, 0), (0, 0, 0)]}, {}),
        ("must be 1 or more; got 0", TASKS, {"samples": 0}),
        ("must be 0 or more; got -1", TASKS, {"seed": -1}),
    ):
        with pytest.raises(UserError, match=match):
            paired_bootstrap(tasks, **changes)
    for wrong in ([(1, 2)], [(1, 2, -3)], [(0.5, 1.0, 2.0)]):
        with pytest.raises(ValueError, match="allowed: integers"):
            paired_bootstrap({"a": wrong})
