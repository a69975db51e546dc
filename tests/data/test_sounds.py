"""Recordings that augmentation draws from: what is kept of a source, and what bad ones get."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from hra_jax.data.manifest import make
from hra_jax.data.report import DataReport
from hra_jax.data.sounds import read_sounds
from hra_jax.errors import UserError
from hra_jax.models.augmentation import NO_AUGMENTATION

RATE = 2000  # Hz


def written(folder, **recordings):
    """Writes recordings, float `[S]`, and a manifest of them, without texts; its path."""
    for name, samples in recordings.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    rows = [
        {"audio_filepath": f"{name}.wav", "duration": max(len(samples), 1) / RATE, "text": ""}
        for name, samples in recordings.items()
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "m.jsonl")


def read(report=None, *, rows=128, **sources):
    config = dataclasses.replace(NO_AUGMENTATION, source_rows=rows, **sources)
    return read_sounds(config, folder="", sample_rate=RATE, report=DataReport() if report is None else report)


def noise(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def test_noise_is_kept_in_parts_of_ten_seconds_and_what_is_shorter_goes_on_from_its_beginning(tmp_path):
    long, short = noise(35.0), noise(4.0, seed=1)
    found = read(noise_source=written(tmp_path, long=long, short=short))
    assert set(found) == {"noise"} and found["noise"].dtype == np.float32
    parts = {part.tobytes() for part in found["noise"]}
    expected = [*long[: 30 * RATE].reshape(3, -1), np.concatenate([short, short, short])[: 10 * RATE]]
    assert parts == {part.tobytes() for part in expected}


def test_no_more_parts_are_kept_than_asked_of_each_recording_as_many_and_always_the_same(tmp_path):
    recordings = {name: noise(100.0, seed=number) for number, name in enumerate("abcd")}
    path = written(tmp_path, **recordings)
    found = read(noise_source=path, rows=8)["noise"]
    assert found.shape == (8, 10 * RATE)
    starts = {samples[0].tobytes(): name for name, long in recordings.items() for samples in long.reshape(10, -1)}
    names = [starts[row[0].tobytes()] for row in found]
    assert sorted(names) == sorted("aabbccdd")
    np.testing.assert_array_equal(read(noise_source=path, rows=8)["noise"], found)
    assert read(noise_source=path, rows=3)["noise"].shape == (3, 10 * RATE)


def test_an_impulse_response_begins_with_its_loudest_sample_and_has_energy_one(tmp_path):
    room = np.zeros(3 * RATE, np.float32)
    room[[100, 700, 700 + RATE - 1, 700 + RATE]] = 0.1, -0.9, 0.4, 0.3  # the last is beyond the second that is kept
    short = np.array([0.5, 0.25], np.float32)
    found = read(impulse_source=written(tmp_path, room=room, short=short))["impulses"]
    assert found.shape == (2, RATE)
    np.testing.assert_allclose(np.square(found).sum(axis=1), 1.0, rtol=1e-6)
    by_end = sorted(found.tolist(), key=lambda row: abs(row[-1]))
    np.testing.assert_allclose([by_end[0][0], by_end[0][1]], np.array([2.0, 1.0]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose([by_end[1][0], by_end[1][-1]], np.array([-0.9, 0.4]) / np.hypot(0.9, 0.4), rtol=1e-6)


def test_nothing_is_read_where_nothing_is_named():
    assert read() == {}


def test_recordings_that_cannot_be_used_are_named_and_the_others_kept(tmp_path):
    path = written(tmp_path, good=noise(1.0), silent=np.zeros(RATE, np.float32), empty=np.zeros(0, np.float32))
    with open(path, "a") as lines:
        lines.write(json.dumps({"audio_filepath": "gone.wav", "duration": 1.0, "text": ""}) + "\nno json\n")
    report = DataReport()
    assert len(read(report, noise_source=path)["noise"]) == 1
    assert {kind: count for kind, count in report.counts().items() if count} == dict.fromkeys(
        ("bad_json", "missing_file", "empty_audio", "silent_audio"), 1
    )


def test_a_source_of_which_nothing_can_be_used_is_one_line(tmp_path):
    path = written(tmp_path, silent=np.zeros(RATE, np.float32))
    (tmp_path / "empty.jsonl").write_text("")
    for source, told in [
        (path, f"augment.impulse_source = {path!r}: no recording in it can be used, of 1; 1 silent_audio"),
        (str(tmp_path / "empty.jsonl"), "no recording in it can be used, of 0"),
        (str(tmp_path / "gone.jsonl"), f"no manifest at {tmp_path}/gone.jsonl"),
        ("{dir}/noise.jsonl", "augment.impulse_source: the manifest '{dir}/noise.jsonl' needs data.dir"),
    ]:
        with pytest.raises(UserError) as error:
            read(impulse_source=source)
        assert told in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_noise_becomes_a_manifest_without_transcripts(tmp_path):
    (tmp_path / "noise").mkdir()
    written(tmp_path / "noise", a=noise(1.0), b=noise(2.0))
    with pytest.raises(UserError, match="no usable audio with a transcript"):
        make(tmp_path / "noise", tmp_path / "m.jsonl")
    made = make(tmp_path / "noise", tmp_path / "m.jsonl", speaker_from="none", transcripts=False)
    assert (made.lines, made.silent) == (2, [])
    assert read(noise_source=str(tmp_path / "m.jsonl"))["noise"].shape == (2, 10 * RATE)
