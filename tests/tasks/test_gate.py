"""No harm: tasks that an adapter makes worse are set aside, and whoever recognises them obeys and says so."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from reference import micro as world

import hra_jax
from hra_jax import api, fitting, transcribe
from hra_jax.adapters import adapter_folder
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation.predictions import read_predictions
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.tasks import commands, gate, library

WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b"))]
STORED = Path(os.environ.get("HRA_STORED_RESULTS") or Path(__file__).parents[3] / "shared/data/quickstart-2026-11-26")


@pytest.fixture
def adapter(micro, tmp_path) -> str:
    return str(world.write_adapter(tmp_path / "adapter", HierarchicalRecurrentAdapter(width=5), micro))


@pytest.fixture
def call(monkeypatch):
    """Runs a command line in this process; the exit status."""

    def run(*line) -> int | None:
        values = flags.FlagValues()
        commands.define_flags(values)
        monkeypatch.setattr(commands, "FLAGS", values)
        return commands.main(values(["tasks", *map(str, line)]))

    return run


def write_results(path: Path, fingerprint: str, **tasks) -> Path:
    """A results.json; of each task (base rate, rate, verdict)."""
    entries = {
        name: {
            "adapter_task": name,
            "metric": "wer",
            "base_wer": base,
            "wer": rate,
            "difference": {"difference": rate - base, "low": rate - base - 0.01, "high": rate - base + 0.01}
            | {"verdict": verdict},
        }
        for name, (base, rate, verdict) in tasks.items()
    }
    path.write_text(json.dumps({"suite": "v", "backbone_fingerprint": fingerprint, "tasks": entries}))
    return path


@pytest.fixture
def results(micro, tmp_path) -> Path:
    rates = {"ann": (0.2, 0.1, "better"), "bob": (0.2, 0.25, "not decidable"), "cy": (0.2, 0.2, "not decidable")}
    return write_results(tmp_path / "results.json", micro.fingerprint, **rates)


def aside(folder) -> dict:
    return {entry["name"]: entry["set_aside"] for entry in adapter_folder.read_tasks(folder) if "set_aside" in entry}


def test_the_gate_sets_aside_by_the_point_estimate_and_says_whether_it_could_be_decided(call, adapter, results, capsys):
    before = {path.name: path.read_bytes() for path in Path(adapter).iterdir()}
    assert call("gate", adapter, "--results", results, "--check") == commands.HARMFUL == 4
    printed = capsys.readouterr().out
    assert "task 'bob' is worse with the adapter by more than 0, and is not set aside" in printed
    assert "difference +4.0 to +6.0 points: not decidable" in printed and "'cy' is worse" not in printed
    assert {path.name: path.read_bytes() for path in Path(adapter).iterdir()} == before

    assert call("gate", adapter, "--results", results) == 0
    assert aside(adapter) == {"bob": {"suite": "v", "metric": "wer", "rate": 0.25, "base_rate": 0.2, "tolerance": 0.0}}
    assert call("gate", adapter, "--results", results, "--check") == 0  # nobody is harmed any more
    call("list", adapter)
    assert "set aside, and recognised by the backbone alone: 'bob'" in capsys.readouterr().out


def test_within_the_tolerance_a_task_stays_in_use_and_comes_back_into_it(call, adapter, results, micro):
    assert call("gate", adapter, "--results", results, "--tolerance", "0.1", "--check") == 0
    call("gate", adapter, "--results", results)
    assert aside(adapter).keys() == {"bob"}
    # A suite that does not score it says nothing of it.
    call("gate", adapter, "--results", write_results(results, micro.fingerprint, ann=(0.2, 0.3, "worse")))
    assert aside(adapter).keys() == {"ann", "bob"}
    better = write_results(results, micro.fingerprint, ann=(0.2, 0.1, "better"), bob=(0.2, 0.2, "not decidable"))
    call("gate", adapter, "--results", better)
    assert aside(adapter) == {}


def test_a_task_that_could_not_be_scored_is_named_and_is_no_pass(call, adapter, results, capsys):
    assert call("gate", adapter, "--results", results, "--tolerance", "0.1", "--check") == 0
    stored = json.loads(results.read_text())
    results.write_text(json.dumps(stored | {"tasks_not_scored": {"dee": "none of its 3 utterances could be read"}}))
    assert call("gate", adapter, "--results", results, "--tolerance", "0.1", "--check") == commands.HARMFUL
    assert "task 'dee' of 'v' decides nothing: none of its 3 utterances could be read" in capsys.readouterr().out
    results.write_text(json.dumps(stored | {"tasks_not_scored": ["dee"]}))
    with pytest.raises(UserError, match="needs 'tasks_not_scored'"):
        call("gate", adapter, "--results", results, "--check")


def test_a_task_that_is_set_aside_is_recognised_by_the_backbone_to_the_last_bit_and_that_is_said(
    call, adapter, results, micro, capsys
):
    backbone = hra_jax.load_backbone(micro.backbone)
    plain = hra_jax.load_adapter(adapter, backbone)
    call("gate", adapter, "--results", results)
    api._say_set_aside.cache_clear()
    model = hra_jax.load_adapter(adapter, backbone)
    assert model.set_aside == {"bob"}
    found, frames = model.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=["ann", "bob", "cy"])
    expected, _ = plain.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=["ann", "__base__", "cy"])
    np.testing.assert_array_equal(found, expected)
    harmful, _ = plain.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=["ann", "bob", "cy"])
    assert np.abs(harmful[1, : frames[1]] - found[1, : frames[1]]).max() > 1e-3
    model.log_probs(WAVEFORMS[:1], sample_rate=world.RATE, tasks=["bob"])
    assert capsys.readouterr().err.count("task 'bob' is set aside: it is recognised by the backbone alone") == 1
    assert not model.without_task("bob").set_aside
    # A model that is stored again keeps it aside.
    fitting.save_adapter(model, f"{adapter} again")
    assert hra_jax.load_adapter(f"{adapter} again", backbone).set_aside == {"bob"}
    task, notice = transcribe.choose_task(adapter, "bob")
    assert task == "__base__"
    assert "task 'bob' is set aside, and recognised by the backbone alone: 25.0% with its adapter, 20.0%" in notice
    assert transcribe.choose_task(adapter, "ann") == ("ann", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("A",), "gate needs --suite, a validation suite, or else --results"),
        (("A", "--suite", "x", "--results", "R"), "gate needs --suite"),
        (("A", "--results", "R", "--backbone", "B"), "have no use with --results"),
        (("A", "--results", "OTHER"), "results on the backbone 'f00d'"),
        (("A", "--results", "STRANGER"), "unknown task 'dee'"),
        (("A", "--results", "NOTHING"), "scores no task of an adapter"),
        (("A", "--results", "A/tasks.json"), "needs 'suite'"),
    ],
)
def test_what_cannot_be_gated_is_one_line(call, adapter, results, micro, tmp_path, line, message):
    names = {
        "A": adapter,
        "R": results,
        "OTHER": write_results(tmp_path / "other.json", "f00d", ann=(0.1, 0.2, None)),
        "STRANGER": write_results(tmp_path / "stranger.json", micro.fingerprint, dee=(0.1, 0.2, None)),
        "NOTHING": write_results(tmp_path / "nothing.json", micro.fingerprint, __base__=(0.1, 0.1, None)),
        "A/tasks.json": f"{adapter}/tasks.json",
    }
    with pytest.raises(UserError, match=message) as caught:
        call("gate", *(names.get(word, word) for word in line))
    assert "\n" not in str(caught.value) and not aside(adapter)


@pytest.mark.slow(minutes=0.5)
@pytest.mark.optimised
def test_the_suite_is_recognised_with_the_adapter_and_without_and_evaluation_obeys(
    call, trained, micro, tmp_path, monkeypatch, capsys
):
    world.use_devices(monkeypatch, 1)
    adapter = str(shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter"))
    exported = adapter_folder.read_adapter(adapter)
    places = {"backbone": micro.backbone, "data_dir": str(micro.data)}
    found = gate.scored(exported, micro.suite("validation"), **places)["tasks"]
    flags_ = ("--backbone", micro.backbone, "--data_dir", micro.data)
    call("gate", adapter, "--suite", micro.suite("validation"), *flags_)
    assert aside(adapter).keys() == {name for name, task in found.items() if task["wer"] > task["base_wer"]}

    worse = gate.Decision("ann", "wer", 0.3, 0.2, None, None, None, True)
    library.write(adapter, gate.gated(exported, [worse], suite="v", tolerance=0.0))
    capsys.readouterr()
    (systems,) = evaluate_systems(
        [micro.suite("validation")],
        tmp_path / "R",
        adapters=[f"own={adapter}"],
        backbones=[micro.backbone],
        data_dir=str(micro.data),
    ).values()
    assert "system 'own': set aside, and recognised by the backbone alone: 'ann'" in capsys.readouterr().out
    own = systems["own"]
    assert own["set_aside"] == ["ann"] and own["tasks"]["ann"]["wer"] == own["tasks"]["ann"]["base_wer"]
    lines = (tmp_path / "R" / "validation" / "own" / "predictions_ann.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line)["pred_text"] == json.loads(line)["base_pred_text"] for line in lines)
    assert {name: own["tasks"][name]["wer"] for name in ("bob", "cy")} == {n: found[n]["wer"] for n in ("bob", "cy")}
    # The gate looks at the adapter itself, whatever is set aside.
    again = gate.scored(adapter_folder.read_adapter(adapter), micro.suite("validation"), **places)["tasks"]
    assert again["ann"]["wer"] == found["ann"]["wer"]


# --- Stored predictions -----------------------------------------------------------------------------------------------


def results_of(suite: str) -> dict:
    """The results of a suite of the quickstart, counted again from what was recognised."""
    rows = [
        line.row for file in sorted((STORED / suite).glob("predictions_*.jsonl")) for line in read_predictions(file)
    ]
    tasks = [SuiteTask(name, "m.jsonl", "", "", name, ()) for name in dict.fromkeys(row.task for row in rows)]
    numbers = ("trainable_parameters", "shared_parameters", "parameters_per_task", "backbone_parameters")
    accounting = dict.fromkeys(numbers, 1) | {"backbone_fingerprint": "f"}
    return evaluate_results(rows, Suite(suite, "basic", tuple(tasks)), accounting=accounting, bootstrap=1000)


def test_what_validation_sets_aside_lowers_the_error_rate_of_the_test_set():
    if not STORED.exists():
        pytest.skip(f"no stored predictions in {STORED}: set HRA_STORED_RESULTS to the folder that has hard/")
    validated, tested = results_of("hard_validation"), results_of("hard")
    decisions = {d.task: d for d in gate.decide(validated, tasks=validated["tasks"], tolerance=0.0)}
    assert [name for name, decision in decisions.items() if decision.worse] == ["croak"]
    croak = decisions["croak"]
    assert [f"{100 * rate:.1f}" for rate in (croak.base_rate, croak.rate)] == ["1.2", "3.0"]
    assert croak.verdict == "not decidable"
    before = np.mean([task["wer"] for task in tested["tasks"].values()])
    after = np.mean([t["base_wer"] if decisions[name].worse else t["wer"] for name, t in tested["tasks"].items()])
    print(f"macro WER of the test set: {before:.4f} without the gate, {after:.4f} with it")
    assert after < before
    # The results of 0.1, which has stored no differences, say the same.
    old = json.loads((STORED / "hard_validation" / "results.json").read_text())
    for task in old["tasks"].values():
        task.setdefault("metric", "wer")
    assert [d.task for d in gate.decide(old, tasks=old["tasks"], tolerance=0.0) if d.worse] == ["croak"]
