"""Commands that write, killed (-9) at random moments, again and again: what they leave can be read, the same command
finishes it, and it is then the bytes of a command that nobody killed.

HRA_KILLS says how often, over all tests; HRA_SEED draws the moments.
"""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import micro as world
from reference import published
from reference.commands import Commands
from reference.written import files_of, readable

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.tasks import commands as tasks_of

KILLS = int(os.environ.get("HRA_KILLS", "12"))
SEED = int(os.environ.get("HRA_SEED") or np.random.SeedSequence().entropy % 10**6)
SHARES = {  # of all kills
    "train": 0.2,
    "evaluate": 0.1,
    "tasks in place": 0.05,  # each of four commands
    "tasks add --manifest": 0.1,
    "synthesize": 0.1,
    "convert": 0.1,
    "tasks export": 0.05,
    "tasks specialize": 0.05,
    "tasks export-checkpoint": 0.05,
    "manifest make": 0.05,
}

pytestmark = pytest.mark.slow(minutes=0.5)


def chain(
    commands: Commands,
    name: str,
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
      name: of it in SHARES.
      words: the command.
      seconds: what it takes.
      moments: draws when it is killed.
      check: is called after each kill.
      whole: whether everything is as the command leaves it where nobody kills it.
      reset: where it was faster than the kill, makes everything as it was before.
    """
    kills = 0
    while True:
        last = kills == max(1, math.ceil(KILLS * SHARES[name] - 1e-9))
        moment = None if last else moments.uniform(0, seconds)
        status, _, printed = commands.run(words, killed_after=moment)
        check()
        if status == -signal.SIGKILL:
            print(f"{' '.join(words[:2])}: killed after {moment:.2f} of {seconds:.2f} s")
            kills += 1
            continue
        # The last kill may have come when everything was done, and a task cannot be removed twice, nor a folder be new.
        assert whole() and (status == 0 or "error: " in printed), printed
        if last:
            return
        reset()


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
    chain(commands, "train", words("killed"), **settings, whole=same, reset=lambda: shutil.rmtree(killed))


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
    chain(commands, "evaluate", words(copies[1]), **settings, reset=lambda: shutil.rmtree(copies[1] / "eval" / "mixed"))


def test_transcribing_200_files_of_8_tasks_has_every_line_once(commands, micro, trained, tmp_path):
    adapter = str(shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter"))
    tasks = [*world.SPEAKERS, "dan", "eve", "fay", "gus", "hal"]
    for name in tasks[len(world.SPEAKERS) :]:
        tasks_of.add(adapter, name, init="mean")
    rows = []
    for number in range(200):
        text = "abcdef"[number % 6 :] + "fed"[: number % 4]
        soundfile.write(tmp_path / f"{number}.wav", world.tones(text, seed=number), world.RATE)
        line = {"audio_filepath": f"{number}.wav", "duration": 0.12 * len(text), "task": tasks[number % 8]}
        rows.append(line)
    world.write_manifest(tmp_path / "m.jsonl", rows)

    def words(name: str) -> list[str]:
        flags = ["--adapter", adapter, "--backbone", micro.backbone, "--manifest", str(tmp_path / "m.jsonl")]
        return ["hra_jax.transcribe", *flags, "--output", str(tmp_path / name)]

    def texts(path: Path) -> list[tuple[str, str, str]]:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(line["key"], line["task"], line["text"]) for line in map(json.loads, lines)]

    status, _, printed = commands.run(words("whole.jsonl"))
    assert status == 0 and "200 of 200 recognised" in printed, printed
    expected, killed = texts(tmp_path / "whole.jsonl"), tmp_path / "killed.jsonl"
    assert [(key, task) for key, task, _ in expected] == [(row["audio_filepath"], row["task"]) for row in rows]
    for lines in (0, 1, 60, 140):
        status, _, printed = commands.run(
            words("killed.jsonl"),
            killed_when=lambda lines=lines: killed.exists() and killed.read_bytes().count(b"\n") >= lines,
        )
        found = texts(killed)
        print(f"status {status} with {len(found)} lines of at least {lines}")
        assert status in (-signal.SIGKILL, 0) and found == expected[: len(found)]
    status, _, printed = commands.run(words("killed.jsonl"))
    assert status == 0 and texts(killed) == expected, printed


# --- What is written anew ---------------------------------------------------------------------------------------------


def merged(micro: world.Micro, trained: world.Trained, folder: Path) -> list[str]:
    """A task of low rank becomes a part of the backbone."""
    world.write_adapter(folder / "lora", LowRankAdapter(rank=2), micro)
    return ["hra_jax.tasks", "specialize", str(folder / "lora"), "bob", "--backbone", micro.backbone]


def manifests(micro: world.Micro, trained: world.Trained, folder: Path) -> list[str]:
    return ["hra_jax.data.manifest", "make", str(world.make_recordings(micro, folder / "recordings")), "--split"]


def converted(micro: world.Micro, trained: world.Trained, folder: Path) -> list[str]:
    source = published.write(folder / "published", "parakeet")
    return ["hra_jax.convert", "--source", str(source), "--name", "tiny"]


ANEW: dict[str, Callable[[world.Micro, world.Trained, Path], list[str]]] = {
    "synthesize": lambda micro, trained, folder: ["hra_jax.data.synthesize", "--set", "tiny-test"],
    "convert": converted,
    "tasks export": lambda micro, trained, folder: (
        ["hra_jax.tasks", "export", str(trained.workdir / "adapter"), "cy", "ann"]
    ),
    "tasks specialize": merged,
    "tasks export-checkpoint": lambda micro, trained, folder: (
        ["hra_jax.tasks", "export-checkpoint", "--workdir", str(trained.workdir)]
    ),
    "manifest make": manifests,
}


@pytest.mark.parametrize("name", ANEW)
def test_what_is_written_anew(name, commands, micro, trained, tmp_path, moments):
    words = ANEW[name](micro, trained, tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for _ in range(2):  # the first one may compile
        shutil.rmtree(whole, ignore_errors=True)
        status, seconds, printed = commands.run([*words, "--output", str(whole)])
        assert status == 0, printed
    expected = files_of(whole)
    assert expected
    settings = dict(seconds=seconds, moments=moments, check=lambda: readable(tmp_path))
    settings |= dict(whole=lambda: files_of(killed) == expected, reset=lambda: shutil.rmtree(killed))
    chain(commands, name, [*words, "--output", str(killed)], **settings)


# --- Adapters in place ------------------------------------------------------------------------------------------------


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
        chain(commands, "tasks in place", words, **settings, whole=lambda after=expected[0]: files_of(adapter) == after)
    # What killed processes left beside it goes with the next command.
    assert commands.run(["hra_jax.tasks", "rename", str(adapter), "bee", "ben"])[0] == 0
    assert [path.name for path in tmp_path.glob(".adapter*")] in ([], [".adapter.lock"])


def test_a_task_that_is_trained_into_an_adapter(commands, micro, trained, tmp_path, moments):
    """After each kill the adapter is the one before the command or the one after it, and the training goes on."""

    def words(name: str) -> list[str]:
        adapter, workdir = (str(tmp_path / name / folder) for folder in ("adapter", "W"))
        settings = ["--backbone", micro.backbone, "--manifest", str(micro.data / "test.jsonl"), "--steps", "8"]
        return ["hra_jax.tasks", "add", adapter, "dan", "--init", "mean", "--workdir", workdir, *settings]

    source, killed = trained.workdir / "adapter", tmp_path / "killed"
    for name in ("first", "whole", "killed"):
        shutil.copytree(source, tmp_path / name / "adapter")
    for name in ("first", "whole"):  # the first one compiles
        status, seconds, printed = commands.run(words(name))
        assert status == 0, printed
    expected = [files_of(tmp_path / "whole" / "adapter"), files_of(source)]
    assert expected[0] != expected[1]

    def check() -> None:
        readable(killed)
        assert files_of(killed / "adapter") in expected

    def reset() -> None:
        shutil.rmtree(killed)
        shutil.copytree(source, killed / "adapter")

    settings = dict(seconds=seconds, moments=moments, check=check, reset=reset)
    settings |= dict(whole=lambda: files_of(killed / "adapter") == expected[0])
    chain(commands, "tasks add --manifest", words("killed"), **settings)
