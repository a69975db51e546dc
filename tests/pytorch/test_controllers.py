"""Controllers and heads in PyTorch against those in JAX, on random weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hra_jax.adapters import controllers, weights
from hra_jax.adapters.activations import ACTIVATIONS
from hra_jax.adapters.controllers import RECURRENCES
from hra_jax.adapters.heads import HEADS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
B, T, D, R, H, DEPTH = 3, 5, 6, 4, 2, 3


def _random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), tree)


@pytest.mark.parametrize(
    ("recurrence", "activation"),
    [*((name, "relu") for name in RECURRENCES), *itertools.product(["indrnn"], ACTIVATIONS)],
)
def test_a_controller_takes_the_same_steps(recurrence, activation):
    params = _random(controllers.new_weights(recurrence, jax.random.key(0), inputs=D, width=R), 1)
    inputs = np.random.default_rng(2).normal(size=(DEPTH, B, T, D)).astype(np.float32)
    width = controllers.carry_width(recurrence, R)
    carry, other = jnp.zeros((B, T, width)), torch.zeros(B, T, width)
    there = {k: torch.from_numpy(np.array(v)) for k, v in params.items()}
    for x in inputs:
        state, carry = controllers.advance(params, jnp.asarray(x), carry, recurrence, activation)
        found, other = controllers.torch_advance(there, torch.from_numpy(x), other, recurrence, activation)
        np.testing.assert_allclose(found.numpy(), state, atol=1e-5, rtol=1e-5)
    assert np.abs(np.asarray(state)).max() > 0.1


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_gives_the_same_correction(kind):
    head = HEADS[kind]()
    new = weights.draw(head.weights(width=D, state=R, hidden=H), jax.random.key(0))
    rows = [_random(new, seed) for seed in range(B)]
    state = np.random.default_rng(3).normal(size=(B, T, R)).astype(np.float32)
    expected = np.stack([head.apply(row, s) for row, s in zip(rows, state, strict=True)])
    stacked = {name: torch.from_numpy(np.stack([np.asarray(row[name]) for row in rows])) for name in rows[0]}
    np.testing.assert_allclose(
        head.torch_apply(stacked, torch.from_numpy(state)).numpy(), expected, atol=1e-5, rtol=1e-5
    )
