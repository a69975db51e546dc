"""Banks on the device and on the host: the same arithmetic, whatever the number of tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from hra_jax.adapters import task_rows
from hra_jax.models.asr import AsrModel
from hra_jax.training import task_bank, train_state
from hra_jax.training.best_rows import BestRows
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import LOST, make_host_rows_step, make_train_step

ADAPTER = tiny.ADAPTERS["ffn"]
OPTIMIZER = OptimizerConfig(steps=20, learning_rate=0.01, warmup_steps=1)
HYPER = {"seed": np.uint32(5), "learning_rate": np.float32(0.01)}
MAX_TASKS = 3
# The tasks of the steps: some come back at once, some after one step, some after two, one batch has none.
STEPS = [[3, -1, 0, 3], [3, 4, 4, 0], [1, 1, 1, 1], [4, 0, 3, -1], [-1, -1, -1, -1], [2, 4, 1, 4], [4, 2, 2, 1]]


@functools.lru_cache(maxsize=1)
def backbone():
    return tiny.random_params(tiny.FEATURES, tiny.ENCODER)


@functools.lru_cache(maxsize=4)
def compiled(kind: str):
    model = AsrModel(tiny.FEATURES, tiny.ENCODER, adapter=ADAPTER)
    step = make_train_step(model, OPTIMIZER, blank_id=0, seed=0, max_tasks=MAX_TASKS)
    return jax.jit(make_host_rows_step(step) if kind == "host" else step)


def weights(tasks: int = tiny.TASKS):
    return tiny.random_trainable(ADAPTER, tasks=tasks)


def device_bank():
    state = train_state.create(jax.tree.map(jnp.asarray, weights()), OPTIMIZER)
    return state, task_bank.DeviceBank(compiled("device"), hyper=HYPER, draw=lambda: weights()["tasks"])


def host_bank(tasks: int = tiny.TASKS, grown: bool = False):
    """With `grown` the first rows are those of the usual bank, and others stand after them."""
    tree = weights()
    bank = tree["tasks"]
    if grown:
        bank = jax.tree.map(lambda leaf: np.concatenate([leaf, *[leaf] * (tasks // len(leaf))])[:tasks], bank)
    state = train_state.create({"shared": jax.tree.map(jnp.asarray, tree["shared"])}, OPTIMIZER)
    place = functools.partial(jax.tree.map, jnp.asarray)
    return state, task_bank.HostBank(
        compiled("host"),
        jax.tree.map(np.array, bank),
        hyper=HYPER,
        max_tasks=MAX_TASKS,
        place=place,
        draw=lambda: jax.tree.map(np.array, bank),
    )


def train(state, bank, tasks=STEPS):
    losses = []
    for number, row in enumerate(tasks):
        batch = tiny.random_batch([240, 133, 200, 90], size=240, tasks=row, labels=2, seed=number)
        present = sorted({task for task in row if task >= 0})
        state, metrics = bank.step(state, backbone(), batch, present)
        losses.append(float(metrics["loss"]))
    return state, losses


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_a_bank_on_the_host_trains_as_one_on_the_device():
    (device_state, device), (host_state, host) = device_bank(), host_bank()
    device_state, expected = train(device_state, device)
    host_state, losses = train(host_state, host)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    everything = np.arange(tiny.TASKS)
    assert_close(host.rows(host_state, everything), device.rows(device_state, everything), atol=1e-6)
    assert_close(host_state.trainable["shared"], device_state.trainable["shared"], atol=1e-6)
    counts = host.rows(host_state, everything)["count"]
    assert counts.tolist() == [sum(row in step for step in STEPS) for row in everything]
    assert host.changed(host_state)[0].tolist() == device.changed(device_state)[0].tolist() == list(everything)
    expected = [sum(task in row for row in STEPS) for task in range(tiny.TASKS)]
    assert device.counts(device_state).tolist() == host.counts(host_state).tolist() == expected


def test_a_host_bank_of_many_tasks_trains_its_rows_bit_for_bit_as_a_small_one():
    (small_state, small), (large_state, large) = host_bank(), host_bank(2000, grown=True)
    before = large.rows(large_state, np.arange(2000))
    small_state, _ = train(small_state, small)
    large_state, _ = train(large_state, large)
    ids = np.arange(tiny.TASKS)
    jax.tree.map(np.testing.assert_array_equal, small.rows(small_state, ids), large.rows(large_state, ids))
    others = np.arange(tiny.TASKS, 2000)
    untouched = jax.tree.map(lambda leaf: leaf[others], before)
    jax.tree.map(np.testing.assert_array_equal, large.rows(large_state, others), untouched)


@pytest.mark.parametrize("make", [device_bank, host_bank])
def test_rows_put_back_go_on_as_if_nothing_had_happened(make):
    state, bank = make()
    state, _ = train(state, bank, STEPS[:3])
    ids, rows = bank.changed(state)
    assert ids.tolist() == [0, 1, 3, 4]
    kept = train_state.without_bank(state)
    state, expected = train(state, bank, STEPS[3:])
    end = bank.rows(state, np.arange(tiny.TASKS))

    again = bank.put(bank.restart(kept, state), ids, rows)
    again, losses = train(again, bank, STEPS[3:])
    assert losses == expected
    jax.tree.map(np.testing.assert_array_equal, bank.rows(again, np.arange(tiny.TASKS)), end)


@pytest.mark.parametrize("make", [device_bank, host_bank])
def test_the_mean_is_that_of_the_tasks_without_the_spare_rows(make):
    state, bank = make()
    state, _ = train(state, bank, STEPS[:2])
    rows = bank.rows(state, np.arange(3))["tasks"]
    assert_close(bank.mean(state, 3), jax.tree.map(lambda leaf: leaf.mean(axis=0), rows), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(bank.weights(state, [2, 0])), rows_at(rows, [2, 0]))


@pytest.mark.parametrize("kind", [*task_bank.BANKS.values(), task_bank.NoBank])
def test_every_kind_of_bank_has_all_that_callers_use(kind):
    assert issubclass(kind, task_bank.TaskBank) and not kind.__abstractmethods__


def test_a_run_that_trains_the_backbone_has_a_bank_without_rows():
    def step(state, frozen, batch, hyper):
        return state.replace(step=state.step + 1), {"loss": batch["loss"], "seed": hyper["seed"]}

    state = train_state.create({"backbone": {"kernel": jnp.ones((2, 2))}}, OPTIMIZER)
    bank = task_bank.NoBank(step, hyper=HYPER)
    state, metrics = bank.step(state, None, {"loss": 2.0}, [])
    assert int(state.step) == 1 and metrics == {"loss": 2.0, "seed": 5}
    assert bank.changed(state)[0].tolist() == [] and bank.rows(state, [])["count"].shape == (0,)
    assert bank.weights(state, ()) == bank.mean(state, 0) == {}
    assert bank.put(state, [], {}) is bank.restart(state, state) is bank.as_stepped(state) is state
    bank.touch([])
    for refused in (lambda: bank.touch([1]), lambda: bank.rows(state, [0]), lambda: bank.put(state, [2], {})):
        with pytest.raises(ValueError, match="has no task rows"):
            refused()


def rows_at(rows, ids):
    return jax.tree.map(lambda leaf: leaf[np.array(ids)], rows)


def test_a_task_that_did_not_come_along_is_counted_and_trains_nothing():
    state, bank = host_bank()
    batch = tiny.random_batch([240, 133, 200, 90], size=240, tasks=[3, 1, 0, 9], labels=2)
    _, metrics = bank.step(state, backbone(), batch, [0, 3])
    assert metrics[LOST] == 2 and metrics["utterances"] == 2


def test_the_newest_of_two_sets_of_rows_wins_and_empty_slots_match_nothing():
    none = task_rows.NO_ROW
    incoming = {"ids": np.array([1, 4, none], np.int32), "rows": np.array([[1.0], [4.0], [0.0]], np.float32)}
    resident = {"ids": np.array([0, 4, none], np.int32), "rows": np.array([[10.0], [40.0], [99.0]], np.float32)}
    np.testing.assert_array_equal(task_rows.newest(incoming, resident), [[1.0], [40.0], [0.0]])


def test_best_rows_hold_each_task_as_it_was_when_it_was_put():
    state, bank = device_bank()
    best = BestRows()
    first = bank.rows(state, [1, 3])["tasks"]
    best.put([1, 3], first)
    state, _ = train(state, bank)
    later = bank.rows(state, [3, 4])["tasks"]
    best.put([3], rows_at(later, [0]))
    ids, rows = best.changed()
    assert ids.tolist() == [1, 3]
    jax.tree.map(np.testing.assert_array_equal, rows_at(rows, [0]), rows_at(first, [0]))
    jax.tree.map(np.testing.assert_array_equal, rows_at(rows, [1]), rows_at(later, [0]))
    before = bank.rows(state, np.arange(tiny.TASKS))
    state = best.onto(bank, state)
    after = bank.rows(state, np.arange(tiny.TASKS))
    jax.tree.map(np.testing.assert_array_equal, rows_at(after["tasks"], [1]), rows_at(first, [0]))
    for part in ("mu", "nu"):
        jax.tree.map(np.testing.assert_array_equal, after[part], before[part])
    unmoved = [0, 2, 4]
    jax.tree.map(np.testing.assert_array_equal, rows_at(after, unmoved), rows_at(before, unmoved))
