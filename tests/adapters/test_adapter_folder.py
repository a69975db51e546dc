"""Exported adapter folders: what is written, what comes back, and what is refused."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from reference import endless
from reference.task_files import split_into_task_files

import hra_jax
from hra_jax.adapters import adapter_folder, initial
from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import folders, json_files, locks, safetensors
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import task_file_names

ACCOUNTING = {
    "trainable_parameters": 10 + 4 * 9,
    "shared_parameters": 10,
    "parameters_per_task": 9,
    "backbone_parameters": 1000,
    "backbone_fingerprint": "f00d",
}
NAMES = ["george", "Nicolas/é.x", "nicolas", "../../etc/passwd"]


def trainable(seed=0, rows=5):
    rng = np.random.default_rng(seed)

    def new(*shape, dtype=np.float32):
        return rng.standard_normal(shape).astype(dtype)

    return {
        "shared": {
            "all_layers": {"controller": {"kernel": new(3, 2), "bias": new(2), "recurrent": new(2)}},
            "per_layer": {},
        },
        "tasks": {"all_layers": {"head": {"kernel": new(rows, 2, 3), "bias": new(rows, 3, dtype=ml_dtypes.bfloat16)}}},
    }


def write(folder, **changes):
    arguments = {
        "method": {"name": "hra", "width": 2, "head": "linear"},
        "weights": trainable(),
        "tasks": [{"name": name, "row": row, "utterances": 7} for row, name in zip((3, 1, 0, 4), NAMES, strict=True)],
        "backbone": {"name": "/somewhere/on/this/machine/digits-backbone", "fingerprint": "f00d"},
        "vocabulary": {"type": "characters", "characters": [" ", "/", "a"]},
        "accounting": ACCOUNTING,
    } | changes
    adapter_folder.write_adapter(folder, **arguments)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = safetensors.from_bytes(path.read_bytes(), where="x")
    change(tensors)
    path.write_bytes(safetensors.to_bytes(tensors))


@pytest.mark.parametrize("per_task_files", [False, True])
def test_round_trip_gives_back_every_row_under_its_task(tmp_path, per_task_files):
    write(tmp_path / "a")
    if per_task_files:
        split_into_task_files(tmp_path / "a")
    adapter = adapter_folder.read_adapter(tmp_path / "a")
    original = trainable()
    for path, leaf in flatten(original["shared"]).items():
        np.testing.assert_array_equal(flatten(adapter.shared)[path], leaf)
    for row, name in zip((3, 1, 0, 4), NAMES, strict=True):
        for path, leaf in flatten(original["tasks"]).items():
            found = flatten(adapter.tasks[name])[path]
            assert found.dtype == leaf.dtype
            np.testing.assert_array_equal(found, leaf[row])
    assert list(adapter.tasks) == ["nicolas", "Nicolas/é.x", "george", "../../etc/passwd"]  # by row
    assert [entry["row"] for entry in adapter.tasks_json] == [0, 1, 3, 4]
    assert adapter.config["method"] == {"name": "hra", "width": 2, "head": "linear"}
    assert adapter.config["peft_type"] == "HIERARCHICAL_RECURRENT"
    assert adapter.config["vocabulary"]["characters"] == [" ", "/", "a"]


def test_the_folder_says_which_version_wrote_it_and_one_that_does_not_is_of_the_first_release(tmp_path):
    write(tmp_path)
    assert adapter_folder.read_adapter(tmp_path).config["hra_jax"] == hra_jax.__version__
    edit_json(tmp_path / "adapter_config.json", lambda content: (content.pop("hra_jax"), content.pop("sha256")))
    assert adapter_folder.read_adapter(tmp_path).config["hra_jax"] == "0.1.0"


def test_the_tensors_lie_under_the_quoted_names_of_their_tasks(tmp_path):
    write(tmp_path)
    tensors = safetensors.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes(), where="x")
    shared, tasks = (flatten(part, separator=".") for part in trainable().values())
    assert tensors.keys() == {f"shared.{path}" for path in shared} | {
        f"tasks.{name}.{path}"
        for name in ("george", "Nicolas%2F%C3%A9%2Ex", "nicolas", "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd")
        for path in tasks
    }


def test_the_same_weights_give_the_same_bytes_in_any_process_and_order(tmp_path):
    write(tmp_path / "a")
    tree = trainable()
    backwards = {part: dict(reversed(list(tree[part].items()))) for part in ("tasks", "shared")}
    tasks = [{"utterances": 7, "row": row, "name": name} for row, name in zip((3, 1, 0, 4), NAMES, strict=True)]
    write(tmp_path / "b", weights=backwards, tasks=tasks[::-1])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    again = "import pathlib, sys; sys.path[:0] = sys.argv[2:]; import test_adapter_folder; "
    again += "test_adapter_folder.write(pathlib.Path(sys.argv[1]))"
    folders = [str(folder) for folder in pathlib.Path(__file__).parents[:2]]
    command = [sys.executable, "-c", again, str(tmp_path / "c"), *folders]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[2])
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_other_weights_give_other_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", weights=trainable(seed=1))
    assert (
        contents(tmp_path / "a")["adapter_model.safetensors"] != contents(tmp_path / "b")["adapter_model.safetensors"]
    )


def test_no_absolute_path_is_written(tmp_path):
    write(tmp_path / "a")
    for name, content in contents(tmp_path / "a").items():
        assert b"/somewhere" not in content, name
        assert str(tmp_path).encode() not in content, name
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["backbone"]["name"] == "digits-backbone"


def test_writing_again_leaves_one_file_and_what_is_not_ours(tmp_path):
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tasks.json"]
    for others in ([], ["tasks/mine.txt"]):
        write(tmp_path)
        split_into_task_files(tmp_path)
        for other in others:
            (tmp_path / other).touch()
        (tmp_path / ".tasks.json.0123456789abcdef.tmp").touch()  # of a process that was killed
        write(tmp_path, tasks=[{"name": "george", "row": 3}])
        assert sorted(contents(tmp_path)) == files + others
        assert (tmp_path / "tasks").exists() == bool(others)
        assert list(adapter_folder.read_adapter(tmp_path).tasks) == ["george"]


def test_an_adapter_without_tasks_is_read_back(tmp_path):
    write(tmp_path, tasks=[])
    assert adapter_folder.read_adapter(tmp_path).tasks == {}


def test_model_card_says_what_it_costs_and_how_to_use_it(tmp_path):
    task = {"adapter_task": "george", "base_wer": 0.8, "wer": 0.052, "wer_low": 0.03, "wer_high": 0.07, "cer": 0.02}
    results = {"suite": "digits", "normalizer": "basic", "wer_macro": 0.052, "base_wer_macro": 0.8}
    write(tmp_path, results=results | {"tasks": {"geo|rge": task | {"words": 1200}}})
    card = (tmp_path / "README.md").read_text()
    assert "10 shared + 4 tasks x 9 = 46, 4.60% of the backbone's 1,000" in card
    assert r"| geo\|rge | george | 80.0% | 5.2% | 3.0% to 7.0% | 2.0% | 1,200 |" in card
    assert "--backbone digits-backbone --task nicolas a.wav" in card
    assert "fingerprint `f00d`" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    compile(snippet, "README.md", "exec")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "full"}}, "'full'.*allowed: bitfit, hra"),
        ({"tasks": [{"name": "a", "row": 0}, {"name": "a", "row": 1}]}, "2 tasks have the name 'a'"),
        ({"tasks": [{"name": "a", "row": 0}, {"name": "b", "row": 0}]}, "2 tasks have the row 0"),
        ({"tasks": [{"name": "__base__", "row": 0}]}, "cannot have the name '__base__'"),
        ({"tasks": [{"name": "a\nb", "row": 0}]}, "printable"),
        ({"tasks": [{"name": "a"}]}, "needs 'row'"),
        ({"weights": {"shared": {"w": np.array([np.nan], np.float32)}, "tasks": {}}}, "shared.w holds NaN"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        write(tmp_path / "a", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_row_outside_the_bank_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 5"):
        write(tmp_path, tasks=[{"name": "a", "row": 5}])
    tree = trainable()
    tree["tasks"]["all_layers"]["head"]["bias"] = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="one number of rows"):
        write(tmp_path, weights=tree)


def set_config(key, value):
    return lambda folder: edit_json(folder / "adapter_config.json", lambda content: content.__setitem__(key, value))


def set_task(key, value):
    return lambda folder: edit_json(folder / "tasks.json", lambda content: content["tasks"][0].__setitem__(key, value))


def set_tensor(name, value):
    return lambda folder: edit_tensors(
        folder / "adapter_model.safetensors", lambda tensors: tensors.__setitem__(name, np.array(value, np.float32))
    )


def set_declared(key, value):
    def change(content):
        content["tensors"]["shared"]["all_layers.controller.bias"][key] = value

    return lambda folder: edit_json(folder / "adapter_config.json", change)


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


BIAS = "shared.all_layers.controller.bias"


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is not a file"),
        (lambda folder: (folder / "tasks.json").unlink(), "tasks.json is not a file"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is not a file"),
        (cut("adapter_config.json", 100), "adapter_config.json: not JSON"),
        (cut("tasks.json", 5), "tasks.json: not JSON"),
        (cut("adapter_model.safetensors", 300), "not a whole safetensors file"),
        (cut("adapter_model.safetensors", 0), "not a whole safetensors file"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "must be a JSON object with 'peft_type'"),
        (set_config("peft_type", "LORA"), "peft_type 'LORA'; allowed: HRA_JAX_BITFIT, HIERARCHICAL_RECURRENT"),
        (set_config("peft_type", "HRA"), "peft_type 'HRA'; allowed: HRA_JAX_BITFIT, HIERARCHICAL_RECURRENT"),
        (set_config("format_version", 2), "format_version 2; this version of hra_jax reads 1"),
        (set_config("format_version", True), "needs 'format_version'"),
        (set_config("backbone", {"name": "x"}), "backbone: needs 'fingerprint'"),
        (set_config("method", {"name": "lora"}), "'lora' and peft_type"),
        (set_config("method", {"name": "hra", "width": 2.5}), "adapter_config.json: method: hra.width = 2.5: allowed"),
        (
            set_config("method", {"name": "hra", "width": 3}),
            r"has the shape \[2\]; the hra settings there ask for \[3\]",
        ),
        (set_config("method", {"name": "hra", "width": 2, "output": "task"}), "tensors.task: lacks 'all_layers.output"),
        (
            set_config("backbone", {"name": "a\nb", "fingerprint": "f"}),
            r"backbone.name is 'a\\nb'; allowed: .*printable",
        ),
        (set_config("accounting", {"shared_parameters": 1, "parameters_per_task": 1}), "needs 'backbone_parameters'"),
        (set_task("step", "x"), "task 'nicolas': needs 'step'"),
        (set_task("wer", [1]), "task 'nicolas': needs 'wer' .a number.; got"),
        (set_config("tensors", {"shared": {}}), "tensors: needs 'task'"),
        (set_declared("shape", [3]), r"bias' has the shape \[3\]; the hra settings there ask for \[2\]"),
        (set_declared("shape", [-2]), "list of sizes"),
        (set_declared("dtype", "float16"), f"{BIAS}' is .*declares"),
        (set_declared("dtype", "object"), "dtype 'object'; allowed"),
        (set_task("name", "someone else"), "'tasks.nicolas.*|'tasks.someone.*"),
        (set_task("name", "__base__"), "cannot have the name"),
        (set_task("name", "george"), "2 tasks have the name 'george'"),
        (set_task("row", "0"), r"'row' \(an integer of at least 0\); got '0'"),
        (set_task("row", -1), r"'row' \(an integer of at least 0\); got -1"),
        (lambda folder: (folder / "tasks.json").write_text("{}"), "needs 'tasks' .*got nothing"),
        (lambda folder: (folder / "tasks.json").write_text('{"tasks": [3]}'), "a task: must be a JSON object.*got 3"),
        (lambda folder: (folder / "tasks.json").write_text('{"tasks": 3}'), "needs 'tasks' .a list.; got 3"),
        (
            lambda folder: edit_tensors(folder / "adapter_model.safetensors", lambda t: t.pop(BIAS)),
            f"{BIAS}' is missing",
        ),
        (set_tensor("shared.extra", [1.0]), "'shared.extra' is not declared"),
        (set_tensor(BIAS, [[1.0, 2.0]]), f"{BIAS}' is .*declares"),
        (set_tensor(BIAS, [1.0, np.nan]), f"{BIAS}' holds NaN"),
        (set_tensor(BIAS, [1.0, np.inf]), f"{BIAS}' holds NaN or infinite"),
        (
            lambda folder: edit_tensors(
                folder / "adapter_model.safetensors", lambda t: t.__setitem__(BIAS, t[BIAS].astype(np.float64))
            ),
            "float64",
        ),
    ],
)
def test_a_tampered_folder_is_one_clear_line(tmp_path, tamper, message):
    write(tmp_path)
    tamper(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        adapter_folder.read_adapter(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/x.safetensors", "tasks/../../x.safetensors", "tasks/a/b.safetensors", "x", 3, None],
)
def test_a_task_file_outside_the_folder_is_refused(tmp_path, file):
    write(tmp_path)
    split_into_task_files(tmp_path)
    set_task("file", file)(tmp_path)
    with pytest.raises(UserError, match="allowed: tasks/NAME.safetensors"):
        adapter_folder.read_adapter(tmp_path)


def test_a_task_file_cannot_hold_the_tensors_of_another_task(tmp_path):
    write(tmp_path)
    split_into_task_files(tmp_path)
    george = (tmp_path / "tasks" / "george.safetensors").read_bytes()
    next((tmp_path / "tasks").glob("nicolas*")).write_bytes(george)
    with pytest.raises(UserError, match="'tasks.nicolas"):
        adapter_folder.read_adapter(tmp_path)


def test_flatten_and_unflatten_are_inverse_and_refuse_what_is_ambiguous():
    tree = {"b": {"x": 1, "a": {"y": 2}}, "a": 3}
    assert flatten(tree) == {"a": 3, "b/a/y": 2, "b/x": 1}
    assert list(flatten(tree)) == ["a", "b/a/y", "b/x"]
    for separator in ("/", "."):
        assert unflatten(flatten(tree, separator=separator), separator=separator) == tree
    for wrong in ({"a/b": 1}, {"": 1}, {"a": {1: 2}}):
        with pytest.raises(ValueError, match="a key of a tree"):
            flatten(wrong)
    for wrong in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"a//b": 1}, {"/a": 1}, {"a/": 1}, {"": 1}):
        with pytest.raises(ValueError, match="the path"):
            unflatten(wrong)


def test_file_names_of_tasks_are_safe_and_differ_without_case_and_beyond_any_length():
    long = "x" * 400
    names = ["a", "A", "a/b", "a%2Fb", "..", "a b", "é", "É", long, long + "y", "~", "CON:1", "b"]
    files = task_file_names(names)
    assert len({file.casefold() for file in files.values()}) == len(names)
    for file in files.values():
        assert len(file) < 200
        assert adapter_folder._TASK_FILE.fullmatch(f"tasks/{file}.safetensors")
    assert files["b"] == "b"
    assert task_file_names(reversed(names)) == files


def test_an_adapter_of_another_backbone_is_refused(tmp_path):
    write(tmp_path)
    exported = adapter_folder.read_adapter(tmp_path)
    adapter_folder.check_backbone(exported, "f00d", name="it", where="here")
    with pytest.raises(UserError) as error:
        adapter_folder.check_backbone(exported, "cafe" * 16, name="'other'", where="here")
    assert str(error.value) == (
        "here: trained on the backbone 'digits-backbone' (f00d), but 'other' has the fingerprint cafecafecafe"
    )


def test_a_flip_in_any_file_is_refused_where_the_folder_is_read_or_changes_nothing_that_is_read(tmp_path):
    write(tmp_path)
    expected, generator, refused = read_back(tmp_path), random.Random(int(os.environ.get("HRA_SEED", "0"))), 0
    for name in ("adapter_config.json", "tasks.json", "adapter_model.safetensors", "README.md"):
        before = (tmp_path / name).read_bytes()
        for _ in range(60):
            place, bit = generator.randrange(len(before)), generator.randrange(8)
            (tmp_path / name).write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
            try:
                assert read_back(tmp_path) == expected, f"{name}: bit {bit} of byte {place}"
            except UserError as error:
                refused += 1
                assert name in str(error)
        (tmp_path / name).write_bytes(before)
    assert refused > 3 * 60 - 20  # the model card is for people, and a name of the hashes says nothing


def read_back(folder):
    """All that an adapter folder gives but the hashes, and what only people read."""
    found = adapter_folder.read_adapter(folder)
    config = {key: found.config[key] for key in ("method", "backbone", "vocabulary", "tensors", "accounting")}
    trees = [("", found.shared), *found.tasks.items()]
    arrays = [(name, path, leaf.tobytes()) for name, tree in trees for path, leaf in flatten(tree).items()]
    return config, found.tasks_json, arrays


def test_an_edited_configuration_is_refused_in_a_line_that_says_how_to_use_it(tmp_path):
    write(tmp_path)
    edit_json(tmp_path / "adapter_config.json", lambda content: content["accounting"].update(parameters_per_task=8))
    with pytest.raises(DamagedError, match=r"adapter_config.json: is not what was exported.*remove 'sha256' from"):
        adapter_folder.read_adapter(tmp_path)
    edit_json(tmp_path / "adapter_config.json", lambda content: content.pop("sha256"))
    assert adapter_folder.read_adapter(tmp_path).config["accounting"]["parameters_per_task"] == 8


@pytest.mark.parametrize("kind", endless.KINDS)
def test_the_hash_of_what_a_run_starts_from_waits_for_no_file_without_an_end(tmp_path, kind):
    write(tmp_path)
    before = initial.content_hash(str(tmp_path))
    assert (
        before
        == hashlib.sha256(b"adapter_model.safetensors" + contents(tmp_path)["adapter_model.safetensors"]).hexdigest()
    )
    endless.put(tmp_path / "x.safetensors", kind)
    with (
        endless.bounded(),
        pytest.raises(UserError, match=r"adapter.start = .*: x.safetensors cannot be read .not a reg"),
    ):
        initial.content_hash(str(tmp_path))


def test_who_reads_while_the_adapter_is_replaced_reads_it_again(tmp_path, monkeypatch):
    write(tmp_path / "a")
    write(tmp_path / "b", weights=trainable(seed=1), tasks=[{"name": "new", "row": 0}])
    original = adapter_folder.read_tasks

    def replaced(folder):
        if not done:
            done.append(None)
            for file in (tmp_path / "b").iterdir():
                shutil.copy(file, tmp_path / "a")
        return original(tmp_path / "old" if len(done) == 1 and not done.append(None) else folder)

    done: list[None] = []
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    monkeypatch.setattr(adapter_folder, "read_tasks", replaced)
    assert list(adapter_folder.read_adapter(tmp_path / "a").tasks) == ["new"]


def test_who_reads_a_half_replaced_adapter_in_a_bucket_waits_for_its_configuration(tmp_path, monkeypatch):
    write(tmp_path / "a")
    write(tmp_path / "b", weights=trainable(seed=1))
    shutil.copy(tmp_path / "b" / "adapter_model.safetensors", tmp_path / "a")
    with pytest.raises(DamagedError, match="is not what was exported"):
        adapter_folder.read_adapter(tmp_path / "a")
    monkeypatch.setattr(folders, "is_remote", lambda path: str(path).endswith("/a"))  # its acts, on a disk
    with pytest.raises(DamagedError, match="is not what was exported"):
        adapter_folder.read_adapter(tmp_path / "a")  # nobody is at it
    monkeypatch.setattr(
        folders.time, "sleep", lambda _: shutil.copy(tmp_path / "b" / "adapter_config.json", tmp_path / "a")
    )
    with locks.hold_beside(tmp_path / "a", "tasks add"):
        found = adapter_folder.read_adapter(tmp_path / "a")
    assert found.config == adapter_folder.read_adapter(tmp_path / "b").config


def test_files_in_a_bucket_that_stay_the_same_are_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_folder, "is_remote", lambda path: str(tmp_path) in str(path))  # its acts, on a disk
    write(tmp_path / "a")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "a").iterdir()}
    write(tmp_path / "a", tasks=[{"name": "george", "row": 3}, {"name": "nicolas", "row": 0, "step": 3}])
    write(tmp_path / "b", tasks=[{"name": "george", "row": 3}, {"name": "nicolas", "row": 0, "step": 3}])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    between = {path.name: path.stat().st_ino for path in (tmp_path / "a").iterdir()}
    write(tmp_path / "a", tasks=[{"name": "george", "row": 3}, {"name": "nicolas", "row": 0, "step": 4}])
    after = {path.name: path.stat().st_ino for path in (tmp_path / "a").iterdir()}
    assert before["adapter_model.safetensors"] != between["adapter_model.safetensors"]
    kept = {name for name in after if after[name] == between[name]}
    assert kept == {"adapter_model.safetensors", "README.md"}
    # What a writer that died left is no reason to believe its configuration.
    shutil.copy(tmp_path / "a" / "tasks.json", tmp_path / "a" / "adapter_model.safetensors")
    write(tmp_path / "a", tasks=[{"name": "george", "row": 3}, {"name": "nicolas", "row": 0, "step": 4}])
    assert list(adapter_folder.read_adapter(tmp_path / "a").tasks) == ["nicolas", "george"]


def test_tasks_with_large_vocabularies_are_read_again_and_what_nobody_could_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MOST_VALUES", 1000)
    vocabulary = {"type": "characters", "characters": [f"{number}" for number in range(600)]}
    tasks = [{"name": name, "row": row, "vocabulary": vocabulary} for row, name in enumerate(("a", "b"))]
    write(tmp_path / "a", tasks=tasks)
    assert adapter_folder.read_tasks(tmp_path / "a") == tasks
    assert adapter_folder._MOST_VALUES_OF_TASKS > 10_000 * 1_000
    monkeypatch.setattr(adapter_folder, "_MOST_VALUES_OF_TASKS", 1000)
    with pytest.raises(UserError, match=r"nothing exported: 2 tasks and their vocabularies are 1,2\d\d values"):
        write(tmp_path / "b", tasks=tasks)
    assert not (tmp_path / "b").exists()


def test_an_adapter_that_is_put_on_the_disk_as_a_whole_is_not_put_there_file_by_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    write(tmp_path / "a", durable=False)
    assert not synced
    write(tmp_path / "b")
    assert len(synced) >= 4
