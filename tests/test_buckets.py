"""Runs whose everything lies in a bucket, through the clients that users have, with trouble now and then."""

import json

import pytest
from reference import micro as world

from hra_jax.storage import remote

SUFFIX = "adapter_model.safetensors"


@pytest.mark.slow(minutes=1.5)
def test_a_run_in_a_bucket_that_fails_now_and_then_exports_what_a_local_one_does(micro, tmp_path, gcs_storage):
    changes = dict(checkpoint__every_steps=2, optimizer__learning_rate=3e-3)
    local = world.train(micro.config(**changes), tmp_path / "W")
    gcs_storage.upload_folder(micro.folder, "gs://bucket/world")
    changes |= dict(backbone="gs://bucket/world/backbone", data__dir="gs://bucket/world/data")
    gcs_storage.fail(every=200)
    # Two steps, and then the rest: what is saved in a bucket is what a run goes on from.
    for steps in (2, 4):
        done = world.train(micro.config(**changes, steps=steps), "gs://bucket/W")
        assert done.status == 0
    assert "resuming at step 2" in done.printed
    gcs_storage.work()
    names = gcs_storage.names("gs://bucket/W/adapter/")
    assert sorted(names) == sorted(file.name for file in (local.workdir / "adapter").iterdir())
    assert gcs_storage.read(f"gs://bucket/W/adapter/{SUFFIX}") == (local.workdir / "adapter" / SUFFIX).read_bytes()
    assert [name for name in gcs_storage.names("gs://bucket/") if name.endswith((".tmp", ".lock"))] == []


@pytest.mark.slow(minutes=0.5)
def test_a_recording_in_a_bucket_that_cannot_be_had_is_named_and_the_run_goes_on(
    micro, tmp_path, gcs_storage, monkeypatch
):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    for split in ("train", "test"):
        rows = world.read_manifest(micro.data / f"{split}.jsonl")
        for number, row in enumerate(rows):
            local = micro.data / row["audio_filepath"]
            # Two in the bucket, one of which is out of reach.
            row["audio_filepath"] = str(local) if number > 1 else f"gs://bucket/{split}-{number}{local.suffix}"
            if number <= 1:
                gcs_storage.write(row["audio_filepath"], local.read_bytes())
        world.write_manifest(tmp_path / f"{split}.jsonl", rows)
    gcs_storage.fail("(train|test)-1")
    config = micro.config(data__dir=str(tmp_path), eval__suite=micro.suite("test"))
    done = world.train(config, tmp_path / "W")
    assert done.status == 0 and len(world.losses(done.workdir)) == 4
    report = json.loads((done.workdir / "data_report.json").read_text())
    named = [row["name"] for row in report["utterances"].pop("unreachable_audio")]
    assert report["utterances"] == {}
    assert [name.rpartition(": ")[2] for name in named] == ["gs://bucket/test-1.flac", "gs://bucket/train-1.flac"]
    results = json.loads((done.workdir / "eval" / "test" / "results.json").read_text())
    assert list(results["tasks"]) == list(world.SPEAKERS) and results["utterances_not_scored"] == 1
    assert "data: 1 unreachable_audio (such as micro: gs://bucket/train-1.flac)" in done.printed
