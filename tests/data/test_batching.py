"""Length buckets: the rows asked for, no more tasks than allowed, nothing lost, exact restarts."""

import collections
import json

import numpy as np
import pytest

from hra_jax.data import batching
from hra_jax.errors import UserError

BUCKETS = (1.0, 2.0, 4.0)


def _utterances(count, *, tasks, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0.1, 4.0, count).tolist(), random.integers(tasks, size=count).tolist()


def _batcher(durations, tasks, *, rows=(8, 4, 2), max_tasks=100):
    return batching.Batcher(
        BUCKETS, rows=rows, max_tasks=max_tasks, lookup=lambda source, row: (durations[row], tasks[row])
    )


def _feed(batcher, rows):
    plans = []
    for row in rows:
        batcher.add(0, row)
        while (plan := batcher.pop()) is not None:
            plans.append(plan)
    return plans


def _rows(plans):
    return [row for plan in plans for _, row in plan.rows]


def test_rows_fill_the_seconds_and_divide_by_the_multiple():
    assert batching.bucket_rows((0.4, 1.0, 3.0), batch_seconds=12.0, multiple=1) == (30, 12, 4)
    assert batching.bucket_rows((0.4, 1.0, 3.0), batch_seconds=12.0, multiple=4) == (28, 12, 4)
    assert batching.bucket_rows((0.4,), batch_seconds=1.2, multiple=3) == (3,)


@pytest.mark.parametrize(
    "buckets, seconds, multiple, message",
    [
        ((1.0, 4.0), 12.0, 8, "12 s of audio per batch hold 3 rows of the 4 s bucket.*multiple 8.*at least 32 s"),
        ((1.0, 20.0), 12.0, 1, "hold 0 rows of the 20 s bucket"),
        ((2.0, 1.0), 12.0, 1, "ascending"),
        ((), 12.0, 1, "ascending"),
        ((0.0, 1.0), 12.0, 1, "positive"),
        ((1.0,), 12.0, 0, "multiple 0"),
    ],
)
def test_settings_that_give_no_rows_are_one_clear_line(buckets, seconds, multiple, message):
    with pytest.raises(UserError, match=message):
        batching.bucket_rows(buckets, batch_seconds=seconds, multiple=multiple)


def test_label_capacities_hold_the_longest_labels_of_each_bucket():
    ids, lengths = np.array([0, 0, 2, 2]), np.array([3, 8, 9, 30])
    assert batching.label_capacities(ids, lengths, buckets=3) == (8, 8, 32)


def test_every_row_is_in_one_batch_of_its_bucket_or_waits():
    durations, tasks = _utterances(500, tasks=30)
    batcher = _batcher(durations, tasks, max_tasks=3)
    plans = _feed(batcher, range(500))
    waiting = [row for rows in batcher.waiting().values() for _, row in rows]
    assert sorted(_rows(plans) + waiting) == list(range(500))
    for plan in plans:
        assert len(plan.rows) == (8, 4, 2)[plan.bucket]
        for _, row in plan.rows:
            assert batching.bucket_of(durations[row], BUCKETS) == plan.bucket


def test_no_batch_has_more_tasks_than_allowed_and_the_oldest_row_never_waits():
    durations, tasks = _utterances(800, tasks=12)
    batcher = _batcher(durations, tasks, max_tasks=2)
    plans = 0
    for row in range(800):
        batcher.add(0, row)
        before = batcher.waiting()
        while (plan := batcher.pop()) is not None:
            plans += 1
            assert len({tasks[row] for _, row in plan.rows}) <= 2
            assert plan.rows[0] == tuple(before[str(plan.bucket)][0])
            before = batcher.waiting()
    assert plans > 50


def test_order_is_kept_within_a_task_and_altogether_where_all_tasks_fit():
    durations, tasks = _utterances(600, tasks=5)
    for max_tasks in (2, 5):
        given = collections.defaultdict(list)
        for plan in _feed(_batcher(durations, tasks, max_tasks=max_tasks), range(600)):
            for _, row in plan.rows:
                given[plan.bucket, tasks[row] if max_tasks == 2 else None].append(row)
        assert all(rows == sorted(rows) for rows in given.values())


@pytest.mark.parametrize("max_tasks", [2, 100])
def test_a_restored_batcher_goes_on_exactly(max_tasks):
    durations, tasks = _utterances(900, tasks=9)
    batcher = _batcher(durations, tasks, max_tasks=max_tasks)
    _feed(batcher, range(451))
    restored = _batcher(durations, tasks, max_tasks=max_tasks)
    restored.restore(json.loads(json.dumps(batcher.waiting())))
    assert restored.waiting() == batcher.waiting()
    assert _feed(restored, range(451, 900)) == _feed(batcher, range(451, 900))


def test_a_batch_that_was_ready_before_a_restart_is_ready_after_it():
    durations, tasks = [0.5] * 16, [0] * 7 + [1] * 7 + [0] * 2
    batcher = _batcher(durations, tasks, max_tasks=1)
    for row in range(15):
        batcher.add(0, row)
    restored = _batcher(durations, tasks, max_tasks=1)
    restored.restore(batcher.waiting())
    assert restored.pop() == batcher.pop() == (0, tuple((0, row) for row in [*range(7), 14]))


def test_far_more_tasks_than_fit_leave_rows_unfilled_but_bound_the_position():
    count, rows, first = 18_000, 128, 9_000_000  # row numbers of a huge source: as long in JSON as they get
    random = np.random.default_rng(0)
    tasks = dict(enumerate(random.integers(100_000, size=count).tolist(), first))
    durations = dict(enumerate(random.uniform(0.1, 4.0, count).tolist(), first))
    bucket_of_all = collections.Counter(batching.bucket_of(list(durations.values()), BUCKETS).tolist())
    assert bucket_of_all[2] > 2 * (rows + batching.WAITING_LIMIT)
    batcher = _batcher(durations, tasks, rows=(rows,) * 3, max_tasks=32)
    plans = _feed(batcher, durations)
    waiting = batcher.waiting()
    assert all(len(rows_waiting) < rows + batching.WAITING_LIMIT for rows_waiting in waiting.values())
    assert len(json.dumps(waiting)) < 1_000_000
    assert len(_rows(plans)) + sum(map(len, waiting.values())) == count
    assert any(len(plan.rows) < rows for plan in plans)
    assert all(len({tasks[row] for _, row in plan.rows}) <= 32 for plan in plans)


def test_a_row_longer_than_the_last_bucket_must_not_be_fed():
    with pytest.raises(ValueError, match="4.01 s; the last bucket ends at 4"):
        _batcher([4.01], [0]).add(0, 0)
    with pytest.raises(UserError, match="max_tasks 0"):
        _batcher([1.0], [0], max_tasks=0)


def test_a_number_of_buckets_has_no_edges_before_they_are_found():
    assert batching.BatchSettings(buckets=BUCKETS).edges == BUCKETS
    with pytest.raises(UserError, match="batch.buckets = 8: a run finds them in its training data when it begins"):
        _ = batching.BatchSettings(buckets=8).edges
    for wrong in (0, 65, True, (2.0, 1.0), ()):
        with pytest.raises(UserError, match="allowed: a tuple of ascending numbers .*, or an integer of at least 1"):
            batching.BatchSettings(buckets=wrong)
