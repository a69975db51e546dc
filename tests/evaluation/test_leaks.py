"""Utterances of a suite that were trained on: found by samples and by interval, and refused by name."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from reference import micro as world

from hra_jax import evaluate
from hra_jax.adapters import adapter_folder, task_records
from hra_jax.data import audio, manifest
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation import leaks, suites


def rows_of(path):
    return manifest.load_manifest(path, report=DataReport())


def refused(*args, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        evaluate.evaluate(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_exported_adapter_holds_the_hash_of_every_utterance_by_task(trained, micro):
    exported = adapter_folder.read_adapter(trained.workdir / "adapter")
    rows = [row for row in rows_of(micro.data / "train.jsonl") if row.tag("speaker") in world.SPEAKERS]
    found = exported.records[task_records.HASHES]
    for speaker in world.SPEAKERS:
        expected = sorted(audio.sample_hash(row) for row in rows if row.tag("speaker") == speaker)
        assert found[speaker].tolist() == expected  # 4 steps are more than an epoch
    assert "task_records.safetensors` holds 64 bits of a hash" in (trained.workdir / "adapter/README.md").read_text()


@pytest.mark.parametrize("way", ["copy", "link", "flac"])
def test_a_test_utterance_that_was_trained_on_is_found_without_the_manifests_of_the_training(
    trained, micro, tmp_path, way
):
    # Only the exported adapter is there, and a recording that came by another way under another name.
    adapter = shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    known = task_records.all_hashes(adapter_folder.read_adapter(adapter).records)
    (source,) = [row for row in world.read_manifest(micro.data / "train.jsonl") if row["text"] == "cad"][:1]
    original, copy = micro.data / source["audio_filepath"], tmp_path / f"other.{'wav' if way == 'flac' else 'flac'}"
    if way == "copy":
        shutil.copy(original, copy)
    elif way == "link":
        os.symlink(original, copy)
    else:
        samples, rate = soundfile.read(original, dtype="int16")
        soundfile.write(copy, samples, rate)
    world.write_manifest(
        tmp_path / "test.jsonl",
        [source | {"audio_filepath": copy.name}]
        + [
            row | {"audio_filepath": str(micro.data / row["audio_filepath"])}
            for row in world.read_manifest(micro.data / "test.jsonl")
        ],
    )
    rows = rows_of(tmp_path / "test.jsonl")
    found = leaks.found_in(rows, leaks.hashes_of(rows), known)
    assert found == [copy.name]
    with pytest.raises(UserError, match=f"suite 'x': the adapter was trained on 1 of its utterances.*{copy.name}"):
        leaks.check(found, suite="x", what="the adapter")


def test_a_lossy_or_resampled_copy_is_not_found_as_the_pages_say(trained, micro, tmp_path):
    known = task_records.all_hashes(adapter_folder.read_adapter(trained.workdir / "adapter").records)
    source = world.read_manifest(micro.data / "train.jsonl")[0]
    samples, rate = soundfile.read(micro.data / source["audio_filepath"], dtype="float32")
    soundfile.write(tmp_path / "lossy.ogg", samples, rate)
    soundfile.write(tmp_path / "louder.wav", np.float32(0.5) * samples, rate, subtype="FLOAT")
    world.write_manifest(
        tmp_path / "m.jsonl", [source | {"audio_filepath": name} for name in ("lossy.ogg", "louder.wav")]
    )
    rows = rows_of(tmp_path / "m.jsonl")
    assert leaks.hashes_of(rows).all() and not leaks.found_in(rows, leaks.hashes_of(rows), known)


def test_an_overlapping_segment_of_a_file_at_hand_is_found_by_interval(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 8000)
    os.symlink(tmp_path / "long.wav", tmp_path / "alias.wav")
    world.write_manifest(
        tmp_path / "train.jsonl", [{"audio_filepath": "long.wav", "duration": 2.0, "text": "a", "offset": 0.0}]
    )
    world.write_manifest(
        tmp_path / "test.jsonl",
        [
            {"audio_filepath": "alias.wav", "duration": 2.0, "text": "a", "offset": 1.5},
            {"audio_filepath": "alias.wav", "duration": 2.0, "text": "a", "offset": 2.0},
        ],
    )
    train, test = rows_of(tmp_path / "train.jsonl"), rows_of(tmp_path / "test.jsonl")
    known = np.unique(leaks.hashes_of(train))
    assert not leaks.found_in(test, leaks.hashes_of(test), known)
    with pytest.raises(UserError, match=r"shares 1 utterances with training data, such as 'alias.wav@1.5\+2'"):
        suites.check_disjoint(test, train, suite="x")


def test_evaluation_of_a_run_refuses_a_copy_and_names_the_first_three(trained, micro, tmp_path, monkeypatch):
    world.use_devices(monkeypatch, 1)
    workdir = shutil.copytree(trained.workdir, tmp_path / "W")
    rows = world.read_manifest(micro.data / "train.jsonl")[:5]
    for number, row in enumerate(rows):
        name = f"new-{number}{row['audio_filepath'][-5:].replace('l.', '.')}"
        shutil.copy(micro.data / row["audio_filepath"], tmp_path / name)
        row["audio_filepath"] = name
    world.write_manifest(tmp_path / "test.jsonl", rows)
    suite = world.write_suite(tmp_path / "leaky.py", (("*", str(tmp_path / "test.jsonl"), "speaker=*", "*"),))
    told = refused(workdir, suite)
    assert "suite 'leaky': this run was trained on 5 of its utterances" in told
    names = sorted(row["audio_filepath"] for row in rows)
    assert all(repr(name) in told for name in names[:3]) and "and 2 more" in told and names[3] not in told
    assert not (workdir / "eval" / "leaky").exists()


def test_an_exported_adapter_is_not_scored_on_what_it_was_trained_on_where_nothing_else_is(
    trained, micro, tmp_path, monkeypatch
):
    world.use_devices(monkeypatch, 1)
    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    rows = world.read_manifest(micro.data / "train.jsonl")[:1]
    shutil.copy(micro.data / rows[0]["audio_filepath"], tmp_path / "unseen.flac")
    world.write_manifest(tmp_path / "test.jsonl", [rows[0] | {"audio_filepath": "unseen.flac"}])
    suite = world.write_suite(tmp_path / "leaky.py", (("*", "{dir}/test.jsonl", "speaker=*", "*"),))
    asked = {"adapters": [str(tmp_path / "adapter")], "backbones": [micro.backbone], "data_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"suite 'leaky': the adapter .* was trained on 1 of its .*: 'unseen.flac'"):
        evaluate.evaluate_systems([suite], tmp_path / "R", **asked)
    assert not (tmp_path / "R" / "leaky").exists()


def test_without_hashes_exports_say_nothing_of_the_training_data(micro, tmp_path):
    done = world.train(micro.config(steps=1, export__hashes=False), tmp_path / "W")
    assert done.status == 0 and done.run.hashes is None
    assert not (tmp_path / "W" / "adapter" / "task_records.safetensors").exists()
    assert "hash" not in (tmp_path / "W" / "adapter" / "README.md").read_text()
    assert json.loads((tmp_path / "W/checkpoints/1/rows/metadata").read_text())["hashes"] == []


def test_hashes_are_those_of_the_uninterrupted_run_after_a_resume(micro, trained, tmp_path):
    changes = {"checkpoint__every_steps": 1}
    world.train(micro.config(steps=1, **changes), tmp_path / "W")
    first = task_records.all_hashes(adapter_folder.read_adapter(tmp_path / "W" / "adapter").records)
    resumed = world.train(micro.config(steps=4, **changes), tmp_path / "W")
    found = adapter_folder.read_adapter(tmp_path / "W" / "adapter").records
    whole = adapter_folder.read_adapter(trained.workdir / "adapter").records
    assert 0 < len(first) < len(task_records.all_hashes(whole)) == len(task_records.all_hashes(found))
    assert {task: array.tolist() for task, array in found["hashes"].items()} == {
        task: array.tolist() for task, array in whole["hashes"].items()
    }
    known = resumed.run.hashes.values
    assert sorted(known[known != 0].tolist()) == task_records.all_hashes(found).tolist()
