"""The subsamplers of published encoders against loops over output places, and whole models with each front-end."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, frontends_numpy, tiny

from hra_jax.adapters.base import unbound
from hra_jax.convert.families import lasr, parakeet, wav2vec2_bert, wav2vec2_conformer
from hra_jax.errors import UserError
from hra_jax.models import frontend, subsampling
from hra_jax.models.asr import AsrModel
from hra_jax.models.augmentation import NO_AUGMENTATION
from hra_jax.models.features import FeatureConfig

STRIDES = (3, 2, 2)
# name -> changes of tiny.ENCODER, width of the features, the loops
CASES = {
    "projection": (dict(subsampling=1), 7, frontends_numpy.projection),
    "wave_cnn": (
        dict(subsampling=320, wave_kernels=(5, 3, 2), wave_strides=STRIDES),
        1,
        lambda p, x: frontends_numpy.wave_cnn(p, x, strides=STRIDES),
    ),
    "conv1d": (dict(subsampling=4), 7, frontends_numpy.conv1d),
    "conv2d_separable": (dict(subsampling=8), 11, frontends_numpy.conv2d_separable),
}
# Below one frame, a frame, and one feature frame more and less than whole ones.
LENGTHS = [48, 47, 33, 32, 17, 13, 12, 9, 8, 1, 0]
SIZE = 48

SMALL = dict(sample_rate=1000, fft=32, bins=8, high_hz=500.0)  # hop 10 samples, window 25
PAIRS = {
    "w2v_bert": (dataclasses.replace(wav2vec2_bert.FEATURES, **SMALL), dict(subsampler="projection", subsampling=1)),
    "parakeet": (dataclasses.replace(parakeet.FEATURES, **SMALL), dict(subsampler="conv2d_separable", subsampling=8)),
    "lasr": (dataclasses.replace(lasr.FEATURES, **SMALL | {"low_hz": 20.0}), dict(subsampler="conv1d", subsampling=4)),
    "wav2vec2": (
        dataclasses.replace(wav2vec2_conformer.FEATURES, sample_rate=1000, high_hz=500.0),
        dict(subsampler="wave_cnn", subsampling=320, wave_kernels=(10, 3, 2), wave_strides=(5, 2, 2)),
    ),
}


def make(name, *, dtype=jnp.float32):
    changes, width, loops = CASES[name]
    encoder = dataclasses.replace(tiny.ENCODER, subsampler=name, **changes)
    module = subsampling.make(encoder, dtype=dtype, name=None)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, SIZE, width)), np.ones(1, np.int32))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), nn.unbox(shapes))
    return encoder, module, params, width, loops


def features(width, filler, size=SIZE):
    x = np.random.default_rng(0).standard_normal((len(LENGTHS), SIZE, width)).astype(np.float32)
    out = np.full((len(LENGTHS), size, width), filler, np.float32)
    for row, length in enumerate(LENGTHS):
        out[row, :length] = x[row, :length]
    return out


@pytest.mark.parametrize("name", list(CASES))
def test_each_subsampler_equals_loops_and_ignores_padding(name):
    _, module, params, width, loops = make(name)
    lengths, run = np.array(LENGTHS, np.int32), jax.jit(module.apply)
    out, out_lengths = run(params, features(width, np.nan), lengths)
    assert out_lengths.dtype == np.int32
    longer, _ = run(params, features(width, np.nan, size=61), lengths)
    dirty, _ = run(params, features(width, 1e6), lengths)
    counts = []
    for row, length in enumerate(LENGTHS):
        expected = loops(conformer_numpy.float64(params["params"]), features(width, 0.0)[row, :length].astype(float))
        counts.append(len(expected))
        np.testing.assert_allclose(out[row, : len(expected)], expected, atol=1e-4)
        np.testing.assert_allclose(longer[row, : len(expected)], expected, atol=1e-4)
        np.testing.assert_array_equal(dirty[row, : len(expected)], out[row, : len(expected)])
    assert out_lengths.tolist() == counts and counts[0] > 1 and counts[-1] == 0


@pytest.mark.parametrize("name", list(CASES))
def test_shapes_and_lengths_of_a_subsampler_are_those_of_the_formula_for_every_size(name):
    encoder, module, params, width, _ = make(name)
    samples = dataclasses.replace(
        wav2vec2_conformer.FEATURES, sample_rate=1000, high_hz=500.0
    )  # one frame is one sample
    for size in (*range(14), 31, 32, SIZE):
        lengths = np.arange(size + 1, dtype=np.int32)
        expected = encoder.output_length(samples, lengths)
        shape, _ = jax.eval_shape(module.apply, params, np.zeros((size + 1, size, width), np.float32), lengths)
        assert shape.shape == (size + 1, expected[-1], encoder.d_model)
    _, found = module.apply(params, np.zeros((SIZE + 1, SIZE, width), np.float32), lengths)
    np.testing.assert_array_equal(found, expected)


def whole_places(length, *, kernel, stride, pad):
    """How many places a kernel has, counted."""
    return sum(1 for first in range(-pad, length + pad, stride) if first + kernel <= length + pad)


@pytest.mark.parametrize("name", list(PAIRS))
def test_output_length_counts_the_places_of_every_window_and_kernel(name):
    small, changes = PAIRS[name]
    encoder = dataclasses.replace(tiny.ENCODER, **changes)
    pads = {"conv2d_separable": ((3, 2, 1),) * 3, "conv1d": ((5, 2, 0),) * 2, "projection": ()}
    for samples in range(700):
        if small.kind == "waveform":
            length, layers = samples, ((10, 5, 0), (3, 2, 0), (2, 2, 0))
        else:
            window = 25 if small.framing == "inside" else 10
            length = whole_places(samples, kernel=window, stride=10, pad=0) // small.stack
            layers = pads[encoder.subsampler]
        for kernel, stride, pad in layers:
            length = whole_places(length, kernel=kernel, stride=stride, pad=pad)
        assert encoder.output_length(small, samples) == length
    assert length > 3


@pytest.mark.parametrize("name", list(PAIRS))
def test_a_row_of_a_ragged_batch_does_not_depend_on_the_other_rows_and_its_padding(name):
    small, changes = PAIRS[name]
    encoder = dataclasses.replace(tiny.ENCODER, **changes)
    model = AsrModel(small, encoder)
    params = tiny.random_params(small, encoder)
    lengths = [700, 433, 90, 24, 0]
    batch = tiny.random_batch(lengths, size=700, tasks=[0] * 5, filler=np.nan)
    run = jax.jit(lambda x, n: model.apply({"params": params}, x, n, unbound()))
    together, frames = run(batch["waveform"], batch["num_samples"])
    assert frames.tolist() == encoder.output_length(small, np.array(lengths)).tolist()
    assert np.isfinite(together).all() and frames[1] > 1
    others, count = np.full((5, 700), 1e3, np.float32), frames[1]
    others[0, :433] = batch["waveform"][1, :433]
    elsewhere, counts = run(others, np.array([433, 500, 0, 2, 700], np.int32))
    assert counts[0] == count
    np.testing.assert_allclose(elsewhere[0, :count], together[1, :count], atol=2e-5)
    assert np.abs(together[1, :count] - together[0, :count]).max() > 0.1


def test_bfloat16_activations_do_not_round_the_samples():
    _, module, params, _, _ = make("wave_cnn", dtype=jnp.bfloat16)
    exact = make("wave_cnn")[1]
    x = 1.0 + 0.01 * np.random.default_rng(4).standard_normal((2, SIZE, 1)).astype(np.float32)
    # Kernels that do not see the mean, so that all depends on what stands behind the point.
    kernel = params["params"]["conv_0_kernel"]
    params["params"]["conv_0_kernel"] = kernel - kernel.mean(axis=0)
    params["params"]["conv_0_bias"] = np.zeros_like(params["params"]["conv_0_bias"])
    lengths = np.full(2, SIZE, np.int32)
    expected, _ = exact.apply(params, x, lengths)
    out, _ = module.apply(params, x, lengths)
    rounded, _ = exact.apply(params, x.astype(jnp.bfloat16).astype(np.float32), lengths)
    assert out.dtype == jnp.bfloat16
    assert 4 * np.abs(out - expected).max() < np.abs(rounded - expected).max()


@pytest.mark.parametrize(
    "features, subsampler, factor",
    [(wav2vec2_conformer.FEATURES, "conv2d", 2), (lasr.FEATURES, "wave_cnn", 320), (FeatureConfig(), "wave_cnn", 320)],
)
def test_samples_for_spectral_subsamplers_and_spectra_for_the_wave_one_are_an_error(features, subsampler, factor):
    encoder = dataclasses.replace(tiny.ENCODER, subsampler=subsampler, subsampling=factor)
    with pytest.raises(UserError, match=f"^encoder.subsampler = '{subsampler}': features.kind is '{features.kind}'"):
        AsrModel(features, encoder)


def augmented_model(features, encoder, **settings):
    """The model of some features and changes of the encoder, with the augmentation of `settings` alone."""
    augment = dataclasses.replace(NO_AUGMENTATION, **settings)
    return AsrModel(features, dataclasses.replace(tiny.ENCODER, **encoder), augment=augment)


@pytest.mark.parametrize("changes", [dict(speed=0.1), dict(warp=0.1), dict(freq_masks=2), dict(warp=0.1, freq_masks=2)])
def test_augmentation_that_needs_spectra_is_an_error_where_the_model_takes_samples(changes):
    small, encoder = PAIRS["wav2vec2"]
    asked = ", ".join(f"augment.{name} = {value}" for name, value in changes.items())
    allowed = ", ".join(f"--config.augment.{name}=0" for name in changes)
    with pytest.raises(UserError, match=f"^{asked}: for spectra.*; allowed there: {allowed}$"):
        AsrModel(
            small, dataclasses.replace(tiny.ENCODER, **encoder), augment=dataclasses.replace(NO_AUGMENTATION, **changes)
        )


def augmented(name, seed=0, **settings):
    """Features of random sound with augmentation, and without."""
    small, changes = PAIRS[name]
    model = AsrModel(
        small, dataclasses.replace(tiny.ENCODER, **changes), augment=dataclasses.replace(NO_AUGMENTATION, **settings)
    )
    batch = tiny.random_batch([600, 433], size=600, tasks=[0, 0])
    waveform, lengths = batch["waveform"], batch["num_samples"]
    run = jax.jit(lambda key: model.apply({}, waveform, lengths, rngs={"augment": key}, method="_features"))
    out, frames = run(jax.random.key(seed))
    clean, _ = frontend.extract(waveform, lengths, small)
    return np.asarray(out), np.asarray(clean), np.asarray(frames)


def test_time_masks_and_noise_act_on_samples():
    out, clean, frames = augmented("wav2vec2", time_masks=2, time_mask_fraction=0.3)
    assert frames.tolist() == [600, 433]
    for row, count in enumerate(frames):
        found, expected = out[row, :count, 0], clean[row, :count, 0]
        hidden = found == 0
        assert 0 < hidden.sum() < 0.6 * count and np.abs(expected[hidden]).max() > 0.1
        np.testing.assert_allclose(found[~hidden], expected[~hidden], atol=1e-5)
        assert np.abs(np.diff(hidden.astype(int))).sum() <= 4  # two spans
    out, clean, _ = augmented("wav2vec2", noise_probability=1.0, noise_snr_db=(20.0, 20.0))
    assert np.abs(out - clean)[0].std() > 0.03 and not np.asarray(out[1, 433:]).any()


def test_frequency_masks_hide_the_same_bins_of_every_frame_of_a_stack():
    out, clean, frames = augmented("w2v_bert", freq_masks=2, freq_mask_bins=6)
    some = 0
    for row, count in enumerate(frames):
        hidden = ((out[row, :count] == 0) & (clean[row, :count] != 0)).reshape(2 * count, 8)
        assert (hidden == hidden[:1]).all() and not hidden.all()
        some += hidden[0].sum()
    assert some > 0


def test_speed_changes_the_frames_of_a_stack_in_their_order():
    out, clean, frames = augmented("w2v_bert", speed=0.3)
    assert out.shape == clean.shape and (frames[1] != clean.shape[1]) and not out[1, frames[1] :].any()
    flat, slow = clean[1].reshape(-1, 8), out[1, : frames[1]].reshape(-1, 8)
    # A stretched utterance begins where it did, and each new frame lies between two neighbours of the old ones.
    np.testing.assert_allclose(slow[0], flat[0], atol=1e-5)
    low, high = np.minimum(flat[:-1], flat[1:]), np.maximum(flat[:-1], flat[1:])
    between = (slow[:, None] >= low[None] - 1e-5) & (slow[:, None] <= high[None] + 1e-5)
    assert between.all(axis=2).any(axis=1).all()
