"""The bootstrap of error rates."""

import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation import bootstrap
from hra_jax.evaluation.bootstrap import bootstrap_interval, bootstrap_rates, resampled_sums
from hra_jax.evaluation.error_rates import ErrorCounts, total
from hra_jax.evaluation.paired import paired_bootstrap


def random_counts(number, *, seed=0):
    """Counts of utterances of 1 to 8 words, about every fourth of them wrong."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 9, size=number)
    errors = rng.binomial(words, 0.25)
    return [ErrorCounts(substitutions=int(e), words=int(w), utterances=1) for e, w in zip(errors, words, strict=True)]


def test_what_has_no_rate_and_what_is_not_allowed_is_one_line_that_says_so():
    silent = ErrorCounts(insertions=1, utterances=1)
    for counts in ([silent, silent], []):
        with pytest.raises(UserError, match="hold 0 words"):
            bootstrap_interval(counts)
    with pytest.raises(UserError, match="got 0"):
        bootstrap_interval(random_counts(3), samples=0)


def test_bootstrap_interval_contains_the_rate_and_shrinks_with_more_utterances():
    widths = []
    for number in (20, 200, 2000):
        counts = random_counts(number)
        low, high = bootstrap_interval(counts)
        assert low < total(counts).rate < high
        widths.append(high - low)
    # Widths go down with the square root of the number of utterances: ten times more, about 3.2 times narrower.
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.4)
    assert widths[1] / widths[2] == pytest.approx(10**0.5, rel=0.25)


def test_bootstrap_interval_is_that_of_resampled_utterances():
    counts = random_counts(50)
    pairs = np.array([(c.errors, c.words) for c in counts])
    drawn = pairs[np.random.default_rng(9).integers(0, 50, size=(20000, 50))].sum(1)
    expected = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(counts, samples=20000), expected, rtol=0.02)


def test_bootstrap_interval_depends_on_the_seed_but_not_on_the_order():
    counts = random_counts(40)
    same = bootstrap_interval(counts, seed=5)
    assert bootstrap_interval(counts[::-1], seed=5) == same
    assert bootstrap_interval(counts, seed=6) != same


def test_bootstrap_interval_is_a_point_where_all_utterances_are_alike():
    counts = [ErrorCounts(substitutions=1, words=4, utterances=1)] * 10
    assert bootstrap_interval(counts) == (0.25, 0.25)


def test_empty_references_among_others_leave_the_bootstrap_defined():
    counts = [ErrorCounts(insertions=1, utterances=1), ErrorCounts(substitutions=1, words=2, utterances=1)]
    assert np.isfinite(bootstrap_interval(counts)).all()


def test_draws_in_parts_are_the_draws_in_one_piece(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 5, size=(60, 3))
    whole = resampled_sums(counts, samples=1001, seed=[2, 1])
    monkeypatch.setattr(bootstrap, "_CELLS", 700)
    np.testing.assert_array_equal(resampled_sums(counts, samples=1001, seed=[2, 1]), whole)


def test_the_intervals_of_a_seed_stay_what_they_were():
    # The values that hra_jax 0.1.0 gave.
    counts = [ErrorCounts(substitutions=i % 3, insertions=i % 5 == 0, words=1 + i % 7, utterances=1) for i in range(50)]
    assert bootstrap_interval(counts, samples=1000, seed=5) == (0.22958598577045497, 0.37871872103799814)
    assert bootstrap_rates(counts, samples=3, seed=0).tolist() == [
        0.3076923076923077,
        0.24242424242424243,
        0.30697674418604654,
    ]
    triples = {name: [(i % 3, i % 4, 1 + i % 7) for i in range(size)] for name, size in (("b", 20), ("a", 45))}
    found = paired_bootstrap(triples, samples=500, seed=3)
    parts = (*found.tasks.values(), found.macro, found.pooled)
    assert [(part.difference, part.low, part.high) for part in parts] == [
        (0.14285714285714285, 0.0, 0.30618121442125235),
        (0.1206896551724138, 0.015416798857868026, 0.22935837392281752),
        (0.13177339901477833, 0.04107545045045046, 0.2290610540775014),
        (0.12749003984063745, 0.0431203733504989, 0.21686540213430505),
    ]
