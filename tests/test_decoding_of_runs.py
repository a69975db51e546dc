"""Runs that decode with a language model of their training texts: tuned, stored, scored, resumed, in processes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from reference import launching
from reference import micro as world
from reference.launching import SETTINGS, TRAIN

from hra_jax.adapters import adapter_folder
from hra_jax.decoding import grid
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate, evaluate_systems
from hra_jax.evaluation.predictions import read_predictions
from hra_jax.run import checkpoint_export, evaluating, own_models, tuning
from hra_jax.run.tuning_stored import tune_stored
from hra_jax.storage import locks
from hra_jax.text import ngram

pytestmark = pytest.mark.optimised  # runs here are compared with commands, which are optimised


def texts(folder: Path, *names: str) -> dict:
    """Of every utterance some of its fields."""
    found = {}
    for file in sorted(folder.glob("predictions_*.jsonl")):
        for line in read_predictions(file):
            found[line.row.task, line.row.key] = tuple(getattr(line.row, name) for name in names)
    assert found
    return found


BOTH = ("pred_text", "greedy_text", "base_pred_text", "base_greedy_text")


def results(workdir: Path, suite: str = "test") -> dict:
    content = json.loads((workdir / "eval" / suite / "results.json").read_text())
    return {name: value for name, value in content.items() if name not in ("speed", "versions")}


def stored(workdir: Path) -> dict:
    """{task: its entry `decode`} of the adapter."""
    entries = json.loads((workdir / "adapter" / "tasks.json").read_text())["tasks"]
    return {entry["name"]: entry.get("decode") for entry in entries}


@pytest.fixture(scope="module")
def config(micro):
    """The run of `trained`, decoded with a narrow beam."""
    plain = micro.validated_config()
    with plain.unlocked():
        plain.decode.lm, plain.decode.beam, plain.decode.phrases = "train", 4, ("dab",)
        plain.decode.phrase_weight = 0.5
    return plain


@pytest.fixture(scope="module")
def decoded(config, tmp_path_factory):
    """That run, finished; to be read only."""
    done = world.train(config, tmp_path_factory.mktemp("decoded") / "W")
    assert done.status == 0
    return done


@pytest.mark.slow(minutes=0.5)
def test_a_run_makes_its_language_model_tunes_it_on_validation_and_scores_the_test_suite_once(decoded, trained, micro):
    W = decoded.workdir
    vocabulary = decoded.run.material.base.vocabulary
    rows = world.read_manifest(micro.data / "train.jsonl")
    model = ngram.read(W / "lm" / "train.lm")
    assert model.digest == ngram.train([vocabulary.encode(row["text"]) for row in rows], vocabulary).digest
    found, entries = results(W), stored(W)
    assert set(entries) == set(world.SPEAKERS) and own_models.read_tuned(W) == entries
    entry = entries["ann"]
    assert entry["lm"] == {"name": "train", "digest": model.digest}
    assert (entry["suite"], entry["beam"], entry["phrase_weight"]) == ("validation", 4, 0.5)
    weights = {name: entry[name] for name in ("lm_weight", "token_bonus", "phrase_weight")}
    assert found["decoding"] == {"method": "beam", "beam": 4, "lm": entry["lm"], "phrases": 1, **weights}
    # The run without a language model is the same but for its texts, which are the greedy ones here.
    plain = results(trained.workdir)
    assert found["greedy_wer"] == plain["wer"] and found["base_greedy_wer"] == plain["base_wer"]
    assert plain["decoding"] == {"method": "greedy"} and "greedy_wer" not in plain
    greedy = texts(W / "eval" / "test", "greedy_text", "base_greedy_text")
    assert greedy == texts(trained.workdir / "eval" / "test", "pred_text", "base_pred_text")
    assert "greedy WER" in decoded.printed and "best for all tasks together: lm_weight" in decoded.printed
    assert "decoded with a beam of 4, the language model" in (W / "eval" / "test" / "report.md").read_text()


@pytest.mark.slow(minutes=0.5)
def test_the_same_command_again_and_evaluate_find_what_the_run_has_found(decoded, config, tmp_path, monkeypatch):
    W = Path(shutil.copytree(decoded.workdir, tmp_path / "W"))
    written = (W / "lm" / "train.lm").stat().st_mtime_ns
    again = world.train(config, W, on_step=lambda step: pytest.fail("a step was done"))
    assert again.status == 0 and (W / "lm" / "train.lm").stat().st_mtime_ns == written
    assert results(W) == results(decoded.workdir) and stored(W) == stored(decoded.workdir)
    world.use_devices(monkeypatch, 1)
    checkpoint_export.export_checkpoint(W, tmp_path / "exported", step="last")
    entries = adapter_folder.read_adapter(tmp_path / "exported").tasks_json
    assert {entry["name"]: entry["decode"] for entry in entries} == stored(W)
    suite = str(Path(config.eval.suite))
    found = evaluate(W, suite)
    assert found["decoding"] == results(decoded.workdir)["decoding"] and found["wer"] == results(decoded.workdir)["wer"]
    assert texts(W / "eval" / "test", *BOTH) == texts(decoded.workdir / "eval" / "test", *BOTH)
    # What the command asks for goes before, and greedy decoding costs nothing of it.
    greedy = evaluate(W, suite, decode={"lm": "", "beam": 0, "phrases": ()})
    assert greedy["decoding"] == {"method": "greedy"} and "greedy_wer" not in greedy
    assert greedy["wer"] == found["greedy_wer"]


@pytest.mark.slow(minutes=0.5)
def test_what_the_adapter_was_tuned_to_that_a_run_started_from_does_not_decode_its_results(decoded, config):
    W, run = decoded.workdir, decoded.run
    model = own_models.models_of(W, list, {"": run.material.base.vocabulary}, task_tag="speaker", normalizer="basic")
    start = adapter_folder.read_adapter(W / "adapter")
    tuned = {task: found | {"lm_weight": 1.3} for task, found in stored(W).items()}
    entries = [entry | {"decode": tuned[entry["name"]]} for entry in start.tasks_json]
    start = dataclasses.replace(start, tasks_json=entries)
    material = dataclasses.replace(run.material, start=start, start_folder=str(W / "adapter"))
    layout = dataclasses.replace(run.layout, select=None)
    for fields, weight in (({"decode": tuned}, 1.3), ({}, 0.8)):
        again = dataclasses.replace(run, material=material, layout=layout, fields=fields)
        facts = tuning.decoder_of(again, config, run.layout.test, model).facts()
        assert facts["lm"] == tuned["ann"]["lm"] and facts["lm_weight"] == weight


@pytest.mark.slow(minutes=0.5)
def test_systems_side_by_side_are_decoded_alike_and_keep_both_texts_when_they_are_stopped(
    decoded, config, micro, tmp_path, monkeypatch
):
    world.use_devices(monkeypatch, 1)
    W, R = decoded.workdir, tmp_path / "R"
    lm = {"lm": str(W / "lm" / "train.lm")}
    settings = {"backbones": [micro.backbone], "data_dir": str(micro.data), "decode": lm}
    systems = [f"own={W / 'adapter'}"]
    monkeypatch.setattr(evaluating, "SAVE_SECONDS", 0.0)
    whole = evaluate_systems([micro.suite("test")], R, adapters=systems, **settings)["test"]
    # The weights are those that are stored with the adapter, as the model is the one that they were tuned for.
    entry = stored(W)["ann"]
    assert {name: whole["own"]["decoding"][name] for name in ("lm_weight", "lm")} == {
        name: entry[name] for name in ("lm_weight", "lm")
    }
    assert whole["own"]["decoding"] == whole["__base__"]["decoding"]
    own = texts(R / "test" / "own", *BOTH)
    base = texts(R / "test" / "__base__", "pred_text", "greedy_text")
    assert {name: found[2:] for name, found in own.items()} == base

    # An evaluation that ends after its first batch leaves both texts of it; the next one goes on from there.
    class Stopped(Exception):
        pass

    add = evaluating.Unfinished.add

    def once(store, fresh):
        add(store, fresh)
        raise Stopped

    other = tmp_path / "other"
    monkeypatch.setattr(evaluating.Unfinished, "add", once)
    with pytest.raises(Stopped):
        evaluate_systems([micro.suite("test")], other, adapters=systems, **settings)
    monkeypatch.setattr(evaluating.Unfinished, "add", add)
    (lines,) = other.rglob("unfinished-*.jsonl")
    assert all("greedy" in json.loads(line) for line in lines.read_text().splitlines())
    again = evaluate_systems([micro.suite("test")], other, adapters=systems, **settings)["test"]
    assert again["own"]["greedy_wer"] == whole["own"]["greedy_wer"] and texts(other / "test" / "own", *BOTH) == own


@pytest.mark.slow(minutes=0.5)
def test_tuning_of_what_is_stored_finds_the_same_weights_and_refuses_suites_that_test(
    decoded, config, micro, tmp_path, monkeypatch
):
    world.use_devices(monkeypatch, 1)
    W = Path(shutil.copytree(decoded.workdir, tmp_path / "W"))
    exported = adapter_folder.read_adapter(W / "adapter")
    found = tune_stored(workdir=str(W), suite=micro.suite("validation"))
    assert found == stored(W) == stored(decoded.workdir)
    # The adapter is still the run's own: the same command exports over it.
    assert world.train(config, W).status == 0 and "changed since" not in (W / "adapter" / "README.md").read_text()
    plain = {"phrases": (), "beam": 0}
    own = tune_stored(workdir=str(W), suite=micro.suite("validation"), per_task=True, decode=plain)
    assert set(own) == set(world.SPEAKERS) and stored(W) == own == own_models.read_tuned(W)
    # Beams that are not given are tuned and stored too, and what is decoded has them and the rates that they gave.
    assert {entry["beam"] for entry in own.values()} <= set(grid.BEAMS)
    again = evaluate(W, micro.suite("validation"), decode=plain)
    beams = again["decoding"]["beam"]
    assert own == {task: own[task] | {"beam": beams[task] if isinstance(beams, dict) else beams} for task in own}
    assert {task: again["tasks"][task]["wer"] for task in own} == {task: own[task]["wer"] for task in own}
    given = {"lm_weight": 1.0, "token_bonus": 0.0}
    found = tune_stored(workdir=str(W), suite=micro.suite("validation"), decode=given | {"beam": 0})
    assert {(entry["lm_weight"], entry["beam"] in grid.BEAMS) for entry in found.values()} == {(1.0, True)}
    alone = Path(shutil.copytree(decoded.workdir / "adapter", tmp_path / "adapter"))
    lm = {"lm": str(W / "lm" / "train.lm"), "beam": 4, "lm_weight": 0.5}
    settings = {"backbone": micro.backbone, "data_dir": str(micro.data)}
    found = tune_stored(adapter=str(alone), suite=micro.suite("validation"), decode=lm, **settings)
    assert {entry["lm_weight"] for entry in found.values()} == {0.5}
    changed = adapter_folder.read_adapter(alone)
    assert {entry["name"]: entry["decode"] for entry in changed.tasks_json} == found
    assert changed.tasks.keys() == exported.tasks.keys()

    # A task that is decoded greedily has nothing of what was found with the model of another, and stays as it was.
    # Whatever others would do to the adapter meanwhile would be lost, so that they are kept from it.
    held, plainly = [], tuning.tuned_entries

    def watched(*given, **named):
        held.append(locks.is_held_beside(alone))
        return plainly(*given, **named)

    monkeypatch.setattr(tuning, "tuned_entries", watched)
    pairs = {"lm": tuple((name, str(W / "lm" / "train.lm") if name == "ann" else "") for name in sorted(found))}
    some = tune_stored(adapter=str(alone), suite=micro.suite("validation"), decode=pairs, **settings)
    entries = {entry["name"]: entry["decode"] for entry in adapter_folder.read_adapter(alone).tasks_json}
    assert list(some) == ["ann"] and entries == found | some and held == [True]
    assert not locks.is_held_beside(alone)
    copy = world.write_suite(tmp_path / "copy.py", (("*", "{dir}/test.jsonl", "speaker=*", "*"),))
    for place, suite, told in (
        ({"workdir": str(W)}, micro.suite("test"), "suite 'test': the run is tested on it"),
        ({"workdir": str(W)}, copy, "suite 'copy': its data are those that the run is tested on"),
        ({"adapter": str(alone), **settings}, micro.suite("test"), "suite 'test': the adapter is tested on it"),
        ({"adapter": str(alone), **settings}, micro.suite("validation"), "decoding is greedy and has no weights"),
        ({}, micro.suite("validation"), "tune needs --adapter DIR, or else --workdir W"),
        ({"workdir": str(W)}, "", "--suite is missing"),
    ):
        with pytest.raises(UserError, match=told) as error:
            tune_stored(suite=suite, **place)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="every weight is given, and a beam"):
        tune_stored(workdir=str(W), suite=micro.suite("validation"), decode=given)


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize("kind", ["characters", "full"])
def test_tasks_with_vocabularies_of_their_own_and_backbones_are_decoded_too(kind, micro, tmp_path, monkeypatch):
    """The base beside other vocabularies is decoded greedily; the weights of a backbone are in W/lm alone."""
    own = kind == "characters"
    method = {"adapter__output": kind} if own else {"method": "full"}
    settings = {
        "eval__suite": micro.suite("test"),
        "eval__select_suite": micro.suite("validation"),
        "eval__calibrate": False,
    }
    run = micro.config(**method, **settings, decode__lm="train", decode__beam=4, decode__token_bonus=1.0)
    done = world.train(run, tmp_path / "W")
    assert done.status == 0, done.printed
    W = tmp_path / "W"
    found = results(W)
    models = {ngram.read(path).digest for path in (W / "lm").glob("*.lm")}
    if own:
        rows = world.read_manifest(micro.data / "train.jsonl")
        vocabulary = done.run.material.own.of("ann")  # all speakers say the same, so that one is like the other
        assert models == {ngram.train([vocabulary.encode(row["text"]) for row in rows], vocabulary).digest}
        assert {entry["lm"]["digest"] for entry in stored(W).values()} == models
        base = texts(W / "eval" / "test", "base_pred_text", "base_greedy_text")
        assert all(text == greedy for text, greedy in base.values())
    else:
        with pytest.raises(UserError, match="--backbone='other' would do nothing"):
            tune_stored(workdir=str(W), suite=micro.suite("validation"), backbone="other")
        (entry,) = own_models.read_tuned(W).values()
        assert {entry["lm"]["digest"]} == models and found["decoding"]["lm_weight"] == entry["lm_weight"]
    world.use_devices(monkeypatch, 1)
    again = evaluate(W, micro.suite("test"))
    assert again["decoding"] == found["decoding"] and again["wer"] == found["wer"]


@pytest.mark.slow(minutes=0.5)
def test_a_model_that_cannot_be_made_costs_neither_export_nor_results(config, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise UserError("no texts")

    monkeypatch.setattr(ngram, "train", fails)
    done = world.train(config, tmp_path / "W")
    assert done.status == 4 and done.run.failures == ["the language model of the training texts failed"]
    assert results(tmp_path / "W")["decoding"] == {"method": "greedy"}
    assert stored(tmp_path / "W") == dict.fromkeys(world.SPEAKERS)


@pytest.mark.slow(minutes=0.5)
def test_wrong_decoding_is_refused_before_the_first_step(config, tmp_path):
    for key, value, told in (
        ("lm", "gone.lm", "gone.lm is not a file; needed is a language model"),
        ("phrases", ("",), "an empty phrase"),
        ("lm", (("ann", "train"),), "no language model for task 'bob'"),
        ("phrases", (("bop", ("dab",)),), "decode.phrases: unknown task 'bop'; did you mean 'bob'"),
        ("lm", "", "decode.lm_weight = 0.5 would do nothing: decode.lm names no language model"),
    ):
        wrong = config.copy_and_resolve_references()
        with wrong.unlocked(), wrong.decode.ignore_type():
            wrong.decode.lm_weight = 0.5
            wrong.decode[key] = value
        with pytest.raises(UserError, match=told):
            world.train(wrong, tmp_path / "W", on_step=lambda step: pytest.fail("a step was done"))


@pytest.mark.slow(minutes=1.0)
def test_two_processes_make_tune_and_decode_as_one_does(config, micro, tmp_path, command_env):
    settings = SETTINGS | {"steps": 4, "batch__multiple": 2, "eval__batch_seconds": 4.0, "batch__seconds": 4.0}
    settings |= {"decode__lm": "train", "decode__beam": 4, "decode__token_bonus": 1.0}
    settings |= {"eval__suite": micro.suite("test"), "eval__select_suite": micro.suite("validation")}
    run = micro.config(**settings)
    assert world.train(run, tmp_path / "one", devices=2).status == 0
    words = [TRAIN, "--config", world.write_config(tmp_path / "c.py", run), "--workdir", tmp_path / "two"]
    launching.run(words, folder=tmp_path / "launched", processes=2, devices=1, env=command_env)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "lm" / "train.lm").read_bytes() == (two / "lm" / "train.lm").read_bytes()
    assert stored(one) == stored(two) and results(one)["decoding"] == results(two)["decoding"]
    assert texts(one / "eval" / "test", *BOTH) == texts(two / "eval" / "test", *BOTH)
