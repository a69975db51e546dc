"""Suites whose tasks are to be found: what is run for them, and what their results say."""

import dataclasses
import json

import pytest
from reference import launching
from reference import micro as world

from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.data.report import DataReport
from hra_jax.decoding.unknown_task import Choice
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import check_adapter_tasks, load_suite, suite_digest
from hra_jax.run import unknown_tasks
from hra_jax.run.unknown_tasks import Expanded, Found
from hra_jax.tasks import commands

ROW = ("*", "{dir}/test.jsonl", "speaker=*", "__auto__")


@pytest.fixture
def suite(micro, tmp_path):
    path = world.write_suite(tmp_path / "auto.py", (ROW,))
    return load_suite(path, data_dir=str(micro.data), report=DataReport())


def test_only_an_evaluation_that_finds_tasks_takes_a_suite_that_asks_for_it(suite):
    with pytest.raises(UserError, match=r"the adapter of task 'ann' is to be found; allowed with: .*evaluate --output"):
        check_adapter_tasks(suite, world.SPEAKERS)
    check_adapter_tasks(suite, (*world.SPEAKERS, "__auto__"))


def test_a_session_is_a_tag_that_there_is_and_another_suite(micro, tmp_path):
    path = tmp_path / "sessions.py"
    world.write_suite(path, (ROW,))
    plain = load_suite(str(path), data_dir=str(micro.data), report=DataReport())
    text = path.read_text()
    path.write_text(text.replace("'normalizer'", "'session': 'speaker', 'normalizer'"))
    found = load_suite(str(path), data_dir=str(micro.data), report=DataReport())
    assert found.session == "speaker" and plain.session == ""
    assert suite_digest(found) != suite_digest(plain)
    path.write_text(text.replace("'normalizer'", "'session': 'speeker', 'normalizer'"))
    with pytest.raises(UserError, match="speeker"):
        load_suite(str(path), data_dir=str(micro.data), report=DataReport())


def test_a_session_of_several_tasks_is_told_of(suite, capsys):
    def of(tag_of):
        return [
            (task, dataclasses.replace(row, tags={**row.tags, **tag_of(task, number)}))
            for task in suite.tasks
            for number, row in enumerate(task.utterances)
        ]

    asked = dataclasses.replace(suite, session="talk")
    found = unknown_tasks.sessions_of(of(lambda task, n: {"talk": task.name} if n else {}), asked)
    assert found == {0: [0], "ann": [1], 2: [2], "bob": [3], 4: [4], "cy": [5]}
    assert capsys.readouterr().out == ""
    assert unknown_tasks.sessions_of(of(lambda task, n: {"talk": str(n)}), asked) == {"0": [0, 2, 4], "1": [1, 3, 5]}
    told = "suite 'auto': 2 of 2 sessions are of several tasks, and each is taken for one voice; talk='0' is of 'ann', "
    assert told in capsys.readouterr().out


def test_results_are_those_of_the_suite_that_was_asked_for_with_what_the_own_task_makes_beside_them(suite):
    ann, bob, _ = suite.tasks
    choices = [Choice("ann", ("ann", "bob", "__base__"), 4), Choice("bob", ("bob", "cy", "__base__"), 4)]
    found = [Found(ann, row, choice) for row, choice in zip(ann.utterances, choices, strict=True)]
    found += [Found(bob, row, Choice("__base__", ("bob", "__base__"), 3)) for row in bob.utterances]
    names = {"ann found ann": "ann", "ann found bob": "ann", "ann own ann": "ann"}
    names |= {"bob found __base__": "bob", "bob own bob": "bob"}
    tasks = [_named(ann, "ann own ann", "ann"), _named(bob, "bob own bob", "bob")]
    expanded = Expanded(_with(suite, tasks), names, frozenset({"ann own ann", "bob own bob"}), found)
    rows = [
        _row("ann found ann", "a", "one two", "one two"),
        _row("ann found bob", "b", "three four", "three"),
        _row("ann own ann", "a", "one two", "one two"),
        _row("ann own ann", "b", "three four", "three four"),
        _row("bob found __base__", "c", "five", "six"),
        _row("bob own bob", "c", "five", "five"),
    ]
    given, differences, section = unknown_tasks.given_back(
        rows, {"ann found ann": 0.5, "ann found bob": 2.0, "other": 1.0}, expanded
    )
    assert [(row.task, row.key, row.pred_text) for row in given] == [
        ("ann", "a", "one two"),
        ("ann", "b", "three"),
        ("bob", "c", "six"),
    ]
    assert differences == {"ann": 2.0, "other": 1.0}
    assert section["passes"] == 5
    assert section["tasks"]["ann"] == {
        "utterances": 2,
        "right": 0.5,
        "among": 0.5,
        "base": 0.0,
        "wer": 0.25,
        "own_wer": 0.0,
    }
    assert section["tasks"]["bob"]["base"] == 1.0 and section["tasks"]["bob"]["right"] == 0.0
    assert section["tasks"][""]["wer"] == pytest.approx(2 / 5) and section["tasks"][""]["own_wer"] == 0.0
    assert section["tasks"][""]["right"] == pytest.approx(1 / 4)


def _row(task: str, key: str, text: str, heard: str) -> UtteranceResult:
    return UtteranceResult(task, key, text, heard, None, 1.0)


def _named(task, name: str, adapter: str):
    return dataclasses.replace(task, name=name, adapter_task=adapter)


def _with(suite, tasks):
    return dataclasses.replace(suite, tasks=tuple(tasks))


@pytest.mark.optimised  # it is compared with a command, which is optimised
@pytest.mark.slow(minutes=3)
def test_an_evaluation_finds_tasks_and_says_what_that_costs(micro, tmp_path, capsys, command_env):
    silent = str(world.write_adapter(tmp_path / "silent", HierarchicalRecurrentAdapter(width=5), micro))
    suite = world.write_suite(tmp_path / "auto.py", (ROW,))
    asked = {"backbones": [micro.backbone], "data_dir": str(micro.data)}
    with pytest.raises(UserError, match="python -m hra_jax.tasks centroids"):
        evaluate_systems([suite], tmp_path / "R", adapters=[f"own={silent}"], **asked)
    commands.add_centroids(silent, manifest=str(micro.data / "train.jsonl"), backbone=micro.backbone)
    results = evaluate_systems([suite], tmp_path / "R", adapters=[f"own={silent}"], **asked)["auto"]["own"]
    own = evaluate_systems([micro.suite("test")], tmp_path / "R", adapters=[f"own={silent}"], **asked)["test"]["own"]
    section = results["auto"]
    assert set(section["tasks"]) == {"", *world.SPEAKERS}
    for name in world.SPEAKERS:
        assert section["tasks"][name]["wer"] == pytest.approx(results["tasks"][name]["wer"])
        assert section["tasks"][name]["own_wer"] == pytest.approx(own["tasks"][name]["wer"])
    assert section["passes"] <= 6
    assert json.loads((tmp_path / "R/auto/own/results.json").read_text())["auto"] == section
    assert "__auto__" in (tmp_path / "R/auto/own/report.md").read_text()
    assert evaluate_systems([suite], tmp_path / "R", adapters=[f"own={silent}"], **asked)["auto"]["own"] == results
    assert "own task" in capsys.readouterr().out
    # Of two processes each hears two of the six utterances, and then one of them the rest.
    file = tmp_path / "auto.py"
    file.write_text(f"from hra_jax.run import unknown_tasks\n\nunknown_tasks._TOGETHER = 2\n{file.read_text()}")
    words = ["--adapter", f"own={silent}", "--backbone", micro.backbone, "--data_dir", micro.data, "--suite", suite]
    words = [launching.EVALUATE, *words, "--output", tmp_path / "two"]
    launching.run(words, folder=tmp_path / "launched", env=command_env, processes=2, devices=1)
    assert json.loads((tmp_path / "two/auto/own/results.json").read_text())["auto"] == section
    for name in world.SPEAKERS:
        found, expected = (
            [json.loads(line)["pred_text"] for line in path.read_text().splitlines()]
            for path in (tmp_path / f"{folder}/auto/own/predictions_{name}.jsonl" for folder in ("two", "R"))
        )
        assert found == expected != []
