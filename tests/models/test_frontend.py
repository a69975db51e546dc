"""Features against an independent float64 implementation by FFT, for every option."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import conformer_numpy, frontends_numpy
from reference.precision import enable_x64

from hra_jax.convert.families import lasr, parakeet, wav2vec2_bert, wav2vec2_conformer
from hra_jax.errors import UserError
from hra_jax.models import frontend
from hra_jax.models.encoder_config import SIZES
from hra_jax.models.features import FeatureConfig, mel_matrix
from hra_jax.models.stored_settings import from_json, to_json

TELEPHONE = SIZES["tiny"][0]
ODD = FeatureConfig(  # window - hop is odd, and the window no multiple of the hop
    sample_rate=1000, window=0.028, hop=0.009, fft=64, bins=12, low_hz=0.0, high_hz=480.0, normalization="none"
)
RAW = dataclasses.replace(ODD, unit_variance=False, floor=1e-6)
NARROW = dataclasses.replace(ODD, window=0.009, normalization="utterance")  # windows that do not overlap
# Above 1000 Hz, where the slaney scale bends; again window - hop is odd.
BENT = FeatureConfig(
    sample_rate=8000, window=225 / 8000, hop=0.009, fft=256, bins=12, high_hz=3900.0, floor=1e-6, unit_variance=False
)
PLAIN = dataclasses.replace(BENT, normalization="none")
OPTIONS = {
    "scale": dataclasses.replace(PLAIN, scale=3.0),
    "inside": dataclasses.replace(PLAIN, framing="inside"),
    "centred": dataclasses.replace(PLAIN, framing="centred"),
    "symmetric": dataclasses.replace(PLAIN, window_shape="hann_symmetric"),
    "povey": dataclasses.replace(PLAIN, window_shape="povey"),
    "no unit power": dataclasses.replace(PLAIN, unit_power=False),
    "remove dc": dataclasses.replace(PLAIN, remove_dc=True),
    "emphasis of frames": dataclasses.replace(PLAIN, preemphasis=0.9),
    "emphasis of signals": dataclasses.replace(PLAIN, preemphasis=0.9, preemphasis_of="signal"),
    "slaney": dataclasses.replace(PLAIN, mel_scale="slaney"),
    "area": dataclasses.replace(PLAIN, mel_area=True),
    "slaney area": dataclasses.replace(PLAIN, mel_area=True, mel_scale="slaney", low_hz=0.0),
    "largest of floor": dataclasses.replace(PLAIN, floor=0.3, floor_mode="max"),
    "eps": dataclasses.replace(BENT, normalization_eps=0.2),
    "unbiased": dataclasses.replace(BENT, normalization="unbiased", normalization_eps=0.2),
    "unbiased deviation": dataclasses.replace(BENT, normalization="unbiased_std", normalization_eps=0.2),
    "stack of 2": dataclasses.replace(BENT, stack=2),
    "stack of 3": dataclasses.replace(BENT, stack=3, framing="inside"),
    "relative floor": dataclasses.replace(PLAIN, unit_variance=True, framing="centred"),
    "samples": dataclasses.replace(wav2vec2_conformer.FEATURES, scale=3.0),
    "samples as they are": dataclasses.replace(wav2vec2_conformer.FEATURES, normalization="none"),
    "samples of unit variance": FeatureConfig(kind="waveform", normalization="none"),
}
PUBLISHED = {
    "w2v_bert": wav2vec2_bert.FEATURES,
    "parakeet": parakeet.FEATURES,
    "lasr": lasr.FEATURES,
    "wav2vec2": wav2vec2_conformer.FEATURES,
}


def sounds(lengths, rate):
    """Gliding tones with noise, as loud as recordings may be (1e-3 to 1e3)."""
    rng = np.random.default_rng(0)
    loudness = np.geomspace(1e-3, 1e3, len(lengths))
    for length, level in zip(lengths, loudness, strict=True):
        time = np.arange(length) / rate
        tone = np.sin(2 * np.pi * rate / 9 * time * (1 + time)) + 0.2 * rng.standard_normal(length) + 0.1
        yield (level * tone).astype(np.float32)


def padded(waves, size, filler):
    out = np.full((len(waves), size), filler, np.float32)
    for row, wave in enumerate(waves):
        out[row, : len(wave)] = wave
    return out, np.array([len(wave) for wave in waves], np.int32)


@pytest.mark.parametrize("config", [TELEPHONE, ODD, RAW, NARROW], ids=["telephone", "odd", "raw", "narrow"])
def test_log_mel_equals_an_independent_implementation_for_ragged_lengths(config):
    hop = config.hop_samples
    waves = list(sounds([30 * hop, 30 * hop - 1, 17 * hop + 3, 5 * hop, hop, hop - 1], config.sample_rate))
    batch, lengths = padded(waves, 30 * hop, np.nan)
    out, frames = jax.jit(lambda x, n: frontend.extract(x, n, config))(batch, lengths)
    assert out.dtype == np.float32
    for row, wave in enumerate(waves):
        expected = conformer_numpy.log_mel(wave, config)
        assert frames[row] == len(expected) == config.frames(len(wave))
        # Without normalisation the floor of the logarithm bounds the error; 1e-4 is asked for.
        np.testing.assert_allclose(out[row, : len(expected)], expected, atol=1e-4)
        assert not np.asarray(out[row, len(expected) :]).any()


@pytest.mark.optimised  # a mean of one sample must round to that sample
@pytest.mark.parametrize("name", list(OPTIONS))
def test_each_option_equals_an_independent_implementation_for_ragged_lengths(name):
    config = OPTIONS[name]
    size, hop = BENT.window_samples, BENT.hop_samples
    # Whole hops and stacks, one sample less and one more, a single frame, less than a window or hop, and nothing.
    lengths = [12 * hop, 12 * hop - 1, 11 * hop + 1, size + 5 * hop, size + hop - 1, size, size - 1, hop, hop - 1, 1, 0]
    waves = list(sounds(lengths, BENT.sample_rate))
    batch, lengths = padded(waves, 12 * hop + 5, np.nan)
    run = jax.jit(lambda x, n: frontend.extract(x, n, config))
    out, frames = run(batch, lengths)
    assert out.dtype == np.float32 and out.shape[2] == config.width
    for row, wave in enumerate(waves):
        expected = frontends_numpy.features(wave, config)
        assert frames[row] == len(expected) == config.frames(len(wave))
        level = 1.0 + np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(out[row, : len(expected)], expected, atol=2e-5 * level)
        assert not np.asarray(out[row, len(expected) :]).any()


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_features_equal_an_independent_implementation_and_ignore_padding(name):
    config = PUBLISHED[name]
    waves = [np.clip(wave, -1.0, 1.0) for wave in sounds([4000, 3201, 559, 400, 399, 160, 0], 16000)]
    run = jax.jit(lambda x, n: frontend.extract(x, n, config))
    batch, lengths = padded(waves, 4100, 0.0)
    clean, frames = run(batch, lengths)
    np.testing.assert_array_equal(clean, run(padded(waves, 4100, np.nan)[0], lengths)[0])
    with enable_x64(True):
        exact, _ = run(batch.astype(np.float64), lengths)
    assert exact.dtype == np.float64
    for row, wave in enumerate(waves):
        expected = frontends_numpy.features(wave, config)
        assert frames[row] == len(expected)
        np.testing.assert_allclose(clean[row, : len(expected)], expected, atol=1e-4)
        np.testing.assert_allclose(exact[row, : len(expected)], expected, atol=1e-8)
    alone, count = run(waves[1][None], lengths[1:2])
    assert count[0] == frames[1] > 0
    np.testing.assert_allclose(alone[0, : count[0]], clean[1, : count[0]], atol=1e-5)


def test_faint_bins_beside_loud_ones_keep_their_power_in_float32():
    """A signal without its upper band, as telephone speech at a higher rate has it."""
    config = dataclasses.replace(wav2vec2_bert.FEATURES, normalization="none", stack=1)
    spectrum = np.fft.rfft(np.random.default_rng(5).standard_normal(8000))
    spectrum[1500:] = 0.0  # 3000 Hz and more
    wave = (0.1 * np.fft.irfft(spectrum)).astype(np.float32)
    expected = frontends_numpy.features(wave, config)
    out, _ = jax.jit(lambda x, n: frontend.extract(x, n, config))(wave[None], np.array([8000]))
    assert np.median(expected[:, :45]) - np.median(expected[:, -5:]) > 20  # factors of e
    np.testing.assert_allclose(out[0, :, :45], expected[:, :45], atol=2e-5)
    np.testing.assert_allclose(out[0], expected, atol=2e-3)


def test_bins_near_the_floor_are_resolved_where_normalisation_enlarges_them():
    wave = 5e-7 * np.random.default_rng(6).standard_normal(8000).astype(np.float32)
    expected = frontends_numpy.features(wave, parakeet.FEATURES)
    run = jax.jit(lambda x, n: frontend.extract(x, n, parakeet.FEATURES))
    raw = frontends_numpy.spectra(wave, parakeet.FEATURES)
    assert raw.std(axis=0).max() < 1e-4  # less than a hundred steps of float32 at log(floor)
    np.testing.assert_allclose(run(wave[None], np.array([8000]))[0][0], expected, atol=1e-4)


@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize("size", [0, 1, 159, 399])
def test_batches_shorter_than_a_window_have_finite_features_of_length_0_or_what_fits(name, size):
    config = PUBLISHED[name]
    lengths = np.array([size, size // 2], np.int32)
    out, frames = frontend.extract(np.ones((2, size), np.float32), lengths, config)
    expected = lengths if config.kind == "waveform" else lengths // 160 * (config.framing != "inside")
    np.testing.assert_array_equal(frames, expected)
    assert out.shape == (2, config.frames(size), config.width) and np.isfinite(out).all()


def test_a_stack_holds_whole_frames_and_its_normalisation_the_odd_last_one_too():
    config = dataclasses.replace(wav2vec2_bert.FEATURES, scale=1.0)
    flat = dataclasses.replace(config, stack=1)
    waves = list(sounds([400 + 4 * 160, 400 + 5 * 160], 16000))
    batch, lengths = padded(waves, 2000, 0.0)
    (single, singles), (pairs, count) = (frontend.extract(batch, lengths, each) for each in (flat, config))
    assert singles.tolist() == [5, 6] and count.tolist() == [2, 3]
    np.testing.assert_array_equal(pairs[0, :2].reshape(4, 80), single[0, :4])
    np.testing.assert_array_equal(pairs[1, :3].reshape(6, 80), single[1, :6])
    assert not np.asarray(pairs[0, 2:]).any()
    np.testing.assert_allclose(single[0, :5].mean(axis=0), 0.0, atol=1e-5)
    assert np.abs(single[0, :4].mean(axis=0)).max() > 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(floor=0.0), "features.floor = 0.0: must be above 0"),
        (dict(kind="waveform", stack=2), "features.stack = 2: is for spectra, and features.kind is 'waveform'"),
        (dict(kind="waveform", preemphasis=0.9), "features.preemphasis = 0.9: is for spectra"),
    ],
)
def test_feature_settings_that_cannot_act_are_an_error_that_names_the_value(changes, message):
    with pytest.raises(UserError) as error:
        FeatureConfig(**changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_settings_survive_json(name):
    config = PUBLISHED[name]
    assert from_json(FeatureConfig, to_json(config)) == config


def test_features_do_not_depend_on_the_padding():
    waves = list(sounds([1000, 777, 210], TELEPHONE.sample_rate))
    run = jax.jit(lambda x, n: frontend.extract(x, n, TELEPHONE)[0])
    clean, dirty = (np.asarray(run(*padded(waves, 1040, filler))) for filler in (0.0, np.nan))
    np.testing.assert_array_equal(clean, dirty)
    longer = np.asarray(run(*padded(waves, 1999, np.inf)))
    np.testing.assert_allclose(longer[:, : clean.shape[1]], clean, atol=1e-5)


def test_features_do_not_depend_on_loudness_where_variance_is_scaled():
    (wave,) = sounds([1200], TELEPHONE.sample_rate)
    batch, lengths = padded([wave, 1000 * wave], 1200, 0.0)
    quiet, loud = np.asarray(frontend.extract(batch, lengths, TELEPHONE)[0])
    np.testing.assert_allclose(quiet, loud, atol=2e-4)


def test_white_noise_of_unit_variance_has_unit_power_in_every_bin_per_filter_area():
    config = dataclasses.replace(TELEPHONE, normalization="none", floor=1e-12)
    noise = np.random.default_rng(3).standard_normal((4, 8000)).astype(np.float32)
    power = np.exp(frontend.extract(noise, np.full(4, 8000, np.int32), config)[0]).mean(axis=(0, 1))
    np.testing.assert_allclose(power / mel_matrix(config).sum(axis=0), 1.0, atol=0.25)


@pytest.mark.parametrize("size", list(SIZES))
def test_every_mel_filter_of_every_size_covers_a_transform_bin(size):
    peaks = mel_matrix(SIZES[size][0]).max(axis=0)
    assert peaks.min() > 0.05, f"filters without a transform bin: {np.flatnonzero(peaks <= 0.05).tolist()}"
