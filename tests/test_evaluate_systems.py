"""Any number of systems on any number of suites: adapters, checkpoints, backbones, predictions, side by side.

HRA_PROCESSES says on how many processes the counts are compared, by default 1,2.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import launching
from reference import micro as world

from hra_jax import compare
from hra_jax.adapters import adapter_folder
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.run import evaluating
from hra_jax.tasks import library

pytestmark = pytest.mark.optimised  # adapters that act are told from those that do not by the last bit


# `python -m MODULE` that writes down each batch, and kills itself after so many.
KILLED = """
import os, runpy, signal, sys
from hra_jax.run import evaluating
evaluating.SAVE_SECONDS = 0.0
left, add = [int(sys.argv[1])], evaluating.Unfinished.add
def counted(self, fresh):
    add(self, fresh)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
evaluating.Unfinished.add = counted
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def place(trained, micro, here: Path) -> Path:
    """A folder that holds an exported adapter, its backbone, two suites and their data, and nothing else."""
    here.mkdir()
    shutil.copytree(trained.workdir / "adapter", here / "adapter")
    shutil.copytree(micro.backbone, here / "backbone")
    (here / "data" / "audio").mkdir(parents=True)
    for split in ("test", "validation"):
        shutil.copy(micro.data / f"{split}.jsonl", here / "data")
        shutil.copy(micro.suite(split), here)
        for row in world.read_manifest(micro.data / f"{split}.jsonl"):
            shutil.copy(micro.data / row["audio_filepath"], here / "data" / "audio")
    return here


@pytest.fixture
def alone(trained, micro, tmp_path, monkeypatch) -> Path:
    """`place`, scored on one device."""
    world.use_devices(monkeypatch, 1)
    return place(trained, micro, tmp_path / "alone")


def scored(here: Path, *suites: str, output="R", **changes) -> dict:
    settings = {"adapters": [f"own={here / 'adapter'}"], "backbones": [str(here / "backbone")]} | changes
    names = [str(here / f"{suite}.py") for suite in suites or ("test",)]
    return evaluate_systems(names, here / output, data_dir=str(here / "data"), **settings)


def refused(here: Path, *suites: str, **changes) -> str:
    with pytest.raises(UserError) as caught:
        scored(here, *suites, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> dict[str, object]:
    """What an evaluation has written, without times and locks."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix == ".jsonl":
            found[name] = [json.loads(line) | {"time": None} for line in path.read_text().splitlines()]
        elif path.name == "results.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "speed"}
        elif path.suffix == ".md":
            lines = path.read_text().splitlines()
            found[name] = [line for line in lines if line and "real-time factor" not in line]
        elif path.suffix != ".html":  # it tells times
            found[name] = path.read_bytes()
    return found


def test_an_exported_adapter_is_scored_beside_its_backbone_where_nothing_else_is(alone, trained, monkeypatch, capsys):
    found = scored(alone)["test"]
    assert list(found) == ["__base__", "own"]
    reported = json.loads((trained.workdir / "eval" / "test" / "results.json").read_text())
    counts = ("substitutions", "deletions", "insertions", "words", "wer", "base_wer")
    for task, expected in reported["tasks"].items():
        assert {name: found["own"]["tasks"][task][name] for name in counts} == {name: expected[name] for name in counts}
        assert found["__base__"]["tasks"][task]["wer"] == expected["base_wer"]
    assert found["own"]["trainable_parameters"] == reported["trainable_parameters"]
    folder = alone / "R" / "test"
    pair = compare.compare([folder / "__base__", folder / "own"])["comparisons"][0]["macro"]
    assert f"{pair['wer_b']:.1%}".rstrip("%") in (folder / "report.md").read_text()
    assert json.loads((folder / "compared.json").read_text())[0]["differences"]["macro"] == pair
    for page in (folder / "report.html", folder / "own" / "report.html"):
        assert "python -m hra_jax.evaluate --adapter " in page.read_text()
    assert "<audio" in (folder / "own" / "report.html").read_text()

    # What is finished is not run again, not even where another system is asked for; other weights are other results.
    capsys.readouterr()
    written, run = files(alone / "R"), []
    monkeypatch.setattr(evaluating, "recognise", lambda system, *args, **more: run.append(system.name) or ([], {}))
    assert scored(alone)["test"] == found and files(alone / "R") == written
    assert "suite test" in capsys.readouterr().out
    assert scored(alone, adapters=[])["test"] == {"__base__": found["__base__"]}  # a backbone by itself
    with pytest.raises(UserError, match="no task could be scored"):
        scored(alone, adapters=[f"own={alone / 'adapter'}", f"more={alone / 'adapter'}"])
    assert run == ["more"]
    shutil.rmtree(alone / "backbone")
    world.make_backbone(alone / "backbone", seed=1)
    assert "trained on the backbone 'micro'" in refused(alone)


def test_what_is_wrong_is_one_line_before_a_model_is_loaded(alone, monkeypatch):
    monkeypatch.setattr(evaluating, "recognise", lambda *args, **more: pytest.fail("something is recognised"))
    assert "hrad" in refused(alone, "hrad")
    own = str(alone / "adapter")
    assert "two systems are named 'own'" in refused(alone, adapters=[f"own={own}", f"own={own}"])
    assert "two systems are named 'alone'" in refused(alone, adapters=[own, own])
    assert "nothing to evaluate" in refused(alone, adapters=[], backbones=[])
    assert "adapter folder" in refused(alone, adapters=[str(alone / "data")])
    world.write_suite(alone / "typo.py", (("ann", "{dir}/test.jsonl", "speaker=ann", "anne"),))
    assert "task 'ann' needs the adapter 'anne'" in refused(alone, "typo")
    world.write_suite(alone / "again.py", (("ann", "{dir}/test.jsonl", "speaker=ann", "ann"),), name="test")
    assert "two suites are named 'test'" in refused(alone, "test", "again")
    assert f"{alone / 'none.jsonl'}" in refused(alone, predictions=[f"x={alone / 'none.jsonl'}"])
    (alone / "bad.jsonl").write_text('{"pred_text": "a", "key": "audio/test-0.flac"}\nno\n')
    assert f"{alone / 'bad.jsonl'}:2" in refused(alone, predictions=[f"x={alone / 'bad.jsonl'}"])
    (alone / "few.jsonl").write_text('{"pred_text": "a", "key": "audio/test-0.flac"}\n')
    line = refused(alone, predictions=[f"x={alone / 'few.jsonl'}"])
    assert "lacks 5 of the utterances of suite 'test', such as 'audio/test-1.flac'" in line
    assert "allowed: NAME=FILE" in refused(alone, predictions=[str(alone / "few.jsonl")])


def faultless(idle: str = ""):
    """Takes the place of a recogniser: every text is right, and the adapter of one task does nothing."""

    def recognise(system, runner, *args, **more):
        rows = [
            UtteranceResult(task.name, row.key, row.text, row.text, runner.kept.get((task.name, row.key)), 1.0)
            for task in runner.suite.tasks
            for row in task.utterances
        ]
        return rows, {task.name: float(task.name != idle) for task in runner.suite.tasks}

    return recognise


def test_texts_of_the_training_are_counted_for_checkpoints_and_for_nothing_else(alone, trained, monkeypatch):
    monkeypatch.setattr(evaluating, "recognise", faultless())
    found = scored(alone, workdir=trained.workdir, steps=["last"])["test"]
    base, run, own = (found[name] for name in ("__base__", next(name for name in found if "@" in name), "own"))
    reported = json.loads((trained.workdir / "eval" / "test" / "results.json").read_text())
    assert run["texts_in_training"] == reported["texts_in_training"] is not None
    assert base["texts_in_training"] is own["texts_in_training"] is None


def test_a_task_that_no_step_has_reached_is_left_out_of_the_means_and_named(alone, monkeypatch):
    tasks = json.loads((alone / "adapter" / "tasks.json").read_text())
    tasks["tasks"][1] |= {"step": 0}
    (alone / "adapter" / "tasks.json").write_text(json.dumps(tasks))
    config = json.loads((alone / "adapter" / "adapter_config.json").read_text())
    (alone / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "sha256": {}}))
    name = adapter_folder.read_tasks(alone / "adapter")[1]["name"]

    monkeypatch.setattr(evaluating, "recognise", faultless(idle=name))
    found = scored(alone)["test"]["own"]
    assert set(found["tasks"]) == set(world.SPEAKERS) - {name}
    assert found["tasks_not_scored"] == {name: f"its adapter {name!r} had no training step"} and found["error"] is None
    (pair,) = json.loads((alone / "R" / "test" / "compared.json").read_text())
    assert set(pair["differences"]["tasks"]) == set(found["tasks"]) and pair["error"] is None
    assert f"own: task {name!r} was not scored" in (alone / "R" / "test" / "report.md").read_text().replace("\\", "")


def enlarge(data: Path, split: str) -> None:
    """Copies the utterances of a split until they are 240, three batches, and adds one that fits in no bucket."""
    rows, many = world.read_manifest(data / f"{split}.jsonl"), []
    for number in range(240):
        row = rows[number % len(rows)]
        name = f"audio/{split}-{number}-again{Path(row['audio_filepath']).suffix}"
        shutil.copy(data / row["audio_filepath"], data / name)
        many.append(row | {"audio_filepath": name})
    noise = 0.003 * np.random.default_rng(0).standard_normal(world.RATE // 2)
    said = np.concatenate([sound for seed in range(20) for sound in (world.tones("bed fad", seed=seed), noise)])
    soundfile.write(data / f"audio/{split}-long.flac", said, world.RATE)
    row = {"audio_filepath": f"audio/{split}-long.flac", "duration": len(said) / world.RATE, "speaker": "bob"}
    many.append(row | {"text": " ".join(20 * ["bed fad"])})
    world.write_manifest(data / f"{split}.jsonl", many)


@pytest.mark.slow(minutes=1)
def test_killed_twice_and_continued_three_systems_on_two_suites_give_what_an_uninterrupted_run_gives(
    trained, micro, tmp_path, command_env
):
    here = place(trained, micro, tmp_path / "alone")
    for split in ("test", "validation"):
        enlarge(here / "data", split)
    swapped = adapter_folder.read_adapter(here / "adapter")
    for old, new in (("ann", "x"), ("bob", "ann"), ("x", "bob")):
        swapped = library.renamed(swapped, old, new)
    library.write(here / "second", swapped)
    words = ["--suite", f"{here}/test.py,{here}/validation.py", "--backbone", f"{here}/backbone"]
    words += ["--adapter", f"own={here}/adapter", "--adapter", f"second={here}/second", "--data_dir", f"{here}/data"]

    def run(output: str, batches: int) -> int:
        line = [sys.executable, "-c", KILLED, str(batches), "hra_jax.evaluate", *words, "--output", str(here / output)]
        return subprocess.run(line, env=command_env, capture_output=True, text=True, check=False).returncode

    assert run("whole", 10**6) == 0
    assert [run("killed", 4), run("killed", 7), run("killed", 10**6)] == [-9, -9, 0]
    whole, killed = files(here / "whole"), files(here / "killed")
    assert killed.keys() == whole.keys() and len([name for name in whole if name.endswith("results.json")]) == 6
    assert killed == whole


@pytest.mark.slow(minutes=0.7)
def test_any_number_of_processes_counts_the_same(trained, micro, tmp_path, command_env):
    here = place(trained, micro, tmp_path / "alone")
    enlarge(here / "data", "test")
    next(
        (here / "data" / "audio").glob("test-7-again.*")
    ).unlink()  # one utterance is told of and costs nobody else anything
    found = {}
    for count in map(int, os.environ.get("HRA_PROCESSES", "1,2").split(",")):
        words = ["--suite", here / "test.py", "--backbone", here / "backbone", "--adapter", f"own={here}/adapter"]
        words += ["--data_dir", here / "data", "--output", here / f"R{count}"]
        settings = {"processes": count, "devices": 4 // count, "env": command_env}
        launching.run([launching.EVALUATE, *words], folder=tmp_path / f"launched {count}", **settings)
        found[count] = files(here / f"R{count}")
    first, *others = found.values()
    assert all(other == first for other in others)
    results = json.loads((here / "R1" / "test" / "own" / "results.json").read_text())
    assert results["utterances_not_scored"] == 1 and results["utterances"] == 240


@pytest.mark.slow(minutes=0.5)
def test_a_matrix_has_every_adapter_on_every_tasks_data(alone, monkeypatch, capsys):
    monkeypatch.chdir(alone)
    asked = {"adapters": ["own=adapter"], "backbones": ["backbone"], "data_dir": "data"}
    results = evaluate_systems(["test.py"], "R", **asked, matrix=True)["test"]
    found = json.loads((alone / "R/test_matrix/own/matrix.json").read_text())
    assert found["tasks"] == found["adapters"] == list(world.SPEAKERS)
    for row, name in enumerate(world.SPEAKERS):
        # The diagonal is the suite itself, and the base is the base.
        assert found["rates"][row][row] == results["own"]["tasks"][name]["wer"]
        assert found["base"][row] == results["__base__"]["tasks"][name]["wer"]
    # Beside it stands what a suite of another adapter gives.
    world.write_suite(alone / "crossed.py", (("ann", "{dir}/test.jsonl", "speaker=ann", "bob"),))
    other = evaluate_systems(["crossed.py"], "R2", **asked)["crossed"]["own"]["tasks"]["ann"]
    assert found["rates"][0][1] == other["wer"]
    assert "data of" in capsys.readouterr().out
    assert "[" in (alone / "R/test_matrix/own/matrix.md").read_text()
    with pytest.raises(UserError, match="--matrix has no use without an adapter"):
        evaluate_systems(["test.py"], "R3", backbones=["backbone"], data_dir="data", matrix=True)
