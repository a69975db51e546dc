"""MPEG audio: its frames are counted, and its length is theirs whatever a header promises."""

import os
import time

import numpy as np
import pytest
import soundfile

from hra_jax.data import audio, manifest, mpeg, sound_files
from hra_jax.data.utterance import Utterance

RATE = 16000


def speech_like(*, loud_first: bool) -> np.ndarray:
    """float32 [12 s]: a loud part, which takes a high bit rate, and a quiet one, which does not."""
    noise = np.random.default_rng(0).normal(0, 0.3, 4 * RATE)
    tone = 0.01 * np.sin(0.3 * np.arange(8 * RATE))
    return np.concatenate([noise, tone] if loud_first else [tone, noise]).astype(np.float32)


def variable(path, *, loud_first=True, header=True):
    """An MP3 of variable bit rate, with or without its Xing header."""
    soundfile.write(
        path, speech_like(loud_first=loud_first), RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    if not header:
        content = path.read_bytes()
        path.write_bytes(content[mpeg.count(content).first :])
    return path


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_of_variable_bit_rate_without_a_header_is_read_whole(tmp_path, loud_first):
    path = variable(tmp_path / "a.mp3", loud_first=loud_first, header=False)
    promised = soundfile.info(path).frames
    assert abs(promised - 12 * RATE) > RATE, "the decoder's guess is right here, and nothing is tested"
    whole = audio.decode_file(str(path), RATE)
    assert whole.size == pytest.approx(12 * RATE, abs=3 * 576)
    expected = audio.decode_file(str(variable(tmp_path / "b.mp3", loud_first=loud_first)), RATE)
    delay = 576  # of the encoder, which only a header would name
    np.testing.assert_allclose(whole[delay : delay + 11 * RATE], expected[: 11 * RATE], atol=1e-4)


@pytest.mark.parametrize("loud_first", [True, False])
def test_a_manifest_has_its_true_duration(tmp_path, loud_first):
    variable(tmp_path / "a.mp3", loud_first=loud_first, header=False)
    (tmp_path / "a.txt").write_text("all of it")
    manifest.make(tmp_path, tmp_path / "m.jsonl")
    (utterance,), report = manifest.check(tmp_path / "m.jsonl")
    assert utterance.duration == pytest.approx(12, abs=0.15), report.summary()


def test_a_segment_of_it_is_a_slice_of_it(tmp_path):
    path = str(variable(tmp_path / "a.mp3", header=False))
    whole = audio.decode_file(path, RATE)
    np.testing.assert_allclose(
        audio.decode(Utterance(path, 2.0, "", 8.0), RATE), whole[8 * RATE : 10 * RATE], atol=1e-3
    )
    with pytest.raises(audio.AudioError, match="the file ends at 12"):
        audio.decode(Utterance(path, 14.0, ""), RATE)


def test_the_header_is_believed_where_it_is_right_and_not_where_the_file_goes_on(tmp_path):
    one, two = variable(tmp_path / "one.mp3"), tmp_path / "two.mp3"
    assert audio.decode_file(str(one), RATE).size == 12 * RATE
    two.write_bytes(2 * one.read_bytes())
    assert audio.decode_file(str(two), RATE).size == pytest.approx(24 * RATE, abs=6 * 576)


def test_a_file_that_ends_before_its_header_says_is_truncated(tmp_path):
    path = variable(tmp_path / "a.mp3")
    path.write_bytes(path.read_bytes()[:-6000])
    with pytest.raises(audio.AudioError, match="undecodable_audio: truncated"):
        audio.decode_file(str(path), RATE)


@pytest.mark.parametrize("tags", [(b"", b"TAG" + bytes(125)), (b"ID3\x04\0\0\0\0\x07\x68" + b"\xff\xfb" * 500, b"")])
def test_tags_are_no_frames(tmp_path, tags):
    content = variable(tmp_path / "a.mp3", header=False).read_bytes()
    plain, tagged = mpeg.count(content), mpeg.count(tags[0] + content + tags[1])
    assert plain.frames == tagged.frames
    assert tagged.first == len(tags[0])


def test_other_audio_is_not_counted_whatever_it_is_called(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 20 * RATE)
    for name, format in (("a.mp3", "WAV"), ("b.mp3", "FLAC")):
        soundfile.write(tmp_path / name, noise, RATE, format=format)
        assert audio.decode_file(str(tmp_path / name), RATE).size == noise.size
    flac = (tmp_path / "b.mp3").read_bytes()
    (tmp_path / "c.flac").write_bytes(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + flac)
    assert audio.decode_file(str(tmp_path / "c.flac"), RATE).size == noise.size


def test_what_is_no_stream_is_not_counted():
    for content in (b"", b"\xff", b"\xff\xfb", b"RIFF" + bytes(1000), b"\xff" * 100_000, bytes(70_000)):
        assert mpeg.count(content) is None


def test_a_tag_between_two_streams_is_passed_over(tmp_path):
    content = variable(tmp_path / "a.mp3", header=False).read_bytes()
    frames = mpeg.count(content).frames
    tag = b"ID3\x04\0\0" + bytes((0, 8, 0, 0)) + b"\xff\xfb\x90" * 43690 + b"\0\0"
    assert mpeg.count(content + tag + content).frames == 2 * frames


@pytest.mark.parametrize("junk", [b"\xff\xfb\x90", b"\xff", b"ID3\x04\0\0\0\0\0\0", b"\xff\xfb\x90\xc4" + bytes(413)])
def test_no_stream_takes_long_to_count(junk):
    started = time.process_time()
    mpeg.count(junk * (2**22 // len(junk)))
    assert time.process_time() - started < 5


def test_a_damaged_stream_prints_nothing_and_what_others_print_is_kept(tmp_path, capfd):
    content = bytearray(variable(tmp_path / "a.mp3", header=False).read_bytes())
    for at in np.random.default_rng(0).integers(5000, len(content), 100):
        content[at] ^= 0x55
    (tmp_path / "a.mp3").write_bytes(content)
    soundfile.SoundFile(tmp_path / "a.mp3").read(11 * RATE)
    assert "Note: " in capfd.readouterr().err, "the decoder prints nothing here, and nothing is tested"
    with audio.Sound(str(tmp_path / "a.mp3")) as sound:
        for _ in sound.blocks():
            os.write(2, b"a line of somebody else\n")
    assert set(capfd.readouterr().err.splitlines()) == {"a line of somebody else"}


@pytest.mark.parametrize("junk", [0, 200])
def test_standard_error_is_itself_while_a_whole_stream_is_read(tmp_path, monkeypatch, junk):
    content = variable(tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content + b"x" * junk)
    lengths, read = [], soundfile.SoundFile.read

    def seen(sound, count, **how):
        found = read(sound, count, **how)
        lengths.append((len(found), os.readlink("/proc/self/fd/2")))
        return found

    real = os.readlink("/proc/self/fd/2")
    monkeypatch.setattr(soundfile.SoundFile, "read", seen)
    with audio.Sound(str(tmp_path / "a.mp3")) as sound:
        assert sum(len(block) for block in sound.blocks()) > 11 * RATE
    away = [length for length, where in lengths if where != real]
    assert (sum(away) <= 32 * 1152) == (not junk) and lengths[0][0] in away


def test_the_frames_of_a_hundred_thousand_files_are_counted_once():
    for remembered in (sound_files._counted, sound_files._is_followed):
        assert remembered.cache_info().maxsize >= 100_000
