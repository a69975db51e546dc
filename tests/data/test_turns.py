"""Tasks in turn: equally many updates for all of them, epochs that cover everything, the same batches on every host."""

import collections
import itertools

import numpy as np
import pytest

from hra_jax.data.turns import Turns, batches_of_rounds

BUCKETS = (0.5, 0.8, 2.5)
ROWS = (20, 12, 4)
SIZES = (1, 1, 10, 100, 3, 1, 40)  # utterances of each task


def _turns(sizes=SIZES, *, seed=0, **settings):
    random = np.random.default_rng(5)
    tasks = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    durations = random.choice([0.3, 0.45, 0.6, 0.75, 1.9], size=len(tasks), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    settings = {"buckets": BUCKETS, "rows": ROWS, "max_tasks": 5} | settings
    names = [f"task {number}" for number in range(len(sizes))]
    return durations, tasks, Turns(durations, tasks, names=names, seed=seed, **settings)


@pytest.mark.parametrize("max_tasks", [1, 3, 5, 100])
def test_no_two_tasks_ever_differ_by_more_than_one_update_whatever_the_numbers_of_their_utterances(max_tasks):
    _, tasks, turns = _turns(max_tasks=max_tasks)
    updates = np.zeros(len(SIZES), int)
    for turn in itertools.islice(turns, 400):
        present = np.unique(tasks[list(turn.utterances)])
        assert 0 < len(present) <= max_tasks
        updates[present] += 1
        assert updates.max() - updates.min() <= 1
        assert turns.rounds == updates.min()
    assert updates.min() > 50


def test_after_whole_rounds_every_task_has_had_exactly_as_many_updates():
    _, tasks, turns = _turns()
    count = batches_of_rounds(_turns()[2], 37)
    updates = collections.Counter()
    for turn in itertools.islice(turns, count):
        updates.update(np.unique(tasks[list(turn.utterances)]).tolist())
    assert updates == dict.fromkeys(range(len(SIZES)), 37)
    with pytest.raises(ValueError, match="batches have been taken"):
        batches_of_rounds(turns, 1)


def test_a_batch_has_one_bucket_holds_no_utterance_twice_and_no_more_than_its_rows():
    durations, _, turns = _turns()
    filled = []
    for turn in itertools.islice(turns, 300):
        chosen = list(turn.utterances)
        assert len(set(chosen)) == len(chosen) <= ROWS[turn.bucket]
        assert durations[chosen].max() <= BUCKETS[turn.bucket]
        # The bucket is that of one of them: no batch is longer than it needs to be.
        assert turn.bucket == 0 or durations[chosen].max() > BUCKETS[turn.bucket - 1]
        filled.append(len(chosen) / ROWS[turn.bucket])
    assert np.mean(filled) > 0.75


def test_every_epoch_of_a_task_covers_each_of_its_utterances_once():
    _, tasks, turns = _turns()
    drawn = {task: [] for task in range(len(SIZES))}
    for turn in itertools.islice(turns, 500):
        for number in turn.utterances:
            drawn[int(tasks[number])].append(number)
    for task, size in enumerate(SIZES):
        epochs = [drawn[task][start : start + size] for start in range(0, len(drawn[task]) - size + 1, size)]
        assert len(epochs) >= 3
        assert all(sorted(epoch) == np.flatnonzero(tasks == task).tolist() for epoch in epochs)
        assert size < 10 or epochs[0] != epochs[1]


def test_a_start_goes_on_where_the_batches_before_it_ended_and_seeds_differ():
    expected = list(itertools.islice(_turns()[2], 60))
    for start in (0, 1, 7, 31):
        later = _turns(start=start)[2]
        assert later.consumed == start
        assert list(itertools.islice(later, 60 - start)) == expected[start:]
    assert list(itertools.islice(_turns(seed=1)[2], 60)) != expected


def test_the_first_batches_are_these_on_every_machine():
    durations, tasks = np.array([0.3, 1.9, 0.6, 0.3, 0.3, 0.7]), np.array([0, 0, 1, 2, 2, 2])
    turns = Turns(durations, tasks, names=("ann", "bob", "cy"), buckets=BUCKETS, rows=(2, 2, 4), max_tasks=2, seed=3)
    assert [tuple(turn) for turn in itertools.islice(turns, 5)] == [
        (2, (1, 2, 0)),
        (0, (3, 4)),
        (0, (0,)),
        (1, (2, 5)),
        (2, (1, 5, 3, 4)),
    ]


def test_a_hundred_thousand_utterances_of_a_task_are_drawn_as_quickly_as_ten():
    durations, tasks = np.full(100_002, 0.3), np.repeat([0, 1, 2], [1, 1, 100_000])
    turns = Turns(durations, tasks, names="abc", buckets=BUCKETS, rows=ROWS, max_tasks=3, seed=0)
    drawn = [turn.utterances for turn in itertools.islice(turns, 3000)]
    assert len({number for batch in drawn for number in batch}) == 3000 * 18 + 2
