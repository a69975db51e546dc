"""Controllers and heads in PyTorch against those in JAX, on random weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hra_jax.adapters import controllers, heads

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
B, T, D, R, H, DEPTH = 3, 5, 6, 4, 2, 3


def _random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), tree)


@pytest.mark.parametrize(
    ("recurrence", "activation"),
    [*((name, "relu") for name in controllers.FORMULAS), *itertools.product(["indrnn"], controllers.ACTIVATIONS)],
)
def test_a_controller_takes_the_same_steps(recurrence, activation):

    module, width = controllers.Controller(recurrence, R, activation), controllers.carry_width(recurrence, R)
    assert controllers.carry_width(recurrence, R) == width
    carry = jnp.zeros((B, T, width))
    weights = _random(module.init(jax.random.key(0), jnp.zeros((B, T, D)), carry)["params"], 1)
    inputs = np.random.default_rng(2).normal(size=(DEPTH, B, T, D)).astype(np.float32)
    there, other = {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}, torch.zeros(B, T, width)
    for x in inputs:
        state, carry = module.apply({"params": weights}, jnp.asarray(x), carry)
        found, other = controllers.advance(there, recurrence, activation, torch.from_numpy(x), other)
        np.testing.assert_allclose(found.numpy(), state, atol=1e-5, rtol=1e-5)
    assert np.abs(np.asarray(state)).max() > 0.1


@pytest.mark.parametrize("kind", heads.FORMULAS)
def test_a_head_gives_the_same_correction(kind):
    from hra_jax.torch import controllers

    module = heads.Head(kind, D, H)
    rows = [_random(module.init(jax.random.key(0), jnp.zeros((T, R)))["params"], seed) for seed in range(B)]
    state = np.random.default_rng(3).normal(size=(B, T, R)).astype(np.float32)
    expected = np.stack([module.apply({"params": row}, s) for row, s in zip(rows, state, strict=True)])
    stacked = {name: torch.from_numpy(np.stack([np.asarray(row[name]) for row in rows])) for name in rows[0]}
    found = controllers.correction(stacked, kind, torch.from_numpy(state))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-5)
