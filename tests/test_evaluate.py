"""Scoring checkpoints of a finished run on suites."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import micro as world

from hra_jax import evaluate
from hra_jax.errors import UserError
from hra_jax.run import evaluating
from hra_jax.storage.checksums import of_json
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.verify import verify

pytestmark = pytest.mark.optimised  # adapters that act are told from those that do not by the last bit


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch) -> Path:
    """A copy of a finished run, evaluated on one device."""
    world.use_devices(monkeypatch, 1)
    return Path(shutil.copytree(trained.workdir, tmp_path / "W"))


@pytest.fixture
def scored(monkeypatch) -> dict:
    """What is scored, by step; nothing is run."""
    found = {}

    def recognise(system, runner, weights, frozen, setup, **options):
        found[system.facts["step"]] = jax.device_get(weights)
        return [], {}

    monkeypatch.setattr(evaluating, "recognise", recognise)
    monkeypatch.setattr(evaluate, "write_scores", lambda *args, **settings: {"tasks": {}})
    return found


def refused(*args, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        evaluate.evaluate(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_checkpoint_scores_what_the_training_run_reported(workdir, micro):
    reported = json.loads((workdir / "eval" / "test" / "results.json").read_text())
    shutil.rmtree(workdir / "eval")
    assert evaluate.evaluate(workdir, micro.suite("test")) == reported
    assert json.loads((workdir / "eval" / "test" / "results.json").read_text()) == reported


@pytest.mark.parametrize("there", [False, True], ids=["absent", "somebody's"])
def test_nothing_is_rendered_where_a_work_directory_says(workdir, micro, tmp_path, scored, there, capsys):
    place = tmp_path / "place"
    if there:
        place.mkdir()
        (place / "train.jsonl").write_text("mine")
    stored = json.loads((workdir / "config.json").read_text())
    stored["data"] |= {"dir": str(place), "synthetic": "tiny-test"}
    (workdir / "config.json").write_text(json.dumps(stored))
    evaluate.evaluate(workdir, micro.suite("test"), data_dir=str(micro.data))
    assert list(scored) == [4]
    told = "not compared with the training data, as the manifests are not here"
    assert (f"{told}: '{place}/train.jsonl'" in capsys.readouterr().out) == (not there)
    found = {path.name: path.read_text() for path in place.iterdir()} if place.exists() else None
    assert found == ({"train.jsonl": "mine"} if there else None)


def test_what_a_work_directory_names_is_printed_before_it_is_read_and_acts_on_no_terminal(workdir, micro, capsys):
    stored = json.loads((workdir / "config.json").read_text())
    stored["data"]["dir"] = "/nowhere/\x1b[2J\nelse"
    stored["data"]["sources"] = [["train", "{dir}/train.jsonl", 1.0]]
    (workdir / "config.json").write_text(json.dumps(stored))
    line = refused(workdir, micro.suite("test"))
    out = capsys.readouterr().out
    assert f"backbone {stored['backbone']!r}" in out and "manifests '{dir}/train.jsonl'" in out
    assert r"data.dir '/nowhere/\x1b[2J\nelse'" in out and "\x1b" not in out + line


def test_the_selection_suite_can_be_scored_like_any_other(workdir, micro):
    results = evaluate.evaluate(workdir, micro.suite("validation"))
    assert results["suite"] == "validation" and (workdir / "eval" / "validation" / "results.json").exists()
    assert results["utterances"] == len(world.SPEAKERS) * len(world.TEXTS["validation"])


def test_last_best_and_a_number_name_the_checkpoint_that_is_scored(workdir, micro, scored, trained):
    stored = workdir / "checkpoints" / "2" / "checksums" / "metadata"
    found = json.loads(stored.read_text()) | {"metrics": {"wer_macro": 0.25}}
    found["self"] = of_json({name: value for name, value in found.items() if name != "self"})
    stored.write_text(json.dumps(found))
    for step in ("last", "best", "1", 2):
        evaluate.evaluate(workdir, micro.suite("test"), step=step)
    assert verify(workdir)[0].faults == []  # the checksums of a run follow what is scored again
    assert list(scored) == [4, 2, 1]
    last, best, first = (np.asarray(tree["shared"]["all_layers"]["controller"]["kernel"]) for tree in scored.values())
    expected = trained.run.state.trainable["shared"]["all_layers"]["controller"]["kernel"]
    assert np.array_equal(last, expected) and not np.array_equal(best, last) and not np.array_equal(first, best)


def test_an_unknown_step_suite_or_run_is_one_line_that_names_it(workdir, micro, tmp_path):
    line = refused(workdir, micro.suite("test"), step="3")
    assert "there is no checkpoint 3; allowed are last, best, 1, 2, 4" in line
    assert "there is no checkpoint 'first'" in refused(workdir, micro.suite("test"), step="first")
    assert "'hrad'" in refused(workdir, "hrad") and "did you mean 'hard'" in refused(workdir, "hrad")
    assert "holds no config.json" in refused(tmp_path / "nothing", micro.suite("test"))


def test_an_adapter_that_does_nothing_fails_loudly_after_the_report_is_written(workdir, micro, monkeypatch):
    read = Checkpoints.rows

    def silenced(self, step, log, **settings):
        if log != "bank":
            yield from read(self, step, log, **settings)
            return
        for ids, rows in read(self, step, log, **settings):
            heads = jax.tree.map(np.array, rows["tasks"])
            for leaf in jax.tree.leaves(heads):
                leaf[ids == 1] = 0.0
            yield ids, rows | {"tasks": heads}

    monkeypatch.setattr(Checkpoints, "rows", silenced)
    shutil.rmtree(workdir / "eval")
    line = refused(workdir, micro.suite("test"))
    assert "task 'bob'" in line and "the adapter does nothing" in line
    results = json.loads((workdir / "eval" / "test" / "results.json").read_text())
    assert results["tasks"]["bob"]["wer"] == results["tasks"]["bob"]["base_wer"]


def test_a_suite_that_shares_utterances_with_the_training_data_is_refused(workdir, micro, tmp_path):
    suite = world.write_suite(tmp_path / "leak.py", (("*", "{dir}/train.jsonl", "speaker=*", "*"),))
    assert "suite 'leak' shares 12 utterances with training data, such as 'audio/train-0.flac'" in refused(
        workdir, suite
    )
    # The same recordings from a manifest elsewhere are the same recordings.
    rows = world.read_manifest(micro.data / "train.jsonl")[:1]
    rows[0]["audio_filepath"] = str(micro.data / rows[0]["audio_filepath"])
    world.write_manifest(tmp_path / "again.jsonl", rows)
    suite = world.write_suite(tmp_path / "other.py", (("ann", str(tmp_path / "again.jsonl"), "", "ann"),))
    assert "suite 'other' shares 1 utterances with training data" in refused(workdir, suite)


def test_training_refuses_a_test_suite_that_shares_utterances_with_the_selection_suite(micro, tmp_path):
    suite = world.write_suite(tmp_path / "leak.py", (("ann", "{dir}/validation.jsonl", "speaker=ann", "ann"),))
    config = micro.config(eval__suite=suite, eval__select_suite=micro.suite("validation"))
    with pytest.raises(UserError, match="suite 'leak' shares 2 utterances with validation data"):
        world.train(config, tmp_path / "W")


def test_an_adapter_task_that_does_not_exist_is_named_with_near_matches(workdir, tmp_path):
    suite = world.write_suite(tmp_path / "typo.py", (("ann", "{dir}/test.jsonl", "speaker=ann", "anne"),))
    line = refused(workdir, suite)
    assert "task 'ann' needs the adapter 'anne'" in line and "did you mean 'ann'" in line


def test_the_mean_head_and_the_base_can_stand_in_for_a_task(workdir, micro):
    results = evaluate.evaluate(workdir, micro.suite("mixed"))
    folder = workdir / "eval" / "mixed"
    rows = {
        name: [json.loads(line) for line in (folder / file).read_text().splitlines()]
        for name, file in (
            ("base", "predictions_ann%20base.jsonl"),
            ("mean", "predictions_ann%20mean.jsonl"),
            ("ann", "predictions_ann.jsonl"),
        )
    }
    hypotheses = {name: [row["pred_text"] for row in lines] for name, lines in rows.items()}
    bases = [[row["base_pred_text"] for row in lines] for lines in rows.values()]
    assert bases[0] == bases[1] == bases[2] == hypotheses["base"]
    assert hypotheses["mean"] != hypotheses["base"] and hypotheses["mean"] != hypotheses["ann"]
    assert [results["tasks"][name]["parameters"] for name in ("ann base", "ann mean", "ann")] == [0, 0, 112]


def test_a_backbone_that_was_replaced_is_refused(micro, tmp_path, monkeypatch):
    world.use_devices(monkeypatch, 1)
    shutil.copytree(micro.backbone, tmp_path / "backbone")
    world.train(micro.config(backbone=str(tmp_path / "backbone"), steps=2), tmp_path / "W")
    other = world.make_backbone(tmp_path / "backbone", seed=1)
    line = refused(tmp_path / "W", micro.suite("test"))
    assert micro.fingerprint[:12] in line and other[:12] in line


def test_a_backbone_that_lies_elsewhere_now_may_be_named(workdir, micro, scored):
    stored = json.loads((workdir / "config.json").read_text()) | {"backbone": "/nowhere/backbone"}
    (workdir / "config.json").write_text(json.dumps(stored))
    assert "/nowhere/backbone" in refused(workdir, micro.suite("test"))
    evaluate.evaluate(workdir, micro.suite("test"), backbone=micro.backbone)
    assert list(scored) == [4]


def test_data_dir_moves_the_suite_and_not_the_training_data(workdir, micro, tmp_path, scored):
    shutil.copytree(micro.data, tmp_path / "moved")
    evaluate.evaluate(workdir, micro.suite("test"), data_dir=str(tmp_path / "moved"))
    assert list(scored) == [4]
    line = refused(workdir, micro.suite("test"), data_dir=str(tmp_path / "nowhere"))
    assert f"no manifest at {tmp_path / 'nowhere'}/test.jsonl" in line


@pytest.mark.slow
def test_the_command_prints_the_table_and_an_error_is_one_line_with_status_2(workdir, micro, command_env):
    def call(*arguments: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "hra_jax.evaluate", "--workdir", str(workdir), *arguments]
        return subprocess.run(line, env=command_env, capture_output=True, text=True, check=False)

    done = call("--suite", micro.suite("validation"), "--step", "1")
    assert done.returncode == 0, done.stderr
    assert "mean of the tasks" in done.stdout and (workdir / "eval" / "validation" / "results.json").exists()
    wrong = call("--suite", "hrad")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ") and len(wrong.stderr.splitlines()) == 1
