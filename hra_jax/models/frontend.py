"""Features of waveforms, batched and on the device: log-mel spectra, or the samples themselves.

Letters: B batch, S samples, T feature frames, W window samples, K transform bins, F mel bins.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.models import padding
from hra_jax.models.features import FeatureConfig, mel_matrix, transform_matrix


def _frame(waveform: jax.Array, config: FeatureConfig) -> jax.Array:
    """`[B, S]` -> `[B, T, W]`, placed as `config.framing` says, with zeros beyond both ends."""
    hop, window = config.hop_samples, config.window_samples
    frames = config.spectra(waveform.shape[1])
    centred = config.fft // 2 - (config.fft - window) // 2  # the window stands in the middle of the transform
    left = {"hop": (window - hop) // 2, "inside": 0, "centred": centred}[config.framing]
    hops = -(-window // hop)  # hops that a window touches
    needed = (frames + hops - 1) * hop
    size = waveform.shape[1]
    # Of a program for any length only the most is known: no frame begins after the last sample.
    right = max(0, needed - left - size) if isinstance(size, int) else (hops - 1) * hop
    padded = jnp.pad(waveform, ((0, 0), (left, right)))[:, :needed]
    # Strided views as a few shifted copies: no gather.
    blocks = padded.reshape(padded.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : i + frames] for i in range(hops)], axis=-1)[:, :, :window]


@functools.lru_cache(maxsize=8)
def _sliced_matrix(config: FeatureConfig) -> tuple[np.ndarray, ...]:
    """The transform as three float32 matrices that add up to it: see `_precise_spectrum`."""
    whole = transform_matrix(config, np.float64)
    unit = 2.0 ** np.round(np.log2(np.abs(whole).max()))
    first = np.round(whole / unit * _COARSE) * (unit / _COARSE)
    second = np.round((whole - first) / unit * _FINE) * (unit / _FINE)
    return tuple(part.astype(np.float32) for part in (first, second, whole - first - second))


# Steps of the first two slices, parts of the unit: integers of 8 bits and a sign each.
_COARSE, _FINE = 2.0**7, 2.0**15


def _precise_spectrum(frames: jax.Array, config: FeatureConfig) -> jax.Array:
    """`[B, T, W]` -> `[B, T, 2K]` in float32, with an error far below 2^-24 of the loudest sample.

    Each factor is cut into slices in fixed point, the frame in parts of its own loudest sample, and the products of the
    first slices are sums of integers below 2^24, which are exact in float32 in any order, on TPU and GPU too, where
    such a product may round its factors to 8 bits. Rounding is left to the products that are 2^-16 of the whole (the
    scheme of Ozaki and others, Numerical Algorithms 59, 2012).
    """
    product = functools.partial(jnp.einsum, "btw,wk->btk", precision=jax.lax.Precision.HIGHEST)
    exact = functools.partial(jnp.einsum, "btw,wk->btk", precision=jax.lax.Precision.DEFAULT)
    power_of_two = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=0)  # the nearest
    unit = power_of_two(jnp.maximum(jnp.abs(frames).max(axis=-1, keepdims=True), 1e-30))
    # Multiplied and not divided: a quotient may be rounded, on TPU even that of powers of two.
    frames = frames * power_of_two(1.0 / unit)
    first = jnp.round(frames * _COARSE) * (1.0 / _COARSE)
    second = jnp.round((frames - first) * _FINE) * (1.0 / _FINE)
    rest = frames - first - second
    m1, m2, m3 = _sliced_matrix(config)
    small = product(first, m3) + product(second, m2 + m3) + product(rest, transform_matrix(config))
    return (exact(first, m1) + (exact(first, m2) + exact(second, m1) + small)) * unit


def _log_mel(waveform: jax.Array, config: FeatureConfig) -> jax.Array:
    """`[B, S]` -> `[B, T, F]`, not normalised. A constant may be missing where normalisation removes it anyway."""
    # The DFT is a matrix product: on a mesh it stays sharded by rows, where an FFT may be gathered to every device.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    dtype: Any = waveform.dtype.type
    frames = _frame(waveform, config)
    # A floor relative to the loudness hides the rounding errors of loud bins in faint ones, another floor may not:
    # speech of 8 kHz at 16 kHz leaves the upper half of the bins 10^-10 of the power of the others.
    if config.unit_variance or dtype == np.float64:
        spectrum = product("btw,wk->btk", frames, transform_matrix(config, dtype))
    else:
        spectrum = _precise_spectrum(frames, config)
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    power = jnp.square(real) + jnp.square(imaginary)
    mel = product("btk,kf->btf", power, mel_matrix(config, dtype))
    if config.floor_mode == "max":
        return jnp.log(jnp.maximum(mel, config.floor))
    if config.unit_variance:
        return jnp.log(mel + config.floor)
    # A bin that stays near the floor varies by less than float32 resolves in log(floor), and normalisation would
    # enlarge that.
    above = jnp.log1p(mel / config.floor)
    return above if config.normalization != "none" else above + np.log(config.floor).astype(dtype)


def _normalize(features: jax.Array, valid: jax.Array, config: FeatureConfig) -> jax.Array:
    mean, variance = padding.masked_mean_variance(features, valid)
    if config.normalization != "utterance":
        count = valid.sum(axis=1)[:, None, None].astype(features.dtype)
        variance = variance * (count / jnp.maximum(count - 1, 1))
    if config.normalization == "unbiased_std":
        return (features - mean) / (jnp.sqrt(variance) + config.normalization_eps)
    return (features - mean) * jax.lax.rsqrt(variance + config.normalization_eps)


def unstacked(waveform: jax.Array, num_samples: jax.Array, config: FeatureConfig) -> tuple[jax.Array, jax.Array]:
    """Features before frames are stacked. Augmentation works on these, since it needs the bins of single frames.

    Args:
      waveform: `[B, S]`, mono, at `config.sample_rate`; samples after `num_samples` may be anything.
      num_samples: int32 `[B]`.
      config: the feature settings.

    Returns:
      `[B, T, F]` (`[B, S, 1]` of kind 'waveform'), zero in invalid frames, and lengths int32 `[B]`. All is computed in
      float64 where the waveform is (JAX has that with `jax_enable_x64` only), else in float32.
    """
    valid_samples = padding.valid_mask(num_samples, waveform.shape[1])
    dtype = jnp.float64 if waveform.dtype == jnp.float64 else jnp.float32
    waveform = padding.zero_invalid(waveform.astype(dtype), valid_samples)
    if config.scale != 1.0:
        waveform = waveform * config.scale
    if config.unit_variance:
        _, variance = padding.masked_mean_variance(waveform[..., None], valid_samples)
        waveform = waveform * jax.lax.rsqrt(variance[..., 0] + 1e-10)
    if config.preemphasis and config.preemphasis_of == "signal":
        before = jnp.pad(waveform, ((0, 0), (1, 0)))[:, :-1]
        # The first sample after the end would not be zero.
        waveform = padding.zero_invalid(waveform - config.preemphasis * before, valid_samples)
    features = waveform[..., None] if config.kind == "waveform" else _log_mel(waveform, config)
    lengths = config.spectra(num_samples)
    valid = padding.valid_mask(lengths, features.shape[1])
    if config.normalization != "none":
        features = _normalize(features, valid, config)
    return padding.zero_invalid(features, valid), lengths


def stacked(features: jax.Array, lengths: jax.Array, config: FeatureConfig) -> tuple[jax.Array, jax.Array]:
    """Puts `config.stack` frames side by side: `[B, T, F]` -> `[B, T // stack, stack F]`, and the lengths.

    What does not fill a stack is left out, or stands in an invalid frame.
    """
    if config.stack == 1:
        return features, lengths
    frames = features.shape[1] // config.stack
    whole = features[:, : frames * config.stack].reshape(features.shape[0], frames, config.width)
    lengths = lengths // config.stack
    return padding.zero_invalid(whole, padding.valid_mask(lengths, frames)), lengths


def extract(waveform: jax.Array, num_samples: jax.Array, config: FeatureConfig) -> tuple[jax.Array, jax.Array]:
    """Features as the encoder takes them: `unstacked`, then `stacked`; arguments and results as theirs."""
    features, lengths = unstacked(waveform, num_samples, config)
    return stacked(features, lengths, config)
