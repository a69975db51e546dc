"""Recordings in a bucket: of a long one what is wanted is fetched, and trouble is told from damage."""

import io

import numpy as np
import pytest
import soundfile

from hra_jax.data import audio
from hra_jax.data.utterance import Utterance
from hra_jax.storage import remote

RATE = 16000
SECONDS = 600


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_of_a_long_recording_in_a_bucket_the_part_that_is_wanted_is_fetched(gcs_storage, monkeypatch, name):
    noise = np.random.default_rng(0).integers(-9000, 9000, RATE * SECONDS).astype(np.int16)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, format=name[2:].upper()) as writer:
        for start in range(0, noise.size, RATE):  # libsndfile's stack has no room for much Vorbis at a time
            writer.write(noise[start : start + RATE])
    content = file.getvalue()
    path = f"gs://bucket/{name}"
    gcs_storage.write(path, content)
    for offset in (0.5, 300.0, SECONDS - 10.0):
        before = gcs_storage.sent
        samples = audio.decode(Utterance(path, 10.0, "a", offset), RATE)
        sent = gcs_storage.sent - before
        if name == "a.ogg":  # whose length nobody knows who has not read all of it
            assert sent == len(content)
            continue
        whole = noise[int(offset * RATE) : int((offset + 10) * RATE)]
        np.testing.assert_array_equal(samples, whole / np.float32(32768))
        assert sent < len(content) / 2, sent
    before = gcs_storage.sent
    assert audio.decode(Utterance(path, SECONDS, "a"), RATE).size == noise.size
    assert gcs_storage.sent - before == len(content)
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "1")
    gcs_storage.fail(f"GET /bucket/{name}")
    with pytest.raises(audio.AudioError, match="unreachable_audio: .*does not answer"):
        audio.decode(Utterance(path, 10.0, "a", 100.0), RATE)
    gcs_storage.fail()
    with pytest.raises(remote.StorageUnavailable):
        audio.decode(Utterance(path, 10.0, "a", 100.0), RATE)
