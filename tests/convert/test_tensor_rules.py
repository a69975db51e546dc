"""What the transforms do to a tensor, index by index and by the maps that the tensors stand for."""

import numpy as np
import pytest

from hra_jax.convert import tensor_rules

RNG = np.random.default_rng(0)
SHAPES = {
    "AS_IS": (5,),
    "LINEAR": (3, 4),
    "POINTWISE": (3, 4),
    "POINTWISE_2D": (3, 4),
    "CONV_1D": (5, 3, 4),
    "CONV_2D": (2, 3, 4, 5),
    "DEPTHWISE": (5, 4),
    "FOLDED_KERNEL": (5, 4),
    "FOLDED_BIAS": (4,),
    "FOLDED_BIASES": (4,),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_sources_are_those_that_give_the_tensor(name):
    transform = getattr(tensor_rules, name)
    sources = [np.ones(shape, np.float32) for shape in transform.shapes(SHAPES[name])]
    assert transform.apply(*sources).shape == SHAPES[name]


def test_a_convolution_over_time_keeps_its_taps_inputs_and_outputs():
    w = RNG.standard_normal((4, 3, 5))  # [O, I, K]
    x = RNG.standard_normal((3, 9))
    expected = np.array([sum(np.convolve(x[i], w[o, i, ::-1], "valid") for i in range(3)) for o in range(4)])
    kernel = tensor_rules.CONV_1D.apply(w)
    windows = np.stack([x[:, k : k + 5] for k in range(5)])  # [K, I, T]
    np.testing.assert_allclose(np.einsum("kit,kio->ot", windows, kernel), expected)


def test_a_convolution_over_time_and_frequency_keeps_its_indices():
    w = RNG.standard_normal((2, 3, 4, 5))
    kernel = tensor_rules.CONV_2D.apply(w)
    for o, i, k, m in np.ndindex(w.shape):
        assert kernel[k, m, i, o] == w[o, i, k, m]


def test_pointwise_and_depthwise_convolutions_are_matrices():
    w = RNG.standard_normal((4, 3, 1))
    np.testing.assert_array_equal(tensor_rules.POINTWISE.apply(w), w[:, :, 0].T)
    np.testing.assert_array_equal(tensor_rules.POINTWISE_2D.apply(w[..., None]), w[:, :, 0].T)
    taps = RNG.standard_normal((4, 1, 5))
    np.testing.assert_array_equal(tensor_rules.DEPTHWISE.apply(taps), taps[:, 0].T)


def test_a_projection_of_channels_by_bins_is_one_of_bins_by_channels():
    channels, bins = 3, 5
    frame = RNG.standard_normal((channels, bins))
    w = RNG.standard_normal((4, channels * bins))
    transform = tensor_rules.frequency_major(channels)
    kernel = transform.apply(w)
    assert transform.shapes(kernel.shape) == (w.shape,)
    np.testing.assert_allclose(frame.T.reshape(-1) @ kernel, w @ frame.reshape(-1))
    assert not np.allclose(frame.reshape(-1) @ kernel, w @ frame.reshape(-1))


@pytest.mark.parametrize("bias", [False, True])
def test_folding_is_done_in_float64(bias):
    """At a variance that float32 rounds, the folded kernel is the exact one, rounded once."""
    w, scale, shift, mean, offset = (
        RNG.standard_normal(shape).astype(np.float32) for shape in [(4, 1, 3)] + [(4,)] * 4
    )
    variance = (0.5 + RNG.random(4)).astype(np.float32)
    gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + 1e-5)
    exact = (w[:, 0].astype(np.float64) * gain[:, None]).T
    np.testing.assert_array_equal(tensor_rules.FOLDED_KERNEL.apply(w, scale, variance), exact.astype(np.float32))
    start = offset.astype(np.float64) if bias else 0.0
    exact = (start - mean.astype(np.float64)) * gain + shift.astype(np.float64)
    sources = (scale, shift, mean, variance) + ((offset,) if bias else ())
    found = (tensor_rules.FOLDED_BIASES if bias else tensor_rules.FOLDED_BIAS).apply(*sources)
    np.testing.assert_array_equal(found, exact.astype(np.float32))


def test_rules_of_a_block_name_the_layer_and_the_place():
    (weight, bias) = tensor_rules.layers("enc.{n}.", tensor_rules.affine("up", "ff1.up"))
    assert weight.sources == ("enc.{n}.up.weight",) and weight.target == "encoder.layers.ff1.up.kernel"
    assert bias.sources == ("enc.{n}.up.bias",) and bias.target == "encoder.layers.ff1.up.bias"
