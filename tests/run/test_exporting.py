"""Exports that meet what is not as they left it: a changed adapter, a full disk, a damaged checkpoint."""

import copy
import dataclasses
import json
import os
import shutil

import pytest
from etils import epath
from reference import micro as world
from reference.full_disk import no_file_larger_than

from hra_jax import cli, train
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.keys import group
from hra_jax.errors import UserError
from hra_jax.run.exporting import ExportSettings
from hra_jax.run.saving import open_checkpoints
from hra_jax.tasks import commands, library
from hra_jax.training.best_rows import BestRows
from hra_jax.training.checkpoints import Checkpoints


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(trained, tmp_path):
    """The finished run in a work directory of its own, with nothing left to be scored."""
    shutil.copytree(trained.workdir, tmp_path / "W")
    layout = dataclasses.replace(trained.run.layout, test=None)
    own = {"bank": copy.copy(trained.run.bank), "best_rows": BestRows(), "failures": []}
    return dataclasses.replace(trained.run, workdir=epath.Path(tmp_path / "W"), layout=layout, **own)


def finish(run, config, *, step="last") -> None:
    """What the command does when nothing is left to be trained."""
    with open_checkpoints(run, group(config, "checkpoint")) as checkpoints:
        train.finish(run, checkpoints, config=config, exported=ExportSettings(step=step), bootstrap=0)


def test_an_adapter_that_was_changed_since_its_export_is_left_alone_and_said_so(run, trained, capsys):
    adapter = run.workdir / "adapter"
    finish(run, trained.config)
    assert capsys.readouterr().out == f"exported step 4 to {adapter}\n"
    exported, whole = read_adapter(adapter), files_of(adapter)
    library.write(adapter, library.added(exported, "dee", exported.tasks["ann"], entry={"step": 4, "init": "ann"}))
    changed = files_of(adapter)
    finish(run, trained.config)
    assert files_of(adapter) == changed and list(read_adapter(adapter).tasks) == ["ann", "bob", "cy", "dee"]
    assert capsys.readouterr().out == (
        f"{adapter} is not what this run exported there: it was changed since, and is left as it is; to export step 4, "
        "move it away and give the same command again\n"
    )
    shutil.move(adapter, run.workdir / "mine")
    finish(run, trained.config)
    assert files_of(adapter) == whole and files_of(run.workdir / "mine") == changed


@pytest.mark.slow(minutes=0.3)
def test_a_task_that_was_added_in_place_outlives_the_same_training_command_and_more_steps(micro, trained, tmp_path):
    workdir, adapter = tmp_path / "W", tmp_path / "W" / "adapter"
    shutil.copytree(trained.workdir, workdir)
    commands.add(str(adapter), "dee", init="mean")
    changed = files_of(adapter)
    for steps in (4, 6):
        config = micro.validated_config().unlock()
        config.steps = steps
        done = world.train(config.lock(), workdir)
        assert done.status == 0 and files_of(adapter) == changed
        told = f"{adapter} is not what this run exported there: it was changed since, and is left as it is; to export"
        assert f"{told} step {steps}, move it away and give the same command again" in done.printed
        assert len(world.losses(workdir)) == steps
        results = json.loads((workdir / "eval" / "test" / "results.json").read_text())
        assert list(results["tasks"]) == list(world.SPEAKERS)
    shutil.move(adapter, tmp_path / "mine")
    done = world.train(config, workdir)
    assert done.status == 0 and {entry["step"] for entry in read_adapter(adapter).tasks_json} == {6}
    # What was added goes into the new one, where what tasks share has not changed; where it has, it is said.
    with pytest.raises(UserError, match="shared"):
        commands.import_tasks(str(adapter), str(tmp_path / "mine"), "dee")
    assert files_of(tmp_path / "mine") == changed


@pytest.mark.parametrize("earlier", [False, True])
def test_an_export_that_cannot_be_written_leaves_what_is_there_and_the_same_command_writes_it(run, trained, earlier):
    adapter = run.workdir / "adapter"
    finish(run, trained.config)
    whole = files_of(adapter)
    for path in (adapter, run.workdir / "exported.json"):
        if not earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in whole:
        with no_file_larger_than(len(whole[name]) - 1), pytest.raises(OSError, match="File too large"):
            finish(run, trained.config)
        assert (files_of(adapter) if adapter.exists() else {}) == (whole if earlier else {})
        assert not [name for name in os.listdir(run.workdir) if name.startswith(".")]
    finish(run, trained.config)
    assert files_of(adapter) == whole


def test_what_lies_in_the_place_of_an_export_is_left_there_and_moved_away_makes_room(run, trained):
    adapter = run.workdir / "adapter"
    shutil.rmtree(adapter)
    adapter.write_text("mine")
    with pytest.raises(OSError, match="Not a directory") as error:
        finish(run, trained.config)
    assert cli._storage_trouble(error.value) == (
        f"Not a directory: '{adapter}'; allowed: a folder that can be written, with free space"
    )
    assert adapter.read_text() == "mine"
    adapter.unlink()
    finish(run, trained.config)
    assert list(read_adapter(adapter).tasks) == ["ann", "bob", "cy"]


def test_a_best_checkpoint_that_is_damaged_is_told_of_and_the_newest_whole_one_exported(
    run, trained, monkeypatch, capsys
):
    monkeypatch.setattr(Checkpoints, "metrics", lambda self, step: {2: {"wer_macro": 0.1}}.get(step))
    finish(run, trained.config, step="best")
    assert not run.failures and {entry["step"] for entry in read_adapter(run.workdir / "adapter").tasks_json} == {2}
    for path in (run.workdir / "checkpoints" / "2" / "state" / "d").iterdir():
        path.write_bytes(bytes(len(path.read_bytes())))
    for _ in range(2):  # the same command, again
        run = dataclasses.replace(run, state=trained.run.state, failures=[])
        capsys.readouterr()
        finish(run, trained.config, step="best")
        assert run.failures == ["the best checkpoint, 2, is damaged, so 4 is exported in its place"]
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "checkpoint 2" in told
        assert told.endswith("; checkpoint 4 is exported in its place\n")
        assert {entry["step"] for entry in read_adapter(run.workdir / "adapter").tasks_json} == {4}
    again, whole = (read_adapter(at / "adapter").tasks for at in (run.workdir, trained.workdir))
    assert repr(again) == repr(whole)
