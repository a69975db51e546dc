"""A run that was stopped, by whatever, goes on with the same command as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from reference import micro as world

from hra_jax.adapters import adapter_folder
from hra_jax.config.files import config_from_json, config_to_json
from hra_jax.errors import UserError
from hra_jax.training.preemption import PREEMPTED

STOP = 5  # the step at which runs are told to stop


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def terminate_at(step: int):
    def hook(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


@pytest.fixture(scope="module")
def config(micro):
    """12 steps in two buckets, with two of the three tasks in a batch, so that rows always wait."""
    return micro.config(
        steps=12,
        optimizer__schedule="cosine",
        batch__buckets=(0.4, 1.0),
        batch__seconds=2.0,
        batch__max_tasks=2,
        checkpoint__every_steps=4,
        eval__suite=micro.suite("test"),
        eval__select_suite=micro.suite("validation"),
        eval__every_steps=3,
    )


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    return world.train(config, tmp_path_factory.mktemp("uninterrupted") / "W")


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """A run that SIGTERM stopped after step 5. To be copied."""
    return world.train(config, tmp_path_factory.mktemp("stopped") / "W", on_step=terminate_at(STOP))


@pytest.fixture
def workdir(stopped, tmp_path) -> Path:
    """A copy of the stopped run's work directory."""
    return Path(shutil.copytree(stopped.workdir, tmp_path / "W"))


def refused(config, workdir: Path) -> str:
    """The one line with which a run ends before it starts."""
    with pytest.raises(UserError) as caught:
        world.train(config, workdir, on_step=lambda step: pytest.fail("a step was done"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Stopped and continued --------------------------------------------------------------------------------------------


def test_sigterm_saves_the_step_and_ends_with_status_75(stopped):
    assert stopped.status == PREEMPTED
    assert f"stopped by SIGTERM at step {STOP}; everything is saved" in stopped.printed
    assert (stopped.workdir / "checkpoints" / str(STOP)).is_dir()
    assert len(world.losses(stopped.workdir)) == STOP
    assert not (stopped.workdir / "adapter").exists() and not (stopped.workdir / "eval").exists()


def test_a_resumed_run_is_byte_identical_to_an_uninterrupted_one(uninterrupted, config, workdir):
    waiting = json.loads((workdir / "checkpoints" / str(STOP) / "position" / "metadata").read_text())["waiting"]
    assert waiting  # or the test would not see whether waiting rows are restored
    steps = []
    done = world.train(config, workdir, on_step=steps.append)
    assert done.status == 0 and steps == list(range(STOP + 1, 13))
    assert world.losses(workdir) == world.losses(uninterrupted.workdir)
    assert files_of(workdir / "adapter") == files_of(uninterrupted.workdir / "adapter")
    for name in ("results.json", "predictions_ann.jsonl"):
        found, expected = (folder / "eval" / "test" / name for folder in (workdir, uninterrupted.workdir))
        assert found.read_bytes() == expected.read_bytes()
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (workdir, uninterrupted.workdir)]
    validated = [[line for line in map(json.loads, side) if "validation/loss" in line] for side in lines]
    # The first validation of a process runs the base beside, in another program: losses may differ in the last digits.
    losses = [[line.pop("validation/loss") for line in side] for side in validated]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert validated[0] == validated[1] and [line["step"] for line in validated[0]] == [3, 6, 9, 12]


def test_what_is_trained_is_printed_again_at_resume(uninterrupted, config, workdir):
    done = world.train(config, workdir, on_step=terminate_at(STOP + 1))
    at_start = [line for line in uninterrupted.printed.splitlines() if line.startswith("  trained ")]
    at_resume = [line for line in done.printed.splitlines() if line.startswith("  trained ")]
    assert at_resume == at_start and len(at_start) == 6
    assert f"resuming at step {STOP}" in done.printed and "starting" in uninterrupted.printed
    assert "the learning rate of the next step" not in done.printed + uninterrupted.printed


def test_a_finished_run_started_again_does_no_step_and_gives_the_same(uninterrupted, config, tmp_path):
    workdir = Path(shutil.copytree(uninterrupted.workdir, tmp_path / "W"))
    done = world.train(config, workdir, on_step=lambda step: pytest.fail("a step was done"))
    assert done.status == 0
    for folder in ("adapter", "eval/test"):
        found, expected = (
            # The command that repeats an evaluation names the work directory.
            {name: content.replace(str(at).encode(), b"W") for name, content in files_of(at / folder).items()}
            for at in (workdir, uninterrupted.workdir)
        )
        assert found == expected
    assert (workdir / "metrics.jsonl").read_bytes() == (uninterrupted.workdir / "metrics.jsonl").read_bytes()
    kept = [sorted(path.name for path in (at / "checkpoints").iterdir()) for at in (workdir, uninterrupted.workdir)]
    assert kept[0] == kept[1]


def test_a_run_may_be_continued_with_more_steps_and_other_intervals(micro, tmp_path):
    short = world.train(micro.config(steps=2), tmp_path / "W")
    config = micro.config(steps=3, checkpoint__every_steps=1, eval__every_steps=7)
    steps = []
    longer = world.train(config, tmp_path / "W", on_step=steps.append)
    assert (short.status, longer.status, steps) == (0, 0, [3])
    assert int(longer.run.state.step) == 3
    assert json.loads((tmp_path / "W" / "config.json").read_text())["steps"] == 3


def test_more_steps_after_the_end_of_a_schedule_are_told_with_both_learning_rates(uninterrupted, config, tmp_path):
    workdir = Path(shutil.copytree(uninterrupted.workdir, tmp_path / "W"))
    longer = config_from_json(config_to_json(config)).unlock()
    longer.steps = 24
    done = world.train(longer, workdir, on_step=terminate_at(13))
    assert done.status == PREEMPTED
    peak, warmup, final = config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.final_fraction
    # The last point of the warm-up is the first of the decay.
    share = (1 + np.cos(np.pi * (12 - (warmup - 1)) / (24 - warmup))) / 2
    now, before = peak * (final + (1 - final) * share), peak * final
    told = [line for line in done.printed.splitlines() if "learning rate of the next step" in line]
    assert told == [
        f"  steps were 12 and are 24, and so the schedule 'cosine' is another one: the learning rate of the next step "
        f"is {now:.3g}; it would have been {before:.3g}"
    ]


# --- Not continued ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("hra.width", 7, "hra.width: 6 -> 7"),
        ("seed", 1, "seed: 0 -> 1"),
        ("method", "full", "method: 'adapter' -> 'full'"),
        ("batch.buckets", (1.0,), "batch.buckets: (0.4, 1.0) -> (1.0,)"),
    ],
)
def test_a_resume_with_another_configuration_is_one_line_with_both_values(config, workdir, key, value, told):
    before = (workdir / "config.json").read_bytes()
    changed = config_from_json(config_to_json(config)).unlock()
    with changed.ignore_type():
        changed.update_from_flattened_dict({key: value})
    assert told in refused(changed, workdir)
    assert (workdir / "config.json").read_bytes() == before


@pytest.fixture
def own(micro, tmp_path):
    """A run that was stopped after its first step, on a backbone and data of its own."""
    shutil.copytree(micro.folder, tmp_path / "micro")
    mine = world.Micro(tmp_path / "micro", micro.fingerprint)
    done = world.train(mine.config(), tmp_path / "W", on_step=terminate_at(1))
    assert done.status == PREEMPTED
    return mine, done


def test_a_checkpoint_of_other_tasks_rows_or_backbone_is_one_line_with_both_values(own):
    mine, done = own
    train = mine.data / "train.jsonl"
    content, rows = train.read_text(), world.read_manifest(train)

    world.write_manifest(train, [row for row in rows if row["speaker"] != "cy"])
    line = refused(mine.config(), done.workdir)
    assert 'tasks is ["ann", "bob", "cy"] in checkpoint 1, but ["ann", "bob"] in this run' in line

    world.write_manifest(train, rows[1:])
    line = refused(mine.config(), done.workdir)
    assert "the usable utterances {'micro': 12}, now there are {'micro': 11}" in line

    train.write_text(content)
    other = world.make_backbone(mine.folder / "backbone", seed=1)
    line = refused(mine.config(), done.workdir)
    assert f'backbone is "{mine.fingerprint}" in checkpoint 1, but "{other}" in this run' in line


def test_a_first_start_that_failed_may_be_mended_in_the_same_work_directory(micro, tmp_path):
    line = refused(micro.config(backbone=str(tmp_path / "nowhere")), tmp_path / "W")
    assert "nowhere" in line
    assert world.train(micro.config(steps=2), tmp_path / "W").status == 0


# --- As commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(micro, tmp_path, command_env):
    """Starts the training command, 40 steps with a checkpoint every 3, in a work directory."""
    config = micro.config(steps=40, batch__buckets=(0.4, 1.0), batch__seconds=2.0, checkpoint__every_steps=3)
    world.write_config(tmp_path / "forty.py", config)
    processes = []

    def start(workdir: Path) -> subprocess.Popen:
        arguments = ["--config", str(tmp_path / "forty.py"), "--workdir", str(workdir)]
        process = subprocess.Popen([sys.executable, "-m", "hra_jax.train", *arguments], env=command_env)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def await_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until the metrics of a step are written."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_three_times_exports_the_bytes_of_an_uninterrupted_one(command, tmp_path):
    assert command(tmp_path / "whole").wait(300) == 0
    moments = np.random.default_rng()
    killed_after = sorted(moments.choice(np.arange(1, 36), 3, replace=False).tolist())
    print(f"killed after the steps {killed_after}")
    for step in killed_after:
        process = command(tmp_path / "killed")
        await_step(process, tmp_path / "killed", step)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "adapter").exists()
    assert command(tmp_path / "killed").wait(300) == 0
    assert files_of(tmp_path / "killed" / "adapter") == files_of(tmp_path / "whole" / "adapter")
    assert world.losses(tmp_path / "killed") == world.losses(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_ends_the_command_with_status_75_and_the_same_command_finishes(command, tmp_path):
    process = command(tmp_path / "W")
    await_step(process, tmp_path / "W", 7)
    process.terminate()
    assert process.wait(60) == PREEMPTED
    saved = max(int(path.name) for path in (tmp_path / "W" / "checkpoints").iterdir() if path.name.isdigit())
    assert len(world.losses(tmp_path / "W")) == saved >= 7
    assert not (tmp_path / "W" / "adapter").exists()
    assert command(tmp_path / "W").wait(300) == 0
    assert len(world.losses(tmp_path / "W")) == 40 and (tmp_path / "W" / "adapter").exists()


def test_sigterm_after_the_last_step_ends_with_status_75_and_the_same_command_exports(micro, tmp_path, monkeypatch):
    config, write = micro.config(steps=2), adapter_folder.write_adapter

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(adapter_folder, "write_adapter", stopped)
        world.train(config, tmp_path / "W")
    assert caught.value.code == PREEMPTED and not (tmp_path / "W" / "adapter").exists()
    assert world.train(config, tmp_path / "W").status == 0 and (tmp_path / "W" / "adapter").exists()
