"""Augmentation: what it may touch, how strong it is, and that a key decides all of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from reference import tiny

from hra_jax.adapters.base import unbound
from hra_jax.errors import UserError
from hra_jax.models import augmentation, padding
from hra_jax.models.asr import AsrModel
from hra_jax.models.augmentation import NO_AUGMENTATION
from hra_jax.models.features import FeatureConfig

KEY = jax.random.key(3)
LENGTHS = np.array([40, 25, 8, 1, 0], np.int32)
FRAMES, BINS = 40, 12
only = functools.partial(dataclasses.replace, NO_AUGMENTATION)


def features():
    x = np.random.default_rng(0).standard_normal((len(LENGTHS), FRAMES, BINS)).astype(np.float32) + 3.0
    return np.asarray(padding.zero_invalid(x, padding.valid_mask(jnp.asarray(LENGTHS), FRAMES)))


@functools.partial(jax.jit, static_argnames="config")
def masked(key, x, lengths, config):
    return augmentation.spec_augment(key, x, lengths, config)


def test_masks_are_zero_spans_of_bounded_width_inside_the_valid_part():
    x = features()
    config = only(time_masks=1, time_mask_fraction=0.5, freq_masks=1, freq_mask_bins=5)
    widths, heights = [], []
    for seed in range(200):
        out = np.asarray(masked(jax.random.key(seed), x, LENGTHS, config))
        hidden = (out == 0) & (x != 0)
        np.testing.assert_array_equal(out[~hidden], x[~hidden])
        for row, length in enumerate(LENGTHS[:3]):
            times, bins = hidden[row, :length].all(axis=1), hidden[row, :length].all(axis=0)
            # A cell is hidden where its frame or its bin is, and each kind is one span.
            np.testing.assert_array_equal(hidden[row, :length], times[:, None] | bins[None, :])
            for span in (times, bins):
                assert np.abs(np.diff(np.concatenate([[0], span.astype(int), [0]]))).sum() in (0, 2)
            assert times.sum() <= np.ceil(0.5 * length) and bins.sum() <= 5
        widths.append(hidden[0].all(axis=1).sum() / LENGTHS[0])
        heights.append(hidden[0].all(axis=0).sum())
    # Widths are uniform from 0 to the widest.
    np.testing.assert_allclose([np.mean(widths), np.mean(heights)], [0.25, 2.5], rtol=0.2)


def test_what_is_not_centred_is_masked_with_the_mean_of_the_utterance():
    x = features() - 9.0
    config = only(time_masks=2, time_mask_fraction=0.5, freq_masks=1, freq_mask_bins=5)
    x = np.where(x == -9.0, np.float32(1e6), x)  # whatever lies behind the end
    out = np.asarray(augmentation.spec_augment(KEY, x, LENGTHS, config, centred=False))
    hidden = np.asarray(augmentation.spec_augment(KEY, x, LENGTHS, config)) == 0
    assert hidden.any() and not hidden.all()
    for row, length in enumerate(LENGTHS):
        mean = x[row, :length].mean(dtype=np.float64) if length else 0.0
        expected = np.where(hidden[row, :length], mean, x[row, :length])
        np.testing.assert_allclose(out[row, :length], expected, rtol=1e-5)
        assert (out[row, length:] == 0).all()


def test_time_masks_lie_inside_the_utterance_and_not_behind_it():
    config = only(time_masks=2, time_mask_fraction=0.9)
    x = np.full((len(LENGTHS), FRAMES, BINS), 7.0, np.float32)
    hidden = np.zeros((len(LENGTHS), FRAMES), bool)
    for seed in range(200):
        hidden |= (np.asarray(masked(jax.random.key(seed), x, LENGTHS, config)) == 0).all(axis=2)
    np.testing.assert_array_equal(hidden, np.arange(FRAMES)[None] < LENGTHS[:, None])


def test_masks_reach_every_frame_and_bin():
    config = only(time_masks=2, time_mask_fraction=0.3, freq_masks=2, freq_mask_bins=4)
    x = features()
    hidden = np.zeros((FRAMES, BINS))
    for seed in range(300):
        hidden += np.asarray(masked(jax.random.key(seed), x, LENGTHS, config))[0] == 0
    # The first and the last are reached least, by a span that happens to begin or end there.
    assert hidden.min() > 5


def test_augmentation_is_decided_by_the_key_alone_and_differs_between_rows():
    config = only(time_masks=2, freq_masks=2, noise_probability=1.0, speed=0.1, warp=0.1)
    x = np.broadcast_to(features()[:1], (4, FRAMES, BINS))
    lengths = np.full(4, FRAMES, np.int32)
    waveform = np.tile(np.sin(np.arange(300, dtype=np.float32)), (4, 1))
    samples = np.full(4, 300, np.int32)
    for run in (
        lambda key: augmentation.spec_augment(key, x, lengths, config),
        lambda key: augmentation.warp(key, x, lengths, config)[0],
        lambda key: augmentation.add_noise(key, waveform, samples, config),
    ):
        once, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(once, again)
        assert (once != other).any()
        assert (once[0] != once[1]).any()


def noisy(lengths, config, level=1.0, filler=np.nan):
    """Waveforms, and the noise that was added to each."""
    size = int(max(lengths))
    tone = level * np.sin(0.3 * np.arange(size)[None] * (1 + np.arange(len(lengths))[:, None] % 9))
    valid = np.arange(size)[None] < np.asarray(lengths)[:, None]
    out = augmentation.add_noise(KEY, np.where(valid, tone, filler).astype(np.float32), jnp.asarray(lengths), config)
    clean = np.where(valid, tone, 0.0).astype(np.float32)
    return clean, np.asarray(out) - clean, valid


@pytest.mark.parametrize("level", [1e-3, 100.0])
@pytest.mark.parametrize("decibels", [0.0, 20.0])
def test_noise_has_the_asked_signal_to_noise_ratio_at_any_level(decibels, level):
    config = only(noise_probability=1.0, noise_snr_db=(decibels, decibels))
    clean, noise, valid = noisy([30000, 20000, 25000, 8000], config, level)
    ratio = 10 * np.log10((clean**2).sum(axis=1) / (noise**2).sum(axis=1))
    np.testing.assert_allclose(ratio, decibels, atol=0.5)
    assert not noise[~valid].any()


def test_noise_reaches_the_asked_share_of_utterances_within_the_asked_range():
    config = only(noise_probability=0.3, noise_snr_db=(5.0, 25.0))
    clean, noise, _ = noisy([2000] * 1000, config)
    chosen = noise.any(axis=1)
    assert 0.25 < chosen.mean() < 0.35
    ratio = 10 * np.log10((clean[chosen] ** 2).sum(axis=1) / (noise[chosen] ** 2).sum(axis=1))
    assert 4 < ratio.min() < 7 and 23 < ratio.max() < 26
    np.testing.assert_allclose(ratio.mean(), 15.0, atol=1.5)


def test_noise_on_silence_and_on_nothing_is_silence():
    config = only(noise_probability=1.0)
    out = augmentation.add_noise(KEY, jnp.full((2, 50), jnp.nan).at[0].set(0.0), jnp.array([50, 0]), config)
    assert not np.asarray(out).any()


RATE = 8000
# Two recordings that no shift turns into each other, and a room: direct sound, two echoes, and nothing else.
RECORDINGS = (np.random.default_rng(7).standard_normal((2, 90)) * [[1.0], [0.01]]).astype(np.float32)
ROOM = np.zeros(60, np.float32)
ROOM[[0, 25, 59]] = 0.8, -0.5, 0.33
BEFORE = [-1.969412, -3.327670, -3.312451, -3.460773, -0.873638, -1.080806]  # log-probabilities of a frame
SOUNDS = {augmentation.NOISE: RECORDINGS, augmentation.IMPULSES: ROOM[None]}


@pytest.fixture(scope="module")
def heard():
    """A function that gives what becomes of white noise of any length, with NaN behind it: (before, after, lengths)."""
    lengths = np.array([4000, 2500, 3000, 3999], np.int32)
    valid = np.arange(4000)[None] < lengths[:, None]
    clean = np.random.default_rng(5).standard_normal(valid.shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="config")
    def run(key, waveform, config):
        sounds = jax.tree.map(jnp.asarray, SOUNDS)
        return augmentation.change_waveform(key, waveform, lengths, config, sample_rate=RATE, sounds=sounds)

    def changed(seed=0, **settings):
        out = run(jax.random.key(seed), np.where(valid, clean, np.nan).astype(np.float32), only(**settings))
        return np.where(valid, clean, 0.0).astype(np.float64), np.asarray(out, np.float64), lengths

    return changed


def test_a_room_convolves_with_its_impulse_response_and_leaves_loudness_and_length(heard):
    before, after, lengths = heard(impulse_probability=1.0, impulse_source="rooms")
    for x, y, length in zip(before, after, lengths, strict=True):
        expected = scipy.signal.fftconvolve(x[:length], ROOM.astype(np.float64))[:length]
        expected *= np.sqrt((x**2).sum() / (expected**2).sum())
        np.testing.assert_allclose(y[:length], expected, atol=2e-5)
        assert not y[length:].any()
    # So the spectrum is multiplied with that of the room: what 60 samples hold of it, the echoes, is in the ratio.
    ratio = np.fft.rfft(after[0]) / np.fft.rfft(before[0])
    room = np.fft.rfft(ROOM, 4000)
    assert np.corrcoef(np.abs(ratio), np.abs(room))[0, 1] > 0.9


def test_recorded_noise_is_a_part_of_one_recording_at_the_asked_signal_to_noise_ratio(heard):
    settings = dict(noise_source="street", noise_probability=1.0, noise_snr_db=(10.0, 10.0))
    starts = set()
    for seed in range(3):
        before, after, lengths = heard(seed, **settings)
        noise = after - before
        ratio = 10 * np.log10((before**2).sum(axis=1) / (noise**2).sum(axis=1))
        np.testing.assert_allclose(ratio, 10.0, atol=1e-3)
        for row, length in zip(noise, lengths, strict=True):
            assert not row[length:].any()
            # It repeats after 90 samples, so its spectrum has lines at multiples of 8000 / 90 Hz and nothing else.
            np.testing.assert_allclose(row[90:length], row[: length - 90], atol=2e-5)
            found = row[:90] / np.linalg.norm(row[:90])
            likeness = [
                [abs(found @ np.roll(own, -at)) / np.linalg.norm(own) for at in range(90)] for own in RECORDINGS
            ]
            assert np.max(likeness) > 0.9999
            starts.add(tuple(np.argwhere(np.array(likeness) > 0.9999)[0].tolist()))
    assert len(starts) >= 10 and {number for number, _ in starts} == {0, 1}


def test_a_telephone_leaves_a_random_band_and_nothing_beside_it(heard):
    settings = dict(telephone_low_hz=(200.0, 500.0), telephone_high_hz=(2000.0, 3500.0))
    edges = []
    for seed in range(3):
        before, after, lengths = heard(seed, telephone_probability=1.0, **settings)
        for x, y, length in zip(before, after, lengths, strict=True):
            assert not y[length:].any()
            pair = [scipy.signal.welch(signal[:length], RATE, nperseg=800)[1] for signal in (x, y)]
            gain = 10 * np.log10(pair[1] / pair[0])  # dB, by 10 Hz
            assert (np.abs(gain[60:190]) < 1.0).all()  # 600 to 1,900 Hz
            assert gain[2:9].max() < -30 and gain[370:].max() < -30  # below 90 Hz, above 3,700 Hz
            edges.append((10 * np.argmax(gain > -6), 4000 - 10 * np.argmax(gain[::-1] > -6)))
    low, high = np.array(edges).T
    assert 180 <= low.min() < 300 < 400 < low.max() <= 520
    assert 1980 <= high.min() < 2500 < 3000 < high.max() <= 3520


def test_gain_is_uniform_in_decibels_and_changes_nothing_else(heard):
    gains = []
    for seed in range(40):
        before, after, lengths = heard(seed, gain_db=(-20.0, 6.0))
        for x, y, length in zip(before, after, lengths, strict=True):
            ratio = y[:length] / x[:length]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
            gains.append(20 * np.log10(ratio[0]))
    assert -20 <= min(gains) < -18 and 4 < max(gains) <= 6
    np.testing.assert_allclose(np.mean(gains), -7.0, atol=2.0)


def test_each_share_of_utterances_is_drawn_by_itself(heard):
    settings = dict(impulse_source="rooms", noise_source="street", noise_snr_db=(0.0, 0.0))
    names = ("impulse_probability", "noise_probability", "telephone_probability")
    changed = {name: [] for name in names}
    for seed in range(40):
        for name in names:
            before, after, lengths = heard(seed, **settings, **{name: 0.4})
            changed[name] += [np.abs(x - y)[:n].max() > 1e-3 for x, y, n in zip(before, after, lengths, strict=True)]
    shares = np.array([changed[name] for name in names])
    assert (np.abs(shares.mean(axis=1) - 0.4) < 0.11).all()
    assert (np.abs(np.corrcoef(shares)[np.triu_indices(3, 1)]) < 0.25).all()


def test_all_of_them_together_are_decided_by_the_key_and_silence_stays_silence(heard):
    settings = dict(impulse_source="rooms", impulse_probability=1.0, noise_source="street", noise_probability=1.0)
    config = only(**settings, telephone_probability=1.0, gain_db=(-6.0, 6.0))
    sounds = jax.tree.map(jnp.asarray, SOUNDS)
    run = jax.jit(
        lambda key, x: augmentation.change_waveform(
            key, x, np.array([200, 200, 0], np.int32), config, sample_rate=RATE, sounds=sounds
        )
    )
    x = np.stack([np.sin(np.arange(200)), np.zeros(200), np.full(200, np.nan)]).astype(np.float32)
    once, again, other = (np.asarray(run(jax.random.key(seed), x)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other)[0].max() > 0.01
    assert np.isfinite(once).all() and not np.abs(once[1:]).any()


def test_warping_by_factor_one_is_the_identity():
    # In float32, 1 +- 1e-9 is 1: the factors are exactly one, and the interpolation still runs.
    x = features()
    for config in (only(speed=1e-9), only(warp=1e-9), only(speed=1e-9, warp=1e-9)):
        out, lengths = augmentation.warp(KEY, x, LENGTHS, config)
        np.testing.assert_array_equal(out, x)
        np.testing.assert_array_equal(lengths, LENGTHS)


def test_speed_resamples_time_and_never_leaves_the_buffer():
    frames = np.arange(FRAMES, dtype=np.float32)
    lengths = np.array([40, 20, 30, 10] * 25, np.int32)
    x = np.where(frames[None] < lengths[:, None], frames[None] + 1, 0.0)[..., None] * np.ones(3, np.float32)
    out, new_lengths = (np.asarray(v) for v in augmentation.warp(KEY, jnp.asarray(x), lengths, only(speed=0.2)))
    assert new_lengths.max() <= FRAMES
    speeds = []
    for row, (old, new) in enumerate(zip(lengths, new_lengths, strict=True)):
        assert old / 1.2 - 1 <= new <= old / 0.8
        # The features are the time itself, so interpolation shows the speed: out[p] = 1 + p speed.
        speed = out[row, 1, 0] - 1.0
        speeds.append(speed)
        assert 0.8 - 1e-4 <= speed <= 1.2 + 1e-4
        assert new == min(int(np.floor(np.float32(old) / np.float32(speed) + 1e-3)), FRAMES)
        np.testing.assert_allclose(out[row, : new - 1, 0], 1 + speed * np.arange(new - 1), rtol=2e-3)
        assert not out[row, new:].any()
    assert np.min(speeds) < 0.85 and np.max(speeds) > 1.15
    # An utterance that fills the buffer is never slowed down, or its end would be lost.
    assert np.min(np.array(speeds)[lengths == FRAMES]) >= 1 - 1e-4


def test_frequency_warp_moves_every_frame_of_an_utterance_alike():
    x = np.broadcast_to(np.arange(BINS, dtype=np.float32), (50, 4, BINS)).copy()
    out, lengths = augmentation.warp(KEY, jnp.asarray(x), np.full(50, 4, np.int32), only(warp=0.2))
    out = np.asarray(out)
    np.testing.assert_array_equal(lengths, 4)
    factors = out[:, 0, 1]
    assert 0.8 <= factors.min() < 0.85 and 1.15 < factors.max() <= 1.2
    expected = np.minimum(np.arange(BINS)[None] * factors[:, None], BINS - 1)
    np.testing.assert_allclose(out, np.broadcast_to(expected[:, None], out.shape), atol=1e-4)


def test_the_model_augments_only_where_a_key_is_given():
    strong = only(noise_probability=1.0, speed=0.2, warp=0.2, time_masks=2, freq_masks=2)
    params = tiny.random_params(tiny.FEATURES, tiny.ENCODER)
    batch = tiny.random_batch([200, 120], size=240, tasks=[-1, -1], filler=np.nan)

    @functools.partial(jax.jit, static_argnames="config")
    def run(config, key):
        model = AsrModel(tiny.FEATURES, tiny.ENCODER, augment=config)
        rngs = None if key is None else {"augment": key}
        return model.apply({"params": params}, batch["waveform"], batch["num_samples"], unbound(), rngs=rngs)

    plain, lengths = run(NO_AUGMENTATION, None)
    np.testing.assert_array_equal(run(strong, None)[0], plain)
    np.testing.assert_array_equal(run(NO_AUGMENTATION, KEY)[0], plain)
    changed, changed_lengths = run(strong, KEY)
    assert np.isfinite(changed).all() and (changed_lengths > 0).all() and (changed_lengths <= 12).all()
    assert np.abs(changed - plain)[:, : lengths.min()].max() > 0.1
    # What a seed draws stays what it was when noise, warping and masks were all there was.
    np.testing.assert_allclose(changed[0, 0], BEFORE, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (dict(noise_source="street"), "augment.noise_source = 'street': nothing is drawn from it"),
        (dict(impulse_source="rooms"), "augment.impulse_source = 'rooms': nothing is drawn from it"),
        (dict(impulse_probability=0.5), "augment.impulse_probability = 0.5: needs augment.impulse_source"),
        (dict(telephone_probability=0.5, telephone_high_hz=(3000.0, 9000.0)), "above 400 Hz, .* and at most 4000 Hz"),
        (dict(telephone_probability=0.5, telephone_low_hz=(100.0, 3000.0)), "above 3000 Hz"),
    ],
)
def test_what_does_not_go_together_is_one_line(settings, told):
    with pytest.raises(UserError, match=told) as error:
        augmentation.check(only(**settings), FeatureConfig(sample_rate=RATE, fft=256, bins=8, high_hz=4000.0))
    assert "\n" not in str(error.value)
