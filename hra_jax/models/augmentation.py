"""Augmentation on the device, in training only: noise, speed and vocal-tract warping, SpecAugment.

Letters: B batch, S samples, T feature frames, F mel bins.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hra_jax.config.settings import Rule, check_settings, integer, is_number, number, setting
from hra_jax.errors import UserError
from hra_jax.models import padding
from hra_jax.models.features import FeatureConfig


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Strengths: the keys `augment.*`. `NO_AUGMENTATION` is the one that does nothing."""

    noise_probability: float = setting(0.0, number(0, 1), "share of the utterances that get noise")
    noise_snr_db: tuple[float, float] = setting(
        (5.0, 40.0),
        Rule(lambda: "(low, high) with low <= high (dB)", _is_range),
        "signal-to-noise ratio, (lowest, highest), dB",
    )
    speed: float = setting(
        0.0, number(0, 0.5), "speeds are drawn from 1 - speed to 1 + speed; 0 where the backbone takes samples"
    )
    warp: float = setting(
        0.0, number(0, 0.5), "frequency factors from 1 - warp to 1 + warp (vocal-tract length); 0 for samples too"
    )
    time_masks: int = setting(2, integer(0), "time masks per utterance")
    time_mask_fraction: float = setting(0.1, number(0, 1), "longest time mask, as a share of the utterance")
    freq_masks: int = setting(
        2, integer(0), "frequency masks per utterance; 0 where the backbone takes samples (wav2vec2-conformer)"
    )
    freq_mask_bins: int = setting(8, integer(0), "widest frequency mask, mel bins")

    def __post_init__(self) -> None:
        check_settings(self, "augment")


NO_AUGMENTATION = AugmentConfig(noise_probability=0.0, speed=0.0, warp=0.0, time_masks=0, freq_masks=0)


def check(config: AugmentConfig, features: FeatureConfig) -> None:
    """Refuses augmentation that is for spectra where the features are samples; noise and time masks suit both.

    Raises:
      UserError: warping or frequency masks of a model that takes samples.
    """
    if features.kind != "waveform":
        return
    asked = [name for name in ("speed", "warp", "freq_masks") if getattr(config, name)]
    if asked:
        values = ", ".join(f"augment.{name} = {getattr(config, name)}" for name in asked)
        raise UserError(
            f"{values}: for spectra, but this backbone takes samples (features.kind is 'waveform'); "
            f"allowed there: {', '.join(f'--config.augment.{name}=0' for name in asked)}"
        )


def add_noise(rng: jax.Array, waveform: jax.Array, num_samples: jax.Array, config: AugmentConfig) -> jax.Array:
    """Adds noise with a random spectral tilt at a random signal-to-noise ratio; `[B, S]` -> `[B, S]` float32."""
    draw, tilt, ratio, choose = jax.random.split(rng, 4)
    batch = waveform.shape[0]
    valid = padding.valid_mask(num_samples, waveform.shape[1])
    waveform = padding.zero_invalid(waveform.astype(jnp.float32), valid)
    noise = jax.random.normal(draw, waveform.shape)
    slope = jax.random.uniform(tilt, (batch, 1), minval=-0.95, maxval=0.95)
    noise = (noise + slope * jnp.roll(noise, 1, axis=1)) * jax.lax.rsqrt(1 + slope**2)
    low, high = config.noise_snr_db
    snr_db = jax.random.uniform(ratio, (batch, 1), minval=low, maxval=high)
    power = jnp.square(waveform).sum(axis=1, keepdims=True) / jnp.maximum(num_samples, 1)[:, None]
    noise = noise * jnp.sqrt(power) * 10.0 ** (-snr_db / 20.0)
    chosen = jax.random.uniform(choose, (batch, 1)) < config.noise_probability
    return waveform + jnp.where(chosen & valid, noise, 0.0)


def _interpolation(positions: jax.Array, size: int) -> jax.Array:
    """Linear interpolation at `positions` `[B, P]` between 0 and size - 1, as a matrix `[B, P, size]`."""
    positions = jnp.clip(positions, 0, size - 1)[:, :, None]
    return jnp.maximum(0.0, 1.0 - jnp.abs(positions - jnp.arange(size, dtype=jnp.float32)[None, None, :]))


def warp(rng: jax.Array, features: jax.Array, lengths: jax.Array, config: AugmentConfig) -> tuple[jax.Array, jax.Array]:
    """Stretches time and frequency.

    Args:
      rng: key.
      features: `[B, T, F]`.
      lengths: int32 `[B]`, feature frames.
      config: `speed` and `warp`.

    Returns:
      The warped features and their lengths, at most T.
    """
    batch, frames, bins = features.shape
    speed_rng, warp_rng = jax.random.split(rng)
    if config.speed:
        speed = jax.random.uniform(speed_rng, (batch,), minval=1 - config.speed, maxval=1 + config.speed)
        # Slower speech must still fit: an utterance that fills its bucket cannot get longer.
        speed = jnp.maximum(speed, lengths / frames)
        matrix = _interpolation(jnp.arange(frames, dtype=jnp.float32)[None, :] * speed[:, None], frames)
        lengths = jnp.minimum(jnp.floor(lengths / speed).astype(jnp.int32), frames)
        features = jnp.einsum("bpt,btf->bpf", matrix, features)
        features = padding.zero_invalid(features, padding.valid_mask(lengths, frames))
    if config.warp:
        factor = jax.random.uniform(warp_rng, (batch, 1), minval=1 - config.warp, maxval=1 + config.warp)
        matrix = _interpolation(jnp.arange(bins, dtype=jnp.float32)[None, :] * factor, bins)
        features = jnp.einsum("bgf,btf->btg", matrix, features)
    return features, lengths


def _spans(rng: jax.Array, count: int, widest: jax.Array, size: int, extent: jax.Array) -> jax.Array:
    """Union of `count` random spans per row: bool `[B, size]`; `widest` and `extent` are float `[B]`."""
    width_rng, start_rng = jax.random.split(rng)
    shape = (widest.shape[0], count)
    width = jax.random.uniform(width_rng, shape) * widest[:, None]
    start = jax.random.uniform(start_rng, shape) * jnp.maximum(extent[:, None] - width, 0.0)
    # A position is masked where its middle is: by its left edge, the first position would never be.
    middles = jnp.arange(size, dtype=jnp.float32)[None, None, :] + 0.5
    return ((middles >= start[:, :, None]) & (middles < (start + width)[:, :, None])).any(axis=1)


def spec_augment(
    rng: jax.Array, features: jax.Array, lengths: jax.Array, config: AugmentConfig, *, centred: bool = True
) -> jax.Array:
    """Masks random spans of time and frequency with the mean (arXiv 1904.08779): `[B, T, F]` -> the same.

    The mean is zero where each utterance is `centred`; else it is that of the utterance's valid frames.
    """
    batch, frames, bins = features.shape
    time_rng, freq_rng = jax.random.split(rng)
    masked = jnp.zeros((batch, frames, bins), bool)
    if config.time_masks:
        extent = lengths.astype(jnp.float32)
        masked |= _spans(time_rng, config.time_masks, extent * config.time_mask_fraction, frames, extent)[:, :, None]
    if config.freq_masks:
        widest, extent = (jnp.full((batch,), value, jnp.float32) for value in (config.freq_mask_bins, bins))
        masked |= _spans(freq_rng, config.freq_masks, widest, bins, extent)[:, None, :]
    if centred:
        return jnp.where(masked, jnp.zeros((), features.dtype), features)
    valid = padding.valid_mask(lengths, frames)
    mean = padding.masked_mean_variance(features, valid)[0].mean(axis=2, keepdims=True)
    return padding.zero_invalid(jnp.where(masked, mean, features), valid)
