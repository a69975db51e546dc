"""Whole runs on a backbone of random weights: what is trained, what is left alone, what is written."""

import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from reference import micro as world

import hra_jax
from hra_jax import evaluate, train
from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.data.audio import decode
from hra_jax.data.manifest import load_manifest
from hra_jax.errors import UserError
from hra_jax.evaluation import leaks
from hra_jax.evaluation.suites import load_suite
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import SIZES
from hra_jax.run import programs
from hra_jax.training.checkpoints import METRIC, Checkpoints
from hra_jax.training.step import forward
from hra_jax.training.stored_checkpoint import StoredCheckpoint

PER_TASK = ("wer", "cer", "substitutions", "deletions", "insertions", "words", "utterances", "wer_low", "wer_high")
TOTALS = ("wer", "wer_macro", "base_wer_macro", "normalizer", "backbone_fingerprint") + (
    "trainable_parameters",
    "shared_parameters",
    "parameters_per_task",
)


def bytes_of(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def results_of(workdir, suite: str) -> dict:
    return json.loads((workdir / "eval" / suite / "results.json").read_text())


def check_results(results: dict, *, base: bool = True) -> None:
    """The keys that other programs rely on."""
    assert set(TOTALS) <= set(results)
    assert sorted(results["tasks"]) == sorted(world.SPEAKERS)
    for task in results["tasks"].values():
        assert set(PER_TASK) | {"base_wer"} <= set(task)
        assert (task["base_wer"] is not None) == base
        assert task["utterances"] == len(world.TEXTS["test"])
        assert task["words"] == sum(len(text.split()) for text in world.TEXTS["test"])


# --- An adapter -------------------------------------------------------------------------------------------------------


def test_an_adapter_run_ends_with_status_0_and_finite_losses_at_every_step(trained):
    assert trained.status == 0
    losses = world.losses(trained.workdir)
    assert len(losses) == 4 and np.isfinite(losses).all()


def test_the_work_directory_holds_what_the_contract_promises(trained):
    workdir = trained.workdir
    assert json.loads((workdir / "config.json").read_text())["steps"] == 4
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "4", "rows"]
    assert list((workdir / "metrics").glob("events.out.tfevents.*"))
    assert json.loads((workdir / "data_report.json").read_text()) == {"counts": {}, "utterances": {}}
    exported = {path.name for path in (workdir / "adapter").iterdir()}
    own = {"adapter_config.json", "adapter_model.safetensors", "tasks.json", "README.md"}
    assert exported == own | {"task_records.safetensors"}
    assert not any(str(workdir.parent) in path.read_text() for path in (workdir / "adapter").glob("*.*[nd]"))
    check_results(results_of(workdir, "test"))
    assert results_of(workdir, "test")["backbone_fingerprint"] == trained.run.material.base.fingerprint
    written = {path.name for path in (workdir / "eval" / "test").iterdir()}
    assert {"report.md", "report.html", "predictions_ann.jsonl"} <= written and any(n.endswith(".png") for n in written)


def test_the_selection_suite_is_scored_during_training_and_not_reported_as_a_test(trained):
    lines = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/wer_macro" in line] == [2, 4]
    assert all(f"validation/wer/{speaker}" in lines[-1] for speaker in world.SPEAKERS)
    assert not (trained.workdir / "eval" / "validation").exists()


def test_what_is_trained_is_printed_by_name_and_number(trained):
    state = trained.run.state.trainable
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = ".".join(key.key for key in path)
        assert f"trained  {name}  {tuple(leaf.shape)}  {leaf.size:,}\n" in trained.printed
    # Controller R (D + 2), head R D + D.
    shared, row = 6 * 18, 6 * 16 + 16
    total = f"trained {shared + 3 * row:,} parameters (shared {shared} + 3 tasks x {row}), frozen 8,000"
    assert total in trained.printed
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == shared + 3 * row


def test_training_leaves_every_frozen_weight_byte_identical(trained, micro):
    stored = backbone_folder.load(micro.backbone, verify=True).params
    assert bytes_of(trained.frozen) == bytes_of(stored)
    assert bytes_of(trained.run.frozen) == bytes_of(stored)


def test_training_moves_every_trained_leaf_and_every_row(trained):
    start = trained.start
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(trained.run.state.trainable), strict=True):
        assert not np.array_equal(before, after)
    for before, after in zip(
        jax.tree.leaves(start["tasks"]), jax.tree.leaves(trained.run.state.trainable["tasks"]), strict=True
    ):
        moved = np.abs(np.asarray(before) - np.asarray(after)).reshape(len(world.SPEAKERS), -1).max(axis=1)
        assert (moved > 0).all()


def test_the_exported_adapter_gives_the_log_probabilities_of_the_trained_state(trained, micro):
    run, exported = trained.run, read_adapter(trained.workdir / "adapter")
    assert tuple(exported.tasks) == run.layout.tasks == world.SPEAKERS
    waveforms = [world.tones("abc", seed=3), world.tones("fade", seed=4), world.tones("b", seed=5)]
    model = hra_jax.load_adapter(trained.workdir / "adapter", hra_jax.load_backbone(micro.backbone))
    found, frames = model.log_probs(waveforms, sample_rate=world.RATE, tasks=list(world.SPEAKERS))

    batch = np.zeros((3, world.RATE), np.float32)
    for row, waveform in enumerate(waveforms):
        batch[row, : len(waveform)] = waveform
    batch = {"waveform": batch, "num_samples": np.array([len(waveform) for waveform in waveforms], np.int32)}
    state = run.state.trainable
    model = programs.model_on(run.layout.mesh, run.material.base, run.layout.method, settings=run.settings)
    compiled = jax.jit(functools.partial(forward, model))
    expected, lengths = compiled(run.frozen, state["shared"], state["tasks"], np.arange(3), batch)
    assert frames.tolist() == lengths.tolist()
    for row, length in enumerate(frames):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=0, atol=1e-5)


def test_export_from_best_takes_the_checkpoint_of_the_lowest_error_and_keeps_it(micro, tmp_path, monkeypatch):
    scripted, validate = {1: 0.9, 2: 0.4, 3: 0.8, 4: 0.6}, train._validate
    states = {}

    def scored(run, select, step, writer, **keywords):
        states[step] = jax.device_get(run.state.trainable)
        return validate(run, select, step, writer, **keywords) | {METRIC: scripted[step]}

    monkeypatch.setattr(train, "_validate", scored)
    config = micro.config(eval__select_suite=micro.suite("validation"), eval__every_steps=1, export__step="best")
    done = world.train(config, tmp_path / "W")
    assert sorted(path.name for path in (tmp_path / "W" / "checkpoints").iterdir()) == ["2", "3", "4", "rows"]
    exported = read_adapter(tmp_path / "W" / "adapter")
    assert {entry["step"] for entry in exported.tasks_json} == {2}
    assert "exported step 2" in done.printed
    assert bytes_of(exported.shared["all_layers"]) == bytes_of(states[2]["shared"]["all_layers"])


def test_steps_that_are_not_finite_are_skipped_and_several_in_a_row_end_the_run_with_a_whole_checkpoint(
    micro, tmp_path
):
    config = micro.config(
        optimizer__learning_rate=1e30, optimizer__clip=1e30, optimizer__max_skipped_steps=2, checkpoint__keep_latest=9
    )
    with pytest.raises(
        UserError, match=r"^step (\d): the loss or a gradient of the last 2 steps was not finite"
    ) as error:
        world.train(config, tmp_path / "W")
    step = int(str(error.value)[5])
    assert f"checkpoint {step} holds the weights of step {step - 2}; check the data" in str(error.value)
    assert not (tmp_path / "W" / "adapter").exists()
    report = json.loads((tmp_path / "W" / "data_report.json").read_text())
    assert report["counts"]["not_finite"] > 0
    assert f"step {step}" in str(report["utterances"]["not_finite"])
    with Checkpoints(
        tmp_path / "W" / "checkpoints", keep_latest=9, keep_best=0, every_steps=1, read_only=True
    ) as all_of:
        assert all_of.resolve("last") == step
        sums = [StoredCheckpoint(all_of.directory / str(number)).checksums() for number in (step - 2, step)]
        # Weights and moments are those of the last good step.
        assert {name for name in sums[0]["state"] if sums[0]["state"][name] != sums[1]["state"][name]} == {"step"}
    # One more step is not too many in a row, and the number that metrics and the last lines have is that of all.
    with config.unlocked():
        config.steps = step + 1
    done = world.train(config, tmp_path / "W")
    assert done.status == 0
    lines = [json.loads(line) for line in (tmp_path / "W" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/skipped_steps"] for line in lines] == [max(0, line["step"] + 2 - step) for line in lines]
    assert f"3 of {step + 1} steps were skipped, as their loss or a gradient was not finite\n" in done.printed


def test_a_profile_is_written_for_the_steps_asked_for_and_otherwise_none(trained, micro, tmp_path):
    assert not (trained.workdir / "profile").exists()
    seen = {}

    def look(step: int) -> None:
        seen[step] = bool(list((tmp_path / "W").glob("profile/plugins/profile/*/*.xplane.pb")))

    config = micro.config(profile__start_step=2, profile__steps=2, profile__peak_tflops=1e-3)
    assert world.train(config, tmp_path / "W", on_step=look).status == 0
    assert seen == {1: False, 2: False, 3: False, 4: True}
    lines = [json.loads(line) for line in (tmp_path / "W" / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["step"] in (2, 4)):
        shares = [line[f"train/{name}_share"] for name in ("input_wait", "checkpoint", "compute")]
        assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0.0 and line["train/step_seconds"] > 0
        assert line["train/mfu"] == pytest.approx(line["train/tflops_per_device"] / 1e-3) and line["train/mfu"] > 0


# --- The whole backbone -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(micro, tmp_path_factory):
    """A finished run that fine-tuned the whole backbone."""
    config = micro.config(method="full", eval__suite=micro.suite("test"), optimizer__learning_rate=1e-3)
    return world.train(config, tmp_path_factory.mktemp("tuned") / "W")


def test_full_fine_tuning_exports_another_backbone_that_loads(tuned, micro):
    exported = backbone_folder.load(str(tuned.workdir / "backbone"), verify=True)
    assert exported.fingerprint != micro.fingerprint
    assert bytes_of(exported.params) == bytes_of(tuned.run.state.trainable["backbone"])
    original = backbone_folder.load(micro.backbone)
    assert exported.vocabulary == original.vocabulary and exported.encoder == original.encoder
    rows = load_manifest(str(micro.data / "train.jsonl"), report=tuned.run.report)
    assert task_records.all_hashes(exported.records).tolist() == sorted(leaks.hashes_of(rows).tolist())
    pairs = zip(bytes_of(original.params), bytes_of(exported.params), strict=True)
    assert all(before != after for before, after in pairs)
    assert not (tuned.workdir / "adapter").exists()


def test_full_fine_tuning_prints_that_nothing_is_frozen(tuned):
    assert "trained 8,000 parameters (shared 8,000 + 0 tasks x 0), frozen 0" in tuned.printed


def test_beside_full_fine_tuning_stands_the_error_of_the_original_backbone(tuned, micro):
    results = results_of(tuned.workdir, "test")
    check_results(results)
    rows = [
        json.loads(line)
        for speaker in world.SPEAKERS
        for line in (tuned.workdir / "eval" / "test" / f"predictions_{speaker}.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 6
    suite = load_suite(micro.suite("test"), data_dir=str(micro.data), report=tuned.run.report)
    audio = {utterance.key: utterance for utterance in suite.utterances}
    waveforms = [decode(audio[row["key"]], world.RATE) for row in rows]
    original = hra_jax.load_backbone(micro.backbone).transcribe(waveforms, sample_rate=world.RATE)
    adapted = hra_jax.load_backbone(str(tuned.workdir / "backbone")).transcribe(waveforms, sample_rate=world.RATE)
    assert [row["base_pred_text"] for row in rows] == original
    assert [row["pred_text"] for row in rows] == adapted
    assert original != adapted


def test_a_fine_tuned_run_evaluated_again_gives_its_report(tuned, micro, tmp_path, monkeypatch):
    world.use_devices(monkeypatch, 1)
    workdir = shutil.copytree(tuned.workdir, tmp_path / "W")
    assert evaluate.evaluate(workdir, micro.suite("test")) == results_of(tuned.workdir, "test")


# --- From random weights ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_exports_a_backbone_that_an_adapter_run_accepts(micro, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "micro", (world.FEATURES, world.GEOMETRY))
    config = micro.config(
        method="pretrain", pretrain__size="micro", backbone="builtin:none", eval__suite=micro.suite("test")
    )
    made = world.train(config, tmp_path / "made")
    check_results(results_of(made.workdir, "test"), base=False)
    folder = str(made.workdir / "backbone")
    stored = backbone_folder.load(folder, verify=True)
    assert stored.vocabulary["characters"] == sorted(" abcdef")
    assert stored.info["source"]["step"] == 4 and stored.info["wer"] == {
        "test": results_of(made.workdir, "test")["wer"]
    }
    world.use_devices(monkeypatch, 1)
    assert evaluate.evaluate(made.workdir, micro.suite("test")) == results_of(made.workdir, "test")
    adapted = world.train(micro.config(backbone=folder), tmp_path / "adapted")
    assert adapted.status == 0
    assert read_adapter(tmp_path / "adapted" / "adapter").config["backbone"]["fingerprint"] == stored.fingerprint


# --- On a mesh --------------------------------------------------------------------------------------------------------


EIGHT_ROWS = {"batch__multiple": 8, "batch__seconds": 8.0, "steps": 6}


@pytest.fixture(scope="module")
def one_device(micro, tmp_path_factory):
    """The losses of 6 steps on one device."""
    workdir = tmp_path_factory.mktemp("one") / "W"
    assert world.train(micro.config(mesh__data=1, **EIGHT_ROWS), workdir).run.layout.mesh.devices.size == 1
    return world.losses(workdir)


def check_losses(found: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(found) == 6


def test_data_parallel_training_on_8_devices_has_the_losses_of_one_device(micro, tmp_path, one_device):
    done = world.train(micro.config(mesh__data=8, **EIGHT_ROWS), tmp_path / "W", devices=8)
    assert done.run.layout.mesh.devices.size == 8
    check_losses(world.losses(tmp_path / "W"), one_device)


@pytest.mark.slow
def test_weights_split_over_devices_have_the_losses_of_one_device(micro, tmp_path, one_device):
    meshes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    done = world.train(micro.config(**meshes, **EIGHT_ROWS), tmp_path / "W", devices=8)
    kernel = done.run.frozen["encoder"]["layers"]["ff1"]["up"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    check_losses(world.losses(tmp_path / "W"), one_device)


@pytest.mark.slow
def test_full_fine_tuning_on_a_mesh_has_the_losses_of_one_device(micro, tmp_path):
    settings = EIGHT_ROWS | {"method": "full", "optimizer__learning_rate": 1e-3}
    world.train(micro.config(mesh__data=1, **settings), tmp_path / "one")
    meshes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    world.train(micro.config(**meshes, **settings), tmp_path / "many", devices=8)
    check_losses(world.losses(tmp_path / "many"), world.losses(tmp_path / "one"))


@pytest.mark.slow
def test_a_run_may_be_continued_on_another_mesh(micro, tmp_path, one_device):
    def stop(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    world.train(micro.config(mesh__data=8, **EIGHT_ROWS), tmp_path / "W", devices=8, on_step=stop)
    meshes = {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2}
    assert world.train(micro.config(**meshes, **EIGHT_ROWS), tmp_path / "W", devices=4).status == 0
    check_losses(world.losses(tmp_path / "W"), one_device)


@pytest.mark.parametrize(
    ("changes", "devices", "told"),
    [
        ({"mesh__data": 8, "batch__multiple": 4}, 8, "batch.multiple = 4: must be a multiple of 8 (mesh.data = 8)"),
        ({"mesh__data": 3}, 8, "mesh.data = 3, mesh.fsdp = 1, mesh.tensor = 1: they multiply to 3, but there are 8"),
        ({"accumulate": 3}, 1, "accumulate = 3: must divide the 4 rows of the 1 s bucket"),
        ({"batch__seconds": 0.5}, 1, "0.5 s of audio per batch hold 0 rows of the 1 s bucket"),
    ],
)
def test_rows_that_cannot_be_split_are_one_line_before_anything_is_compiled(micro, tmp_path, changes, devices, told):
    with pytest.raises(UserError) as caught:
        world.train(micro.config(**changes), tmp_path / "W", devices=devices)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_evaluation_rows_that_do_not_fit_are_told_before_training(micro, tmp_path):
    config = micro.config(eval__suite=micro.suite("test"), eval__batch_seconds=0.5)
    with pytest.raises(UserError, match="0.5 s of audio per batch hold 0 rows of the 1 s bucket"):
        world.train(config, tmp_path / "W")
    assert not (tmp_path / "W" / "checkpoints").exists()


@pytest.mark.slow
def test_micro_batches_give_the_update_of_the_whole_batch(micro, tmp_path):
    settings = {"augment__time_masks": 0, "augment__freq_masks": 0, "steps": 2}
    whole = world.train(micro.config(**settings), tmp_path / "whole")
    parts = world.train(micro.config(**settings, accumulate=2), tmp_path / "parts")
    np.testing.assert_allclose(world.losses(parts.workdir), world.losses(whole.workdir), rtol=1e-5)
