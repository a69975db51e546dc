"""Log-mel features, batched and on the device.

Letters: B batch, S samples, T feature frames, W window samples, K transform bins, F mel bins.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.models import padding
from hra_jax.models.config import FeatureConfig


def _mel(hz):
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


@functools.lru_cache(maxsize=8)
def mel_matrix(config: FeatureConfig) -> np.ndarray:
    """Triangles, linear on the mel scale 1127 ln(1 + f / 700), peak 1: float32 `[K, F]`."""
    edges = np.linspace(_mel(config.low_hz), _mel(config.high_hz), config.bins + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    mel = _mel(np.arange(config.fft // 2 + 1) * config.sample_rate / config.fft)[:, None]
    weights = np.minimum((mel - low) / (centre - low), (high - mel) / (high - centre))
    return np.maximum(weights, 0.0).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _transform_matrix(config: FeatureConfig) -> np.ndarray:
    """Hann window and real DFT as one float32 matrix `[W, 2K]` (cosines, then sines), unit power for white noise."""
    size = config.window_samples
    window = np.hanning(size + 1)[:size]
    phase = 2 * np.pi / config.fft * np.outer(np.arange(size), np.arange(config.fft // 2 + 1))
    basis = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * window[:, None]
    return (basis / np.sqrt(np.square(window).sum())).astype(np.float32)


def _frame(waveform, config: FeatureConfig):
    """`[B, S]` -> `[B, T, W]`: frame i is centred on the middle of hop i, with zeros beyond both ends."""
    hop, window = config.hop_samples, config.window_samples
    frames = config.frames(waveform.shape[1])
    left = (window - hop) // 2
    hops = -(-window // hop)  # hops that a window touches
    needed = (frames + hops - 1) * hop
    padded = jnp.pad(waveform, ((0, 0), (left, max(0, needed - left - waveform.shape[1]))))[:, :needed]
    # Strided views as a few shifted copies: no gather.
    blocks = padded.reshape(padded.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : i + frames] for i in range(hops)], axis=-1)[:, :, :window]


def log_mel(waveform, num_samples, config: FeatureConfig):
    """Log-mel features.

    Args:
      waveform: float `[B, S]`, mono, at `config.sample_rate`; what lies behind `num_samples` may be anything.
      num_samples: int32 `[B]`.
      config: the feature settings.

    Returns:
      float32 `[B, T, F]`, zero in invalid frames, and lengths int32 `[B]` in feature frames.
    """
    valid_samples = padding.valid_mask(num_samples, waveform.shape[1])
    waveform = padding.zero_invalid(waveform.astype(jnp.float32), valid_samples)
    if config.unit_variance:
        _, variance = padding.masked_mean_variance(waveform[..., None], valid_samples)
        waveform = waveform * jax.lax.rsqrt(variance[..., 0] + 1e-10)
    # The DFT is a matrix product: on a mesh it stays sharded by rows, where an FFT may be gathered to every device.
    spectrum = jnp.einsum(
        "btw,wk->btk", _frame(waveform, config), _transform_matrix(config), precision=jax.lax.Precision.HIGHEST
    )
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    power = jnp.square(real) + jnp.square(imaginary)
    mel = jnp.einsum("btk,kf->btf", power, mel_matrix(config), precision=jax.lax.Precision.HIGHEST)
    features = jnp.log(mel + config.floor)
    lengths = config.frames(num_samples)
    valid = padding.valid_mask(lengths, features.shape[1])
    if config.normalization == "utterance":
        mean, variance = padding.masked_mean_variance(features, valid)
        features = (features - mean) * jax.lax.rsqrt(variance + 1e-5)
    return padding.zero_invalid(features, valid), lengths
