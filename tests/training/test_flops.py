"""Operations of matrix products, against counting by hand."""

import jax
import jax.numpy as jnp
import pytest

from hra_jax.training import flops

LAYERS, ROWS, WIDTH = 6, 4, 32
ONE = 2 * ROWS * WIDTH * WIDTH


def chain(weights, x, *, wrap=lambda f: f):
    return jax.lax.scan(wrap(lambda x, w: (jnp.tanh(x @ w), None)), x, weights)[0].sum()


@pytest.fixture
def arguments():
    return jnp.zeros((LAYERS, WIDTH, WIDTH)), jnp.zeros((ROWS, WIDTH))


def test_every_round_of_a_scan_counts(arguments):
    assert flops.of(chain, *arguments) == LAYERS * ONE


def test_a_gradient_costs_two_products_more_for_each(arguments):
    assert flops.of(jax.grad(chain), *arguments) == 3 * LAYERS * ONE
    # Of frozen weights no gradient is made.
    assert flops.of(jax.grad(chain, argnums=1), *arguments) == 2 * LAYERS * ONE


def test_what_the_backward_pass_recomputes_counts(arguments):
    gradient = jax.grad(lambda *args: chain(*args, wrap=jax.checkpoint))
    assert flops.of(gradient, *arguments) == 4 * LAYERS * ONE
    assert flops.matmul_flops(jax.jit(gradient).trace(*arguments).jaxpr) == 4 * LAYERS * ONE


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_one_group_of_inputs(groups):
    x, kernel = jnp.zeros((2, 8, 20)), jnp.zeros((12, 8 // groups, 5))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", feature_group_count=groups)

    assert flops.of(convolve, x, kernel) == 2 * (2 * 12 * 20) * (8 // groups) * 5


def test_a_conditional_counts_its_dearest_branch():
    x = jnp.zeros((8, 8))

    def f(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.of(f, x) == 2 * 2 * 8**3


def test_a_step_is_counted_once_for_each_shape_of_batch():
    traced = []

    def step(state, frozen, batch, hyper):
        traced.append(batch["waveform"].shape)
        return batch["waveform"] @ state @ hyper["sounds"]

    counted, state = flops.CountedStep(step, {"sounds": jnp.zeros((3, 1))}), jnp.zeros((8, 3))
    batches = [{"waveform": jnp.zeros((rows, 8))} for rows in (2, 5, 2)]
    assert [counted(state, None, batch) for batch in batches] == [2 * rows * (8 * 3 + 3) for rows in (2, 5, 2)]
    assert traced == [(2, 8), (5, 8)]
