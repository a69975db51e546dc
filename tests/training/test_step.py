"""The train and evaluation steps: what moves, what must not, and that parts and devices add up to the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference import tiny

from hra_jax.adapters.methods import METHODS
from hra_jax.errors import UserError
from hra_jax.models.asr import AsrModel
from hra_jax.models.augmentation import NO_AUGMENTATION
from hra_jax.training import train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import LOST, SKIPPED, _gradients, make_evaluation_step, make_train_step

ENCODER = dataclasses.replace(tiny.ENCODER, n_layers=2)
# A large eps: a first move is then a smooth function of the gradient and not its sign, so that trees can be compared.
OPTIMIZER = OptimizerConfig(steps=10, learning_rate=0.01, warmup_steps=1, schedule="constant", eps=0.1, clip=5.0)
SAMPLES = [240, 133, 64, 200, 240, 90, 170, 40]
TASKS = [3, -1, 0, 3, 4, 0, -1, 3]


def model_of(method="adapter", *, head="linear", augment=NO_AUGMENTATION, constrain=lambda x: x):
    adapter = {"adapter": tiny.ADAPTERS[head]} if method == "adapter" else {}
    return AsrModel(tiny.FEATURES, ENCODER, augment=augment, constrain=constrain, **adapter)


@functools.lru_cache(maxsize=16)
def compiled_step(method="adapter", accumulate=1, augment=NO_AUGMENTATION, config=OPTIMIZER, max_tasks=6):
    model = model_of(method, augment=augment)
    return jax.jit(make_train_step(model, config, blank_id=0, seed=5, max_tasks=max_tasks, accumulate=accumulate))


@functools.lru_cache(maxsize=1)
def compiled_evaluation():
    """All tests that use it are marked `optimised`: adapter and base are one function only then, to the last bit."""
    return jax.jit(make_evaluation_step(model_of(), blank_id=0))


@functools.lru_cache(maxsize=1)
def backbone():
    return tiny.random_params(tiny.FEATURES, ENCODER)


def adapter_state(seed=1):
    trainable = jax.tree.map(jnp.asarray, tiny.random_trainable(tiny.ADAPTERS["linear"], ENCODER, seed=seed))
    return train_state.create(trainable, OPTIMIZER)


def batch_of(tasks=TASKS, seed=2):
    """Eight utterances; `utterance` says which of a table they are."""
    return tiny.random_batch(SAMPLES, size=240, tasks=tasks, labels=2, seed=seed)


def chosen(mask, a, b):
    """Rows of batch `a` where the mask says so, of `b` elsewhere."""
    return {name: np.where(mask.reshape(-1, *(1,) * (a[name].ndim - 1)), a[name], b[name]) for name in a}


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def assert_same_bytes(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def rows(tree, ids):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[np.asarray(ids)], tree)


def moved(before, after):
    """Whether each row of a bank has changed anywhere."""
    changes = [
        (np.asarray(a) != np.asarray(b)).reshape(len(a), -1).any(axis=1)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    return np.any(changes, axis=0)


def test_frozen_weights_keep_every_byte_and_only_trainable_leaves_move():
    frozen = jax.tree.map(jnp.asarray, backbone())
    state = adapter_state()
    for number in range(3):
        before = state
        state, metrics = compiled_step()(state, frozen, batch_of(seed=number))
        assert np.isfinite(metrics["loss"]) and metrics["controller_gradient_norm"] > 0
    assert_same_bytes(frozen, backbone())
    assert int(state.step) == 3
    assert jax.tree.structure(state) == jax.tree.structure(before)
    everything = jax.tree.leaves((before.trainable, state.trainable))
    assert len(everything) == 2 * (3 + 2)  # controller kernel, recurrent, bias; head kernel, bias
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(everything[:5], everything[5:], strict=True))


@pytest.mark.parametrize(("method", "accumulate"), [("adapter", 1), ("adapter", 2), ("full", 1)])
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_nothing_but_its_number(method, accumulate):
    frozen = None
    if method == "adapter":
        state, frozen = adapter_state(), backbone()
    else:
        state = train_state.create({"backbone": jax.tree.map(jnp.asarray, backbone())}, OPTIMIZER)
    step = compiled_step(method, accumulate)
    state, metrics = step(state, frozen, batch_of(seed=1))
    assert metrics[SKIPPED] == 0 and int(state.step) == 1
    for damage in (np.nan, np.inf):
        batch = batch_of(seed=2)
        batch["waveform"][3, 5] = damage
        after, metrics = step(state, frozen, batch)
        assert metrics[SKIPPED] == 1 and not np.isfinite(metrics["loss"])
        assert_same_bytes((after.trainable, after.optimizer), (state.trainable, state.optimizer))
        assert int(after.step) == 2
    # The next one moves as if there had been none in between, but for its number.
    expected, _ = step(state.replace(step=jnp.int32(2)), frozen, batch_of(seed=3))
    found, metrics = step(after, frozen, batch_of(seed=3))
    assert metrics[SKIPPED] == 0
    assert_same_bytes(found, expected)


def test_the_gradient_tree_has_only_trainable_leaves():
    """Nothing that the step computes for the optimizer has the size of the frozen weights."""
    model, batch = model_of(), batch_of()
    learned = {"shared": adapter_state().trainable["shared"], "rows": adapter_state().trainable["tasks"]}
    _, _, _, grads = jax.eval_shape(
        lambda learned: _gradients(model, learned, backbone(), None, batch["task"], batch, 0, {"seed": 0}, 0, 1),
        learned,
    )
    assert jax.tree.structure(grads) == jax.tree.structure(learned)
    assert train_state.count(grads) == train_state.count(learned)
    state = adapter_state()
    # Two moments per trained number, and counts; nothing for the backbone.
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.dtype == jnp.float32)
    assert kept == 2 * train_state.count(state.trainable)


def test_only_the_rows_of_the_tasks_present_move():
    state = adapter_state()
    after, metrics = compiled_step()(state, backbone(), batch_of())
    present = np.isin(np.arange(tiny.TASKS), [0, 3, 4])
    np.testing.assert_array_equal(moved(state.trainable["tasks"], after.trainable["tasks"]), present)
    np.testing.assert_array_equal(after.optimizer["tasks"]["count"], present.astype(int))
    for moment in ("mu", "nu"):
        np.testing.assert_array_equal(
            moved(state.optimizer["tasks"][moment], after.optimizer["tasks"][moment]), present
        )
    assert metrics["tasks_present"] == 3 and metrics["utterances"] == 8 and metrics[LOST] == 0


def test_a_batch_of_base_and_unknown_tasks_moves_no_row_and_no_controller_by_gradient():
    state = adapter_state()
    after, metrics = compiled_step()(state, backbone(), batch_of([-1, 5, -1, 99, -1, -7, -1, 10**9]))
    assert not moved(state.trainable["tasks"], after.trainable["tasks"]).any()
    assert not np.asarray(after.optimizer["tasks"]["count"]).any()
    assert metrics["controller_gradient_norm"] == 0 and metrics["tasks_present"] == 0
    assert metrics[LOST] == 4 and metrics["utterances"] == 4


def test_utterances_of_more_tasks_than_a_step_may_touch_are_counted_and_train_nothing():
    state, batch = adapter_state(), batch_of()
    after, metrics = compiled_step(max_tasks=2)(state, backbone(), batch)
    assert metrics[LOST] == 1 and metrics["utterances"] == 7  # tasks 0 and 3 fit, 4 does not
    batch["weight"] = np.where(np.array(TASKS) == 4, 0, batch["weight"]).astype(np.float32)
    expected, counted = compiled_step(max_tasks=2)(state, backbone(), batch)
    assert counted[LOST] == 0
    assert_same_bytes(after, expected)


def test_a_rows_update_does_not_depend_on_the_other_tasks_in_the_batch():
    state = adapter_state()
    batch, other = batch_of(), batch_of([3, 1, 2, 3, -1, 1, 2, 3], seed=9)
    mine = np.array(TASKS) == 3
    other = chosen(mine, batch, other)
    first, _ = compiled_step()(state, backbone(), batch)
    second, _ = compiled_step()(state, backbone(), other)
    own = [rows((s.trainable["tasks"], s.optimizer["tasks"]), [3]) for s in (first, second)]
    assert_close(*own, atol=1e-7)
    assert moved(first.trainable["tasks"], second.trainable["tasks"]).tolist() == [True, True, True, False, True]


@pytest.mark.optimised
def test_rows_without_weight_change_nothing():
    state, batch = adapter_state(), batch_of()
    weight = np.array([1, 0, 1, 1, 0, 1, 0, 0], np.float32)
    batch["weight"] = weight
    expected = compiled_step()(state, backbone(), batch)
    assert expected[1]["utterances"] == 4 and expected[1]["infeasible"] == 0 and expected[1]["tasks_present"] == 2
    for seed, filler in [(3, 0.0), (4, 1e4), (5, np.nan)]:
        other = batch_of([1, 2, 4, 1, 2, 4, 1, 2], seed=seed)
        other["waveform"][:] += filler
        other["labels"][:] = 3
        other["weight"] = weight
        mixed = chosen(weight > 0, batch, other)
        assert_same_bytes(compiled_step()(state, backbone(), mixed), expected)
    # The mean is over the utterances that count.
    losses = np.asarray(compiled_evaluation()(state.trainable, backbone(), batch)["loss"])
    np.testing.assert_allclose(expected[1]["loss"], losses[weight > 0].mean(), rtol=1e-6)


def test_a_batch_without_any_utterance_gives_zero_loss_and_no_nan():
    state, batch = adapter_state(), batch_of()
    batch["weight"][:] = 0
    after, metrics = compiled_step()(state, backbone(), batch)
    assert metrics["loss"] == 0 and metrics["utterances"] == 0 and metrics["tasks_present"] == 0
    assert_same_bytes(after.trainable["tasks"], state.trainable["tasks"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_infeasible_utterances_are_counted_and_leave_the_mean_alone():
    state, batch = adapter_state(), batch_of()
    batch["labels"] = np.ones_like(batch["labels"])
    batch["label_lengths"][:] = [2, 2, 2, 2, 2, 2, 2, 2]  # two equal labels need three frames
    batch["num_samples"][[2, 7]] = [40, 20]  # two frames, and one
    _, metrics = compiled_step()(state, backbone(), batch)
    assert metrics["infeasible"] == 2 and metrics["utterances"] == 6
    batch["weight"][[2, 7]] = 0
    _, without = compiled_step()(state, backbone(), batch)
    np.testing.assert_allclose(metrics["loss"], without["loss"], rtol=1e-6)
    assert without["infeasible"] == 0


def test_gradient_accumulation_equals_one_big_batch():
    state, batch = adapter_state(), batch_of()
    batch["weight"][[1, 4]] = 0  # unequal parts
    batch["labels"][2], batch["label_lengths"][2], batch["num_samples"][2] = 1, 2, 40  # infeasible
    whole, metrics = compiled_step()(state, backbone(), batch)
    parts, part_metrics = compiled_step(accumulate=2)(state, backbone(), batch)
    for name in metrics:
        np.testing.assert_allclose(part_metrics[name], metrics[name], rtol=1e-5)
    assert metrics["utterances"] == 5 and metrics["infeasible"] == 1
    assert_close(parts.trainable, whole.trainable, atol=2e-6)
    leaves = zip(*map(jax.tree.leaves, (whole.trainable, state.trainable)), strict=True)
    assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3 for a, b in leaves)


def test_a_batch_that_accumulate_does_not_divide_is_an_error():
    step = make_train_step(model_of(), OPTIMIZER, blank_id=0, seed=0, max_tasks=6, accumulate=3)
    with pytest.raises(UserError, match="accumulate = 3: must divide the batch of 8 rows"):
        jax.eval_shape(step, adapter_state(), backbone(), batch_of())


def test_full_fine_tuning_starts_at_the_base_as_a_new_adapter_does_and_moves_every_weight():
    new = train_state.create(tiny.new_trainable(tiny.ADAPTERS["linear"], ENCODER), OPTIMIZER)
    full = train_state.create({"backbone": jax.tree.map(jnp.asarray, backbone())}, OPTIMIZER)
    _, adapter_metrics = compiled_step()(new, backbone(), batch_of())
    after, metrics = compiled_step("full")(full, None, batch_of())
    np.testing.assert_allclose(metrics["loss"], adapter_metrics["loss"], rtol=1e-6)
    for before, leaf in zip(*map(jax.tree.leaves, (full.trainable, after.trainable)), strict=True):
        assert (np.asarray(before) != np.asarray(leaf)).any()
    _, later = compiled_step("full")(after, None, batch_of())
    assert later["loss"] < metrics["loss"]


def test_full_fine_tuning_moves_every_weight_but_the_stored_statistics():
    encoder = dataclasses.replace(ENCODER, conv_norm="batch", position="shaw", shaw_left=4, shaw_right=3)
    model = AsrModel(tiny.FEATURES, encoder)
    config = dataclasses.replace(OPTIMIZER, weight_decay=0.5)
    step = jax.jit(make_train_step(model, config, blank_id=0, seed=5))
    start = train_state.create({"backbone": tiny.random_params(tiny.FEATURES, encoder)}, config)
    state = start
    for number in range(2):
        state, metrics = step(state, None, batch_of(seed=number))
        assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    kept, before = set(), jax.tree_util.tree_leaves_with_path(start.trainable)
    for (path, old), new in zip(before, jax.tree.leaves(state.trainable), strict=True):
        if np.asarray(old).tobytes() == np.asarray(new).tobytes():
            kept.add("/".join(key.key for key in path[-2:]))
    # Without a rotation the bias of keys shifts all logits of a query alike: its gradient is rounding, or none at all.
    assert kept - {"key/bias"} == {"depthwise_norm/mean", "depthwise_norm/variance"}
    # Nor are they counted or listed among what is trained.
    parameters, statistics = train_state.count(start.trainable), 2 * encoder.n_layers * encoder.d_model
    assert train_state.accounting(start.trainable, 1, parameters)["trainable_parameters"] == parameters - statistics
    names = [line.split()[0] for line in train_state.describe(start.trainable, most=1000)]
    assert len(names) == len(before) - 2 and not [name for name in names if name.endswith(("mean", "variance"))]


def test_randomness_is_decided_by_seed_and_step():
    augment = dataclasses.replace(NO_AUGMENTATION, noise_probability=1.0, time_masks=1, freq_masks=1)
    step, batch = compiled_step(augment=augment), batch_of()
    state = adapter_state()
    once, again = (step(state, backbone(), batch) for _ in range(2))
    assert_same_bytes(once, again)
    later = step(state.replace(step=state.step + 1), backbone(), batch)
    assert float(later[1]["loss"]) != float(once[1]["loss"])
    _, clean = compiled_step()(state, backbone(), batch)
    assert float(clean["loss"]) != float(once[1]["loss"])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 fake devices (XLA_FLAGS of tests/conftest.py)")
def test_data_parallel_training_on_eight_devices_equals_one_device():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, copied = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    model = model_of(constrain=lambda x: jax.lax.with_sharding_constraint(x, split))
    step = jax.jit(make_train_step(model, OPTIMIZER, blank_id=0, seed=5, max_tasks=6), out_shardings=copied)
    state = jax.device_put(adapter_state(), copied)
    frozen = jax.device_put(backbone(), copied)
    batch = jax.device_put(batch_of(), split)
    compiled = step.lower(state, frozen, batch).compile()
    text = compiled.as_text()
    # Each device works on its own utterance: no buffer holds the whole batch's sound or features; sums cross devices.
    assert "all-reduce" in text and "f32[1,12,16]" in text
    assert "f32[8,240]" not in text and "f32[8,12,16]" not in text
    one_state, one_batch = adapter_state(), batch_of()
    for number in range(3):
        state, metrics = compiled(state, frozen, batch)
        one_state, one_metrics = compiled_step()(one_state, backbone(), one_batch)
        np.testing.assert_allclose(metrics["loss"], one_metrics["loss"], rtol=1e-5 if number == 0 else 1e-4)
        assert metrics["utterances"] == one_metrics["utterances"]
    assert_close(state.trainable, one_state.trainable, atol=1e-5)
    np.testing.assert_array_equal(state.optimizer["tasks"]["count"], one_state.optimizer["tasks"]["count"])


@pytest.mark.optimised
def test_evaluation_runs_the_adapter_and_the_base_and_tells_them_apart():
    evaluate = compiled_evaluation()
    batch = batch_of([3, -1, 0, 3, 4, 77, 2, 1])
    new = tiny.new_trainable(tiny.ADAPTERS["linear"], ENCODER)
    out = evaluate(new, backbone(), batch)
    assert not np.asarray(out["difference"]).any()
    np.testing.assert_array_equal(out["paths"], out["base_paths"])
    trained = tiny.random_trainable(tiny.ADAPTERS["linear"], ENCODER)
    adapted = evaluate(trained, backbone(), batch)
    np.testing.assert_array_equal(adapted["base_paths"], out["base_paths"])
    np.testing.assert_array_equal(adapted["lengths"], ENCODER.output_length(tiny.FEATURES, np.array(SAMPLES)))
    none = np.array([1, 5])
    assert not np.asarray(adapted["difference"])[none].any()
    assert (np.delete(np.asarray(adapted["difference"]), none) > 0.01).all()
    log_probs, _ = tiny.compiled_forward(ENCODER)(backbone(), trained, batch)
    np.testing.assert_array_equal(adapted["paths"], np.asarray(log_probs).argmax(axis=-1))
    np.testing.assert_array_equal(np.asarray(adapted["loss"])[none], np.asarray(out["loss"])[none])


@pytest.mark.optimised
def test_without_the_base_beside_it_an_adapter_recognises_the_same():
    trainable, batch = tiny.random_trainable(tiny.ADAPTERS["linear"], ENCODER), batch_of()
    both = compiled_evaluation()(trainable, backbone(), batch)
    alone = jax.jit(make_evaluation_step(model_of(), blank_id=0, beside=False))(trainable, backbone(), batch)
    assert both.keys() - alone.keys() == {"base_paths", "difference"}
    for name, value in alone.items():
        np.testing.assert_allclose(value, both[name], rtol=1e-5, err_msg=name)


@pytest.mark.optimised
@pytest.mark.parametrize("method", ["hra", "residual", "lora", "bitfit"])
def test_a_row_of_zeros_makes_no_difference_after_an_output_layer_of_all_tasks(method):
    """The layer has been trained, so what it writes is not what the base writes; every other row makes a difference."""
    adapter = METHODS[method](output="shared_characters", output_size=7)
    model = AsrModel(tiny.FEATURES, ENCODER, adapter=adapter)
    trainable = tiny.random_trainable(adapter, ENCODER, tasks=8)
    jax.tree.map(lambda leaf: leaf[3].fill(0), trainable["tasks"])
    evaluate = jax.jit(make_evaluation_step(model, blank_id=0))
    for tasks in ([3, 7, 0, 1, 4, 2, 5, 6], [3, -1, 0, 3, 4, -1, 1, 0]):  # every utterance of another task, and not
        batch = batch_of(tasks) | {"symbols": np.tile(np.arange(7, dtype=np.int32), (8, 1))}
        difference = np.asarray(evaluate(trainable, backbone(), batch)["difference"])
        nothing = np.isin(tasks, (3, -1))
        assert not difference[nothing].any() and (difference[~nothing] > 1e-3).all()


def test_the_description_names_every_trained_leaf_up_to_a_limit():
    trainable = tiny.new_trainable(tiny.ADAPTERS["ffn"], ENCODER)
    lines = train_state.describe(trainable)
    assert "shared.all_layers.controller.kernel  (16, 6)  96" in lines
    assert "tasks.all_layers.head.bias  (5, 16)  80" in lines
    assert len(lines) == len(jax.tree.leaves(trainable))
    assert train_state.describe(trainable, most=2)[2] == "... and 5 more leaves"


@pytest.mark.parametrize("method", ["residual", "lora", "bitfit", "output"])
def test_a_task_that_shares_nothing_learns_in_a_mixed_batch_what_it_learns_alone(method):
    """Adam divides the size of a gradient out again, so it does not matter that the loss is a mean over all tasks."""
    adapter = METHODS[method]()
    model = AsrModel(tiny.FEATURES, ENCODER, adapter=adapter)
    config = dataclasses.replace(OPTIMIZER, eps=1e-12, clip=0.0)
    step = jax.jit(make_train_step(model, config, blank_id=0, seed=5, max_tasks=5))
    trainable = jax.tree.map(jnp.asarray, tiny.random_trainable(adapter, ENCODER))
    mixed = alone = train_state.create(trainable, config)
    for number in range(3):
        batch = batch_of(seed=number)
        mixed, _ = step(mixed, backbone(), batch)
        own = batch | {"weight": (np.array(TASKS) == 3).astype(np.float32)}
        alone, metrics = step(alone, backbone(), own)
        assert metrics["utterances"] == 3 and metrics["tasks_present"] == 1
    pair = [rows(state.trainable["tasks"], [3]) for state in (mixed, alone)]
    assert moved(trainable["tasks"], alone.trainable["tasks"]).tolist() == [False, False, False, True, False]
    assert_close(*pair, atol=2e-4)
    start = rows(trainable["tasks"], [3])
    furthest = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (pair[1], start)), strict=True))
    assert furthest > 2e-2  # a hundred times the tolerance
