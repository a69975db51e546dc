"""Strided-convolution subsampling against loops over output places."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, tiny

from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.stored_settings import from_json, to_json
from hra_jax.models.subsampling import ConvSubsampling

LENGTHS = [21, 20, 13, 2, 1, 0]
BINS, WIDTH, CHANNELS = 7, 6, 3


def features(filler, size=21):
    x = np.random.default_rng(0).standard_normal((len(LENGTHS), 21, BINS)).astype(np.float32)
    out = np.full((len(LENGTHS), size, BINS), filler, np.float32)
    for row, length in enumerate(LENGTHS):
        out[row, :length] = x[row, :length]
    return out


def random_like(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), params)


@pytest.mark.parametrize("layers", [1, 2])
def test_subsampling_equals_loops_and_ignores_padding(layers):
    module = ConvSubsampling(WIDTH, CHANNELS, layers)
    lengths = np.array(LENGTHS, np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features(0.0), lengths)
    params = random_like(nn.unbox(shapes))
    run = jax.jit(module.apply)
    out, out_lengths = run(params, features(np.nan), lengths)
    np.testing.assert_array_equal(out, run(params, features(0.0), lengths)[0])
    longer, _ = run(params, features(np.nan, size=30), lengths)
    for row, length in enumerate(LENGTHS):
        expected = conformer_numpy.subsample(conformer_numpy.float64(params["params"]), features(0.0)[row, :length])
        assert out_lengths[row] == len(expected) == -(-length // 2**layers)
        np.testing.assert_allclose(out[row, : len(expected)], expected, atol=1e-5)
        np.testing.assert_allclose(longer[row, : len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("subsampling", [2, 4])
def test_output_length_is_what_the_model_gives_for_every_number_of_samples(subsampling):
    encoder = from_json(EncoderConfig, to_json(tiny.ENCODER) | {"subsampling": subsampling})
    samples = np.arange(0, 200)
    lengths = encoder.output_length(tiny.FEATURES, samples)
    for count, length in zip(samples.tolist(), lengths.tolist(), strict=True):
        assert length == -(-(count // 10) // subsampling) == encoder.output_length(tiny.FEATURES, count)
    np.testing.assert_array_equal(encoder.output_length(tiny.FEATURES, jnp.asarray(samples)), lengths)
