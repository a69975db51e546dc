"""The controller's recurrences against the cells of Flax and explicit formulas, and the heads against theirs."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import adapters_numpy

from hra_jax.adapters import controllers, weights
from hra_jax.adapters.activations import ACTIVATIONS
from hra_jax.adapters.controllers import RECURRENCES
from hra_jax.adapters.formula import evaluated
from hra_jax.adapters.heads import HEADS
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.training import train_state

D, R = 5, 4
SHAPE = (2, 3)  # utterances, frames


def random_like(tree, seed=0):
    """The same tree with normal numbers in every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.7 * rng.standard_normal(leaf.shape)).astype(np.float32), tree)


def inputs(steps=4, width=D, seed=1):
    return np.random.default_rng(seed).standard_normal((steps, *SHAPE, width)).astype(np.float32)


def new_controller(kind, activation="relu", seed=0):
    """`f(params, x, carry) -> (state, carry)`, and new parameters."""

    def advance(params, x, carry):
        return controllers.advance(params, jnp.asarray(x), carry, kind, activation)

    return advance, controllers.new_weights(kind, jax.random.key(seed), inputs=D, width=R)


def side_by_side(cell, names, part):
    """One array of several maps of a Flax cell."""
    return np.concatenate([cell[name][part] for name in names], axis=-1)


# kind -> (the cell of Flax, its maps of the input, its maps of the state, where it has biases), candidate first
CELLS = {
    "rnn": (nn.SimpleCell, ["i"], ["h"], "input"),
    "gru": (nn.GRUCell, ["in", "ir", "iz"], ["hn", "hr", "hz"], "input"),
    "mgu": (nn.MGUCell, ["in", "if"], ["hn", "hf"], "input"),
    "lstm": (nn.LSTMCell, ["ig", "if", "ii", "io"], ["hg", "hf", "hi", "ho"], "state"),
}


@pytest.mark.parametrize("activation", ["tanh", "silu"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_recurrence_equals_the_cell_of_flax_with_the_same_weights(kind, activation):
    cls, of_input, of_state, biased = CELLS[kind]
    cell = cls(R, activation_fn=getattr(nn, activation))
    advance, params = new_controller(kind, activation)
    state = random_like(jnp.zeros((*SHAPE, R)), seed=2)
    memory = random_like(jnp.zeros((*SHAPE, R)), seed=3)
    theirs = (memory, state) if kind == "lstm" else state
    ours = np.concatenate([state, memory], axis=-1) if kind == "lstm" else state
    weights = random_like(cell.init(jax.random.key(0), theirs, inputs()[0])["params"], seed=4)
    mapped = {
        "kernel": side_by_side(weights, of_input, "kernel"),
        "recurrent": side_by_side(weights, of_state, "kernel"),
        "bias": side_by_side(weights, of_input if biased == "input" else of_state, "bias"),
    }
    if kind in ("gru", "mgu"):
        mapped["feedback_bias"] = weights["hn"]["bias"]
    assert jax.tree.map(np.shape, mapped) == jax.tree.map(np.shape, params)
    assert train_state.count(mapped) == train_state.count(weights)  # nothing of the cell is left out
    seen = []
    for x in inputs():
        theirs, expected = cell.apply({"params": weights}, theirs, x)
        found, ours = advance(mapped, x, ours)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        seen.append(np.asarray(expected))
    carried = np.concatenate([theirs[1], theirs[0]], axis=-1) if kind == "lstm" else theirs
    np.testing.assert_allclose(ours, carried, atol=2e-6)
    assert np.abs(seen[-1] - seen[0]).max() > 0.1


def test_indrnn_multiplies_each_unit_by_its_own_weight():
    advance, params = new_controller("indrnn", "tanh")
    params = random_like(params)
    carry = random_like(jnp.zeros((*SHAPE, R)), seed=2)
    expected = carry.astype(np.float64)
    for x in inputs():
        state, carry = advance(params, x, carry)
        expected = np.tanh(x @ params["kernel"] + params["bias"] + params["recurrent"] * expected)
        np.testing.assert_allclose(state, expected, atol=2e-6)
        np.testing.assert_array_equal(carry, state)
    # Each unit goes its own way: the state of one tells nothing to another.
    slope = jax.jacobian(lambda c: advance(params, inputs()[0][0, 0], c)[0])(jnp.ones(R))
    np.testing.assert_array_equal(slope, np.diag(np.diag(slope)))
    assert np.diag(slope).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_a_recurrence_each_layer_stands_alone_under_every_activation(activation):
    advance, params = new_controller("none", activation)
    params, x = random_like(params), 2 * inputs()[0]
    empty = jnp.zeros((*SHAPE, 0))
    state, carry = advance(params, x, empty)
    drive = x.astype(np.float64) @ params["kernel"] + params["bias"]
    assert drive.min() < -1 and drive.max() > 1
    np.testing.assert_allclose(state, adapters_numpy.ACTIVATIONS[activation](drive), atol=2e-6)
    assert carry is empty


@pytest.mark.parametrize("kind", RECURRENCES)
def test_parameters_are_counted_by_the_formula_which_the_docstring_shows(kind):
    text = " ".join(sys.modules[RECURRENCES[kind].__module__].__doc__.split())
    for width, inner in ((5, 4), (7, 3)):
        params = controllers.new_weights(kind, jax.random.key(0), inputs=width, width=inner)
        assert train_state.count(params) == evaluated(RECURRENCES[kind].formula, {"D": width, "R": inner})
    assert f" {RECURRENCES[kind].formula.replace(' * ', ' ')} weights" in text


@pytest.mark.parametrize("kind", RECURRENCES)
def test_the_carry_starts_at_zero_and_keeps_its_width_and_float32_under_bfloat16(kind):
    adapter = HierarchicalRecurrentAdapter(width=R, recurrence=kind)
    carry = adapter.initial_carry(jnp.ones((*SHAPE, D), jnp.bfloat16))
    assert carry.shape == (*SHAPE, {"none": 0, "lstm": 2 * R}.get(kind, R)) and not carry.any()
    advance, params = new_controller(kind)
    params = random_like(params)
    exact = carry
    for x in inputs():
        rough, carry = advance(params, x.astype(jnp.bfloat16), carry)
        state, exact = advance(params, x, exact)
        assert rough.dtype == carry.dtype == jnp.float32 and carry.shape == exact.shape
        np.testing.assert_allclose(rough, state, atol=0.2)


@pytest.mark.parametrize("kind", ["rnn", "gru", "mgu", "lstm"])
def test_new_weights_of_the_state_are_orthogonal_block_by_block(kind):
    _, params = new_controller(kind, seed=3)
    blocks = np.split(np.asarray(params["recurrent"]), params["recurrent"].shape[1] // R, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(R), atol=1e-5)
    assert all(np.abs(a - b).max() > 0.1 for n, a in enumerate(blocks) for b in blocks[:n])


def test_new_weights_of_the_input_have_the_scale_of_its_width_whatever_the_number_of_gates():
    for kind in ("none", "gru", "lstm"):
        params = controllers.new_weights(kind, jax.random.key(0), inputs=100, width=32)
        assert abs(float(params["kernel"].std()) - 0.1) < 0.01
        assert not any(leaf.any() for name, leaf in params.items() if name.endswith("bias"))


# --- heads ---


def new_head(kind):
    head = HEADS[kind]()
    return head, weights.draw(head.weights(width=D, state=R, hidden=3), jax.random.key(0))


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_equals_its_formula_and_has_the_parameters_that_are_counted(kind):
    head, params = new_head(kind)
    params, state = random_like(params), inputs(width=R)[0]
    p = {name: leaf.astype(np.float64) for name, leaf in params.items()}
    hidden = {
        "linear": lambda s: s,
        "ffn": lambda s: np.maximum(s @ p["hidden_kernel"] + p["hidden_bias"], 0.0),
        "lowrank": lambda s: s @ p["hidden_kernel"],
    }[kind](state.astype(np.float64))
    np.testing.assert_allclose(head.apply(params, state), hidden @ p["kernel"] + p["bias"], atol=2e-6)
    by_hand = {"linear": 5 * 4 + 5, "ffn": 3 * 4 + 3 + 5 * 3 + 5, "lowrank": 3 * 4 + 5 * 3 + 5}[kind]
    assert evaluated(HEADS[kind].formula, {"D": D, "R": R, "H": 3}) == by_hand == train_state.count(params)


@pytest.mark.parametrize("kind", HEADS)
def test_a_new_head_gives_zero_for_every_state_and_can_still_learn(kind):
    head, params = new_head(kind)
    state = 100 * inputs(width=R)[0]
    assert not np.asarray(head.apply(params, state)).any()
    slope = jax.grad(lambda p: (head.apply(p, state) ** 2 + head.apply(p, state)).sum())(params)
    assert np.asarray(slope["kernel"]).any() and np.asarray(slope["bias"]).all()
