"""Decoding: the right samples, or the right kind of error."""

import numpy as np
import pytest
import soundfile

from hra_jax.data.audio import AudioError, decode
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
