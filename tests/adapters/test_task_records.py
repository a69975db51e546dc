"""What an export holds for a task follows it through every command that moves tasks, and into every other format."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from reference import micro as world

import hra_jax
from hra_jax import fitting, verify
from hra_jax.adapters import adapter_folder, task_records
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.task_records import HASHES, OWN_HASHES, SET_ASIDE, SHARED
from hra_jax.convert import peft_export
from hra_jax.errors import DamagedError, UserError
from hra_jax.models import backbone_folder
from hra_jax.storage import safetensors
from hra_jax.tasks import commands, library

LATER = "centroid_of_a_later_version"
ASIDE = {"suite": "v", "metric": "wer", "rate": 0.3, "base_rate": 0.2, "tolerance": 0.0}


def numbers(*values) -> np.ndarray:
    return np.array(values, np.uint64)


RECORDS = {
    HASHES: {"ann": numbers(1, 5), "bob": numbers(2), "cy": numbers(3, 2**64 - 1), SHARED: numbers(9)},
    OWN_HASHES: {"ann": numbers(100), "cy": numbers(300)},
    LATER: {"ann": np.ones(3, np.float32), "bob": np.full(3, 2, np.float32)},
}


def make(folder: Path, method, micro) -> str:
    """An adapter that holds something of every kind for its tasks ann, bob and cy."""
    world.write_adapter(folder, method, micro)
    exported = adapter_folder.read_adapter(folder)
    entries = [
        entry | {"wer": 0.1 * entry["row"], "suite": "s", "note": entry["name"]} for entry in exported.tasks_json
    ]
    entries[1][SET_ASIDE] = ASIDE
    library.write(folder, dataclasses.replace(exported, tasks_json=entries, records=RECORDS))
    return str(folder)


def held(folder) -> dict:
    """{task: everything that the folder holds for it but its weights and row}."""
    exported = adapter_folder.read_adapter(folder)
    found = {
        entry["name"]: {k: v for k, v in entry.items() if k not in ("name", "row")} for entry in exported.tasks_json
    }
    for record, by_task in exported.records.items():
        for task, array in by_task.items():
            found.setdefault(task, {})[record] = array.tolist()
    return found


@pytest.fixture
def adapter(micro, tmp_path) -> str:
    return make(tmp_path / "adapter", HierarchicalRecurrentAdapter(width=5), micro)


def test_everything_follows_its_task_through_all_commands(micro, adapter, tmp_path):
    start = held(adapter)
    ann, bob, cy, shared = (start[task] for task in ("ann", "bob", "cy", SHARED))
    assert ann == {
        "step": 9,
        "wer": 0.0,
        "suite": "s",
        "note": "ann",
        HASHES: [1, 5],
        OWN_HASHES: [100],
        LATER: [1.0] * 3,
    }
    assert bob[SET_ASIDE] == ASIDE

    commands.rename(adapter, "bob", "Bob/é")
    assert held(adapter) == {"ann": ann, "Bob/é": bob, "cy": cy, SHARED: shared}

    commands.add(adapter, "copy", init="ann")
    commands.add(adapter, "mean", init="mean")
    commands.add(adapter, "new", init="zero", backbone=micro.backbone)
    found = held(adapter)
    assert found["copy"] == {"step": 0, "init": "ann", HASHES: [1, 5], OWN_HASHES: [100]}
    # The copy was trained on what ann was trained on, and so it is a part of the mean.
    assert found["mean"] == {"step": 0, "init": "mean", HASHES: [1, 2, 3, 5, 2**64 - 1], OWN_HASHES: [100, 300]}
    assert found["new"] == {"step": 0, "init": "zero"}

    commands.export_tasks(adapter, "Bob/é", "cy", output=str(tmp_path / "two"))
    # What all tasks share was trained on ann too, whose own parameters are not there.
    others = {HASHES: sorted({1, 5, 9, 2, 3, 2**64 - 1})}
    assert held(tmp_path / "two") == {"Bob/é": bob, "cy": cy, SHARED: others}

    commands.remove(adapter, "copy", "mean", "new", "ann")
    left = held(adapter)
    assert left["Bob/é"] == bob and left["cy"] == cy and 100 not in np.concatenate(list(left[SHARED].values()))
    assert {1, 5, 9} <= set(left[SHARED][HASHES])

    commands.remove(adapter, "cy")
    commands.import_tasks(adapter, str(tmp_path / "two"), tasks=["cy"], new_name="guest")
    found = held(adapter)
    assert found["guest"] == cy and found["Bob/é"] == bob

    commands.specialize(adapter, "guest", output=str(tmp_path / "alone"))
    assert held(tmp_path / "alone")["guest"] == cy
    assert verify.verify(tmp_path / "alone")[0].faults == []

    model = hra_jax.load_adapter(tmp_path / "two", hra_jax.load_backbone(micro.backbone)).without_task("cy")
    fitting.save_adapter(model, tmp_path / "stored")
    stored = held(tmp_path / "stored")
    assert stored["Bob/é"] == {record: bob[record] for record in (HASHES, LATER)} | {SET_ASIDE: {}}
    assert set(cy[HASHES]) <= set(stored[SHARED][HASHES])


def test_what_no_task_shares_leaves_with_its_task(micro, tmp_path):
    folder = make(tmp_path / "adapter", LowRankAdapter(rank=2), micro)
    exported = adapter_folder.read_adapter(folder)
    own = {OWN_HASHES: {"ann": numbers(1), "bob": numbers(2)}}
    library.write(folder, dataclasses.replace(exported, records=own))
    commands.remove(folder, "bob")
    assert adapter_folder.read_adapter(folder).records[OWN_HASHES].keys() == {"ann"}
    commands.remove(folder, "ann")
    assert not adapter_folder.read_adapter(folder).records
    assert not (Path(folder) / task_records.RECORDS_FILE).exists()


def test_a_merged_backbone_holds_the_hashes_of_the_task_and_of_what_it_was_merged_into(micro, tmp_path):
    folder = make(tmp_path / "adapter", LowRankAdapter(rank=2), micro)
    commands.specialize(folder, "cy", output=str(tmp_path / "cy"), backbone=micro.backbone)
    files = backbone_folder.load(tmp_path / "cy")
    assert task_records.all_hashes(files.records).tolist() == [3, 9, 300, 2**64 - 1]
    assert LATER not in files.records
    task = files.info["source"]["merged"]["task"]
    assert task["note"] == "cy" and task["wer"] == 0.2
    assert verify.verify(tmp_path / "cy")[0].faults == []
    content = (tmp_path / "cy" / task_records.RECORDS_FILE).read_bytes()
    (tmp_path / "cy" / task_records.RECORDS_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError, match=task_records.RECORDS_FILE):
        backbone_folder.load(tmp_path / "cy")


def test_a_peft_folder_holds_what_the_adapter_holds_for_the_task(micro, tmp_path):
    method = LowRankAdapter(rank=2, projections=("attention.query",))
    folder = make(tmp_path / "adapter", method, micro)
    source = {"model_type": "parakeet_ctc", "architecture": "ParakeetForCTC"}
    files = backbone_folder.load(micro.backbone)
    files = dataclasses.replace(files, info=files.info | {"source": source})
    peft_export.write(tmp_path / "peft", adapter_folder.read_adapter(folder), "bob", method, files)
    (entry,) = json.loads((tmp_path / "peft" / "tasks.json").read_text())["tasks"]
    assert entry["name"] == "bob" and entry["note"] == "bob" and entry[SET_ASIDE] == ASIDE
    found = task_records.read(tmp_path / "peft", {}, tasks=["bob"])
    assert found[HASHES]["bob"].tolist() == [2] and found[LATER]["bob"].tolist() == [2.0] * 3


def test_files_of_a_later_version_are_not_lost_and_those_of_nobody_stay(micro, adapter, tmp_path):
    Path(adapter, "NOTES.txt").write_text("mine")
    commands.rename(adapter, "bob", "rob")
    assert Path(adapter, "NOTES.txt").read_text() == "mine"
    path = Path(adapter, "adapter_config.json")
    config = json.loads(path.read_text())
    config["sha256"]["centroids.bin"] = "0" * 64
    config["sha256"]["adapter_config.json"] = adapter_folder.own_sha256(config)
    path.write_text(json.dumps(config))
    before = {file.name: file.read_bytes() for file in Path(adapter).iterdir()}
    assert "rob" in adapter_folder.read_adapter(adapter).tasks
    for change in (
        lambda: commands.remove(adapter, "rob"),
        lambda: commands.rename(adapter, "rob", "x"),
        lambda: commands.export_tasks(adapter, "rob", output=str(tmp_path / "out")),
    ):
        with pytest.raises(UserError, match="names the file 'centroids.bin', which this version"):
            change()
    assert {file.name: file.read_bytes() for file in Path(adapter).iterdir()} == before


def test_records_that_an_earlier_version_left_behind_are_none_of_the_adapter(adapter):
    path = Path(adapter, "adapter_config.json")
    config = json.loads(path.read_text())
    del config["sha256"][task_records.RECORDS_FILE]
    config["sha256"]["adapter_config.json"] = adapter_folder.own_sha256(config)
    path.write_text(json.dumps(config))
    assert adapter_folder.read_adapter(adapter).records == {}
    commands.rename(adapter, "bob", "rob")
    assert not Path(adapter, task_records.RECORDS_FILE).exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"hashes.dee": numbers(1)}, "of the task 'dee', which is not there"),
        ({"hashes.ann": np.ones(2, np.float32)}, "is float32 with 1 axes; allowed: uint64 with 1"),
        ({"hashes.ann": np.ones((2, 2), np.uint64)}, "is uint64 with 2 axes; allowed: uint64 with 1"),
    ],
)
def test_records_that_cannot_be_are_one_line(adapter, arrays, message):
    Path(adapter, task_records.RECORDS_FILE).write_bytes(safetensors.to_bytes(arrays))
    path = Path(adapter, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": {}}))
    with pytest.raises(UserError, match=message) as caught:
        adapter_folder.read_adapter(adapter)
    assert "\n" not in str(caught.value)
