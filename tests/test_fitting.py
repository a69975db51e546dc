"""Training from Python: what `train` gives for the same batches, without TensorFlow; bad input is one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from reference import micro as world
from reference import without_tensorflow

import hra_jax
from hra_jax import fitting
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import load_config
from hra_jax.data.audio import sample_hash
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.storage.trees import flatten
from hra_jax.training import sharding


@pytest.fixture(scope="module")
def backbone(micro):
    return hra_jax.load_backbone(micro.backbone)


def _examples(**counts):
    return {
        name: [
            (world.tones("ab"[: number % 2 + 1], pitch=1 + 0.1 * number), "ab"[: number % 2 + 1]) for number in range(n)
        ]
        for name, n in counts.items()
    }


# --- Settings ---------------------------------------------------------------------------------------------------------


def _config(backbone, durations, **settings):
    recordings = [
        fitting.Recording("", seconds, "a", key=f"ann[{number}]", samples=np.zeros(8, np.float32), sample_rate=8000)
        for number, seconds in enumerate(durations)
    ]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return fitting._configuration(settings, backbone, None, recordings, steps=7, mesh=mesh)


def test_a_few_recordings_are_one_bucket_and_many_have_buckets_up_to_the_longest(backbone):
    few, many = _config(backbone, [0.31, 0.7, 0.4]), _config(backbone, [0.31, 0.7, 2.2, 4.7] * 50)
    assert few.batch.buckets == (0.75,) and few.batch.seconds == 3 * 0.75
    assert many.batch.buckets == (0.5, 1.0, 2.0, 4.0, 6.0) and many.batch.seconds == 64.0
    assert (few.steps, few.data.draw, few.backbone_dtype) == (7, "tasks", "float32")
    given = _config(backbone, [0.31, 0.7], **{"batch.buckets": [1.0, 3.0], "hra.width": 5})
    assert given.batch.buckets == (1.0, 3.0) and given.batch.seconds == load_config("base").batch.seconds
    assert given.hra.width == 5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hra.widht": 5}, r"settings\['hra.widht'\]: unknown config key; did you mean .*hra.width"),
        ({"nonsense": 5}, r"settings\['nonsense'\]: unknown config key"),
        ({"adapter.start": "W"}, r"settings\['adapter.start'\]: allowed here: seed, "),
        ({"eval.suite": "fsdd"}, r"settings\['eval.suite'\]: allowed here: "),
        ({"hra.width": 0}, "hra.width is 0; allowed: an integer"),
    ],
)
def test_a_setting_that_is_not_allowed_is_one_line_that_names_it(backbone, settings, message):
    with pytest.raises(UserError, match=message):
        hra_jax.fit(backbone, _examples(ann=1), settings=settings)


@pytest.mark.parametrize(
    "examples, message",
    [
        ({}, "examples = {}: allowed is at least one task"),
        ({"ann": []}, r"examples\['ann'\] is empty"),
        ({"__base__": [([0.1], "a")]}, "examples: a task cannot have the name '__base__'"),
        ({"ann": [np.zeros(3)]}, r"ann\[0\] is ndarray; allowed is a pair"),
        ({"ann": [([0.1], 3)]}, r"ann\[0\] is tuple; allowed is a pair"),
        ({"ann": [([0.1], "a"), (np.zeros((2, 3)), "a")]}, r"ann\[1\] has shape \(2, 3\); allowed is 1-D"),
        ({"ann": [([0.1, math.nan], "a")]}, r"ann\[0\] holds NaN"),
        ({"ann": [(np.zeros(8000 * 70), "a")]}, r"ann\[0\] has 70 s; allowed are 16 s, or what the last of"),
        (
            {"bob": [(np.zeros(800), "")], "ann": [(np.zeros(8000), "a")]},
            "'bob'.*none of its examples can be used.*bob",
        ),
    ],
)
def test_an_example_that_cannot_be_used_is_one_line_that_names_it(backbone, examples, message):
    with pytest.raises(UserError, match=message):
        hra_jax.fit(backbone, examples, steps=1, progress=False)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan, "8000"])
def test_a_rate_that_is_none_is_refused(backbone, rate):
    with pytest.raises(UserError, match="sample_rate = "):
        hra_jax.fit(backbone, _examples(ann=1), sample_rate=rate)


def test_a_model_that_is_saved_is_loaded_again_and_other_folders_are_left_alone(trained, backbone, tmp_path):
    model = hra_jax.load_adapter(trained.workdir / "adapter", backbone).without_task("bob")
    for _ in range(2):  # the second in place of the first
        hra_jax.save_adapter(model, tmp_path / "saved")
    again = hra_jax.load_adapter(tmp_path / "saved", backbone)
    assert again.tasks == ("ann", "cy") and again.adapter == model.adapter
    jax.tree.map(np.testing.assert_array_equal, again.shared, model.shared)
    for name in again.tasks:
        jax.tree.map(np.testing.assert_array_equal, again.row(name), model.row(name))
    assert read_adapter(tmp_path / "saved").config["accounting"]["parameters_per_task"] > 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="mine' is no adapter folder"):
        hra_jax.save_adapter(model, tmp_path / "mine")
    with pytest.raises(UserError, match="method 'none' has no adapter folder"):
        hra_jax.save_adapter(hra_jax.Model(backbone, type(model.adapter).__mro__[1](), {}, {}, ()), tmp_path / "none")


# --- Whole trainings --------------------------------------------------------------------------------------------------


@pytest.mark.slow(minutes=0.5)
def test_an_adapter_goes_on_with_new_tasks_and_leaves_what_it_had_bit_for_bit(backbone, capsys, tmp_path):
    first = hra_jax.fit(backbone, _examples(ann=2, bob=1), steps=6, settings={"hra.width": 6}, progress=False)
    assert first.tasks == ("ann", "bob") and not capsys.readouterr().out
    more = hra_jax.fit(backbone, _examples(cy=3), steps=6, start=first)
    assert more.tasks == ("ann", "bob", "cy")
    assert "3 examples of 1 tasks" in capsys.readouterr().out
    for name in first.tasks:
        jax.tree.map(np.testing.assert_array_equal, more.row(name), first.row(name))
    jax.tree.map(np.testing.assert_array_equal, more.shared, first.shared)
    assert any(leaf.any() for leaf in jax.tree.leaves(more.row("cy")))
    sounds = [waveform for waveform, _ in _examples(cy=3)["cy"]]
    # What it was trained on is known by its samples, as files with them are; the head alone was.
    files = [tmp_path / f"{number}.wav" for number in range(3)]
    for file, sound in zip(files, sounds, strict=True):
        soundfile.write(file, sound, 8000, subtype="FLOAT")
    hashes = sorted(sample_hash(Utterance(str(f), len(s) / 8000, "")) for f, s in zip(files, sounds, strict=True))
    assert more.records["own_hashes"]["cy"].tolist() == hashes
    assert more.records["hashes"].keys() == {"ann", "bob"} == first.records["hashes"].keys()
    plain, _ = more.log_probs(sounds, sample_rate=8000)
    adapted, _ = more.log_probs(sounds, sample_rate=8000, tasks=["cy"] * 3)
    assert not np.allclose(plain, adapted)
    with pytest.raises(UserError, match="settings|width"):
        hra_jax.fit(backbone, _examples(cy=3), steps=1, start=first, settings={"hra.width": 7})


STEPS = 20
SETTINGS = {"hra.width": 16, "batch.seconds": 8.0, "batch.buckets": 2, "optimizer.learning_rate": 4e-3}


@pytest.mark.slow(minutes=1.5)
def test_without_tensorflow_it_equals_train_on_the_same_batches(fsdd_dir, tmp_path, command_env):
    rows = [json.loads(line) for line in (fsdd_dir / "train.jsonl").read_text().splitlines()]
    chosen = [row for name in ("george", "jackson") for row in [row for row in rows if row["speaker"] == name][:5]]
    for row in chosen:
        row["audio_filepath"] = str(fsdd_dir / row["audio_filepath"])
        assert soundfile.info(row["audio_filepath"]).samplerate == 8000
    manifest = tmp_path / "train.jsonl"
    world.write_manifest(manifest, chosen)
    fitted = tmp_path / "fitted.npz"
    script = Path(without_tensorflow.__file__)
    command = [sys.executable, str(script), str(manifest), json.dumps(SETTINGS), str(STEPS), str(fitted)]
    subprocess.run(command, env=command_env, check=True, timeout=600)

    flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "hra_jax.train", "--config", "base", "--workdir", str(tmp_path / "W"), *flags]
    command += [f"--config.steps={STEPS}", f"--config.data.sources=(('fsdd', {str(manifest)!r}, 1.0),)"]
    subprocess.run([*command, "--config.data.draw=tasks"], env=command_env, check=True, timeout=600)
    adapter = read_adapter(tmp_path / "W" / "adapter")
    expected = {f"shared.{name}": leaf for name, leaf in flatten(adapter.shared, separator=".").items()}
    for task, tree in adapter.tasks.items():
        expected |= {f"{task}.{name}": leaf for name, leaf in flatten(tree, separator=".").items()}
    with np.load(fitted) as found:
        assert set(found) == set(expected) and {name.partition(".")[0] for name in found} == {
            "george",
            "jackson",
            "shared",
        }
        for name, leaf in expected.items():
            # One program of one shape on one device: the same bits.
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)
            assert leaf.any() or "bias" in name, name
