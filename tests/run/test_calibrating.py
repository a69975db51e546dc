"""The calibration at the end of a run: in the adapter that it exports, beside what the run says of its tasks anyway."""

import dataclasses

import pytest
from reference import micro as world

import hra_jax
from hra_jax.adapters import adapter_folder
from hra_jax.data.report import DataReport
from hra_jax.decoding import calibration
from hra_jax.evaluation.suites import load_suite

pytestmark = pytest.mark.slow(minutes=1)


def test_a_run_with_a_selection_suite_exports_what_the_command_would_measure(micro, tmp_path):
    config = micro.config(
        steps=30, eval__suite=micro.suite("test"), eval__select_suite=micro.suite("validation"), eval__calibrate=True
    )
    run = world.train(config, tmp_path / "W")
    assert run.status == 0
    assert "calibrated on 'validation': " in run.printed
    assert " joints of utterances tell" in run.printed
    entries = adapter_folder.read_tasks(tmp_path / "W" / "adapter")
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", hra_jax.load_backbone(micro.backbone))
    suite = load_suite(micro.suite("validation"), data_dir=str(micro.data), report=DataReport(strict=False))
    expected = calibration.measure(dataclasses.replace(model, entries={}), suite)
    for entry in entries:
        assert entry["suite"] == "test"  # the scores came after it
        assert entry["calibration"] == pytest.approx(expected[entry["name"]], abs=2e-3)


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
