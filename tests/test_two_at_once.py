"""Two commands at once on one folder: the second is refused in one line, and a dead one is no obstacle."""

import functools
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from reference import micro as world

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import load_config
from hra_jax.convert.conversion import convert
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation.report import is_report_file
from hra_jax.run import workdirs
from hra_jax.storage import folders
from hra_jax.storage.files import write_file
from hra_jax.tasks import commands

FIXTURES = Path(__file__).resolve().parent / "fixtures"
SWEEP = Path(__file__).resolve().parent.parent / "launch" / "sweep.py"
# Holds a lock as another process would, until its input ends.
HOLDER = """
import sys
from hra_jax.storage import locks
with getattr(locks, sys.argv[1])(sys.argv[2], "the first"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def first(command_env):
    """Starts a process that holds the lock of a folder, or the one beside it."""
    processes = []

    def start(folder: Path, *, beside: bool) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, "hold_beside" if beside else "hold", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=command_env)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def claim(folder: Path) -> None:
    with workdirs.claim(load_config("fsdd"), folder):
        pass


def test_a_second_training_is_refused_before_it_writes_and_takes_a_dead_one_s_place(first, tmp_path):
    claim(tmp_path / "W")
    process = first(tmp_path / "W", beside=False)
    before = tree(tmp_path / "W")
    with pytest.raises(UserError, match=f"in use: 'the first', process '{process.pid}' on .*since ") as caught:
        claim(tmp_path / "W")
    assert "\n" not in str(caught.value) and tree(tmp_path / "W") == before
    process.kill()
    process.wait()
    claim(tmp_path / "W")
    assert not (tmp_path / "W" / ".lock").exists()


COMMANDS = {
    "add": lambda adapter, other, out: commands.add(adapter, "new", init="mean"),
    "remove": lambda adapter, other, out: commands.remove(adapter, task_of(adapter)),
    "rename": lambda adapter, other, out: commands.rename(adapter, task_of(adapter), "new"),
    "import": lambda adapter, other, out: commands.import_tasks(adapter, other, task_of(other), new_name="new"),
}


def task_of(adapter: str) -> str:
    return next(iter(read_adapter(adapter).tasks))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_change_of_an_adapter_is_refused_and_goes_on_when_the_first_is_gone(first, tmp_path, capsys, name):
    for folder in ("A", "B"):
        shutil.copytree(FIXTURES / "adapters" / "hra", tmp_path / folder)
    arguments = (str(tmp_path / "A"), str(tmp_path / "B"), str(tmp_path / "out"))
    process, before = first(tmp_path / "A", beside=True), tree(tmp_path / "A")
    with pytest.raises(UserError, match=f"in use: 'the first', process '{process.pid}'"):
        COMMANDS[name](*arguments)
    assert tree(tmp_path / "A") == before
    process.kill()
    process.wait()
    COMMANDS[name](*arguments)
    assert tree(tmp_path / "A") != before
    assert {path.name for path in tmp_path.iterdir()} == {"A", "B"}


def test_looking_at_an_adapter_and_taking_tasks_from_it_disturb_nobody(first, tmp_path, capsys):
    shutil.copytree(FIXTURES / "adapters" / "hra", tmp_path / "A")
    first(tmp_path / "A", beside=True)
    commands.list_tasks(str(tmp_path / "A"))
    commands.export_tasks(str(tmp_path / "A"), task_of(tmp_path / "A"), output=str(tmp_path / "B"))
    assert len(read_adapter(tmp_path / "B").tasks) == 1


def test_two_reports_of_one_suite_are_written_one_after_the_other_and_whole(first, tmp_path):
    def write(content: str) -> Callable[[Path], None]:
        return lambda fresh: [
            write_file(fresh / name, content) for name in ("results.json", f"predictions_{content}.jsonl")
        ]

    put = functools.partial(folders.replace_folder, tmp_path / "eval" / "test", rewritten=is_report_file)
    put(write("one"))
    (tmp_path / "eval" / "test" / "notes.txt").write_text("mine", encoding="utf-8")
    process = first(tmp_path / "eval" / "test", beside=True)
    waiting = threading.Thread(target=put, args=(write("two"),))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive() and set(tree(tmp_path / "eval" / "test")) == {
        "results.json",
        "predictions_one.jsonl",
        "notes.txt",
    }
    process.kill()
    process.wait()
    waiting.join(10)
    expected = {"results.json": b"two", "predictions_two.jsonl": b"two", "notes.txt": b"mine"}
    assert tree(tmp_path / "eval" / "test") == expected


def test_a_second_evaluation_into_one_folder_is_refused_before_anything_is_read(first, tmp_path):
    process = first(tmp_path / "R", beside=False)
    before = tree(tmp_path / "R")
    with pytest.raises(UserError, match=f"in use: 'the first', process '{process.pid}'"):
        evaluate_systems(["nothing"], tmp_path / "R")
    assert tree(tmp_path / "R") == before
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="nothing"):
        evaluate_systems(["nothing"], tmp_path / "R")


def test_a_second_conversion_to_the_same_folder_is_refused(first, tmp_path):
    (tmp_path / "published").mkdir()
    first(tmp_path / "out", beside=True)
    with pytest.raises(UserError, match="in use: 'the first'"):
        convert(tmp_path / "published", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_sweep_of_a_folder_is_refused_in_one_line(first, tmp_path, capsys):
    specification = importlib.util.spec_from_file_location("sweep_of_two", SWEEP)
    sweep = importlib.util.module_from_spec(specification)
    sys.modules["sweep_of_two"] = sweep  # its dataclass looks there
    specification.loader.exec_module(sweep)
    process = first(tmp_path / "S", beside=False)
    assert sweep.main(["--workdir", str(tmp_path / "S"), "--set", "seed=0", "--", "--config", "fsdd"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"in use: 'the first', process '{process.pid}'" in error
    assert [path.name for path in (tmp_path / "S").iterdir()] == [".lock"]
    # A training in the folder of the sweep itself is refused by the same lock.
    with pytest.raises(UserError, match="in use: 'the first'"):
        claim(tmp_path / "S")


# --- Whole commands ---------------------------------------------------------------------------------------------------


def await_step(process: subprocess.Popen, workdir: Path) -> None:
    """Waits until a step and its metrics are there."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow(minutes=1.2)
def test_of_two_trainings_and_a_sweep_the_first_alone_writes_and_a_killed_one_is_taken_over(
    micro, tmp_path, command_env
):
    config = world.write_config(tmp_path / "long.py", micro.config(steps=100_000, checkpoint__every_steps=20))
    train = [sys.executable, "-m", "hra_jax.train", "--config", config, "--workdir", str(tmp_path / "S" / "seed=0")]
    train += ["--config.seed=0"]
    sweep = [sys.executable, str(SWEEP), "--workdir", str(tmp_path / "S"), "--set", "seed=0", "--", "--config", config]
    process = subprocess.Popen(train, env=command_env, stdout=subprocess.DEVNULL)
    try:
        await_step(process, tmp_path / "S" / "seed=0")
        second = subprocess.run(train, env=command_env, capture_output=True, text=True, check=False, timeout=300)
        assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
        assert f"in use: 'training', process '{process.pid}'" in second.stderr
        swept = subprocess.run(sweep, env=command_env, capture_output=True, text=True, check=False, timeout=300)
        assert swept.returncode == 1 and "seed=0: status 2" in swept.stdout, swept.stdout
        assert f"in use: 'training', process '{process.pid}'" in swept.stdout
        # Who only reads is refused nothing.
        words = ["--workdir", str(tmp_path / "S" / "seed=0"), "--suite", micro.suite("test")]
        command = [sys.executable, "-m", "hra_jax.evaluate", *words]
        scored = subprocess.run(command, env=command_env, capture_output=True, text=True, check=False, timeout=300)
        assert scored.returncode == 0, scored.stderr
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "S" / "seed=0" / ".lock").exists()
    folder = tmp_path / "S" / "seed=0" / "checkpoints"
    steps = 1 + max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    done = subprocess.run(
        [*train, f"--config.steps={steps}"], env=command_env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0 and re.search(r"resuming at step \d+", done.stdout), done.stderr
    assert not (tmp_path / "S" / "seed=0" / ".lock").exists()


@pytest.mark.slow(minutes=0.8)
def test_of_two_tasks_added_at_once_both_are_there_or_one_is_refused(tmp_path, command_env):
    for attempt in range(2):
        folder = tmp_path / f"{attempt}"
        shutil.copytree(FIXTURES / "adapters" / "hra", folder / "A")
        before = set(read_adapter(folder / "A").tasks)
        processes = {
            name: subprocess.Popen(
                [sys.executable, "-m", "hra_jax.tasks", "add", str(folder / "A"), name, "--init", "mean"],
                env=command_env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("one", "two")
        }
        ends = {name: (*process.communicate(timeout=120), process.returncode) for name, process in processes.items()}
        added = {name for name, (_, _, status) in ends.items() if status == 0}
        assert added and set(read_adapter(folder / "A").tasks) == before | added, ends
        for name in ends.keys() - added:
            assert ends[name][2] == 2 and "in use: 'tasks add'" in ends[name][1] and ends[name][1].count("\n") == 1
        assert [path.name for path in folder.iterdir()] == ["A"]
