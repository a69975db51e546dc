"""The task bank: which rows a step touches, and that no other row is ever read or written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from hra_jax.adapters import base, task_rows

TASKS = 9


def random_bank(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((TASKS, 3, 2)).astype(np.float32),
        "b": {"c": rng.standard_normal((TASKS,)).astype(np.float32)},
    }


active_rows = jax.jit(task_rows.active_rows, static_argnums=(1, 2))


@pytest.mark.parametrize(
    "task", [[3, 3, 3], [8, 0, 4, -1, 4], [-1, -1], [0], [-1, 8], [7, 6, 5, 4, 3, 2], [TASKS, 2], [TASKS + 5, -7, 1]]
)
@pytest.mark.parametrize("size", [6, 20])
def test_active_rows_are_the_distinct_tasks_and_each_utterance_finds_its_own(task, size):
    task = task + [task_rows.NO_TASK] * (6 - len(task))
    ids, index = (np.asarray(x) for x in active_rows(np.array(task, np.int32), size, TASKS))
    present = sorted({t for t in task if 0 <= t < TASKS})
    assert ids.shape == (size,) and ids.dtype == index.dtype == np.int32
    assert ids[: len(present)].tolist() == present
    assert (ids[len(present) :] >= TASKS).all()
    for utterance, number in enumerate(task):
        if 0 <= number < TASKS:
            assert ids[index[utterance]] == number
        else:
            assert index[utterance] >= size or ids[index[utterance]] >= TASKS


def test_gathering_reads_exactly_the_rows_and_zeros_where_there_is_none():
    tree = random_bank()
    ids = np.array([2, 8, TASKS, TASKS + 4], np.int32)
    rows = task_rows.gather(tree, ids)
    for leaf, row in zip(jax.tree.leaves(tree), jax.tree.leaves(rows), strict=True):
        np.testing.assert_array_equal(row[:2], leaf[[2, 8]])
        assert not np.asarray(row[2:]).any()


def test_scattering_writes_exactly_the_rows():
    tree, new = (jax.tree.map(jnp.asarray, random_bank(seed)) for seed in (0, 1))
    ids = np.array([7, 1, TASKS, TASKS, TASKS + 4], np.int32)
    out = task_rows.scatter(tree, ids, jax.tree.map(lambda leaf: leaf[:5], new))
    for before, source, after in zip(*map(jax.tree.leaves, (tree, new, out)), strict=True):
        np.testing.assert_array_equal(after[7], source[0])
        np.testing.assert_array_equal(after[1], source[1])
        rest = [row for row in range(TASKS) if row not in (1, 7)]
        np.testing.assert_array_equal(np.asarray(after)[rest], np.asarray(before)[rest])


def test_binding_gives_each_utterance_its_row_and_layers_their_axis_first():
    rows = {
        "all_layers": {"head": np.arange(12, dtype=np.float32).reshape(3, 4)},
        "per_layer": {"gain": np.arange(30, dtype=np.float32).reshape(3, 5, 2)},
    }
    shared = {"all_layers": {"x": np.ones(2)}, "per_layer": {"y": np.ones((5, 1))}}
    bound = base.bind(
        base.Adapter(), dataclasses.replace(tiny.ENCODER, n_layers=5), shared, rows, jnp.array([2, 3, 0, 7])
    )
    np.testing.assert_array_equal(bound.all_layers["active"], [True, False, True, False])
    taken, own = bound.all_layers["rows"]["head"], bound.per_layer["rows"]["gain"]
    assert own.shape == (5, 4, 2)
    for utterance, row in enumerate([2, None, 0, None]):
        expected = [0.0] * 4 if row is None else rows["all_layers"]["head"][row]
        np.testing.assert_array_equal(taken[utterance], expected)
        expected = np.zeros((5, 2)) if row is None else rows["per_layer"]["gain"][row]
        np.testing.assert_array_equal(own[:, utterance], expected)
    assert bound.all_layers["shared"] is shared["all_layers"] and bound.per_layer["shared"] is shared["per_layer"]


def test_a_new_row_does_not_depend_on_how_many_rows_there_are():
    few, many = (
        task_rows.init_rows(tiny.ADAPTERS["ffn"], jax.random.key(0), tiny.ENCODER, jnp.arange(n)) for n in (2, 7)
    )
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b[:2])
    hidden = np.asarray(many["all_layers"]["head"]["hidden_kernel"])
    assert all((hidden[i] != hidden[j]).any() for i in range(7) for j in range(i))
