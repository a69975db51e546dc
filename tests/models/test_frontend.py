"""Log-mel features against an independent float64 implementation by FFT."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import conformer_numpy

from hra_jax.models import frontend
from hra_jax.models.config import SIZES, FeatureConfig

TELEPHONE = SIZES["tiny"][0]
ODD = FeatureConfig(  # window - hop is odd, and the window no multiple of the hop
    sample_rate=1000, window=0.028, hop=0.009, fft=64, bins=12, low_hz=0.0, high_hz=480.0, normalization="none"
)
RAW = dataclasses.replace(ODD, unit_variance=False, floor=1e-6)
NARROW = dataclasses.replace(ODD, window=0.009, normalization="utterance")  # windows that do not overlap


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
    out, frames = jax.jit(lambda x, n: frontend.log_mel(x, n, config))(batch, lengths)
    assert out.dtype == np.float32
    for row, wave in enumerate(waves):
        expected = conformer_numpy.log_mel(wave, config)
        assert frames[row] == len(expected) == config.frames(len(wave))
        # Without normalisation the floor of the logarithm bounds the error; 1e-4 is asked for.
        np.testing.assert_allclose(out[row, : len(expected)], expected, atol=1e-4)
        assert not np.asarray(out[row, len(expected) :]).any()


def test_features_do_not_depend_on_the_padding():
    waves = list(sounds([1000, 777, 210], TELEPHONE.sample_rate))
    run = jax.jit(lambda x, n: frontend.log_mel(x, n, TELEPHONE)[0])
    clean, dirty = (np.asarray(run(*padded(waves, 1040, filler))) for filler in (0.0, np.nan))
    np.testing.assert_array_equal(clean, dirty)
    longer = np.asarray(run(*padded(waves, 1999, np.inf)))
    np.testing.assert_allclose(longer[:, : clean.shape[1]], clean, atol=1e-5)


def test_features_do_not_depend_on_loudness_where_variance_is_scaled():
    (wave,) = sounds([1200], TELEPHONE.sample_rate)
    batch, lengths = padded([wave, 1000 * wave], 1200, 0.0)
    quiet, loud = np.asarray(frontend.log_mel(batch, lengths, TELEPHONE)[0])
    np.testing.assert_allclose(quiet, loud, atol=2e-4)


def test_white_noise_of_unit_variance_has_unit_power_in_every_bin_per_filter_area():
    config = dataclasses.replace(TELEPHONE, normalization="none", floor=1e-12)
    noise = np.random.default_rng(3).standard_normal((4, 8000)).astype(np.float32)
    power = np.exp(frontend.log_mel(noise, np.full(4, 8000, np.int32), config)[0]).mean(axis=(0, 1))
    np.testing.assert_allclose(power / frontend.mel_matrix(config).sum(axis=0), 1.0, atol=0.25)


@pytest.mark.parametrize("size", list(SIZES))
def test_every_mel_filter_of_every_size_covers_a_transform_bin(size):
    peaks = frontend.mel_matrix(SIZES[size][0]).max(axis=0)
    assert peaks.min() > 0.05, f"filters without a transform bin: {np.flatnonzero(peaks <= 0.05).tolist()}"
