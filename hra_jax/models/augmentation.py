"""Augmentation on the device, in training only: rooms, noise, telephones, loudness, speed and warping, SpecAugment.

Letters: B batch, S samples, T feature frames, F mel bins; K recordings of noise or impulse responses of R samples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.config.settings import Rule, check_settings, integer, is_number, number, setting, text
from hra_jax.errors import UserError
from hra_jax.models import fourier, padding
from hra_jax.models.features import FeatureConfig

Sounds = Mapping[str, jax.Array]  # {NOISE: [K, R], IMPULSES: [K, R]}, float32; what is not used is absent
NOISE, IMPULSES = "noise", "impulses"
SECONDS = {NOISE: 10.0, IMPULSES: 1.0}  # the longest of each
_TELEPHONE_SECONDS = 0.032  # of the filter of a telephone: its edges are some 100 Hz wide


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]


def _range_of(unit: str, *, above: float = -np.inf) -> Rule:
    words = f"(low, high) with {'' if above == -np.inf else f'{above:g} < '}low <= high ({unit})"
    return Rule(lambda: words, lambda value: _is_range(value) and value[0] > above)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Strengths: the keys `augment.*`. `NO_AUGMENTATION` is the one that does nothing."""

    noise_probability: float = setting(0.0, number(0, 1), "share of the utterances that get noise")
    noise_snr_db: tuple[float, float] = setting(
        (5.0, 40.0), _range_of("dB"), "signal-to-noise ratio, (lowest, highest), dB"
    )
    noise_source: str = setting(
        "",
        text(),
        "recordings of noise, a source as in data.sources (texts are not used), '' for noise that is computed; parts "
        "of at most 10 s are kept in the memory of every device, 64 kB a second at 16 kHz",
    )
    impulse_probability: float = setting(
        0.0, number(0, 1), "share of the utterances that sound as in a room of augment.impulse_source"
    )
    impulse_source: str = setting(
        "",
        text(),
        "impulse responses of rooms, a source as in data.sources, '' for none; from its loudest sample on, 1 s of each "
        "is kept in the memory of every device, 64 kB at 16 kHz",
    )
    source_rows: int = setting(
        128,
        integer(1),
        "most parts of noise and most impulse responses that are kept, the same in every process: 128 of both take "
        "90 MB of every device at 16 kHz",
    )
    telephone_probability: float = setting(
        0.0, number(0, 1), "share of the utterances of which only the band of a telephone is left"
    )
    telephone_low_hz: tuple[float, float] = setting(
        (200.0, 400.0), _range_of("Hz", above=0), "where such a band begins, (lowest, highest), Hz"
    )
    telephone_high_hz: tuple[float, float] = setting(
        (2800.0, 3600.0), _range_of("Hz", above=0), "where it ends, (lowest, highest), Hz"
    )
    gain_db: tuple[float, float] = setting(
        (0.0, 0.0), _range_of("dB"), "how much louder an utterance gets, (lowest, highest), dB; (0.0, 0.0) for none"
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
    """Refuses what does not go together, and augmentation that is for spectra where the features are samples.

    Raises:
      UserError: warping or frequency masks of a model that takes samples; a source without a probability, or the
        probability without a source; a telephone band that is empty, or beyond what the sample rate can have.
    """
    for name, other in (("noise_source", "noise_probability"), ("impulse_source", "impulse_probability")):
        if getattr(config, name) and not getattr(config, other):
            raise UserError(
                f"augment.{name} = {getattr(config, name)!r}: nothing is drawn from it, as augment.{other} is 0; "
                f"allowed: augment.{other} above 0, or no augment.{name}"
            )
    if config.impulse_probability and not config.impulse_source:
        raise UserError(
            f"augment.impulse_probability = {config.impulse_probability}: needs augment.impulse_source, which is ''"
        )
    low, high, half = config.telephone_low_hz[1], config.telephone_high_hz, features.sample_rate / 2
    if config.telephone_probability and not low < high[0] <= high[1] <= half:
        raise UserError(
            f"augment.telephone_high_hz = {high}: allowed with these features: above {low:g} Hz, where a band may "
            f"begin, and at most {half:g} Hz, half the sample rate"
        )
    if features.kind != "waveform":
        return
    asked = [name for name in ("speed", "warp", "freq_masks") if getattr(config, name)]
    if asked:
        values = ", ".join(f"augment.{name} = {getattr(config, name)}" for name in asked)
        raise UserError(
            f"{values}: for spectra, but this backbone takes samples (features.kind is 'waveform'); "
            f"allowed there: {', '.join(f'--config.augment.{name}=0' for name in asked)}"
        )


# --- Waveforms --------------------------------------------------------------------------------------------------------


def sources(config: AugmentConfig) -> dict[str, str]:
    """The sources of recordings that are used, of NOISE and IMPULSES."""
    found = {NOISE: config.noise_source, IMPULSES: config.impulse_source}
    return {kind: source for kind, source in found.items() if source}


def sound_shapes(config: AugmentConfig, sample_rate: int) -> dict[str, tuple[int, int]]:
    """The largest `[K, R]` of the recordings that are used."""
    return {kind: (config.source_rows, round(SECONDS[kind] * sample_rate)) for kind in sources(config)}


def change_waveform(
    rng: jax.Array,
    waveform: jax.Array,
    num_samples: jax.Array,
    config: AugmentConfig,
    *,
    sample_rate: int,
    sounds: Sounds | None = None,
) -> jax.Array:
    """What happens to sound on its way: a room, noise, a telephone, an amplifier; `[B, S]` -> `[B, S]`.

    Args:
      rng: key.
      waveform: `[B, S]`; samples after `num_samples` may be anything.
      num_samples: int32 `[B]`.
      config: which of them there are.
      sample_rate: Hz.
      sounds: the recordings of `sources`.
    """
    sounds = {} if sounds is None else sounds
    # Each has a key of its own, so that none changes what the others draw; that of noise is the oldest.
    room, telephone, amplifier = (jax.random.fold_in(rng, number) for number in (4, 5, 6))
    if config.impulse_probability:
        waveform = reverberate(room, waveform, num_samples, config, sounds[IMPULSES])
    if config.noise_probability:
        waveform = add_noise(rng, waveform, num_samples, config, sounds.get(NOISE))
    if config.telephone_probability:
        waveform = limit_band(telephone, waveform, num_samples, config, sample_rate=sample_rate)
    if config.gain_db != (0.0, 0.0):
        waveform = amplify(amplifier, waveform, config)
    return waveform


def _valid(waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A waveform as float32 with zeros where it has no samples, and bool `[B, S]` that says where it has."""
    valid = padding.valid_mask(num_samples, waveform.shape[1])
    return padding.zero_invalid(waveform.astype(jnp.float32), valid), valid


def _power(waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
    """Mean square `[B, 1]` of what is zero outside its samples."""
    return jnp.square(waveform).sum(axis=1, keepdims=True) / jnp.maximum(num_samples, 1)[:, None]


def add_noise(
    rng: jax.Array,
    waveform: jax.Array,
    num_samples: jax.Array,
    config: AugmentConfig,
    recordings: jax.Array | None = None,
) -> jax.Array:
    """Adds noise at a random signal-to-noise ratio; `[B, S]` -> `[B, S]` float32.

    It is a part of one of the `recordings`, float32 `[K, R]`, which goes on from its beginning where it ends; without
    them it is computed, with a random spectral tilt.
    """
    draw, tilt, ratio, choose = jax.random.split(rng, 4)
    batch = waveform.shape[0]
    waveform, valid = _valid(waveform, num_samples)
    if recordings is None:
        noise = jax.random.normal(draw, waveform.shape)
        slope = jax.random.uniform(tilt, (batch, 1), minval=-0.95, maxval=0.95)
        noise = (noise + slope * jnp.roll(noise, 1, axis=1)) * jax.lax.rsqrt(1 + slope**2)
    else:
        noise = padding.zero_invalid(_part(draw, recordings, waveform.shape), valid)
        noise = noise * jax.lax.rsqrt(jnp.maximum(_power(noise, num_samples), 1e-20))
    low, high = config.noise_snr_db
    snr_db = jax.random.uniform(ratio, (batch, 1), minval=low, maxval=high)
    noise = noise * jnp.sqrt(_power(waveform, num_samples)) * 10.0 ** (-snr_db / 20.0)
    chosen = jax.random.uniform(choose, (batch, 1)) < config.noise_probability
    return waveform + jnp.where(chosen & valid, noise, 0.0)


def _part(rng: jax.Array, recordings: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[B, S]` of that `shape`: of a random one of the `recordings` `[K, R]` each, from a random sample of it on."""
    which, where = jax.random.split(rng)
    batch, samples = shape
    count, length = recordings.shape
    rows = recordings[jax.random.randint(which, (batch,), 0, count)]
    start = jax.random.randint(where, (batch,), 0, length)
    turned = jax.vmap(lambda row, at: jax.lax.dynamic_slice(jnp.concatenate([row, row]), (at,), (length,)))(rows, start)
    return jnp.tile(turned, (1, -(-samples // length)))[:, :samples]


def reverberate(
    rng: jax.Array, waveform: jax.Array, num_samples: jax.Array, config: AugmentConfig, impulses: jax.Array
) -> jax.Array:
    """Has a share of the utterances sound as in a room; `[B, S]` -> `[B, S]` float32, as loud and as long as before.

    `impulses` are float32 `[K, R]`, the direct sound first.
    """
    which, choose = jax.random.split(rng)
    batch = waveform.shape[0]
    waveform, valid = _valid(waveform, num_samples)
    room = impulses[jax.random.randint(which, (batch,), 0, impulses.shape[0])]
    found = padding.zero_invalid(fourier.convolve(waveform, room), valid)
    before, after = _power(waveform, num_samples), _power(found, num_samples)
    found = found * jnp.sqrt(before) * jax.lax.rsqrt(jnp.maximum(after, 1e-20))
    chosen = jax.random.uniform(choose, (batch, 1)) < config.impulse_probability
    return jnp.where(chosen, found, waveform)


def limit_band(
    rng: jax.Array, waveform: jax.Array, num_samples: jax.Array, config: AugmentConfig, *, sample_rate: int
) -> jax.Array:
    """Leaves a share of the utterances a random band, as a telephone does; `[B, S]` -> `[B, S]` float32.

    The filter is the ideal one in a Hamming window, with as much sound before a sample as after it.
    """
    below, above, choose = jax.random.split(rng, 3)
    batch = waveform.shape[0]
    waveform, valid = _valid(waveform, num_samples)
    half = round(_TELEPHONE_SECONDS * sample_rate / 2)
    ranges = (config.telephone_low_hz, config.telephone_high_hz)
    low, high = (
        jax.random.uniform(key, (batch, 1), minval=least, maxval=most) * (2.0 / sample_rate)
        for key, (least, most) in zip((below, above), ranges, strict=True)
    )
    taps = jnp.arange(-half, half + 1, dtype=jnp.float32)[None]
    window = np.hamming(2 * half + 1).astype(np.float32)[None]
    filters = (high * jnp.sinc(high * taps) - low * jnp.sinc(low * taps)) * window
    found = padding.zero_invalid(fourier.convolve(waveform, filters, delay=half), valid)
    chosen = jax.random.uniform(choose, (batch, 1)) < config.telephone_probability
    return jnp.where(chosen, found, waveform)


def amplify(rng: jax.Array, waveform: jax.Array, config: AugmentConfig) -> jax.Array:
    """Makes every utterance louder by a random number of decibels; `[B, S]` -> `[B, S]` float32."""
    low, high = config.gain_db
    decibels = jax.random.uniform(rng, (waveform.shape[0], 1), minval=low, maxval=high)
    return waveform.astype(jnp.float32) * 10.0 ** (decibels / 20.0)


# --- Features ---------------------------------------------------------------------------------------------------------


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
