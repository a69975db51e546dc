"""Hashes of samples: what is the same utterance wherever it lies, and what is another."""

import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
import soundfile

from hra_jax.data import audio
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.data.utterance import Utterance

RATE = 8000


@pytest.fixture
def stereo(tmp_path):
    """Two seconds of 16-bit stereo: (the path of a WAV file, its samples as float32 [S, 2])."""
    samples = np.random.default_rng(1).integers(-9000, 9000, (2 * RATE, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    return tmp_path / "a.wav", samples.astype(np.float32) / 32768


def row(path, duration=2.0, offset=0.0) -> Utterance:
    return Utterance(str(path), duration, "text", offset)


def expected(samples: np.ndarray) -> int:
    content = samples.astype("<f4").tobytes()
    words = struct.unpack(f"<{samples.size}I", content)
    sums = struct.pack("<IQQ", zlib.crc32(content), sum(words) % 2**64, len(words))
    return int.from_bytes(hashlib.blake2b(sums, digest_size=8).digest(), "little")


def test_the_hash_is_that_of_the_samples_as_they_lie_in_the_file(stereo):
    path, samples = stereo
    assert audio.sample_hash(row(path)) == expected(samples)
    part = samples[RATE // 4 : RATE // 4 + RATE]
    assert audio.sample_hash(row(path, 1.0, 0.25)) == expected(part)


def test_decoding_gives_the_same_hash_and_the_samples_that_it_always_gives(stereo):
    path, _ = stereo
    for one in (row(path), row(path, 1.0, 0.25), row(path, 1.98)):
        for rate in (RATE, 16000):
            samples, found = audio.decode_hashed(one, rate)
            assert found == audio.sample_hash(one)
            np.testing.assert_array_equal(samples, audio.decode(one, rate))


def test_a_copy_has_the_hash_of_the_original_by_name_by_link_and_in_another_lossless_format(stereo, tmp_path):
    path, samples = stereo
    (tmp_path / "elsewhere").mkdir()
    os.link(path, tmp_path / "elsewhere" / "hard.wav")
    os.symlink(path, tmp_path / "soft.wav")
    soundfile.write(tmp_path / "b.flac", samples, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "c.wav", samples, RATE, subtype="FLOAT")
    copies = ("elsewhere/hard.wav", "soft.wav", "b.flac", "c.wav")
    assert {audio.sample_hash(row(tmp_path / name)) for name in copies} == {audio.sample_hash(row(path))}


def test_durations_that_were_rounded_to_either_side_of_the_end_name_the_same_utterance(stereo):
    path, samples = stereo
    whole = expected(samples)
    assert [audio.sample_hash(row(path, seconds)) for seconds in (1.96, 1.999, 2.0, 2.004)] == [whole] * 4
    assert audio.sample_hash(row(path, 0.76, 1.2)) == expected(samples[round(1.2 * RATE) :])
    assert audio.sample_hash(row(path, 1.9)) == expected(samples[: round(1.9 * RATE)])  # it ends before the end


def test_another_channel_or_a_single_other_sample_is_another_utterance(stereo, tmp_path):
    path, samples = stereo
    soundfile.write(tmp_path / "mono.wav", samples[:, 0], RATE, subtype="PCM_16")
    changed = samples.copy()
    changed[77, 1] += 1 / 32768
    soundfile.write(tmp_path / "changed.wav", changed, RATE, subtype="PCM_16")
    found = [audio.sample_hash(row(name)) for name in (path, tmp_path / "mono.wav", tmp_path / "changed.wav")]
    assert len(set(found)) == 3


def test_what_was_noted_first_stays_and_is_saved_once():
    hashes = UtteranceHashes(4)
    hashes.put(np.array([2, 0]), np.array([7, 2**63 + 1], np.uint64))
    hashes.put(np.array([2]), np.array([9], np.uint64))
    ids, values = hashes.unsaved()
    assert ids.tolist() == [0, 2] and values.tolist() == [2**63 + 1, 7]
    hashes.saved()
    hashes.put(np.array([3]), np.array([5], np.uint64))
    assert hashes.unsaved()[0].tolist() == [3]
    hashes.clear()
    assert not hashes.values.any() and not len(hashes.unsaved()[0])
