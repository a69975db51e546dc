"""The hierarchical recurrent adapter: identity when new, one controller for all layers, tasks that do not mix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, ctc_numpy, tiny

from hra_jax.adapters import base, hra
from hra_jax.errors import UserError
from hra_jax.models import ctc, padding
from hra_jax.models.asr import AsrModel
from hra_jax.training import train_state
from hra_jax.training.step import forward

SAMPLES = [240, 133, 64, 200, 240, 90]
HEADS = list(tiny.ADAPTERS)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.FEATURES, tiny.ENCODER)


def batch_of(tasks):
    return tiny.random_batch(SAMPLES, size=240, tasks=tasks, filler=np.nan)


@pytest.mark.optimised
@pytest.mark.parametrize("head", HEADS)
def test_a_new_adapter_is_the_identity_exactly(params, head):
    trainable = tiny.new_trainable(tiny.ADAPTERS[head])
    # The controller is not zero, so it is the head that makes it the identity.
    assert np.abs(trainable["shared"]["all_layers"]["controller"]["kernel"]).max() > 0.1
    batch = batch_of([0, 1, 2, 3, 4, 4])
    run = tiny.compiled_forward(head=head)
    new, lengths = run(params, trainable, batch)
    base_task, _ = run(params, trainable, batch_of([-1] * 6))
    np.testing.assert_array_equal(new, base_task)
    without, base_lengths = tiny.compiled_base()(params, batch)
    np.testing.assert_array_equal(new, without)
    np.testing.assert_array_equal(lengths, base_lengths)


@pytest.mark.optimised
@pytest.mark.parametrize("head", HEADS)
def test_base_rows_are_the_untouched_backbone_whatever_the_controller_holds(params, head):
    trainable = tiny.random_trainable(tiny.ADAPTERS[head])
    trainable["shared"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), trainable["shared"])
    mixed, _ = tiny.compiled_forward(head=head)(params, trainable, batch_of([-1, 0, -1, 3, -1, -1]))
    without, _ = tiny.compiled_base()(params, batch_of([-1] * 6))
    rows = [0, 2, 4, 5]
    np.testing.assert_array_equal(np.asarray(mixed)[rows], np.asarray(without)[rows])


@pytest.mark.parametrize("head", HEADS)
def test_the_controller_has_no_layer_axis_and_parameters_are_affine_in_the_tasks(head):
    adapter, d, r, h = tiny.ADAPTERS[head], 16, 6, 4
    for layers in (2, 7):
        encoder = dataclasses.replace(tiny.ENCODER, n_layers=layers)
        controller = tiny.new_trainable(adapter, encoder)["shared"]["all_layers"]["controller"]
        shapes = {name: leaf.shape for name, leaf in controller.items()}
        assert shapes == {"kernel": (d, r), "recurrent": (r,), "bias": (r,)}
        for tasks in (1, 5):
            trainable = tiny.new_trainable(adapter, encoder, tasks=tasks)
            assert trainable["shared"]["per_layer"] == {} == trainable["tasks"]["per_layer"]
            assert all(leaf.shape[0] == tasks for leaf in jax.tree.leaves(trainable["tasks"]))
            shared, own = r * (d + 2), (r * d + d if head == "linear" else h * (r + 1) + d * (h + 1))
            counts = train_state.accounting(trainable, tasks, backbone_parameters=1000)
            assert counts["shared_parameters"] == shared == train_state.count(trainable["shared"])
            assert counts["parameters_per_task"] == own
            assert counts["trainable_parameters"] == shared + tasks * own


def test_the_recurrence_runs_over_depth_and_not_over_time(params):
    """A frame's state does not depend on other frames, and it does depend on the layers below."""
    adapter = tiny.ADAPTERS["linear"]
    trainable = tiny.random_trainable(adapter)
    bound = base.bind(adapter, tiny.ENCODER, trainable["shared"], trainable["tasks"], jnp.array([2]))
    controller, head = (conformer_numpy.float64(tree) for tree in tiny.one_task(trainable, 2))
    x = np.random.default_rng(0).standard_normal((4, 1, 5, 16)).astype(np.float32)
    state, expected_state = adapter.initial_carry(x[0]), np.zeros((5, 6))
    assert not np.asarray(state).any()
    for depth in range(4):
        own = (bound.all_layers, {})
        y, state = adapter.after_layer(own, x[depth], state, {}, rng=lambda: None)
        for t in range(5):
            drive = x[depth, 0, t] @ controller["kernel"] + controller["recurrent"] * expected_state[t]
            expected_state[t] = np.maximum(drive + controller["bias"], 0.0)
        np.testing.assert_allclose(state[0], expected_state, atol=1e-5)
        correction = expected_state @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(y[0], x[depth, 0] + correction, atol=1e-5)


@pytest.mark.optimised
@pytest.mark.parametrize("head", HEADS)
def test_a_mixed_batch_equals_each_task_alone_bit_for_bit(params, head):
    trainable = tiny.random_trainable(tiny.ADAPTERS[head])
    run = tiny.compiled_forward(head=head)
    tasks = [3, -1, 0, 3, 4, 1]
    mixed = np.asarray(run(params, trainable, batch_of(tasks))[0])
    for task in sorted(set(tasks)):
        alone = np.asarray(run(params, trainable, batch_of([task] * 6))[0])
        rows = np.flatnonzero(np.array(tasks) == task)
        np.testing.assert_array_equal(mixed[rows], alone[rows])
        others = np.flatnonzero(np.array(tasks) != task)
        # Every other row is another function of the same sound.
        assert (np.abs(mixed[others] - alone[others]).max(axis=(1, 2)) > 1e-2).all()


def test_rows_in_another_order_give_the_same_bits_in_that_order(params):
    trainable = tiny.random_trainable(tiny.ADAPTERS["linear"])
    batch = batch_of([3, -1, 0, 3, 4, 1])
    run = tiny.compiled_forward()
    log_probs = np.asarray(run(params, trainable, batch)[0])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(6)
        np.testing.assert_array_equal(run(params, trainable, tiny.rows_of(batch, order))[0], log_probs[order])


@pytest.mark.parametrize("head", HEADS)
def test_a_number_that_is_no_task_never_gets_another_tasks_row(params, head):
    trainable = tiny.random_trainable(tiny.ADAPTERS[head])
    run = tiny.compiled_forward(head=head)
    base_only = np.asarray(run(params, trainable, batch_of([-1] * 6))[0])
    strange = np.asarray(run(params, trainable, batch_of([tiny.TASKS, 0, tiny.TASKS + 3, 10**9, -2, -(10**9)]))[0])
    rows = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(strange[rows], base_only[rows])
    assert np.abs(strange[1] - base_only[1]).max() > 1e-2


def test_more_tasks_than_places_never_swaps_rows(params):
    trainable = tiny.random_trainable(tiny.ADAPTERS["linear"])
    tasks = [4, 1, 0, 3, -1, 2]
    whole = np.asarray(tiny.compiled_forward()(params, trainable, batch_of(tasks))[0])
    bare = np.asarray(tiny.compiled_forward()(params, trainable, batch_of([-1] * 6))[0])
    short = np.asarray(tiny.compiled_forward(max_tasks=3)(params, trainable, batch_of(tasks))[0])
    for row in range(6):
        gap = [np.abs(short[row] - other[row]).max() for other in (whole, bare)]
        assert min(gap) < 1e-5
    # The places go to the lowest numbers.
    np.testing.assert_allclose(short[[1, 2, 4, 5]], whole[[1, 2, 4, 5]], atol=1e-5)


def test_the_gradient_equals_finite_differences_of_the_float64_reference(params):
    adapter = tiny.ADAPTERS["ffn"]
    trainable = tiny.random_trainable(adapter)
    samples = [120, 90]
    batch = tiny.random_batch(samples, size=120, tasks=[3, 1], labels=2)
    model = AsrModel(tiny.FEATURES, tiny.ENCODER, adapter=adapter)

    def loss(trainable):
        log_probs, lengths = forward(model, params, trainable["shared"], trainable["tasks"], batch["task"], batch)
        return ctc.ctc_loss(log_probs, lengths, batch["labels"], batch["label_lengths"], 0)[0].sum()

    def reference(trainable):
        total = 0.0
        for row, count in enumerate(samples):
            own = tiny.one_task(trainable, batch["task"][row])
            logits = conformer_numpy.log_probs(
                params, batch["waveform"][row, :count], 6, tiny.FEATURES, tiny.ENCODER, own
            )
            labels = batch["labels"][row, : batch["label_lengths"][row]].tolist()
            total += ctc_numpy.loss_and_gradient(logits, labels, 0)[0]
        return total

    value, gradient = jax.jit(jax.value_and_grad(loss))(trainable)
    trainable = conformer_numpy.float64(trainable)
    np.testing.assert_allclose(value, reference(trainable), rtol=1e-4)
    names = [
        ("shared", "controller", "kernel", (3, 2)),
        ("shared", "controller", "recurrent", (1,)),
        ("shared", "controller", "bias", (4,)),
        ("tasks", "head", "hidden_kernel", (3, 2, 1)),
        ("tasks", "head", "hidden_bias", (1, 2)),
        ("tasks", "head", "kernel", (1, 2, 7)),
        ("tasks", "head", "bias", (3, 5)),
    ]
    for scope, *path, place in names:
        leaf, slope = trainable[scope]["all_layers"], gradient[scope]["all_layers"]
        for name in path:
            leaf, slope = leaf[name], slope[name]
        kept, step = leaf[place], 1e-4
        values = []
        for sign in (1, -1):
            leaf[place] = kept + sign * step
            values.append(reference(trainable))
        leaf[place] = kept
        np.testing.assert_allclose(slope[place], (values[0] - values[1]) / (2 * step), rtol=2e-3, atol=2e-4)
    heads = gradient["tasks"]["all_layers"]["head"]
    assert not any(np.asarray(leaf)[[0, 2, 4]].any() for leaf in jax.tree.leaves(heads))


def test_dropout_acts_only_where_a_key_is_given():
    adapter = dataclasses.replace(tiny.ADAPTERS["linear"], dropout=0.5)
    trainable = tiny.random_trainable(adapter)
    bound = base.bind(adapter, tiny.ENCODER, trainable["shared"], trainable["tasks"], jnp.array([2, tiny.TASKS]))
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)

    def run(adapter, key):
        return adapter.after_layer((bound.all_layers, {}), x, adapter.initial_carry(x), {}, rng=lambda: key)

    plain, state = run(tiny.ADAPTERS["linear"], None)
    np.testing.assert_array_equal(run(adapter, None)[0], plain)
    dropped, dropped_state = run(adapter, jax.random.key(0))
    assert (np.asarray(dropped[0]) != plain[0]).any()
    np.testing.assert_array_equal(dropped[1], x[1])
    # The recurrence itself goes on undisturbed.
    np.testing.assert_array_equal(dropped_state, state)


def test_an_unknown_head_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="hra.head = 'mlp': allowed: 'ffn', 'linear', 'lowrank'"):
        hra.HierarchicalRecurrentAdapter(head="mlp")


def test_padding_behind_an_adapted_row_stays_finite(params):
    trainable = tiny.random_trainable(tiny.ADAPTERS["linear"])
    log_probs, lengths = tiny.compiled_forward()(params, trainable, batch_of([3, -1, 0, 3, 4, 1]))
    valid = np.asarray(padding.valid_mask(lengths, log_probs.shape[1]))
    assert not valid.all() and np.isfinite(log_probs).all()
