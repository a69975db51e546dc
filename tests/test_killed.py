"""Commands that write, killed (-9) at random moments, again and again: what they leave can be read, the same command
finishes it, and it is then the bytes of a command that nobody killed.

HRA_KILLS says how often, over all tests; HRA_SEED draws the moments.
"""

import json
import os
import shutil
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
SHARES = {"train": 0.3, "evaluate": 0.15, "synthesize": 0.15, "tasks": 0.3, "convert": 0.1}  # of all kills

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


def share(name: str) -> int:
    return max(1, round(KILLS * SHARES[name]))


def chain(
    commands: Commands,
    words: list[str],
    *,
    kills: int,
    seconds: float,
    moments: np.random.Generator,
    check: Callable[[], None],
) -> tuple[int, str]:
    """Runs a command, killed so many times within so many seconds, then to its end; the last status and words."""
    for _ in range(kills):
        moment = moments.uniform(0, seconds)
        status, _, printed = commands.run(words, killed_after=moment)
        print(f"{words[0]}: after {moment:.2f} of {seconds:.2f} s: {status}")
        assert status in (-9, 0), printed
        check()
        if status == 0:
            break
    status, _, printed = commands.run(words)
    return status, printed


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
    settings = dict(kills=share("train"), seconds=seconds, moments=moments, check=lambda: readable(killed))
    status, printed = chain(commands, words("killed"), **settings)
    assert status == 0, printed
    assert files_of(killed / "adapter") == files_of(whole / "adapter")
    assert world.losses(killed) == world.losses(whole)
    for name in ("results.json", "predictions_ann.jsonl"):
        assert (killed / "eval" / "test" / name).read_bytes() == (whole / "eval" / "test" / name).read_bytes()


def test_evaluation(commands, micro, trained, tmp_path, moments):
    copies = [shutil.copytree(trained.workdir, tmp_path / name / "W") for name in ("whole", "killed")]

    def words(copy: Path) -> list[str]:
        return ["hra_jax.evaluate", "--workdir", str(copy), "--suite", micro.suite("mixed")]

    for _ in range(2):  # the first one compiles
        status, seconds, printed = commands.run(words(copies[0]))
        assert status == 0, printed
    settings = dict(kills=share("evaluate"), seconds=seconds, moments=moments, check=lambda: readable(copies[1]))
    status, printed = chain(commands, words(copies[1]), **settings)
    assert status == 0, printed
    whole, killed = (files_of(copy / "eval") for copy in copies)
    assert set(whole) == set(killed)
    same = [name for name in whole if not name.endswith((".png", ".html", ".md"))]
    assert {name: whole[name] for name in same} == {name: killed[name] for name in same}


def test_rendering(commands, tmp_path, moments):
    def words(folder: str) -> list[str]:
        return ["hra_jax.data.synthesize", "--set", "tiny-test", "--output", str(tmp_path / folder)]

    status, seconds, printed = commands.run(words("whole"))
    assert status == 0, printed
    settings = dict(kills=share("synthesize"), seconds=seconds, moments=moments, check=lambda: readable(tmp_path))
    status, printed = chain(commands, words("killed"), **settings)
    assert status == 0, printed
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


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

    status, printed = chain(
        commands, words("killed"), kills=share("convert"), seconds=seconds, moments=moments, check=check
    )
    # The last kill may have come when everything was written.
    assert status == 0 or "must be a new folder" in printed, printed
    assert files_of(killed) == files_of(tmp_path / "whole")


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

        kills = max(1, share("tasks") // len(steps))
        status, printed = chain(commands, words, kills=kills, seconds=seconds, moments=moments, check=check)
        # The last kill may have come when everything was written: there is nothing left to do then.
        assert status == 0 or "error: " in printed
        assert files_of(adapter) == expected[0]
    # What killed processes left beside it goes with the next command.
    assert commands.run(["hra_jax.tasks", "rename", str(adapter), "bee", "ben"])[0] == 0
    assert [path.name for path in tmp_path.glob(".adapter*")] in ([], [".adapter.lock"])
