"""How the tasks of an adapter sound: who adds it, where it goes, and the task `__auto__` that uses it."""

import numpy as np
import pytest
from etils import epath
from reference import micro as world

import hra_jax
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.task_records import CENTROID, SHARED, WHITENING
from hra_jax.decoding import unknown_task
from hra_jax.errors import UserError
from hra_jax.storage.trees import flatten
from hra_jax.tasks import commands, library


@pytest.fixture(scope="module")
def silent(micro, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("silent") / "adapter"
    return str(world.write_adapter(folder, HierarchicalRecurrentAdapter(width=5), micro))


@pytest.fixture(scope="module")
def heard(micro, silent, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("heard") / "adapter"
    manifest = str(micro.data / "train.jsonl")
    commands.add_centroids(silent, manifest=manifest, backbone=micro.backbone, output=str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def model(heard, micro):
    return hra_jax.load_adapter(heard, hra_jax.load_backbone(micro.backbone))


def recordings(micro) -> list[str]:
    return [str(micro.data / row["audio_filepath"]) for row in world.read_manifest(micro.data / "test.jsonl")[:4]]


def test_an_adapter_that_is_heard_has_a_centroid_for_each_task_and_the_same_weights(heard, silent):
    before, after = read_adapter(silent), read_adapter(heard)
    assert set(after.records[CENTROID]) == set(world.SPEAKERS)
    assert after.records[WHITENING][SHARED].shape == (10, 10)
    cards = [(epath.Path(folder) / "README.md").read_text() for folder in (silent, heard)]
    assert ["holds how 3 of the tasks sound" in card for card in cards] == [False, True]
    for task, tree in before.tasks.items():
        for path, leaf in flatten(tree).items():
            np.testing.assert_array_equal(leaf, flatten(after.tasks[task])[path])


def test_a_centroid_is_the_mean_voice_of_the_recordings_of_its_task(heard, model, micro):
    rows = [row for row in world.read_manifest(micro.data / "train.jsonl") if row["speaker"] == "bob"]
    waves = [model._prepare(str(micro.data / row["audio_filepath"]), None) for row in rows]
    voices = model.voices(waves, sample_rate=world.RATE).voices
    found = read_adapter(heard).records[CENTROID]["bob"]
    np.testing.assert_allclose(found, np.mean(voices, axis=0), rtol=1e-3, atol=1e-4)


def test_auto_recognises_with_the_task_that_it_names_one_for_each_session(model, micro):
    files, asked = recordings(micro), ["__auto__", "bob", "__auto__", "__auto__"]
    found = model.recognise(files, tasks=asked, sessions=["a", "b", "b", "a"])
    tasks = [one.task for one in found]
    assert tasks[1] == "bob" and tasks[0] == tasks[3]
    assert set(tasks) <= {*world.SPEAKERS, "__base__"}
    assert [one.text for one in found] == model.transcribe(files, tasks=tasks)


def test_the_choice_costs_at_most_six_passes_and_names_its_candidates(model, micro):
    waves = [model._prepare(file, None) for file in recordings(micro)]
    parts = [[wave] for wave in (waves[0], *waves[2:])]
    assert model.choose_tasks(parts, [None, "x", None]) == model.choose_tasks(parts)  # None is no session
    for choice in model.choose_tasks(parts):
        assert choice.passes == 1 + min(unknown_task.CANDIDATES, len(world.SPEAKERS)) < 6
        assert choice.task in choice.candidates and choice.candidates[-1] == "__base__"


def test_an_adapter_that_is_not_heard_names_the_command_and_recognises_nothing(silent, micro):
    model = hra_jax.load_adapter(silent, hra_jax.load_backbone(micro.backbone))
    with pytest.raises(UserError, match=rf"python -m hra_jax.tasks centroids {silent} --manifest") as told:
        model.recognise(recordings(micro), tasks=["__auto__"] * 4)
    assert "\n" not in str(told.value)


def test_sessions_are_one_for_each_recording(model, micro):
    with pytest.raises(UserError, match="2 sessions for 4 recordings"):
        model.recognise(recordings(micro), tasks=["__auto__"] * 4, sessions=["a", "b"])


def test_centroids_follow_their_task_under_another_name_and_out_of_the_adapter(heard, silent, tmp_path):
    renamed, alone, back = (str(tmp_path / name) for name in ("renamed", "alone", "back"))
    commands.rename(heard, "bob", "robert", output=renamed)
    commands.export_tasks(renamed, "robert", output=alone)
    first = read_adapter(heard).records
    for folder in (renamed, alone):
        records = read_adapter(folder).records
        np.testing.assert_array_equal(records[CENTROID]["robert"], first[CENTROID]["bob"])
        np.testing.assert_array_equal(records[WHITENING][SHARED], first[WHITENING][SHARED])
    assert set(read_adapter(alone).records[CENTROID]) == {"robert"}
    commands.remove(heard, "bob", output=back)
    commands.import_tasks(back, alone)
    assert set(read_adapter(back).records[CENTROID]) == {"ann", "cy", "robert"}
    # Units of a voice from elsewhere do not take the place of those that the other tasks have.
    other = read_adapter(alone)
    mine, theirs = read_adapter(heard), library.with_records(other, {WHITENING: {SHARED: np.eye(10, dtype=np.float32)}})
    both = library.merged_in(library.removed(mine, ["bob"]), theirs, ["robert"])
    np.testing.assert_array_equal(both.records[WHITENING][SHARED], first[WHITENING][SHARED])


def test_one_task_that_is_heard_again_leaves_the_units_of_all(heard, micro, tmp_path, capsys):
    rows = [row for row in world.read_manifest(micro.data / "validation.jsonl") if row["speaker"] == "bob"]
    rows = [row | {"audio_filepath": str(micro.data / row["audio_filepath"])} for row in rows]
    world.write_manifest(tmp_path / "bob.jsonl", rows)
    again = str(tmp_path / "again")
    commands.add_centroids(heard, manifest=str(tmp_path / "bob.jsonl"), backbone=micro.backbone, output=again)
    assert "heard the tasks 'bob';" in capsys.readouterr().out
    before, after = read_adapter(heard).records, read_adapter(again).records
    np.testing.assert_array_equal(after[WHITENING][SHARED], before[WHITENING][SHARED])
    changed = [task for task in world.SPEAKERS if (before[CENTROID][task] != after[CENTROID][task]).any()]
    assert changed == ["bob"]


def test_a_task_without_a_recording_is_named(silent, micro, tmp_path):
    rows = [row for row in world.read_manifest(micro.data / "train.jsonl") if row["speaker"] != "cy"]
    rows = [row | {"audio_filepath": str(micro.data / row["audio_filepath"])} for row in rows]
    world.write_manifest(tmp_path / "few.jsonl", rows)
    with pytest.raises(UserError, match=r"no recording has speaker='cy'; needed: recordings of 'cy', whose tag --tag"):
        commands.add_centroids(silent, manifest=str(tmp_path / "few.jsonl"), backbone=micro.backbone)


@pytest.mark.parametrize("given", [{}, {"manifest": "m.jsonl", "workdir": "W"}])
def test_centroids_takes_a_manifest_or_a_run_and_not_both(silent, given):
    with pytest.raises(UserError, match="centroids needs --manifest, recordings of the tasks, or else --workdir"):
        commands.add_centroids(silent, **given)
