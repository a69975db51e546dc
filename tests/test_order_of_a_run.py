"""What goes wrong late costs neither a checkpoint nor an export: whole runs whose scores fail."""

import json
import shutil
from pathlib import Path

import pytest
from reference import micro as world

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.train import NOT_SCORED


@pytest.fixture
def data(micro, tmp_path) -> Path:
    """A copy of the micro data, to be spoilt."""
    return Path(shutil.copytree(micro.data, tmp_path / "data"))


def garble(data: Path, split: str, *speakers: str) -> None:
    """Writes words in place of the audio of speakers: the files are there, and only decoding tells."""
    for row in world.read_manifest(data / f"{split}.jsonl"):
        if row["speaker"] in speakers:
            (data / row["audio_filepath"]).write_text("this is not audio " * 100)


def results_of(workdir: Path) -> dict:
    return json.loads((workdir / "eval" / "test" / "results.json").read_text())


def checkpoints_of(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.slow(minutes=1)
def test_tasks_that_cannot_be_scored_are_named_and_the_rest_goes_on(micro, data, tmp_path, capsys):
    garble(data, "test", "bob")
    garble(data, "validation", "cy")
    config = micro.config(
        data__dir=str(data),
        eval__suite=micro.suite("test"),
        eval__select_suite=micro.suite("validation"),
        eval__every_steps=2,
        export__step="best",
    )
    done = world.train(config, tmp_path / "W")
    assert done.status == 0, capsys.readouterr().err
    results = results_of(done.workdir)
    assert list(results["tasks"]) == ["ann", "cy"]
    assert results["tasks_not_scored"] == {"bob": "none of its 2 utterances could be read"}
    assert results["utterances_not_scored"] == 2
    assert results["wer_macro"] == sum(task["wer"] for task in results["tasks"].values()) / 2
    for name in ("report.md", "report.html"):
        text = (done.workdir / "eval" / "test" / name).read_text().replace("\\", "")
        assert "was not scored: none of its 2 utterances could be read" in text and "undecodable_audio" in text
    entries = read_adapter(done.workdir / "adapter").tasks_json
    assert ["wer" in entry for entry in entries] == [True, False, True]
    assert set(done.run.best["tasks"]) == {"ann", "bob"}


@pytest.mark.slow(minutes=1)
def test_validations_that_fail_cost_no_checkpoint_and_no_export(micro, data, tmp_path, capsys):
    garble(data, "validation", *world.SPEAKERS)
    config = micro.config(
        data__dir=str(data),
        eval__suite=micro.suite("test"),
        eval__select_suite=micro.suite("validation"),
        eval__every_steps=2,
        checkpoint__keep_latest=4,
        export__step="best",
    )
    done = world.train(config, tmp_path / "W")
    assert done.status == NOT_SCORED and checkpoints_of(done.workdir) == ["1", "2", "4"]
    lines = capsys.readouterr().err.splitlines()
    failed = [line for line in lines if line.startswith("error: the validation at step ")]
    assert [line.split()[5] for line in failed] == ["2", "4"], lines
    assert all("none of its utterances could be read" in line and "the run goes on" in line for line in failed)
    assert "no checkpoint was scored, so the last one is exported in place of the best" in lines[-1]
    assert len(world.losses(done.workdir)) == 4
    assert {entry["step"] for entry in read_adapter(done.workdir / "adapter").tasks_json} == {4}
    assert list(results_of(done.workdir)["tasks"]) == list(world.SPEAKERS)


@pytest.mark.slow(minutes=1)
def test_a_report_that_cannot_be_written_costs_no_export_and_the_same_command_writes_it(micro, tmp_path, capsys):
    config, workdir = micro.config(eval__suite=micro.suite("test")), tmp_path / "W"

    def put_in_the_way(step: int) -> None:
        (workdir / "eval").write_text("in the way")

    assert world.train(config, workdir, on_step=put_in_the_way).status == NOT_SCORED
    assert "error: the evaluation of suite 'test' failed: " in capsys.readouterr().err
    assert not any("wer" in entry for entry in read_adapter(workdir / "adapter").tasks_json)
    (workdir / "eval").unlink()
    assert world.train(config, workdir).status == 0
    results, entries = results_of(workdir), read_adapter(workdir / "adapter").tasks_json
    assert {entry["name"]: entry["wer"] for entry in entries} == {
        name: task["wer"] for name, task in results["tasks"].items()
    }


@pytest.mark.slow(minutes=1)
def test_storage_that_is_away_for_the_scores_ends_after_the_export_and_the_same_command_scores(
    micro, data, tmp_path, gcs_storage, monkeypatch
):
    gcs_storage.upload_folder(data, "gs://bucket/data")
    rows = [
        row | {"audio_filepath": f"gs://bucket/data/{row['audio_filepath']}"}
        for row in world.read_manifest(data / "test.jsonl")
    ]
    world.write_manifest(data / "test.jsonl", rows)
    config, workdir = micro.config(data__dir=str(data), eval__suite=micro.suite("test")), tmp_path / "W"
    monkeypatch.setenv("HRA_STORAGE_SECONDS", "0")
    with pytest.raises(StorageUnavailable):
        world.train(config, workdir, on_step=lambda step: gcs_storage.fail())
    assert {entry["step"] for entry in read_adapter(workdir / "adapter").tasks_json} == {4}
    gcs_storage.work()
    assert world.train(config, workdir).status == 0
    assert list(results_of(workdir)["tasks"]) == list(world.SPEAKERS)


@pytest.mark.slow(minutes=1)
def test_tasks_that_were_never_drawn_are_named_and_are_no_error(micro, tmp_path, capsys):
    config = micro.config(steps=1, batch__seconds=1.0, eval__suite=micro.suite("test"))
    done = world.train(config, tmp_path / "W")
    assert done.status == 0, capsys.readouterr().err
    entries = read_adapter(done.workdir / "adapter").tasks_json
    never = [entry["name"] for entry in entries if entry["step"] == 0]
    assert len(never) == 2
    assert f"2 of 3 tasks had no step and are as they started: {never[0]!r}, {never[1]!r}\n" in done.printed
    results = results_of(done.workdir)
    assert list(results["tasks"]) == [name for name in world.SPEAKERS if name not in never]
    assert results["tasks_not_scored"] == {name: f"its adapter {name!r} had no training step" for name in never}


@pytest.mark.optimised  # by the last bit an adapter that acts is told from one that does not
@pytest.mark.slow(minutes=1)
def test_an_adapter_that_does_nothing_is_told_loudly_after_the_export(micro, tmp_path, capsys):
    config = micro.config(steps=1, optimizer__learning_rate=1e-30, eval__suite=micro.suite("test"))
    done = world.train(config, tmp_path / "W")
    assert done.status == NOT_SCORED
    assert "the adapter does nothing" in capsys.readouterr().err
    assert (done.workdir / "adapter" / "adapter_config.json").exists()
