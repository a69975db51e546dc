"""Commands on a disk that is full at some moment: one line says so, what is there can be read, and with space again
the same command ends, with the bytes of one that always had space.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from reference import micro as world
from reference import published
from reference.commands import Commands
from reference.full_disk import Disk, small_disk
from reference.written import files_of, readable

from hra_jax.cli import USER_ERROR
from hra_jax.train import NOT_SCORED

SHARES = (0.0, 0.4, 0.8)  # of the space that a command needs; it then has so much and no more

pytestmark = pytest.mark.slow(minutes=0.4)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        if made is None:
            pytest.skip("this process may not mount a disk: mount -t tmpfs")
        yield made


def runs_full(
    commands: Commands,
    words: list[str],
    disk: Disk,
    *,
    before: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    statuses: tuple[int, ...] = (USER_ERROR,),
    lines: int = 1,
) -> None:
    """Runs a command on an ever less full disk, and at last on one with space.

    Args:
      commands: what runs it.
      words: the command.
      disk: where it writes.
      before: makes everything as it is before the command.
      check: is called after each run.
      statuses: with which it may end where the disk is full.
      lines: how many it may print then.
    """
    empty = disk.free + sum(file.stat().st_blocks * 512 for file in disk.folder.rglob("*"))
    status, _, printed = commands.run(words)
    assert status == 0, printed
    needed = empty - disk.free
    before()
    failed = 0
    for share in SHARES:
        disk.leave(int(share * needed))
        status, _, printed = commands.run(words)
        disk.leave(None)
        readable(disk.folder)
        check()
        if status == 0:  # what another one has written before it is enough
            continue
        failed += 1
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        print(f"{share:.0%} of {needed:,} bytes: status {status}; {errors}")
        assert status in statuses and errors and "Traceback" not in printed, printed
        assert len(errors) <= lines, printed
        assert "No space left on device" in errors[0] and str(disk.folder) in errors[0], printed
    assert failed
    status, _, printed = commands.run(words)
    assert status == 0, printed


def test_rendering(commands, disk):
    spoken = disk.folder / "spoken"
    words = ["hra_jax.data.synthesize", "--set", "tiny-test", "--output", str(spoken)]
    expected: dict[str, bytes] = {}

    def before() -> None:
        expected.update(files_of(spoken))
        shutil.rmtree(spoken)

    runs_full(commands, words, disk, before=before)
    assert files_of(spoken) == expected


def test_conversion(commands, disk, tmp_path):
    source, backbone = published.write(tmp_path / "published", "parakeet"), disk.folder / "backbone"
    expected: dict[str, bytes] = {}

    def before() -> None:
        expected.update(files_of(backbone))
        shutil.rmtree(backbone)

    runs_full(commands, ["hra_jax.convert", "--source", str(source), "--output", str(backbone)], disk, before=before)
    assert files_of(backbone) == expected


@pytest.mark.parametrize("command", ["add", "import"])
def test_tasks_in_place(command, commands, micro, trained, disk, tmp_path):
    source, adapter = trained.workdir / "adapter", disk.folder / "adapter"
    shutil.copytree(source, adapter)
    words = ["hra_jax.tasks", "add", str(adapter), "dan", "--init", "mean"]
    if command == "import":
        other = shutil.copytree(source, tmp_path / "other")
        status, _, printed = commands.run(["hra_jax.tasks", "rename", str(other), "bob", "bea"])
        assert status == 0, printed
        words = ["hra_jax.tasks", "import", str(adapter), str(other), "--task", "bea"]
    allowed = [files_of(source)]

    def before() -> None:
        allowed.append(files_of(adapter))
        shutil.rmtree(adapter)
        shutil.copytree(source, adapter)

    def check() -> None:
        assert files_of(adapter) in allowed
        # Nothing of it is left beside it.
        assert [path.name for path in disk.folder.iterdir()] == ["adapter"]

    runs_full(commands, words, disk, before=before, check=check)
    assert files_of(adapter) == allowed[1]


@pytest.mark.slow(minutes=1)
def test_training(commands, micro, disk, tmp_path):
    settings = dict(batch__buckets=(0.4, 1.0), batch__seconds=2.0, checkpoint__every_steps=3, eval__every_steps=5)
    suites = dict(eval__suite=micro.suite("test"), eval__select_suite=micro.suite("validation"))
    config = world.write_config(tmp_path / "config.py", micro.config(steps=12, **settings, **suites))
    whole, workdir, latest = tmp_path / "whole", disk.folder / "W", [0]

    def check() -> None:
        folder = workdir / "checkpoints"
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        latest.append(max(steps, default=0))
        assert latest == sorted(latest)  # no checkpoint is lost

    words = ["hra_jax.train", "--config", config, "--workdir", str(workdir)]
    # An evaluation that finds no space costs neither a checkpoint nor an export.
    statuses = (USER_ERROR, NOT_SCORED)
    runs_full(commands, words, disk, before=lambda: shutil.move(workdir, whole), check=check, statuses=statuses)
    assert files_of(workdir / "adapter") == files_of(whole / "adapter")
    assert world.losses(workdir) == world.losses(whole)
    assert files_of(workdir / "eval").keys() == files_of(whole / "eval").keys()


SAVES = """
import shutil, sys
import jax.numpy as jnp
from reference.full_disk import small_disk
from pathlib import Path
from hra_jax.errors import UserError
from hra_jax.training.checkpoints import Checkpoints
state = {f"a{i}": jnp.full((64, 64), i) for i in range(12)}
with small_disk(Path(sys.argv[1]), megabytes=4) as disk:
    for left in range(0, 200_000, 12_288):
        # Each in a folder of its own: threads of the one that failed may still be writing.
        folder = disk.folder / f"checkpoints{left}"
        disk.leave(left)
        try:
            with Checkpoints(folder, keep_latest=1, keep_best=1, every_steps=1) as checkpoints:
                checkpoints.save(1, state, position={}, best={})
            print(left, "saved")
        except UserError as error:
            print(left, error)
        shutil.rmtree(folder, ignore_errors=True)
"""


@pytest.mark.slow(minutes=0.1)
def test_a_save_that_finds_no_space_says_one_line_wherever_it_was(disk, command_env, tmp_path):
    del disk  # skips where none can be mounted
    path = os.pathsep.join([*sys.path, command_env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SAVES, str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, env=command_env | {"PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    failed = [line for line in lines if not line.endswith("saved")]
    assert len(lines) == 17 and 3 < len(failed) < 17
    assert all("No space left on device" in line for line in failed), failed
    assert "Traceback" not in done.stderr, done.stderr
