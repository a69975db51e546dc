"""Decoding: the right samples, or the right kind of error."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from hra_jax.data import audio, sound_files
from hra_jax.data.audio import AudioError, decode, decode_file, resample
from hra_jax.data.sound_files import Sound
from hra_jax.data.utterance import Utterance

RATE = 8000


def _sine(frequency, seconds, *, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def _noise(seconds, *, rate=RATE):
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def _kind(path, *, duration=1.0, offset=0.0):
    with pytest.raises(AudioError) as error:
        decode(Utterance(str(path), duration, "", offset), RATE)
    assert "\n" not in error.value.detail
    return error.value.kind


@pytest.mark.parametrize(("rate", "target"), [(22050, 8000), (8000, 16000), (44100, 16000), (16000, 8000)])
def test_resampling_keeps_the_frequency_and_the_level_of_a_sine(tmp_path, rate, target):
    soundfile.write(tmp_path / "a.wav", _sine(1000, 1.0, rate=rate), rate, subtype="FLOAT")
    samples = decode(Utterance(str(tmp_path / "a.wav"), 1.0, ""), target)
    assert samples.dtype == np.float32
    assert samples.shape == (target,)
    middle = samples[target // 4 : target // 4 + target // 2]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size)))
    assert np.argmax(spectrum) * target / middle.size == pytest.approx(1000, abs=2)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_segment_equals_a_slice_of_the_whole_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, _noise(3.0), RATE)
    whole = decode(Utterance(str(path), 3.0, ""), RATE)
    segment = decode(Utterance(str(path), 0.75, "", 1.125), RATE)
    np.testing.assert_allclose(segment, whole[9000:15000], atol=0 if suffix != "ogg" else 1e-3)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([_sine(500, 0.5), -_sine(500, 0.5) + 0.25], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    np.testing.assert_allclose(decode(Utterance(str(tmp_path / "a.wav"), 0.5, ""), RATE), 0.125, atol=1e-6)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert _kind(tmp_path / "none.wav") == "missing_file"
    assert _kind(tmp_path) == "undecodable_audio"


def test_files_without_samples_are_empty(tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    soundfile.write(tmp_path / "header.wav", np.zeros(0, np.float32), RATE)
    assert _kind(tmp_path / "zero.wav") == "empty_audio"
    assert _kind(tmp_path / "header.wav") == "empty_audio"


def test_what_is_not_audio_is_undecodable(tmp_path):
    (tmp_path / "text.wav").write_text("this is not audio\n" * 100)
    assert _kind(tmp_path / "text.wav") == "undecodable_audio"


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_undecodable(tmp_path, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, _noise(2.0), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert _kind(path, duration=2.0) == "undecodable_audio"


def test_a_damaged_flac_does_not_pass_as_audio(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, _noise(2.0), RATE)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    assert _kind(path, duration=2.0) == "undecodable_audio"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(tmp_path, value):
    samples = _sine(440, 1.0)
    samples[4000] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert _kind(tmp_path / "a.wav") == "nan_samples"
    # Nothing beyond the segment is looked at.
    assert decode(Utterance(str(tmp_path / "a.wav"), 0.25, ""), RATE).size == 2000


def test_a_segment_beyond_the_file_is_an_error_and_rounding_is_not(tmp_path):
    soundfile.write(tmp_path / "a.wav", _sine(440, 1.0), RATE)
    assert _kind(tmp_path / "a.wav", duration=1.2) == "undecodable_audio"
    assert _kind(tmp_path / "a.wav", duration=0.5, offset=2.0) == "undecodable_audio"
    assert _kind(tmp_path / "a.wav", duration=0.02, offset=1.0) == "empty_audio"
    assert decode(Utterance(str(tmp_path / "a.wav"), 1.04, ""), RATE).size == 8000


def test_a_file_that_cannot_be_sought_in_is_read(tmp_path):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, _sine(440, 2.0), RATE, subtype="GSM610")
    whole = decode_file(path, RATE)
    assert whole.size == 2 * RATE
    np.testing.assert_array_equal(decode(Utterance(path, 0.5, "", 1.0), RATE), whole[RATE : RATE + RATE // 2])


def _without_length(path):
    """A FLAC whose header leaves the number of samples open, as encoders write it that stream."""
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    return str(path)


def test_ogg_streams_that_follow_each_other_are_named_as_only_the_first_would_be_read(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.ogg", _noise(1.0), RATE)
    (tmp_path / "both.ogg").write_bytes((tmp_path / "a.ogg").read_bytes() + (tmp_path / "b.ogg").read_bytes())
    assert decode_file(str(tmp_path / "a.ogg"), RATE).size == RATE
    assert _kind(tmp_path / "both.ogg") == "undecodable_audio"


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    samples = _noise(3.0)
    soundfile.write(tmp_path / "known.flac", samples, RATE)
    soundfile.write(tmp_path / "open.flac", samples, RATE)
    known, unknown = str(tmp_path / "known.flac"), _without_length(tmp_path / "open.flac")
    np.testing.assert_array_equal(decode_file(unknown, RATE), decode_file(known, RATE))
    segment = Utterance(unknown, 1.0, "", 1.5)
    np.testing.assert_array_equal(decode(segment, RATE), decode(Utterance(known, 1.0, "", 1.5), RATE))
    with Sound(unknown) as sound:
        assert sound.seconds == 3.0
    assert decode(Utterance(unknown, 3.04, ""), RATE).size == 3 * RATE
    assert _kind(unknown, duration=4.0) == "undecodable_audio"
    assert _kind(unknown, duration=1.0, offset=5.0) == "undecodable_audio"


@pytest.mark.parametrize("rate", [1, 1999, 768_001])
def test_rates_that_no_recording_has_are_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(50_000, np.int16), rate)
    with pytest.raises(AudioError, match=f"{rate:,} Hz; allowed: 2,000 to 768,000 Hz"):
        decode_file(str(tmp_path / "a.wav"), RATE)


@pytest.mark.parametrize("rate", [RATE, 11025])
def test_blocks_together_are_the_whole(tmp_path, monkeypatch, rate):
    path = str(tmp_path / "a.wav")
    stereo = np.stack([_noise(2.0, rate=rate), _sine(300, 2.0, rate=rate)], axis=1)
    soundfile.write(path, stereo, rate, subtype="FLOAT")
    whole = decode_file(path, RATE)
    np.testing.assert_array_equal(whole, resample(stereo.mean(axis=1), rate, RATE))
    monkeypatch.setattr(sound_files, "_BLOCK", 2000)
    np.testing.assert_array_equal(decode_file(path, RATE), whole)


def test_more_samples_than_the_limit_are_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", _noise(2.0), RATE)
    monkeypatch.setattr(audio, "MOST_SAMPLES", 2 * RATE)
    assert decode_file(str(tmp_path / "a.wav"), RATE).size == 2 * RATE
    monkeypatch.setattr(audio, "MOST_SAMPLES", 2 * RATE - 1)
    assert _kind(tmp_path / "a.wav", duration=2.0) == "too_long"


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_samples_whose_mean_is_not_finite_are_named(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.full((rate, 2), 3e38, np.float32), rate, subtype="FLOAT")
    assert _kind(tmp_path / "a.wav") == "nan_samples"


def test_samples_that_resampling_takes_out_of_range_are_named(tmp_path):
    square = np.sign(_sine(100, 1.0, rate=2 * RATE)) * np.float32(3.4e38)
    soundfile.write(tmp_path / "a.wav", square.astype(np.float32), 2 * RATE, subtype="FLOAT")
    assert _kind(tmp_path / "a.wav") == "nan_samples"


def test_channels_that_cancel_each_other_are_named_and_silence_is_not(tmp_path):
    left = _noise(1.0)
    for name, right, expected in (
        ("opposite", -left, "silent_audio"),
        ("half", -0.5 * left, None),
        ("mono", left, None),
    ):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([left, right], axis=1), RATE)
        if expected:
            assert _kind(tmp_path / f"{name}.wav") == expected
        else:
            assert decode(Utterance(str(tmp_path / f"{name}.wav"), 1.0, ""), RATE).any()
    soundfile.write(tmp_path / "silence.wav", np.zeros((RATE, 2)), RATE)
    assert not decode(Utterance(str(tmp_path / "silence.wav"), 1.0, ""), RATE).any()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float64", "float16", "bfloat16"])
def test_arrays_are_of_full_scale_as_files_are(dtype):
    wanted, dtype = np.array([0.0, 0.5, -0.25, -1.0]), jnp.dtype(dtype)
    steps = 2 ** (8 * dtype.itemsize - 1)
    zero = steps if dtype.kind == "u" else 0
    given = wanted * steps + zero if dtype.kind in "iu" else wanted
    found = audio.from_array(given.astype(dtype), what="it")
    assert found.dtype == np.float32 and found.tolist() == wanted.tolist()


def test_a_file_uri_is_a_path(tmp_path):
    soundfile.write(tmp_path / "a b%.wav", _sine(440, 1.0), RATE)
    for uri in (f"file://{tmp_path}/a%20b%25.wav", f"file://localhost{tmp_path}/a%20b%25.wav"):
        assert decode(Utterance(uri, 1.0, ""), RATE).size == RATE
    assert _kind(f"file://{tmp_path}/none.wav") == "missing_file"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("http://example.org/a.wav", "unreachable_audio"),
        ("https://example.org/a.wav", "unreachable_audio"),
        ("nonsense://a.wav", "unreachable_audio"),
        ("file://elsewhere/a.wav", "unreachable_audio"),
        ("/dev/zero", "undecodable_audio"),
        ("a\0.wav", "undecodable_audio"),
        ("a\ud800.wav", "undecodable_audio"),
        ("x" * 5000, "undecodable_audio"),
    ],
)
def test_a_path_that_cannot_be_read_is_named(path, kind):
    assert _kind(path) == kind


def test_raw_samples_and_pipes_are_named_and_not_waited_for(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("a.raw", "pipe.wav"):
        assert _kind(tmp_path / name) == "undecodable_audio"
