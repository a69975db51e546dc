"""Runs whose everything lies in a bucket, through the clients that users have, with trouble now and then."""

import json
import shutil
from pathlib import Path

import pytest
from reference import micro as world

from hra_jax import evaluate
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.errors import UserError
from hra_jax.storage import locks, remote
from hra_jax.tasks import commands

ADAPTER = Path(__file__).parent / "fixtures" / "adapters" / "hra"
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


@pytest.mark.slow(minutes=0.5)
def test_a_run_in_a_bucket_is_scored_as_a_local_one_is(trained, micro, tmp_path, gcs_storage, monkeypatch):
    world.use_devices(monkeypatch, 1)
    shutil.copytree(trained.workdir, tmp_path / "W")
    gcs_storage.upload_folder(trained.workdir, "gs://bucket/W")
    before = {name: gcs_storage.read(f"gs://bucket/W/{name}") for name in gcs_storage.names("gs://bucket/W/")}
    gcs_storage.fail(every=100)
    # The second time the results of the first are replaced.
    for workdir, step in (("gs://bucket/W", "last"), ("gs://bucket/W", 2), (tmp_path / "W", 2)):
        evaluate.evaluate(workdir, micro.suite("mixed"), step=step)
    gcs_storage.work()
    local = tmp_path / "W" / "eval" / "mixed"
    names = gcs_storage.names("gs://bucket/W/eval/mixed/")
    assert sorted(names) == sorted(file.name for file in local.iterdir())
    for name in names:
        if name.endswith((".json", ".jsonl")):
            assert gcs_storage.read(f"gs://bucket/W/eval/mixed/{name}") == (local / name).read_bytes(), name
    for name, content in before.items():
        if name not in ("files.json", "data_report.json"):
            assert gcs_storage.read(f"gs://bucket/W/{name}") == content, name
    assert _leftovers(gcs_storage) == []


def _leftovers(gcs_storage) -> list[str]:
    return [name for name in gcs_storage.names("gs://bucket/") if name.endswith((".tmp", ".lock"))]


@pytest.mark.slow(minutes=0.3)
def test_an_adapter_in_a_bucket_is_changed_in_place_as_a_local_one_is(tmp_path, gcs_storage, monkeypatch, capsys):
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    for name in ("A", "B"):
        shutil.copytree(ADAPTER, tmp_path / name)
        gcs_storage.upload_folder(ADAPTER, f"gs://bucket/{name}")
    first, second, *_ = read_adapter(ADAPTER).tasks
    printed = {}
    for root in (f"{tmp_path}", "gs://bucket"):
        adapter = f"{root}/A"
        commands.add(adapter, "new", init="mean")
        commands.rename(adapter, "new", "newer")
        commands.import_tasks(adapter, f"{root}/B", first, new_name="again")
        commands.remove(adapter, second)
        commands.export_tasks(adapter, "newer", "again", output=f"{root}/C")
        commands.list_tasks(adapter, json=f"{root}/list.json")
        commands.show(f"{root}/C", "newer", json=f"{root}/show.json")
        printed[root] = capsys.readouterr().out.replace(root, "")
        with pytest.raises(UserError, match="unknown task 'nobody'"):
            commands.remove(adapter, "nobody")
        with pytest.raises(UserError, match="is there already"):
            commands.export_tasks(adapter, "newer", output=f"{root}/B")
    assert len(set(printed.values())) == 1
    local = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {name: gcs_storage.read(f"gs://bucket/{name}") for name in gcs_storage.names("gs://bucket/")} == local


@pytest.mark.slow(minutes=0.4)
def test_a_change_in_a_bucket_that_dies_is_completed_by_whoever_comes_next(tmp_path, gcs_storage, monkeypatch, capsys):
    """At many of the acts that change anything: from then on the process does nothing any more."""
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.02)
    shutil.copytree(ADAPTER, tmp_path / "A")
    old, *_ = read_adapter(ADAPTER).tasks
    commands.rename(f"{tmp_path / 'A'}", old, "new")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "A").iterdir()}
    acts = [(remote.BucketPath, name) for name in ("replace", "unlink", "rmtree", "mkdir")] + [(remote.Upload, "_copy")]
    found = []
    for most in range(1, 1000, 8):
        gcs_storage.clear()
        gcs_storage.upload_folder(ADAPTER, "gs://bucket/A")
        count = [0]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in acts:
                patch.setattr(owner, name, _dying(getattr(owner, name), count, most))
            try:
                commands.rename("gs://bucket/A", old, "new")
            except remote.StorageUnavailable:
                pass
            else:
                break
        found.append("new" if "new" in read_adapter("gs://bucket/A").tasks else old)
        commands.list_tasks("gs://bucket/A")
        if "new" not in read_adapter("gs://bucket/A").tasks:
            commands.rename("gs://bucket/A", old, "new")
        assert {name: gcs_storage.read(f"gs://bucket/{name}") for name in gcs_storage.names("gs://bucket/")} == {
            f"A/{name}": content for name, content in whole.items()
        }
    # Until something has been moved readers find what was there, and from then on what was to be.
    assert found == sorted(found, key=lambda name: name == "new") and old in found
    print(f"{len(found)} ends")


def _dying(act, count, most):
    def one_more(*arguments, **keywords):
        count[0] += 1
        if count[0] > most:
            raise remote.StorageUnavailable(11, "the process is dead")
        return act(*arguments, **keywords)

    return one_more
