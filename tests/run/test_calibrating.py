"""The calibration at the end of a run: in the adapter that it exports, beside what the run says of its tasks anyway."""

import dataclasses
import json

import numpy as np
import pytest
from reference import micro as world

import hra_jax
from hra_jax.adapters import adapter_folder, task_records
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.data.report import DataReport
from hra_jax.decoding import calibration
from hra_jax.evaluation.suites import load_suite
from hra_jax.run import own_models
from hra_jax.tasks import library
from hra_jax.text import ngram

pytestmark = pytest.mark.slow(minutes=1)


def test_a_run_with_a_selection_suite_exports_what_the_command_would_measure(micro, tmp_path):
    suites = {"eval__suite": micro.suite("test"), "eval__select_suite": micro.suite("validation")}
    config = micro.config(
        **suites, eval__calibrate=True, decode__lm="train", decode__lm_weight=0.5, decode__token_bonus=0
    )
    run = world.train(config, tmp_path / "W")
    assert run.status == 0
    assert "calibrated on 'validation': " in run.printed
    assert " joints of utterances are too few to tell" in run.printed
    entries = adapter_folder.read_tasks(tmp_path / "W" / "adapter")
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", hra_jax.load_backbone(micro.backbone))
    suite = load_suite(micro.suite("validation"), data_dir=str(micro.data), report=DataReport(strict=False))
    (lm,) = (tmp_path / "W" / "lm").glob("*.lm")
    decoder = model.decoder({"lm": str(lm), "lm_weight": 0.5, "token_bonus": 0}, model.tasks)
    expected = calibration.measure(model, suite, decoder=decoder)
    assert "search_temperature" in expected["ann"]
    assert {entry["suite"] for entry in entries} == {"test"}  # the scores came after it
    found = {entry["name"]: entry["calibration"] for entry in entries if "calibration" in entry}
    assert found.keys() == expected.keys() != set()
    for name, facts in found.items():
        assert {k: v for k, v in facts.items() if k != "suite"} == pytest.approx(
            {k: v for k, v in expected[name].items() if k != "suite"}, abs=2e-3
        )


def test_words_that_are_searched_for_have_a_temperature_of_their_own(micro, tmp_path):
    folder = world.write_adapter(tmp_path / "adapter", HierarchicalRecurrentAdapter(width=5), micro)
    model = hra_jax.load_adapter(folder, hra_jax.load_backbone(micro.backbone))
    vocabulary = model.vocabulary("ann")
    lm = ngram.train([vocabulary.encode(text) for text in ("ba", "fa ce")], vocabulary, order=2, name="small")
    suite = load_suite(micro.suite("validation"), data_dir=str(micro.data), report=DataReport(strict=False))
    held = {task_records.LM: {"bob": np.frombuffer(ngram.to_bytes(lm), np.uint8)}}
    found = calibration.measure(dataclasses.replace(model, records=held), suite)
    assert "search_temperature" in found["bob"] and "search_temperature" not in found["ann"]
    decoder = model.decoder({"lm": {"bob": lm, "ann": "", "cy": ""}}, model.tasks)
    again = calibration.measure(model, suite, decoder=decoder)
    assert again == found
    entries = {"bob": {"name": "bob", "calibration": found["bob"]}}
    calibrated, sounds = dataclasses.replace(model, entries=entries), [world.tones("fade"), world.tones("cab")]
    for tasks, decode, known in (
        (["bob"] * 2, decoder, True),
        (["bob"] * 2, None, True),
        (["ann"] * 2, decoder, False),
        (["bob"] * 2, model.decoder({"lm": {"bob": lm}, "beam": 4, "phrases": ["bad"]}, ["bob"]), True),
        (["bob"] * 2, model.decoder({"lm": {"bob": lm}, "lm_weight": 0.7}, ["bob"]), False),
        (["bob"] * 2, model.decoder({"beam": 4}, ["bob"]), False),
    ):
        pair = calibrated.recognise(sounds, sample_rate=world.RATE, tasks=tasks, decode=decode, words=True)
        assert {one.calibrated for one in pair} == {known}


def test_a_run_that_says_nothing_is_exported_without_a_calibration(micro, tmp_path):
    config = micro.config(
        steps=2,
        eval__select_suite=world.write_suite(
            tmp_path / "none.py", (("x", "{dir}/validation.jsonl", "speaker=ann", "__base__"),)
        ),
        eval__calibrate=True,
    )
    run = world.train(config, tmp_path / "W")
    assert run.status == 0
    assert "words are not calibrated: suite 'none': no word is recognised" in run.printed
    assert not any("calibration" in entry for entry in adapter_folder.read_tasks(tmp_path / "W" / "adapter"))


@pytest.mark.parametrize("train", ["all", "tasks"])
def test_what_was_measured_of_a_task_does_not_outlive_the_controller_and_decodes_results_as_it_is_exported(
    train, micro, tmp_path
):
    start = world.train(micro.config(steps=1), tmp_path / "start").workdir / "adapter"
    exported = adapter_folder.read_adapter(start)
    facts = {"temperature": 2.0, "lag_seconds": 0.1}
    decode = {name: {"beam": 8, "token_bonus": bonus} for name, bonus in (("ann", 0.7), ("bob", 0.6), ("cy", 0.5))}
    entries = [{**entry, "calibration": facts, "decode": decode[entry["name"]]} for entry in exported.tasks_json]
    library.write(start, dataclasses.replace(exported, tasks_json=entries))
    asked = {"adapter__start": str(start), "adapter__train": train, "data__tasks": ("bob",), "steps": 1}
    asked |= {"eval__suite": micro.suite("test"), "decode__beam": 3}
    done = world.train(micro.config(**asked), tmp_path / "W")
    assert done.status == 0 and ("those that came along" in done.printed) == (train == "tasks")
    tasks = adapter_folder.read_tasks(tmp_path / "W" / "adapter")
    kept = [entry["name"] for entry in tasks if entry.get("calibration") == facts]
    assert kept == ([] if train == "all" else ["ann", "cy"])
    assert {entry["name"]: entry["decode"] for entry in tasks if "decode" in entry} == {
        name: decode[name] for name in kept
    }
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", hra_jax.load_backbone(micro.backbone))
    expected = model.decoder({"beam": 3}, [*model.tasks, "__base__"]).facts()
    found = json.loads((tmp_path / "W" / "eval" / "test" / "results.json").read_text())["decoding"]
    assert found["beam"] == expected["beam"] == 3 and found["token_bonus"] == (
        0.0 if train == "all" else {"ann": 0.7, "bob": 0.0, "cy": 0.5}
    )
    assert own_models.read_tuned(tmp_path / "W") == {name: decode[name] for name in kept}
