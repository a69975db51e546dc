"""Commands that write, killed (-9) at random moments, again and again: what they leave can be read, the same command
finishes it, and it is then the bytes of a command that nobody killed.

HRA_KILLS says how often, over all tests; HRA_SEED draws the moments.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from reference import micro as world
from reference import published
from reference.commands import Commands

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.models import backbone_folder

KILLS = int(os.environ.get("HRA_KILLS", "12"))
SEED = int(os.environ.get("HRA_SEED") or np.random.SeedSequence().entropy % 10**6)
SHARES = {  # of all kills; those of tasks for each of four commands
    "hra_jax.train": 0.3,
    "hra_jax.evaluate": 0.15,
    "hra_jax.data.synthesize": 0.15,
    "hra_jax.convert": 0.1,
    "hra_jax.tasks": 0.075,
}

pytestmark = pytest.mark.slow(minutes=0.5)


@pytest.fixture(scope="module")
def commands(command_env_of_module, tmp_path_factory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"), command_env_of_module)
    yield started
    started.close()


@pytest.fixture(scope="module")
def command_env_of_module(tmp_path_factory) -> dict[str, str]:
    repository = str(Path(__file__).resolve().parent.parent)
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUMPY_RANK_PROMOTION"}
    return env | {"PYTHONPATH": repository, "XLA_FLAGS": ""}


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for those that are hidden."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in shown}


def readable(folder: Path) -> None:
    """Whatever is there under its own name can be read."""
    for name in files_of(folder):
        if name.endswith((".json", "/metadata")):
            json.loads((folder / name).read_bytes())
        elif name.endswith("metrics.jsonl"):
            for line in (folder / name).read_text().splitlines():
                json.loads(line)
        elif name.endswith("adapter_config.json"):
            read_adapter(str((folder / name).parent))


def chain(
    commands: Commands,
    words: list[str],
    *,
    seconds: float,
    moments: np.random.Generator,
    check: Callable[[], None],
    whole: Callable[[], bool],
    reset: Callable[[], None],
) -> None:
    """Runs a command again and again, killed within so many seconds, and at last to its end.

    Args:
      commands: what runs it.
      words: the command.
      seconds: what it takes.
      moments: draws when it is killed.
      check: is called after each kill.
      whole: whether everything is as the command leaves it where nobody kills it.
      reset: where it was faster than the kill, makes everything as it was before.
    """
    kills = 0
    while True:
        last = kills == share(words[0])
        moment = None if last else moments.uniform(0, seconds)
        status, _, printed = commands.run(words, killed_after=moment)
        check()
        if status == -signal.SIGKILL:
            print(f"{words[0]}: killed after {moment:.2f} of {seconds:.2f} s")
            kills += 1
            continue
        # The last kill may have come when everything was done, and a task cannot be removed twice.
        assert whole() and (status == 0 or "error: " in printed), printed
        if last:
            return
        reset()


def share(module: str) -> int:
    """How often a command is killed."""
    return max(1, round(KILLS * SHARES[module]))


@pytest.fixture
def moments(request) -> np.random.Generator:
    print(f"HRA_SEED={SEED} HRA_KILLS={KILLS}")
    return np.random.default_rng([SEED, *request.node.name.encode()])


def test_training_checkpoints_and_export(commands, micro, tmp_path, moments):
    settings = dict(batch__buckets=(0.4, 1.0), batch__seconds=2.0, checkpoint__every_steps=3, eval__every_steps=5)
    suites = dict(eval__suite=micro.suite("test"), eval__select_suite=micro.suite("validation"))
    config = world.write_config(tmp_path / "config.py", micro.config(steps=20, **settings, **suites))

    def words(folder: str) -> list[str]:
        return ["hra_jax.train", "--config", config, "--workdir", str(tmp_path / folder)]

    status, _, printed = commands.run(words("first"))  # compiles
    assert status == 0, printed
    status, seconds, printed = commands.run(words("whole"))
    assert status == 0, printed
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def same() -> bool:
        assert files_of(killed / "adapter") == files_of(whole / "adapter")
        assert world.losses(killed) == world.losses(whole)
        for name in ("results.json", "predictions_ann.jsonl"):
            assert (killed / "eval" / "test" / name).read_bytes() == (whole / "eval" / "test" / name).read_bytes()
        return True

    settings = dict(seconds=seconds, moments=moments, check=lambda: readable(killed))
    chain(commands, words("killed"), **settings, whole=same, reset=lambda: shutil.rmtree(killed))


def test_evaluation(commands, micro, trained, tmp_path, moments):
    copies = [shutil.copytree(trained.workdir, tmp_path / name / "W") for name in ("whole", "killed")]

    def words(copy: Path) -> list[str]:
        return ["hra_jax.evaluate", "--workdir", str(copy), "--suite", micro.suite("mixed")]

    for _ in range(2):  # the first one compiles
        status, seconds, printed = commands.run(words(copies[0]))
        assert status == 0, printed
    whole = files_of(copies[0] / "eval")
    same = [name for name in whole if not name.endswith((".png", ".html", ".md"))]

    def is_whole() -> bool:
        found = files_of(copies[1] / "eval")
        return set(found) == set(whole) and all(found[name] == whole[name] for name in same)

    settings = dict(seconds=seconds, moments=moments, check=lambda: readable(copies[1]), whole=is_whole)
    chain(commands, words(copies[1]), **settings, reset=lambda: shutil.rmtree(copies[1] / "eval" / "mixed"))


def test_rendering(commands, tmp_path, moments):
    def words(folder: str) -> list[str]:
        return ["hra_jax.data.synthesize", "--set", "tiny-test", "--output", str(tmp_path / folder)]

    status, seconds, printed = commands.run(words("whole"))
    assert status == 0, printed
    whole, killed = files_of(tmp_path / "whole"), tmp_path / "killed"
    settings = dict(seconds=seconds, moments=moments, check=lambda: readable(tmp_path))
    settings |= dict(whole=lambda: files_of(killed) == whole, reset=lambda: shutil.rmtree(killed))
    chain(commands, words("killed"), **settings)


def test_conversion(commands, tmp_path, moments):
    source = published.write(tmp_path / "published", "parakeet")

    def words(folder: str) -> list[str]:
        return ["hra_jax.convert", "--source", str(source), "--output", str(tmp_path / folder), "--name", "tiny"]

    status, seconds, printed = commands.run(words("whole"))
    assert status == 0, printed
    killed = tmp_path / "killed"

    def check() -> None:
        if (killed / "backbone.json").exists():
            backbone_folder.load(str(killed), verify=True)

    whole = files_of(tmp_path / "whole")
    settings = dict(seconds=seconds, moments=moments, check=check, whole=lambda: files_of(killed) == whole)
    chain(commands, words("killed"), **settings, reset=lambda: shutil.rmtree(killed))


def test_tasks_in_place(commands, micro, trained, tmp_path, moments):
    """Every command on an adapter: after each kill it is the one before the command or the one after it."""
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    for copy in (adapter, other):
        shutil.copytree(trained.workdir / "adapter", copy)
    assert commands.run(["hra_jax.tasks", "rename", str(other), "bob", "bea"])[0] == 0
    steps = [
        ["add", str(adapter), "dan", "--init", "mean"],
        ["import", str(adapter), str(other), "--task", "bea"],
        ["remove", str(adapter), "ann", "cy"],
        ["rename", str(adapter), "bea", "bee"],
    ]
    for step in steps:
        words = ["hra_jax.tasks", *step]
        before = shutil.copytree(adapter, tmp_path / "before" / step[0])
        # The same command on a copy, that nobody kills.
        whole = shutil.copytree(adapter, tmp_path / "whole" / step[0])
        status, seconds, printed = commands.run([word.replace(str(adapter), str(whole)) for word in words])
        assert status == 0, printed
        expected = [files_of(whole), files_of(before)]

        def check(expected=expected) -> None:
            read_adapter(str(adapter))
            assert files_of(adapter) in expected

        def reset(before=before) -> None:
            shutil.rmtree(adapter)
            shutil.copytree(before, adapter)

        settings = dict(seconds=seconds, moments=moments, check=check, reset=reset)
        chain(commands, words, **settings, whole=lambda after=expected[0]: files_of(adapter) == after)
    # What killed processes left beside it goes with the next command.
    assert commands.run(["hra_jax.tasks", "rename", str(adapter), "bee", "ben"])[0] == 0
    assert [path.name for path in tmp_path.glob(".adapter*")] in ([], [".adapter.lock"])
