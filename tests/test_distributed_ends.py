"""The end of one process is the end of all of them, and the run goes on from what was saved."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reference import launching
from reference import micro as world
from reference.launching import SETTINGS, TRAIN, same_losses

from hra_jax.cli import UNREAD as UNREAD_STATUS
from hra_jax.train import NOT_SCORED
from hra_jax.training.preemption import PREEMPTED

pytestmark = pytest.mark.optimised  # runs here are compared with commands, which are optimised


@pytest.fixture(scope="module")
def endless(micro):
    """A run that goes on until it is ended; other numbers of steps are then the same curve."""
    return micro.config(**SETTINGS | dict(steps=100_000))


@pytest.fixture(scope="module")
def uninterrupted(endless, tmp_path_factory):
    """Gives the losses of the first steps of the endless run, in one process."""

    def losses(steps: int) -> list[float]:
        config = endless.copy_and_resolve_references()
        with config.unlocked():
            config.steps = steps
        done = world.train(config, tmp_path_factory.mktemp("uninterrupted") / "W", devices=8)
        assert done.status == 0
        return world.losses(done.workdir)

    return losses


def saved(workdir: Path) -> list[int]:
    """The complete checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []


@pytest.fixture
def go_on(endless, tmp_path, command_env):
    """Continues the run in `tmp_path / "W"` to a step."""

    def run(steps: int, *, processes_: int, devices: int) -> None:
        words = [TRAIN, "--config", tmp_path / "c.py", "--workdir", tmp_path / "W", f"--config.steps={steps}"]
        folder = tmp_path / f"to step {steps}"
        launching.run(words, folder=folder, env=command_env, processes=processes_, devices=devices)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_kill_9_the_others_end_and_the_run_goes_on_with_two_processes_and_with_one(
    victim, endless, uninterrupted, tmp_path, command_env, go_on
):
    file, workdir = world.write_config(tmp_path / "c.py", endless), tmp_path / "W"
    words = [TRAIN, "--config", file, "--workdir", workdir]
    with launching.Launched(words, folder=tmp_path / "killed", env=command_env, processes=2, devices=2) as launched:
        launched.until(lambda: saved(workdir)[-1:] >= [4])
        launched.signal(signal.SIGKILL, victim)
        assert launched.wait(60) == 1, launched.said()
    last = launched.errors.splitlines()[-1]
    expected = (
        rf"launch/local\.py: process {victim} died \(SIGKILL\); the others ended \(\d+\); the same command resumes"
    )
    assert re.match(expected, last), launched.said()
    step = saved(workdir)[-1] + 4
    go_on(step, processes_=2, devices=2)
    go_on(step + 3, processes_=1, devices=8)
    go_on(step + 6, processes_=2, devices=1)
    same_losses(world.losses(workdir), uninterrupted(step + 6))


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_at_one_step_with_everything_saved(
    endless, uninterrupted, tmp_path, command_env, go_on
):
    file, workdir = world.write_config(tmp_path / "c.py", endless), tmp_path / "W"
    words = [TRAIN, "--config", file, "--workdir", workdir]
    with launching.Launched(words, folder=tmp_path / "stopped", env=command_env, processes=2, devices=2) as launched:
        launched.until(lambda: len(launching.logged_losses(workdir)) >= 3)
        launched.signal(signal.SIGTERM, 1)
        assert launched.wait(60) == PREEMPTED, launched.said()
    done = max(launching.logged_losses(workdir))
    assert saved(workdir)[-1] == done and f"at step {done}; everything is saved" in launched.printed
    assert "launch/local.py" not in launched.errors
    go_on(done + 4, processes_=2, devices=2)
    same_losses(world.losses(workdir), uninterrupted(done + 4))


@pytest.mark.slow
def test_a_process_that_hangs_is_taken_for_dead_after_the_heartbeat(endless, tmp_path, command_env):
    file, workdir = world.write_config(tmp_path / "c.py", endless), tmp_path / "W"
    words = [TRAIN, "--config", file, "--workdir", workdir, "--config.distributed.heartbeat_seconds=4"]
    settings = dict(env=command_env, processes=2, devices=1, grace=3)
    with launching.Launched(words, folder=tmp_path / "hung", **settings) as launched:
        launched.until(lambda: len(launching.logged_losses(workdir)) >= 3)
        stopped = time.monotonic()
        launched.signal(signal.SIGSTOP, 1)
        assert launched.wait(60) == 1, launched.said()
    # Far below the 100 s that jax would wait by itself.
    assert time.monotonic() - stopped < 40
    last = launched.errors.splitlines()[-1]
    assert re.match(r"launch/local\.py: process 0 died \(SIGABRT\); the others were killed \(137\); ", last), last


@pytest.mark.slow
def test_a_users_error_in_one_process_ends_the_other(micro, tmp_path, command_env):
    """One process alone decodes the recording that is no audio, which `data.strict` makes an error."""
    rows = world.read_manifest(micro.data / "train.jsonl")
    rows = [row | {"audio_filepath": str(micro.data / row["audio_filepath"])} for row in rows]
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    rows[5]["audio_filepath"] = str(tmp_path / "bad.wav")
    world.write_manifest(tmp_path / "train.jsonl", rows)
    config = micro.config(**SETTINGS | dict(steps=100_000), data__dir=str(tmp_path), data__strict=True)
    words = [TRAIN, "--config", world.write_config(tmp_path / "c.py", config), "--workdir", tmp_path / "W"]
    with launching.Launched(words, folder=tmp_path / "ended", env=command_env, processes=2, devices=1) as launched:
        assert launched.wait(120) == 2, launched.said()
        # The other says who ended, and does not wait for the heartbeat.
    assert re.search(r"process [01] ended with status 2, and so does this one", launched.errors), launched.said()
    assert "SIGABRT" not in launched.errors
    errors = [line for line in launched.errors.splitlines() if re.match(r"(\[1\] )?error: ", line)]
    assert len(errors) == 1 and "undecodable_audio: micro: " in errors[0], launched.said()


def test_processes_with_different_configurations_end_with_one_line_each(micro, tmp_path, command_env):
    file = world.write_config(tmp_path / "c.py", micro.config(**SETTINGS))
    words = [TRAIN, "--config", file, "--workdir", tmp_path / "W", "1=--config.seed=1"]
    started = time.monotonic()
    with launching.Launched(words, folder=tmp_path / "ended", env=command_env, processes=2, devices=1) as launched:
        assert launched.wait(60) == 2, launched.said()
    message = r"error: process 1 has another configuration than process 0 \(\w+, not \w+\); all processes of a run need"
    errors = [line for line in launched.errors.splitlines() if "error: " in line]
    assert len(errors) == 2 and all(re.match(rf"(\[1\] )?{message}", line) for line in errors), launched.said()
    assert time.monotonic() - started < 40


@pytest.mark.slow(minutes=0.5)
def test_storage_that_is_away_for_one_process_ends_both_with_the_status_that_says_so(
    micro, tmp_path, command_env, gcs_storage
):
    """One process alone decodes the recording in the bucket; at status 75 the launch scripts start all again."""
    rows = world.read_manifest(micro.data / "train.jsonl")
    rows = [row | {"audio_filepath": str(micro.data / row["audio_filepath"])} for row in rows]
    rows[5]["audio_filepath"] = "gs://bucket/a.wav"
    world.write_manifest(tmp_path / "train.jsonl", rows)
    config = micro.config(**SETTINGS | dict(steps=100_000), data__dir=str(tmp_path))
    words = [TRAIN, "--config", world.write_config(tmp_path / "c.py", config), "--workdir", tmp_path / "W"]
    gcs_storage.fail()
    env = command_env | gcs_storage.environment | {"HRA_STORAGE_SECONDS": "0"}
    with launching.Launched(words, folder=tmp_path / "ended", env=env, processes=2, devices=1) as launched:
        assert launched.wait(120) == PREEMPTED, launched.said()
    errors = [line for line in launched.errors.splitlines() if re.match(r"(\[1\] )?error: ", line)]
    assert len(errors) == 1 and "the storage does not answer" in errors[0], launched.said()
    assert "gs://bucket/a.wav" in errors[0]
    assert "ended with status 75, and so does this one" in launched.errors, launched.said()


# For a configuration: process 1 does not decode the recordings of validations.
SPOILT = """
import os
import struct

from hra_jax.data import audio
from hra_jax.decoding import calibration

calibration._TOGETHER = 1  # each process has a share
decode = audio.decode


def fail(utterance, rate):
    if os.environ["HRA_PROCESS_ID"] == "1" and "validation" in utterance.source:
        raise struct.error("a library that reads gave up")
    return decode(utterance, rate)


audio.decode = fail
"""


@pytest.mark.slow(minutes=0.5)
def test_a_validation_that_fails_in_one_process_costs_no_step_of_any(micro, tmp_path, command_env):
    """One process alone fails to decode its part, and not as a recording that is no audio would.

    The calibration after the last step fails in the same way.
    """
    settings = SETTINGS | dict(steps=4, eval__every_steps=2, eval__select_suite=micro.suite("validation"))
    settings |= dict(eval__calibrate=True)
    file = Path(world.write_config(tmp_path / "c.py", micro.config(**settings)))
    file.write_text(SPOILT + file.read_text())
    words = [TRAIN, "--config", file, "--workdir", tmp_path / "W"]
    with launching.Launched(words, folder=tmp_path / "run", env=command_env, processes=2, devices=1) as launched:
        assert launched.wait(200) == NOT_SCORED, launched.said()
    failed = [line for line in launched.errors.splitlines() if line.startswith("error: the validation at step ")]
    assert [line.split()[5] for line in failed] == ["2", "4"], launched.said()
    assert all("process 1: a library that reads gave up; the run goes on" in line for line in failed)
    assert "error: the calibration failed: RuntimeError: process 1: a library that reads gave up" in launched.errors
    assert saved(tmp_path / "W")[-1] == 4 and len(launching.logged_losses(tmp_path / "W")) == 4
    assert (tmp_path / "W" / "adapter" / "adapter_config.json").exists()


UNREAD = """
import jax
from hra_jax import cli
from hra_jax.console import tell
from hra_jax.run import processes
from hra_jax.training import agreement

def main(argv):
    processes.initialize(heartbeat_seconds=100)
    agreement.barrier("begin")
    if jax.process_index() == 0:
        tell("a line")
    agreement.barrier("never")

cli.run(main, define_flags=processes.define_flags)
"""


def test_a_process_whose_output_nobody_reads_ends_the_other(command_env):
    read, write = os.pipe()
    os.close(read)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-c", UNREAD, f"--coordinator_address={address}", "--num_processes=2"]
    started = [
        subprocess.Popen([*words, f"--process_id={number}"], env=command_env, stdout=write, stderr=subprocess.DEVNULL)
        for number in range(2)
    ]
    os.close(write)
    try:
        assert [process.wait(timeout=60) for process in started] == [UNREAD_STATUS] * 2
    finally:
        for process in started:
            process.kill()
