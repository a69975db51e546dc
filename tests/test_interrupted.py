"""Ctrl-C ends every command within seconds, whatever it is doing, and the same command then ends well.

HRA_INTERRUPTS=all interrupts each command at every moment; otherwise each has one moment of its own.
"""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reference import micro as world
from reference import published
from reference.commands import modules

from hra_jax.run.signals import INTERRUPTED, PREEMPTED

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
MOMENTS = (4.0, 2.0, 6.0, 0.5, 8.0)  # seconds
SECONDS = 5.0  # in which a command ends
MARK = "HRA_TEST_FOLDER"  # a variable by which the processes of a command are known


class Place:
    """Where a command works, and what it works on."""

    def __init__(self, micro: world.Micro, trained: world.Trained, folder: Path):
        self.micro, self.trained, self.folder = micro, trained, folder
        # Many steps, and a program that is compiled anew, so that there is something to interrupt.
        config = micro.config(steps=60, checkpoint__every_steps=7, eval__suite=micro.suite("test"))
        self.config = world.write_config(folder / "config.py", config)

    def own(self, source: Path | str) -> str:
        """A copy of a folder, for a command that changes it."""
        copy = self.folder / Path(source).name
        return str(copy if copy.exists() else shutil.copytree(source, copy))

    @property
    def adapter(self) -> str:
        return self.own(self.trained.workdir / "adapter")


def module(name: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", f"hra_jax.{name}", *map(str, words)]


def train(place: Place, *words: str | Path) -> list[str]:
    return module("train", "--config", place.config, "--workdir", place.folder / "W", *words)


def add(place: Place, *more: str | Path) -> list[str]:
    words = ("add", place.adapter, "dan", "--init", "mean", "--backbone", place.micro.backbone)
    return module("tasks", *words, "--manifest", place.micro.data / "test.jsonl", "--steps", "20", *more)


def convert(place: Place) -> list[str]:
    source = place.folder / "published"
    if not source.exists():
        published.write(source, "parakeet")
    return module("convert", "--source", source, "--output", place.folder / "backbone")


def sweep(place: Place) -> list[str]:
    words = ["--workdir", place.folder / "S", "--set", "seed=0,1", "--jobs", "2", "--", "--config", place.config]
    return [sys.executable, *map(str, [LAUNCH / "sweep.py", *words])]


def local(place: Place) -> list[str]:
    words = ["--processes", "2", "--devices", "1", "--", *train(place, "--config.batch.multiple=2")[1:]]
    return [sys.executable, *map(str, [LAUNCH / "local.py", *words])]


def evaluate(place: Place) -> list[str]:
    return module("evaluate", "--workdir", place.own(place.trained.workdir), "--suite", place.micro.suite("mixed"))


def transcribe(place: Place) -> list[str]:
    words = ("--adapter", place.adapter, "--backbone", place.micro.backbone, "--task_tag", "speaker")
    manifest = place.micro.data / "train.jsonl"
    return module("transcribe", *words, "--manifest", manifest, "--output", place.folder / "texts.jsonl")


def make_manifest(place: Place) -> list[str]:
    recordings = world.make_recordings(place.micro, place.folder / "recordings")
    return module("data.manifest", "make", recordings, "--output", place.folder / "made.jsonl")


def make_lm(place: Place) -> list[str]:
    return module("lm", "make", "--workdir", place.trained.workdir, "--output", place.folder / "own.lm")


def compare(place: Place) -> list[str]:
    side = place.trained.workdir / "eval" / "test"
    return module("compare", side, side)


COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "train": train,
    "train by launch/local.py": local,
    "transcribe": transcribe,
    "tasks list": lambda place: module("tasks", "list", place.adapter),
    "launch/sweep.py": sweep,
    "evaluate": evaluate,
    "manifest check": lambda place: module("data.manifest", "check", place.micro.data / "train.jsonl"),
    "tasks add": add,
    "tasks remove": lambda place: module("tasks", "remove", place.adapter, "ann", "--output", place.folder / "less"),
    "tasks export-checkpoint": lambda place: module(
        "tasks", "export-checkpoint", "--workdir", place.own(place.trained.workdir), "--output", place.folder / "other"
    ),
    "aot": lambda place: module("aot", "--config", place.config, "--topology", "cpu-1"),
    "synthesize": lambda place: module(
        "data.synthesize", "--set", "hard", "--scale", "0.3", "--output", place.folder / "spoken"
    ),
    "convert": convert,
    "compare": compare,
    "lm make": make_lm,
    "params": lambda place: module("params", "--config", place.config),
    "manifest make": make_manifest,
    "config": lambda place: module("config"),
    "topologies": lambda place: module("tpu.topologies", "v5e:16x16"),
    "verify": lambda place: module("verify", place.own(place.trained.workdir)),
    "cache": lambda place: module(
        "data.cache",
        "--source",
        place.micro.data / "train.jsonl",
        "--output",
        place.folder / "shards",
        "--workers",
        "2",
    ),
    "corpora": lambda place: module("data.corpora", "list"),
    "durations": lambda place: module("data.durations", "--config", place.config, "--output", place.folder / "d.json"),
    "export": lambda place: module(
        "export", place.adapter, "--backbone", place.micro.backbone, "--output", place.folder / "served"
    ),
    "check": lambda place: module("check", "--config", place.config, "--workdir", place.folder / "W"),
}
FINISHED = ("train", "train by launch/local.py", "launch/sweep.py", "tasks add", "synthesize", "convert", "cache")


def left_behind(folder: Path) -> list[int]:
    """The processes that a command has left."""
    found, mark = [], f"{MARK}={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def interrupt(words: list[str], env: dict[str, str], folder: Path, moment: float) -> int:
    """Runs a command and interrupts it; its status, which is 0 where it was faster."""
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(words, env=env, stdout=out, stderr=err, cwd=folder)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        start = time.monotonic()
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    errors = (folder / "err").read_text()
    assert "Traceback" not in errors and "Segmentation" not in errors, errors
    print(f"after {moment} s: status {status}, {time.monotonic() - start:.1f} s later; {errors.splitlines()[-1:]}")
    assert none_left(folder)
    return status


@pytest.mark.slow(minutes=0.2)
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_a_command_and_the_same_command_then_ends_well(name, micro, trained, command_env, tmp_path):
    place = Place(micro, trained, tmp_path)
    words = COMMANDS[name](place)
    env = command_env | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), MARK: str(tmp_path)}
    everything = os.environ.get("HRA_INTERRUPTS") == "all"
    own = MOMENTS[list(COMMANDS).index(name) % len(MOMENTS)]
    for moment in sorted(MOMENTS) if everything else [own]:
        status = interrupt(words, env, tmp_path, moment)
        if status == 0:
            return  # it was faster
        assert status == INTERRUPTED, (tmp_path / "err").read_text()
    if everything or name in FINISHED:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr


def test_every_command_is_interrupted(tmp_path, micro, trained):
    place = Place(micro, trained, tmp_path)
    words = [word for make in COMMANDS.values() for word in make(place)]
    assert [name for name in modules() if name not in words] == []


# --- What else ends a command -----------------------------------------------------------------------------------------


def until(reached: Callable[[], bool], process: subprocess.Popen, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(command_env, tmp_path) -> Iterator[Callable[[list[str]], subprocess.Popen]]:
    """Starts a command; what it prints goes to `tmp_path / "out"`."""
    env = command_env | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), MARK: str(tmp_path)}
    # nohup, under which these tests may run, has a closed terminal ignored; here it is meant.
    settings = {"cwd": tmp_path, "preexec_fn": functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)}
    started = []

    def call(words: list[str]) -> subprocess.Popen:
        with (tmp_path / "out").open("w") as out:
            started.append(subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT, **settings))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()
    for number in left_behind(tmp_path):
        os.kill(number, signal.SIGKILL)


def none_left(folder: Path) -> bool:
    deadline = time.monotonic() + 3
    while left_behind(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not left_behind(folder)


@pytest.mark.slow(minutes=0.2)
@pytest.mark.parametrize("while_it", ["imports", "compiles"])
def test_sigterm_before_the_first_step_ends_a_training_within_seconds(while_it, start, micro, trained, tmp_path):
    process = start(train(Place(micro, trained, tmp_path)))
    until(lambda: while_it == "imports" or "starting: method" in (tmp_path / "out").read_text(), process)
    time.sleep(1.0 if while_it == "imports" else 0.2)
    process.terminate()
    assert process.wait(SECONDS) == PREEMPTED
    assert (tmp_path / "out").read_text().endswith("stopped by SIGTERM; the same command goes on\n")
    saved = tmp_path / "W" / "checkpoints"
    assert not saved.exists() or not any(path.name.isdigit() for path in saved.iterdir())


@pytest.mark.slow(minutes=0.3)
def test_ctrl_c_in_the_loop_saves_the_step(start, micro, trained, tmp_path):
    words = [*train(Place(micro, trained, tmp_path)), "--config.steps=100000", "--config.checkpoint.every_steps=100000"]
    for number in range(3):  # a busy machine may need more than the few seconds that there are
        workdir = tmp_path / f"W{number}"
        metrics = workdir / "metrics.jsonl"
        process = start([*words, "--workdir", str(workdir)])
        until(lambda file=metrics: file.exists() and file.read_text().count("train/loss") >= 3, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == INTERRUPTED
        printed = (tmp_path / "out").read_text()
        if "everything is saved" in printed:
            break
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert f"stopped by SIGINT at step {saved}; everything is saved" in printed
    assert saved == len(world.losses(workdir))


@pytest.mark.slow(minutes=0.4)
@pytest.mark.parametrize("when", ["while they compile", "in the loop"])
def test_sigterm_stops_two_processes(when, start, micro, trained, tmp_path):
    process = start([*local(Place(micro, trained, tmp_path)), "--config.steps=100000"])
    metrics = tmp_path / "W" / "metrics.jsonl"
    begun = "starting: method"
    until(lambda: begun in (tmp_path / "out").read_text() if when != "in the loop" else metrics.exists(), process)
    if when == "in the loop":
        until(lambda: metrics.read_text().count("train/loss") >= 3, process)
        process.terminate()
        assert process.wait(60) == PREEMPTED
        assert "everything is saved" in (tmp_path / "out").read_text()
    else:
        process.terminate()
        assert process.wait(SECONDS) == PREEMPTED
        assert "stopped by SIGTERM; the same command goes on" in (tmp_path / "out").read_text()
    assert none_left(tmp_path)


@pytest.mark.slow(minutes=0.2)
def test_ctrl_c_ends_a_process_that_waits_for_the_others(start, micro, trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["--coordinator_address", address, "--num_processes", "2", "--process_id", "0"]
    process = start([*train(Place(micro, trained, tmp_path)), *words])

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0

    until(listens, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == INTERRUPTED


@pytest.mark.slow(minutes=0.1)
def test_a_sweep_that_is_killed_leaves_no_training(start, micro, trained, tmp_path):
    process = start(sweep(Place(micro, trained, tmp_path)))
    until(lambda: len(left_behind(tmp_path)) >= 3, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL and none_left(tmp_path)


@pytest.mark.slow(minutes=0.1)
def test_a_sweep_whose_terminal_is_closed_has_its_trainings_stop(start, micro, trained, tmp_path):
    process = start(sweep(Place(micro, trained, tmp_path)))
    until(lambda: (tmp_path / "S" / "seed=1" / "output.txt").exists(), process)
    time.sleep(1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(2 * SECONDS) == PREEMPTED and none_left(tmp_path)
    for seed in (0, 1):
        assert json.loads((tmp_path / "S" / f"seed={seed}" / "sweep.json").read_text())["status"] == PREEMPTED


@pytest.mark.slow(minutes=0.1)
def test_voices_end_with_the_rendering_that_is_killed(start, micro, trained, tmp_path):
    process = start(COMMANDS["synthesize"](Place(micro, trained, tmp_path)))
    until(lambda: any((tmp_path / "spoken").rglob("*.flac")), process)
    assert len(left_behind(tmp_path)) > 1
    process.kill()
    process.wait()
    assert none_left(tmp_path)
