"""The bootstrap of error rates: draws of utterances, of blocks, and of tasks."""

import time
import tracemalloc

import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation import bootstrap
from hra_jax.evaluation.bootstrap import (
    drawn_means,
    drawn_rates,
    interval,
    joined,
    make_sample,
    resampled_sums,
    seed_of,
)

SEED = [3, 7]


def random_counts(number, *, seed=0):
    """[number, 3] errors of two systems, and words: 1 to 8 an utterance, about every fourth of them wrong."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 9, size=number)
    return np.stack([rng.binomial(words, 0.25), rng.binomial(words, 0.2), words], axis=1)


def sample_of(counts, blocks=None):
    names = [(f"{at:06}", None if blocks is None else str(blocks[at])) for at in range(len(counts))]
    return make_sample(names, counts[:, :-1], counts[:, -1])


def rate_interval(counts, *, samples=1000, seed=0, blocks=None):
    return interval(drawn_rates(sample_of(counts, blocks), samples=samples, seed=seed)[:, 0])


def reference_sums(counts, blocks, *, samples, seed):
    """Blocks, and within each utterances, drawn one by one."""
    of_blocks, of_utterances = (np.random.default_rng([*seed, stream]) for stream in (0, 1))
    members = [np.flatnonzero(blocks == block) for block in range(blocks.max() + 1)]
    sums = []
    for _ in range(samples):
        total = np.zeros(counts.shape[1], np.int64)
        for block in of_blocks.integers(0, len(members), size=len(members)):
            for _ in members[block]:
                total += counts[members[block][int(of_utterances.random() * len(members[block]))]]
        sums.append(total)
    return np.stack(sums)


def test_the_blocked_bootstrap_equals_a_plain_loop():
    counts = random_counts(60)
    blocks = np.random.default_rng(1).permutation(np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 9, 10, 20]))
    found = resampled_sums(counts, blocks, samples=200, seed=SEED)
    np.testing.assert_array_equal(found, reference_sums(counts, blocks, samples=200, seed=SEED))
    assert len(np.unique(found[:, -1])) > 50


def test_utterances_alone_equal_a_plain_loop():
    counts, rng = random_counts(30), np.random.default_rng(SEED)
    expected = [sum(counts[rng.integers(0, 30)] for _ in range(30)) for _ in range(100)]
    np.testing.assert_array_equal(resampled_sums(counts, None, samples=100, seed=SEED), expected)


@pytest.mark.parametrize("blocked", [False, True])
def test_draws_in_parts_are_the_draws_in_one_piece(monkeypatch, blocked):
    counts, blocks = random_counts(60), np.arange(60) % 11 if blocked else None
    whole = resampled_sums(counts, blocks, samples=1001, seed=SEED)
    monkeypatch.setattr(bootstrap, "_CELLS", 700)
    np.testing.assert_array_equal(resampled_sums(counts, blocks, samples=1001, seed=SEED), whole)


def test_blocks_that_differ_make_the_interval_wider_and_blocks_that_do_not_leave_it():
    rng = np.random.default_rng(0)
    words, blocks = np.full(400, 10), np.repeat(np.arange(20), 20)
    hard = rng.binomial(words, rng.beta(2, 6, size=20)[blocks])
    alike = rng.binomial(words, 0.25)
    widths = []
    for errors in (hard, alike):
        counts = np.stack([errors, words], axis=1)
        for within in (None, blocks):
            low, high = rate_interval(counts, blocks=within, samples=4000)
            widths.append(high - low)
    assert widths[1] > 2 * widths[0]
    assert widths[3] == pytest.approx(widths[2] * 2**0.5, rel=0.25)  # a draw of blocks adds to that of utterances


@pytest.mark.parametrize(("speakers", "blocked"), [(1, False), (7, False), (8, True), (30, True)])
def test_fewer_than_8_blocks_resample_utterances_alone(speakers, blocked):
    counts = random_counts(60)
    names = [str(at % speakers) for at in range(60)]
    assert (sample_of(counts, names).blocks is not None) == blocked
    assert sample_of(counts, names).block_count == speakers
    alone, drawn = (drawn_rates(sample_of(counts, given), samples=200, seed=0) for given in (None, names))
    assert np.array_equal(alone, drawn) != blocked


def test_an_utterance_without_a_block_is_one_of_its_own():
    counts = random_counts(20)
    names = [(f"{at:02}", "ann" if at < 10 else None) for at in range(20)]
    found = make_sample(names, counts[:, :-1], counts[:, -1])
    assert found.block_count == 11 and sorted(np.bincount(found.blocks)) == [1] * 10 + [10]
    assert sample_of(counts).blocks is None


def test_draws_depend_on_names_and_not_on_the_order_or_on_what_was_recognised():
    counts = random_counts(50)
    names = [(f"{at:02}", f"{at % 10}") for at in range(50)]
    order = np.random.default_rng(5).permutation(50)
    here, there = (
        make_sample([names[at] for at in some], counts[some, :-1], counts[some, -1]) for some in (np.arange(50), order)
    )
    drawn = drawn_rates(here, samples=300, seed=2, name="a")
    np.testing.assert_array_equal(drawn_rates(there, samples=300, seed=2, name="a"), drawn)
    other = make_sample(names, np.column_stack([counts[:, 0], 0 * counts[:, 1]]), counts[:, -1])
    np.testing.assert_array_equal(drawn_rates(other, samples=300, seed=2, name="a")[:, 0], drawn[:, 0])
    for changes in ({"seed": 3}, {"name": "b"}):
        again = drawn_rates(here, **({"samples": 300, "seed": 2, "name": "a"} | changes))
        assert not np.array_equal(again, drawn)


def test_intervals_contain_the_rate_and_shrink_with_more_utterances():
    widths = []
    for number in (20, 200, 2000):
        counts = random_counts(number)
        low, high = rate_interval(counts)
        assert low < counts[:, 0].sum() / counts[:, -1].sum() < high
        widths.append(high - low)
    # Widths go down with the square root of the number of utterances: ten times more, about 3.2 times narrower.
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.4)
    assert widths[1] / widths[2] == pytest.approx(10**0.5, rel=0.25)


def test_intervals_are_those_of_resampled_utterances():
    counts = random_counts(50)
    drawn = counts[np.random.default_rng(9).integers(0, 50, size=(20000, 50))].sum(1)
    expected = np.quantile(drawn[:, 0] / drawn[:, -1], [0.025, 0.975])
    np.testing.assert_allclose(rate_interval(counts, samples=20000), expected, rtol=0.02)


def test_the_interval_is_a_point_where_all_utterances_are_alike():
    assert rate_interval(np.tile([1, 4], (10, 1))) == (0.25, 0.25)


def test_empty_references_among_others_leave_the_bootstrap_defined():
    counts = np.array([[1, 0], [1, 2]])
    drawn = drawn_rates(sample_of(counts), samples=100, seed=0)
    assert np.isnan(drawn).any() and np.isfinite(interval(drawn[:, 0])).all()


def test_means_over_tasks_equal_a_plain_loop():
    drawn = [random_counts(20, seed=seed)[:, :2] / 8 for seed in range(5)]
    drawn[1][3] = np.nan
    kept = [rates[~np.isnan(rates[:, 0])] for rates in drawn]
    key = seed_of(4, "mean of tasks")
    of_tasks, of_draws = (np.random.default_rng([*key, stream]) for stream in (0, 1))
    expected = []
    for _ in range(40):
        slots = [(kept[of_tasks.integers(0, 5)], of_draws.random()) for _ in range(5)]
        expected.append(np.mean([rates[int(at * len(rates))] for rates, at in slots], axis=0))
    np.testing.assert_allclose(drawn_means(drawn, samples=40, seed=4), expected, rtol=1e-12)
    np.testing.assert_array_equal(drawn_means(drawn[:1], samples=40, seed=4), drawn[0])


def test_tasks_that_differ_make_the_interval_of_their_mean_wide():
    alike, differing = ([np.full((100, 1), rate) for rate in rates] for rates in ([0.2] * 10, np.linspace(0, 0.4, 10)))
    assert np.ptp(drawn_means(alike, samples=500, seed=0)) < 1e-12
    spread = np.std(drawn_means(differing, samples=5000, seed=0))
    assert spread == pytest.approx(np.std(np.linspace(0, 0.4, 10)) / 10**0.5, rel=0.05)


def test_all_tasks_together_have_the_utterances_of_each():
    counts = random_counts(40)
    whole = joined([sample_of(counts[:15], np.arange(15)), sample_of(counts[15:], np.arange(25))])
    np.testing.assert_allclose(whole.rates, counts[:, :2].sum(0) / counts[:, 2].sum())
    assert whole.block_count == 25


def test_what_has_no_rate_and_what_is_not_allowed_is_one_line_that_says_so():
    silent, some = np.array([[1, 0], [1, 0]]), random_counts(3)
    for counts in (silent, silent[:0]):
        with pytest.raises(UserError, match="hold 0 words"):
            drawn_rates(sample_of(counts), samples=10, seed=0)
    with pytest.raises(UserError, match="got 0"):
        drawn_rates(sample_of(some), samples=0, seed=0)
    with pytest.raises(UserError, match="must be 0 or more; got -1"):
        drawn_rates(sample_of(some), samples=1, seed=-1)
    with pytest.raises(UserError, match="none of 1 bootstrap samples holds a reference word of every task"):
        drawn_means([np.full((1, 1), np.nan), np.zeros((1, 1))], samples=1, seed=0)


def test_large_test_sets_take_little_memory_and_time():
    counts, blocks = random_counts(100_000), np.random.default_rng(0).integers(0, 1000, size=100_000)
    started = time.process_time()
    tracemalloc.start()
    resampled_sums(counts, blocks, samples=20, seed=SEED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6 and time.process_time() - started < 5
