"""How voices sound to the model: what is summed up of the layers, beside log-probabilities that stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import micro as world
from reference import tiny

from hra_jax.adapters.base import bind
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.models.asr import AsrModel, apply_with_voice
from hra_jax.models.encoder_config import EncoderConfig

ENCODER = EncoderConfig(vocab_size=8, **(world.GEOMETRY | {"n_layers": 3}))


@pytest.mark.parametrize(
    ("adapter", "carried", "lower"),
    [
        (HierarchicalRecurrentAdapter(width=5, layers=(1, 2)), True, (1,)),
        (LowRankAdapter(rank=2), False, (0, 1)),
        (HierarchicalRecurrentAdapter(width=5, recurrence="none"), False, (0, 1)),
    ],
)
def test_a_voice_is_mean_and_deviation_over_its_frames_of_the_lower_adapted_layers(adapter, carried, lower):
    model = AsrModel(world.FEATURES, ENCODER, adapter=adapter)
    params = tiny.random_params(world.FEATURES, ENCODER)
    weights = tiny.random_trainable(adapter, ENCODER, tasks=2)
    waves = [world.tones("fad cab"), world.tones("be", pitch=1.3)]
    batch = np.full((2, len(waves[0])), 0.25, np.float32)  # the padding holds something
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = wave
    nobody = jnp.array([2, 2])
    bound = bind(adapter, ENCODER, weights["shared"], weights["tasks"], nobody)
    arguments = (batch, np.array(list(map(len, waves)), np.int32), bound)
    apply = jax.jit(apply_with_voice, static_argnums=0)
    log_probs, lengths, voices = apply(model, params, *arguments)
    other = bind(adapter, ENCODER, weights["shared"], jax.tree.map(lambda leaf: 2 * leaf, weights["tasks"]), nobody)
    np.testing.assert_array_equal(voices, apply(model, params, *arguments[:2], other)[2])  # no task has a part in it

    # What Flax itself notes of every layer.
    (plain, _), seen = jax.jit(lambda *given: model.apply(*given, capture_intermediates=True))(
        {"params": params}, *arguments
    )
    np.testing.assert_allclose(log_probs, plain, atol=1e-5)
    (x, state), _ = seen["intermediates"]["encoder"]["layers"]["__call__"][0]
    of_layers = np.asarray(state if carried else x, np.float64)
    for row, length in enumerate(np.asarray(lengths)):
        frames = of_layers[list(lower), row, :length]
        expected = np.concatenate([frames.mean(axis=1), frames.std(axis=1)], axis=-1).mean(axis=0)
        np.testing.assert_allclose(voices[row], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected).max() > 0.01
