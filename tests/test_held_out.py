"""Suites with held-out tasks: heads are trained once, and kept; the mean is of the adapter's own heads.

HRA_PROCESSES says on how many processes they are trained again, by default 2.
"""

import json
import os
import shutil

import numpy as np
import pytest
from reference import launching
from reference import micro as world

import hra_jax
from hra_jax import train as training
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.data.sound_files import Sound
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate, evaluate_systems
from hra_jax.evaluation.predictions import read_predictions
from hra_jax.run import held_out
from hra_jax.storage.trees import flatten
from hra_jax.tasks import library
from hra_jax.tasks.names import task_file_names

SUITE = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.name, config.normalizer = "held", "basic"
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "__few__"),)
    config.support, config.shots, config.draws = "{dir}/train.jsonl", (0, 1, 3), 2
    config.few = (("steps", 2), ("batch.buckets", (1.0,)), ("batch.seconds", 8.0), ("data.threads", 1))
    return config
"""


@pytest.fixture
def place(trained, micro, tmp_path, monkeypatch):
    """An adapter of two of the three speakers, and a suite of all of them."""
    world.use_devices(monkeypatch, 1)
    (tmp_path / "held.py").write_text(SUITE)
    library.write(tmp_path / "adapter", library.removed(read_adapter(trained.workdir / "adapter"), ["cy"]))
    return tmp_path


def scored(place, micro, **settings):
    settings = {"adapters": [f"own={place / 'adapter'}"], "backbones": [micro.backbone]} | settings
    settings = {"data_dir": str(micro.data)} | settings
    return evaluate_systems([str(place / "held.py")], place / "R", **settings)["held"]


def test_an_adapter_that_knows_all_tasks_and_an_evaluation_without_a_folder_are_refused(trained, micro, place):
    with pytest.raises(UserError, match="'held' on system 'own': 'ann', 'bob', 'cy' are tasks of the adapter"):
        scored(place, micro, adapters=[f"own={trained.workdir / 'adapter'}"])
    with pytest.raises(
        UserError, match=r"needs heads that are trained on a few utterances; allowed with: .*--output R"
    ):
        evaluate(trained.workdir, str(place / "held.py"), data_dir=str(micro.data))
    with pytest.raises(UserError, match="--keep='K': no suite trains heads"):
        evaluate_systems(
            [micro.suite("test")],
            place / "R",
            data_dir=str(micro.data),
            adapters=[str(trained.workdir / "adapter")],
            backbones=[micro.backbone],
            keep="K",
        )


def test_support_that_is_a_copy_of_the_test_is_refused_before_any_head_is_trained(micro, place):
    data = shutil.copytree(micro.data, place / "data")
    (row,) = [row for row in world.read_manifest(data / "test.jsonl") if row["speaker"] == "cy"][:1]
    shutil.copy(data / row["audio_filepath"], data / "again.flac")
    rows = [one for one in world.read_manifest(data / "train.jsonl") if one["speaker"] != "cy"]
    world.write_manifest(data / "train.jsonl", [*rows, row | {"audio_filepath": "again.flac"}])
    suite = (place / "held.py").read_text().replace("(0, 1, 3)", "(0, 1)")
    (place / "held.py").write_text(suite)
    with pytest.raises(UserError, match="a head of its held-out tasks was trained on 1 of its utterances, by the hash"):
        scored(place, micro, data_dir=str(data))
    assert not (place / "R" / "held.heads").exists()


def test_a_backbone_of_ours_is_named_and_another_is_a_folder(micro):
    ours, other = hra_jax.load_backbone("builtin:tiny", verify=False).files, hra_jax.load_backbone(micro.backbone).files
    assert held_out._location(ours) == "builtin:tiny" and held_out._location(other) == micro.backbone


@pytest.mark.slow(minutes=1.5)
def test_heads_of_a_held_out_task_are_trained_once_scored_and_kept(micro, place, monkeypatch, capsys, command_env):
    trainings, train = [], training.train
    monkeypatch.setattr(training, "train", lambda *args: trainings.append(args) or train(*args))
    found = scored(place, micro)
    assert "held out are 'cy'; 4 heads on 1, 3 utterances, 2 draws each" in capsys.readouterr().out
    own, base = found["own"], found["__base__"]
    heads = ["cy@1#1", "cy@1#2", "cy@3#1", "cy@3#2"]
    assert list(own["tasks"]) == ["cy@0", *heads] and list(base["tasks"]) == ["ann", "bob", "cy"]
    curve = own["few_shot"]
    assert curve["shots"] == [0, 1, 3] and list(curve["tasks"]) == ["cy"]
    assert [len(point["by_draw"]) for point in curve["tasks"]["cy"]] == [1, 2, 2]
    assert curve["base"]["cy"] == pytest.approx(base["tasks"]["cy"]["wer"])

    # No shot is the mean of the two heads that the adapter has, and of no head that was trained here.
    backbone = hra_jax.load_backbone(micro.backbone)
    mean = hra_jax.load_adapter(place / "adapter", backbone).mean()
    files = task_file_names(own["tasks"])
    for line in read_predictions(place / "R" / "held" / "own" / f"predictions_{files['cy@0']}.jsonl"):
        with Sound(line.row.audio_filepath) as sound:
            samples, rate = next(sound.blocks(0, sound.frames)).mean(axis=1), sound.rate
        assert mean.transcribe([samples], sample_rate=rate, tasks=["__mean__"]) == [line.row.pred_text]

    again = scored(place, micro)
    assert len(trainings) == 1 and again == found
    scored(place, micro, keep=place / "kept")
    kept = read_adapter(place / "kept")
    assert list(kept.tasks) == heads

    # Several processes train them as one does.
    words = ["--adapter", f"own={place / 'adapter'}", "--backbone", micro.backbone, "--suite", str(place / "held.py")]
    words += ["--data_dir", str(micro.data)]
    for count in map(int, os.environ.get("HRA_PROCESSES", "2").split(",")):
        output, settings = place / f"R{count}", {"processes": count, "devices": 1, "env": command_env}
        launching.run([launching.EVALUATE, *words, "--output", str(output)], folder=place / f"on {count}", **settings)
        for name in heads:
            sides = [flatten(read_adapter(at / "held.heads/own/adapter").tasks[name]) for at in (place / "R", output)]
            for path, leaf in sides[0].items():
                message = f"{count} {name} {path}"
                np.testing.assert_allclose(sides[1][path], leaf, rtol=1e-3, atol=1e-5, err_msg=message)
        launched = json.loads((output / "held" / "own" / "results.json").read_text())
        assert {name: task["words"] for name, task in launched["tasks"].items()} == dict.fromkeys(own["tasks"], 3)
