"""AdamW on rows: equal to dense AdamW where a row is always present, and nothing at all where it is absent."""

import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
from reference import tiny

from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.training.optimizer import (
    SCHEDULES,
    OptimizerConfig,
    decay_mask,
    dense,
    init_rows,
    jump,
    learning_rate,
    row_norms,
    update_rows,
)

TASKS, STEPS = 6, 12
# The fifth step's gradients are large: clipping acts there and not in all steps.
SCALES = [0.1, 0.2, 0.05, 0.3, 9.0, 0.1, 2.0, 0.4, 0.1, 0.1, 5.0, 0.2]
CONFIG = OptimizerConfig(
    steps=STEPS, learning_rate=0.03, warmup_steps=4, final_fraction=0.1, weight_decay=0.2, clip=1.0
)


def random_tree(rows, seed):
    """Leaves of several ranks, decayed (kernel) and not (bias, recurrent)."""
    rng = np.random.default_rng(seed)
    shapes = {"head": {"kernel": (3, 4), "bias": (4,), "recurrent": ()}, "other": {"hidden_kernel": (2,)}}
    return jax.tree.map(
        lambda shape: rng.standard_normal((rows, *shape)).astype(np.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )


def row(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@functools.partial(jax.jit, static_argnames="config")
def update(grads, ids, state, tasks, step, *, config=CONFIG):
    return update_rows(grads, ids, state=state, tasks=tasks, step=step, config=config)


def gradients(step, rows):
    """Gradients `[K, ...]` of the rows, each a function of (step, row) alone."""
    trees = [jax.tree.map(lambda g: SCALES[step] * g[0], random_tree(1, seed=1000 * step + int(r))) for r in rows]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def run(schedule, *, config=CONFIG):
    """The bank and its state after steps with the rows of `schedule`, a list of lists of ids."""
    tasks = random_tree(TASKS, seed=0)
    state = init_rows(tasks)
    for step, rows in enumerate(schedule):
        ids = np.array(rows, np.int32)
        tasks, state = update(gradients(step, rows), ids, state, tasks, step, config=config)
    return jax.device_get((tasks, state))


def dense_reference(index, *, config=CONFIG, steps=STEPS):
    """One row under optax: its own clipping, and AdamW with the package's schedule and decay mask."""
    mask = {"head": {"kernel": True, "bias": False, "recurrent": False}, "other": {"hidden_kernel": True}}
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=mask,
        ),
    )
    params, move = row(random_tree(TASKS, seed=0), index), jax.jit(transform.update)
    state = transform.init(params)
    for step in range(steps):
        moves, state = move(row(gradients(step, [index]), 0), state, params)
        params = optax.apply_updates(params, moves)
    return params


@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipped", "unclipped"])
def test_a_row_present_at_every_step_equals_dense_adamw(clip):
    config = dataclasses.replace(CONFIG, clip=clip)
    # Rows 1 and 4 are always there, in changing slots among changing others.
    schedule = [[1, 4, TASKS, TASKS], [0, 1, 2, 4], [1, 3, 4, 5]] * (STEPS // 3)
    tasks, state = run(schedule, config=config)
    for index in (1, 4):
        expected = dense_reference(index, config=config)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6), row(tasks, index), expected)
    assert state["count"].tolist() == [4, 12, 4, 4, 12, 4]


def test_each_row_counts_its_own_steps_and_the_rate_follows_the_global_step():
    tasks, _ = run([[0], [1], [0], [1], [1]])
    params, mu, nu = (
        row(random_tree(TASKS, seed=0), 1),
        *(jax.tree.map(np.zeros_like, row(random_tree(1, 0), 0)),) * 2,
    )
    kernel, m, n = params["head"]["kernel"].astype(np.float64), mu["head"]["kernel"] * 1.0, nu["head"]["kernel"] * 1.0
    for count, step in enumerate([1, 3, 4], start=1):
        grads = row(gradients(step, [1]), 0)
        norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
        g = grads["head"]["kernel"] * min(1.0, 1.0 / norm)
        m, n = 0.9 * m + 0.1 * g, 0.98 * n + 0.02 * g**2
        rate = float(learning_rate(CONFIG)(step))
        move = m / (1 - 0.9**count) / (np.sqrt(n / (1 - 0.98**count)) + 1e-8)
        kernel = kernel - rate * (move + 0.2 * kernel)
    np.testing.assert_allclose(row(tasks, 1)["head"]["kernel"], kernel, rtol=1e-5, atol=1e-6)


def test_an_absent_row_keeps_every_byte_of_weights_moments_and_count():
    schedule = [[0, 2, 5, TASKS], [2, 3, 5, TASKS + 3], [0, 3, 5, TASKS]]
    before_tasks, before = run(schedule)
    after_tasks, after = run([*schedule, [0, 5, TASKS, TASKS]])
    for kept in (1, 2, 3, 4):
        old, new = (row(tree, kept) for tree in ((before_tasks, before), (after_tasks, after)))
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(*(np.atleast_1d(x).view(np.uint8) for x in (a, b))), old, new
        )
    # A row that was never present has never moved.
    for never in (1, 4):
        jax.tree.map(np.testing.assert_array_equal, row(after_tasks, never), row(random_tree(TASKS, 0), never))
        assert not any(leaf[never].any() for leaf in jax.tree.leaves(after))
    assert (row(before_tasks, 5)["head"]["kernel"] != row(after_tasks, 5)["head"]["kernel"]).all()


def test_a_rows_update_does_not_depend_on_its_neighbours():
    # Neighbours of any number, slot and gradient; row 3 has the same bits in the end.
    none = TASKS
    companies = [
        [[3, none, none, none]] * 4,
        [[0, 3, 4, none]] * 4,
        [[1, 3, none, none], [2, 3, 4, 5], [0, 1, 2, 3], [3, 5, none, none]],
    ]
    results = [row(run(company), 3) for company in companies]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_a_slots_gradient_that_is_not_finite_reaches_no_other_row():
    tasks = random_tree(TASKS, seed=0)
    state = init_rows(tasks)
    grads = gradients(0, [2, 4])
    dirty = jax.tree.map(lambda leaf: np.concatenate([leaf, np.full_like(leaf[:1], np.nan)]), grads)
    clean, _ = update(grads, np.array([2, 4], np.int32), state, tasks, 0)
    out, out_state = update(dirty, np.array([2, 4, TASKS], np.int32), state, tasks, 0)
    jax.tree.map(np.testing.assert_array_equal, clean, out)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out_state))


def test_a_row_is_clipped_by_its_own_norm_alone():
    config = dataclasses.replace(CONFIG, clip=0.5)
    tasks = random_tree(TASKS, seed=0)
    grads = jax.tree.map(lambda g: np.stack([g[0] * 1e-3, g[1] * 1e3, g[2] * 0]), random_tree(3, seed=5))
    _, state = update(grads, np.array([0, 1, 2], np.int32), init_rows(tasks), tasks, 0, config=config)
    norms = row_norms(grads)
    for slot in range(3):
        own = math.sqrt(sum(float((leaf[slot].astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(grads)))
        np.testing.assert_allclose(norms[slot], own, rtol=1e-5)
        factor = min(1.0, 0.5 / own) if own else 1.0
        for moment, gradient in zip(*map(jax.tree.leaves, (state["mu"], grads)), strict=True):
            np.testing.assert_allclose(moment[slot], 0.1 * factor * gradient[slot], rtol=1e-5)


def test_the_schedule_warms_up_then_falls_as_a_cosine_to_its_last_step():
    config = OptimizerConfig(steps=50, learning_rate=2.0, warmup_steps=10, final_fraction=0.25)
    schedule = learning_rate(config)
    for step in range(50):
        if step < 10:
            expected = 2.0 * (step + 1) / 10
        else:
            fraction = (step - 9) / 40
            expected = 2.0 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * fraction)))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)
    np.testing.assert_allclose(schedule(49), 0.5, rtol=1e-5)
    np.testing.assert_allclose(schedule(500), 0.5, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 3, 10, 99])
def test_every_warm_up_starts_above_zero_and_reaches_the_peak(warmup):
    config = OptimizerConfig(steps=10, learning_rate=1.0, warmup_steps=warmup, schedule="constant")
    rates = [float(learning_rate(config)(step)) for step in range(10)]
    length = max(1, min(warmup, 10))
    expected = [min(1.0, (step + 1) / length) for step in range(10)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_weight_decay_reaches_projections_and_no_bias_norm_statistic_or_recurrence():
    encoder = dataclasses.replace(tiny.ENCODER, position="xl", conv_norm="batch", final_norm=True)
    params = tiny.random_params(tiny.FEATURES, encoder)
    adapter = {"shared": tiny.new_trainable(tiny.ADAPTERS["ffn"])["shared"]}
    heads = {name: {"tasks": tiny.new_trainable(adapter)["tasks"]} for name, adapter in tiny.ADAPTERS.items()}
    for tree in (params, adapter, *heads.values()):
        for name, decayed in backbone_folder.flatten(decay_mask(tree), separator=".").items():
            assert decayed == name.endswith("kernel"), name


def test_the_dense_optimizer_clips_by_the_norm_of_its_whole_tree():
    config = dataclasses.replace(CONFIG, weight_decay=0.0, b1=0.0, b2=0.0, eps=1e3)  # the move follows the gradient
    params = row(random_tree(1, seed=0), 0)
    grads = jax.tree.map(lambda leaf: 100 * leaf, row(random_tree(1, seed=1), 0))
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    transform = dense(dataclasses.replace(config, clip=2.0))
    moves, _ = transform.update(grads, transform.init(params), params)
    rate = float(learning_rate(config)(0))
    clipped = jax.tree.map(lambda g: g * 2.0 / norm, grads)
    expected = jax.tree.map(lambda g: -rate * g / (np.abs(g) + 1e3), clipped)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-9), moves, expected)
    unclipped = dense(dataclasses.replace(config, clip=0.0))
    free, _ = unclipped.update(grads, unclipped.init(params), params)
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(m, -rate * g / (np.abs(g) + 1e3), rtol=1e-4, atol=1e-9), free, grads
    )


def test_a_schedule_of_the_table_is_one_that_a_configuration_can_name(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "line", lambda peak, steps, final: optax.linear_schedule(peak, final * peak, steps))
    config = OptimizerConfig(steps=11, learning_rate=2.0, warmup_steps=1, schedule="line", final_fraction=0.5)
    np.testing.assert_allclose([learning_rate(config)(step) for step in (0, 5, 10)], [2.0, 1.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(learning_rate(config, peak=4.0)(10), 2.0, rtol=1e-6)


def test_an_unknown_schedule_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="optimizer.schedule = 'linear': allowed: 'cosine', 'constant'"):
        OptimizerConfig(steps=10, schedule="linear")


def test_more_steps_after_the_end_of_a_schedule_change_the_learning_rate_and_nothing_else_does():
    before, after = jump(dataclasses.replace(CONFIG, steps=2 * STEPS), STEPS, step=STEPS)
    assert before == pytest.approx(0.1 * 0.03) and after > 5 * before
    assert jump(CONFIG, STEPS, step=5) is None
    assert jump(dataclasses.replace(CONFIG, schedule="constant", steps=2 * STEPS), STEPS, step=STEPS) is None
