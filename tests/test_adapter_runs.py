"""Runs of every adaptation method from training to recognition; new tasks beside old ones; banks in host memory."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import micro as world

import hra_jax
from hra_jax import train
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.methods import METHODS
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.run.stages import prepare
from hra_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.optimised  # much here is about the bits that users get
STEPS, STOP = 4, 2
SETTINGS = {
    "hra": {"hra__recurrence": "gru", "hra__head": "lowrank", "hra__head_width": 3, "hra__head_per_layer": True},
    "residual": {"residual__width": 3},
    "lora": {"lora__projections": ("attention.value", "ff1.up"), "adapter__dropout": 0.2},
    "bitfit": {"adapter__output": "task"},
    "output": {},
}
# These two have between them what the others have: shared weights, rows of tasks, dropout.
METHODS_RUN = [pytest.param(name, marks=[] if name == "hra" else pytest.mark.slow) for name in SETTINGS]
WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b"))]


def config_of(micro, method: str, **changes):
    settings = {"adapter__name": method, "steps": STEPS, "checkpoint__every_steps": 1, **SETTINGS[method]}
    return micro.config(**settings | changes)


def terminate_at(step: int):
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@functools.lru_cache(maxsize=1)
def backbone(location: str):
    return hra_jax.load_backbone(location)


def log_probs(adapter: Path, micro, tasks, **settings):
    model = hra_jax.load_adapter(adapter, backbone(micro.backbone), **settings)
    return model.log_probs(WAVEFORMS[: len(tasks)], sample_rate=world.RATE, tasks=list(tasks))[0]


def test_the_settings_cover_every_method():
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS_RUN)
def test_every_method_trains_resumes_exports_and_recognises(micro, tmp_path, method):
    config = config_of(micro, method, eval__suite=micro.suite("test"))
    whole = world.train(config, tmp_path / "whole")
    assert whole.status == 0
    stored = jax.tree.leaves(backbone_folder.load(micro.backbone, verify=True).params)
    for held in (whole.frozen, whole.run.frozen):
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(held), stored, strict=True))
    counted = json.loads((tmp_path / "whole" / "eval" / "test" / "results.json").read_text())
    name, own = whole.run.layout.method.name, counted["parameters_per_task"]
    assert name == method and counted["trainable_parameters"] == counted["shared_parameters"] + 3 * own
    # Stopped and continued: the same bytes.
    world.train(config, tmp_path / "W", on_step=terminate_at(STOP))
    assert not (tmp_path / "W" / "adapter").exists()
    world.train(config, tmp_path / "W")
    assert files_of(tmp_path / "W" / "adapter") == files_of(tmp_path / "whole" / "adapter")
    # What was exported recognises as what was trained, each utterance with its own task.
    mixed = log_probs(tmp_path / "W" / "adapter", micro, ("ann", "cy", "__base__"))
    for row, task in enumerate(("ann", "cy", "__base__")):
        alone = log_probs(tmp_path / "W" / "adapter", micro, [task] * 3)
        np.testing.assert_array_equal(mixed[row], alone[row])
    assert np.abs(mixed[0] - log_probs(tmp_path / "W" / "adapter", micro, ["__base__"] * 3)[0]).max() > 1e-4


# --- A task more ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(micro, tmp_path_factory):
    """A finished run with two of the three tasks."""
    config = micro.config(data__tasks=("ann", "cy"), adapter__slots=4)
    return world.train(config, tmp_path_factory.mktemp("two") / "W")


def third(micro, two, **changes):
    settings = {"adapter__start": str(two.workdir / "adapter"), "adapter__train": "tasks", "data__tasks": ("bob",)}
    return micro.config(**settings | {"adapter__slots": 4} | changes)


def test_a_task_that_is_added_leaves_every_other_tasks_output_bit_identical(micro, two, tmp_path):
    added = world.train(third(micro, two), tmp_path / "W")
    assert added.status == 0 and added.run.layout.tasks == ("ann", "cy", "bob")
    before, after = (read_adapter(folder / "adapter") for folder in (two.workdir, tmp_path / "W"))
    jax.tree.map(np.testing.assert_array_equal, before.shared, after.shared)
    for name in before.tasks:
        jax.tree.map(np.testing.assert_array_equal, before.tasks[name], after.tasks[name])
    tasks = ("ann", "cy", "__base__")
    for slots in (0, 8):
        old, new = (
            log_probs(folder / "adapter", micro, tasks, slots=slots) for folder in (two.workdir, tmp_path / "W")
        )
        np.testing.assert_array_equal(old, new)
    # The new head has learnt: it differs from the new row that it was, which has no effect.
    bob, base = (log_probs(tmp_path / "W" / "adapter", micro, [name] * 3) for name in ("bob", "__base__"))
    assert np.abs(bob - base).max() > 1e-4
    assert "shared 108 kept as they are + 3 tasks x 112" in added.printed and "trained  shared" not in added.printed
    assert "only 1 of the 3 tasks have data and train: bob" in added.printed
    assert [entry["step"] for entry in after.tasks_json] == [STEPS, STEPS, STEPS]


def test_a_reserved_slot_means_that_nothing_is_recompiled(micro, two, tmp_path):
    lowered = []
    for config in (
        micro.config(data__tasks=("ann", "cy"), adapter__slots=4, adapter__train="tasks"),
        third(micro, two),
    ):
        with world.watched(world.Trained(tmp_path / "W"), lambda step: None, 1):
            run = prepare(config, tmp_path / "W", DataReport())
        samples = {"waveform": (4, world.RATE), "labels": (4, 8)}
        batch = {
            name: np.zeros(shape, np.float32 if name == "waveform" else np.int32) for name, shape in samples.items()
        }
        batch |= {name: np.zeros(4, np.int32) for name in ("num_samples", "label_lengths", "task", "utterance")}
        batch["weight"] = np.ones(4, np.float32)
        lowered.append(run.bank._step.lower(run.state, run.frozen, batch, run.bank.hyper).as_text())
    assert lowered[0] == lowered[1]


@pytest.mark.parametrize("new_task, source", [("mean", ("ann", "cy")), ("cy", ("cy",))])
def test_a_new_task_may_start_from_the_mean_or_from_another(micro, two, tmp_path, new_task, source):
    start = read_adapter(two.workdir / "adapter")
    done = world.train(third(micro, two, adapter__new_task=new_task), tmp_path / "W", on_step=terminate_at(1))
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(start.tasks[name] for name in source))
    found = jax.tree.map(lambda leaf: leaf[2], {"all_layers": done.start["tasks"]["all_layers"]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"adapter__new_task": "bobby"}, "adapter.new_task = 'bobby': neither zero, mean nor a task of adapter.start"),
        ({"adapter__slots": 2}, "adapter.slots = 2: there are 3 tasks"),
        ({"hra__width": 5}, "width is 6 there, but 5 in this run"),
        ({"adapter__name": "lora"}, "there, but"),
        ({"adapter__start": "", "adapter__new_task": "mean"}, "adapter.new_task = 'mean': needs adapter.start"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(micro, two, tmp_path, changes, told):
    with pytest.raises(UserError) as caught:
        world.train(third(micro, two, **changes), tmp_path / "W")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_start_that_changed_since_is_refused_at_resume(micro, two, tmp_path):
    start = Path(shutil.copytree(two.workdir / "adapter", tmp_path / "start"))
    config = third(micro, two, adapter__start=str(start))
    world.train(config, tmp_path / "W", on_step=terminate_at(1))
    other = world.train(micro.config(data__tasks=("ann", "cy"), seed=3, steps=1), tmp_path / "other")
    shutil.copytree(other.workdir / "adapter", start, dirs_exist_ok=True)
    with pytest.raises(UserError, match="start is .* in checkpoint 1, but .* in this run"):
        world.train(config, tmp_path / "W")


# --- Each task's own best step ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_task_is_exported_as_it_was_at_its_own_best_step(micro, tmp_path, monkeypatch):
    rates = {1: (0.9, 0.5, 0.5), 2: (0.2, 0.6, 0.5), 3: (0.3, 0.4, 0.7), 4: (0.8, 0.8, 0.8)}
    evaluate, rows = train.evaluate_results, {}

    def scripted(found, suite, **settings):
        results = evaluate(found, suite, **settings)
        if suite.name == "validation":
            step = max(rows, default=0)
            for task, wer in zip(results["tasks"].values(), rates[step], strict=True):
                task["wer"] = wer
        return results

    def remember(step):
        rows[step] = jax.device_get(done.run.state.trainable["tasks"])

    monkeypatch.setattr(train, "evaluate_results", scripted)
    changes = {"export__step": "best_per_task", "adapter__train": "tasks", "eval__every_steps": 1}
    config = micro.config(eval__select_suite=micro.suite("validation"), checkpoint__every_steps=1, **changes)
    done = world.Trained(tmp_path / "W")
    for stop in (3, None):
        hook = terminate_at(stop) if stop else lambda step: None
        with world.watched(done, lambda step, hook=hook: (remember(step), hook(step)), 1):
            train.train(config, tmp_path / "W")
    exported = read_adapter(tmp_path / "W" / "adapter")
    steps = {entry["name"]: entry["step"] for entry in exported.tasks_json}
    assert steps == {"ann": 2, "bob": 3, "cy": 1}
    for row, (name, step) in enumerate(steps.items()):
        expected = jax.tree.map(lambda leaf, row=row: leaf[row], rows[step]["all_layers"])
        jax.tree.map(np.testing.assert_array_equal, exported.tasks[name]["all_layers"], expected)


def test_stitching_heads_of_a_controller_that_trains_is_refused(micro, tmp_path):
    config = micro.config(eval__select_suite=micro.suite("validation"), export__step="best_per_task")
    with pytest.raises(UserError, match="export.step is 'best_per_task'; allowed: 'last', 'best' where"):
        world.train(config, tmp_path / "W")


# --- The bank in host memory, and its checkpoints ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_bank_in_host_memory_gives_the_same_adapter_and_resumes_exactly(micro, trained, tmp_path):
    settings = {"eval__suite": micro.suite("test"), "eval__select_suite": micro.suite("validation")}
    config = micro.config(adapter__bank="host", eval__every_steps=2, checkpoint__keep_latest=4, **settings)
    whole = world.train(config, tmp_path / "whole")
    found, expected = (read_adapter(folder / "adapter") for folder in (whole.workdir, trained.workdir))
    # Compilers round the two programs differently, from version to version and from processor to processor.
    close = functools.partial(np.testing.assert_allclose, atol=3e-6)
    for name in expected.tasks:
        jax.tree.map(close, found.tasks[name], expected.tasks[name])
    np.testing.assert_allclose(world.losses(whole.workdir), world.losses(trained.workdir), rtol=1e-5)
    world.train(config, tmp_path / "W", on_step=terminate_at(3))
    world.train(config, tmp_path / "W")
    assert files_of(tmp_path / "W" / "adapter") == files_of(whole.workdir / "adapter")


@pytest.mark.parametrize("bank", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_a_checkpoint_does_not_grow_with_the_tasks_that_nothing_touched(micro, tmp_path, bank):
    sizes = {}
    for slots in (3, 300):
        folder = tmp_path / str(slots)
        world.train(micro.config(steps=2, adapter__slots=slots, adapter__bank=bank), folder)
        files = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
        sizes[slots] = sum(path.stat().st_size for path in files)
        opened = Checkpoints(folder / "checkpoints", keep_latest=1, keep_best=0, every_steps=1, read_only=True)
        ids = np.concatenate([ids for ids, _ in opened.rows("last", "bank")])
        assert sorted(ids.tolist()) == [0, 1, 2]
        opened.close()
    assert abs(sizes[300] - sizes[3]) < 8192  # 297 rows more would be 400,000 bytes


# --- Tasks with vocabularies of their own -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alphabets(micro, tmp_path_factory):
    """The data again, the texts of cy in capitals: letters that the backbone does not have."""
    folder = tmp_path_factory.mktemp("alphabets")
    for split in ("train", "validation", "test"):
        rows = world.read_manifest(micro.data / f"{split}.jsonl")
        for row in rows:
            row["audio_filepath"] = str(micro.data / row["audio_filepath"])
            row["text"] = row["text"].upper() if row["speaker"] == "cy" else row["text"]
        world.write_manifest(folder / f"{split}.jsonl", rows)
    world.write_suite(folder / "suite.py", (("*", "{dir}/test.jsonl", "speaker=*", "*"),))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hra", "output"])
def test_a_task_may_write_in_letters_that_the_backbone_does_not_have(micro, alphabets, tmp_path, method):
    changes = {"adapter__output": "characters", "data__normalizer": "none", "data__dir": str(alphabets)}
    changes["adapter__output_size"] = 20  # more than the backbone has
    config = config_of(micro, method, **changes, steps=60, checkpoint__every_steps=1000, optimizer__learning_rate=0.1)
    with config.unlocked():
        config.eval.suite = str(alphabets / "suite.py")
    done = world.train(config, tmp_path / "W")
    losses = world.losses(tmp_path / "W")
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", backbone(micro.backbone))
    base = backbone(micro.backbone).vocabulary
    assert set(model.vocabulary("cy").characters) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    assert model.vocabulary("__base__").to_json() == base.to_json()
    found, lengths = model.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=["ann", "cy", "__base__"])
    for row, name in enumerate(("ann", "cy", "__base__")):
        size = model.vocabulary(name).size
        assert np.isfinite(found[row, : lengths[row], :size]).all() and (found[row, :, size:] == -np.inf).all()
        np.testing.assert_allclose(np.exp(found[row, : lengths[row]]).sum(axis=-1), 1.0, rtol=1e-5)
    plain, _ = backbone(micro.backbone).log_probs(WAVEFORMS, sample_rate=world.RATE)
    np.testing.assert_allclose(found[2, : lengths[2], : base.size], plain[2, : lengths[2]], atol=1e-6)
    text = model.transcribe(WAVEFORMS[:1], sample_rate=world.RATE, tasks=["cy"])[0]
    assert set(text) <= set(model.vocabulary("cy").characters)
    scored = json.loads((tmp_path / "W" / "eval" / "suite" / "results.json").read_text())
    assert set(scored["tasks"]) == set(world.SPEAKERS) and done.status == 0


def test_a_new_output_layer_starts_as_the_backbones_outputs_of_the_same_letters(micro, alphabets, tmp_path):
    changes = {"adapter__output": "characters", "data__normalizer": "none", "data__dir": str(alphabets)}
    done = world.train(config_of(micro, "output", **changes, optimizer__learning_rate=1e-30), tmp_path / "W")
    model = hra_jax.load_adapter(done.workdir / "adapter", backbone(micro.backbone))
    found, lengths = model.log_probs(WAVEFORMS[:1], sample_rate=world.RATE, tasks=["ann"])
    plain, _ = backbone(micro.backbone).log_probs(WAVEFORMS[:1], sample_rate=world.RATE)
    own, base = model.vocabulary("ann"), backbone(micro.backbone).vocabulary
    ids = [0] + [1 + base.characters.index(character) for character in own.characters]
    kept = plain[0, : lengths[0]][:, ids]
    expected = kept - np.log(np.exp(kept).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(found[0, : lengths[0], : own.size], expected, atol=1e-5)


def test_an_edited_text_that_gives_outputs_another_meaning_is_refused(micro, alphabets, tmp_path):
    data = Path(shutil.copytree(alphabets, tmp_path / "data"))
    changes = {"adapter__output": "characters", "data__normalizer": "none", "data__dir": str(data)}
    config = config_of(micro, "output", **changes)
    world.train(config, tmp_path / "W", on_step=terminate_at(1))
    rows = world.read_manifest(data / "train.jsonl")
    rows[0]["text"] = rows[0]["text"][:-1] + "Z"
    world.write_manifest(data / "train.jsonl", rows)
    with pytest.raises(UserError, match="vocabularies is .* in checkpoint 1, but .* in this run"):
        world.train(config, tmp_path / "W")


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"adapter__output_size": 9}, "config.adapter.output_size is 9; allowed: 0 unless"),
        ({"adapter__name": "output", "adapter__layers": (0,)}, "config.adapter.layers is (0,); allowed: () with"),
        ({"adapter__layers": (9,)}, "adapter.layers = (9,): allowed are distinct numbers 0 to 1"),
        ({"method": "full", "adapter__start": "somewhere"}, "config.adapter.start is 'somewhere'; allowed: '' with"),
        ({"seed": 2**32}, "config.seed is 4294967296; allowed: an integer of at least 0 and at most 4294967295"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused_before_anything_is_compiled(micro, tmp_path, changes, told):
    with pytest.raises(UserError) as caught:
        world.train(micro.config(**changes), tmp_path / "W", on_step=lambda step: pytest.fail("a step was done"))
    assert told in str(caught.value)
