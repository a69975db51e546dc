"""Adapters as libraries of tasks: what changes, what stays the same bytes, what is refused."""

import cProfile
import json
import os
import pstats
import shutil
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import tiny
from reference.task_files import split_into_task_files

from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.errors import UserError
from hra_jax.storage import folders
from hra_jax.storage.trees import flatten
from hra_jax.tasks import adding, commands, descriptions, library, merging

NAMES = ("ann", "Bob/é", "cy")
VOCABULARY = {"type": "characters", "characters": list(" abcd")}


def make(name="hra", *, names=NAMES, seed=1, dtype=np.float32, **changes) -> adapter_folder.ExportedAdapter:
    """An exported adapter of random parameters."""
    adapter = tiny.METHODS[name]
    trainable = tiny.random_trainable(adapter, tasks=len(names), seed=seed)
    trainable = jax.tree.map(lambda leaf: leaf.astype(dtype), trainable)
    shared, task = (sum(x.size for x in jax.tree.leaves(trainable[part])) for part in ("shared", "tasks"))
    task //= len(names)
    arguments = {
        "method": methods.settings(adapter),
        "weights": trainable,
        "tasks": [{"name": n, "row": i, "step": 10 + i, "wer": 0.25, "note": [i]} for i, n in enumerate(names)],
        "backbone": {"name": "tiny", "fingerprint": "f00d" * 16},
        "vocabulary": VOCABULARY,
        "accounting": {
            "trainable_parameters": shared + len(names) * task,
            "shared_parameters": shared,
            "parameters_per_task": task,
            "backbone_parameters": 10_000,
            "backbone_fingerprint": "f00d" * 16,
        },
    }
    return arguments | changes


def written(folder, *args, **keywords) -> adapter_folder.ExportedAdapter:
    adapter_folder.write_adapter(folder, **make(*args, **keywords))
    return adapter_folder.read_adapter(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return written(tmp_path_factory.mktemp("library") / "adapter")


def bytes_of(tree) -> dict[str, tuple]:
    return {p: (leaf.dtype.name, leaf.shape, leaf.tobytes()) for p, leaf in flatten(tree).items()}


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_kept(before, after, names) -> None:
    """These tasks and the shared part are the same bytes; their entries differ in the row alone, rows have no gaps."""
    assert bytes_of(before.shared) == bytes_of(after.shared)
    assert [entry["row"] for entry in after.tasks_json] == list(range(len(after.tasks)))
    assert [entry["name"] for entry in after.tasks_json] == list(after.tasks)
    old, new = ({entry["name"]: entry | {"row": None} for entry in side.tasks_json} for side in (before, after))
    for name in names:
        assert bytes_of(before.tasks[name]) == bytes_of(after.tasks[name])
        assert old[name] == new[name]


def check_counts(after) -> None:
    """The accounting is that of the tensors there are."""
    shared = sum(leaf.size for leaf in flatten(after.shared).values())
    own = {sum(leaf.size for leaf in flatten(tree).values()) for tree in after.tasks.values()}
    counted = after.config["accounting"]
    assert own <= {counted["parameters_per_task"]} and counted["shared_parameters"] == shared
    assert counted["trainable_parameters"] == shared + len(after.tasks) * counted["parameters_per_task"]
    assert (counted["backbone_parameters"], counted["backbone_fingerprint"]) == (10_000, "f00d" * 16)


# --- Tasks come and go ------------------------------------------------------------------------------------------------


def test_removed_tasks_are_gone_and_the_others_stay_the_same_bytes(exported):
    after = library.removed(exported, ["Bob/é"])
    assert list(after.tasks) == ["ann", "cy"]
    check_kept(exported, after, ["ann", "cy"])
    check_counts(after)
    assert list(exported.tasks) == list(NAMES) and exported.config["accounting"]["trainable_parameters"] > 0


def test_all_tasks_may_go_and_come_back(exported, tmp_path):
    library.write(tmp_path / "a", library.removed(exported, NAMES))
    empty = adapter_folder.read_adapter(tmp_path / "a")
    assert empty.tasks == {} and bytes_of(empty.shared) == bytes_of(exported.shared)
    check_counts(empty)
    assert "for 0 tasks" in (tmp_path / "a" / "README.md").read_text()
    after = library.merged_in(empty, exported, NAMES)
    check_kept(exported, after, NAMES)
    check_counts(after)


def test_picked_tasks_keep_the_order_of_their_rows(exported):
    after = library.picked(exported, ["cy", "ann"])
    assert list(after.tasks) == ["ann", "cy"]
    check_kept(exported, after, ["ann", "cy"])
    check_counts(after)


def test_a_renamed_task_keeps_its_row_its_bytes_and_all_that_is_said_of_it(exported):
    after = library.renamed(exported, "Bob/é", "rob")
    assert list(after.tasks) == ["ann", "rob", "cy"]
    check_kept(exported, after, ["ann", "cy"])
    check_counts(after)
    assert bytes_of(after.tasks["rob"]) == bytes_of(exported.tasks["Bob/é"])
    assert after.tasks_json[1] == exported.tasks_json[1] | {"name": "rob"}


def test_an_added_task_has_the_last_row_and_changes_no_other(exported):
    tree = jax.tree.map(lambda leaf: leaf.astype(np.float64) + 1, exported.tasks["cy"])
    after = library.added(exported, "dee", tree, entry={"step": 7, "row": 0, "name": "x"})
    check_kept(exported, after, NAMES)
    check_counts(after)
    assert after.tasks_json[3] == {"name": "dee", "row": 3, "step": 7}
    expected = jax.tree.map(lambda leaf: leaf + np.float32(1), exported.tasks["cy"])
    assert bytes_of(after.tasks["dee"]) == bytes_of(expected)
    wrong = {"all_layers": {"head": {"kernel": np.zeros(3)}}}
    with pytest.raises(UserError, match=r"task 'dee': the parameter 'all_layers.head.\w+' is .*; allowed is \("):
        library.added(exported, "dee", wrong, entry={})


def test_shared_parameters_that_a_run_kept_frozen_stay_uncounted(tmp_path):
    arguments = make()
    arguments["accounting"]["trainable_parameters"] -= arguments["accounting"]["shared_parameters"]
    adapter_folder.write_adapter(tmp_path, **arguments)
    exported = adapter_folder.read_adapter(tmp_path)
    counted = library.removed(exported, ["cy"]).config["accounting"]
    assert counted["trainable_parameters"] == 2 * counted["parameters_per_task"]


# --- What a new task starts as ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.METHODS)
def test_zero_draws_what_a_run_draws_for_the_next_row(tmp_path, name):
    exported = written(tmp_path, name)
    tree = adding.started(exported, "zero", tiny.ENCODER, seed=3)
    drawn = initial.new_weights_on_host(tiny.METHODS[name], jax.random.key(3), tiny.ENCODER, 4)["tasks"]
    expected = jax.tree.map(lambda leaf: leaf[3], drawn)
    assert bytes_of(tree) == bytes_of(expected)
    after = library.added(exported, "dee", tree, entry={})
    check_kept(exported, after, NAMES)


def test_mean_and_copy_are_what_a_run_would_start_from(exported):
    mean = adding.started(exported, "mean")
    for path, leaf in flatten(mean).items():
        rows = np.stack([flatten(tree)[path] for tree in exported.tasks.values()])
        np.testing.assert_allclose(leaf, rows.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-7)
    assert bytes_of(adding.started(exported, "cy")) == bytes_of(exported.tasks["cy"])


def test_the_dtypes_of_an_adapter_stay_what_they_are(tmp_path):
    exported = written(tmp_path / "a", dtype=ml_dtypes.bfloat16)
    for init in ("zero", "mean", "cy"):
        exported = library.added(exported, f"new {init}", adding.started(exported, init, tiny.ENCODER), entry={})
    library.write(tmp_path / "b", exported)
    again = adapter_folder.read_adapter(tmp_path / "b")
    for tree in again.tasks.values():
        assert {leaf.dtype.name for leaf in flatten(tree).values()} == {"bfloat16"}
    assert bytes_of(again.tasks["new mean"]) == bytes_of(exported.tasks["new mean"])


def test_a_task_with_a_vocabulary_of_its_own_starts_from_texts_or_another_task(tmp_path):
    arguments = make("output")
    arguments["method"] |= {"output": "characters", "output_size": tiny.ENCODER.vocab_size}
    arguments["tasks"] = [entry | {"vocabulary": VOCABULARY} for entry in arguments["tasks"]]
    adapter_folder.write_adapter(tmp_path, **arguments)
    exported = adapter_folder.read_adapter(tmp_path)
    for init in ("zero", "mean"):
        with pytest.raises(UserError, match=f"'{init}' without training texts: .*; allowed: ann, Bob/é, cy"):
            adding.started(exported, init, tiny.ENCODER)
    assert bytes_of(adding.started(exported, "ann")) == bytes_of(exported.tasks["ann"])
    reason = merging.why_not_merged(methods.from_folder(exported.config))
    assert "a vocabulary and an output layer of its own" in reason


# --- Tasks of another adapter -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hra", "lora"])
def test_what_is_removed_and_brought_back_is_the_same_bytes(tmp_path, name):
    exported = written(tmp_path / "a", name)
    without = library.removed(exported, ["Bob/é"])
    after = library.merged_in(without, exported, ["Bob/é"])
    assert list(after.tasks) == ["ann", "cy", "Bob/é"]
    check_kept(exported, after, NAMES)
    check_counts(after)


def test_a_task_comes_in_under_another_name_and_says_what_it_said(exported):
    after = library.merged_in(exported, exported, ["cy"], new_name="cyrus")
    check_kept(exported, after, NAMES)
    assert bytes_of(after.tasks["cyrus"]) == bytes_of(exported.tasks["cy"])
    assert after.tasks_json[3] == exported.tasks_json[2] | {"name": "cyrus", "row": 3}


def altered_shared():
    arguments = make()
    leaf = jax.tree.leaves(arguments["weights"]["shared"])[0]
    leaf.ravel()[0] = np.nextafter(leaf.ravel()[0], np.float32(9))
    return arguments


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            lambda: make(backbone={"name": "tiny", "fingerprint": "beef" * 16}),
            f"the backbone's fingerprint is \"{'f00d' * 15}.*{'beef' * 15}",
        ),
        (lambda: make("lora"), 'the method\'s name is "hra" in the adapter, but "lora"'),
        (lambda: make("hra per layer"), r"the method's layers is \[\] in the adapter, but \[2, 0\]"),
        (lambda: make() | {"method": make()["method"] | {"dropout": 0.5}}, "dropout is 0.0 in .*, but 0.5"),
        (
            lambda: make(vocabulary=VOCABULARY | {"characters": list(" abce")}),
            r"the vocabulary is .*\"d\".* but .*\"e\"",
        ),
        (altered_shared, "the SHA-256 of the shared 'all_layers.controller.[a-z_.]+' is .* but"),
        (lambda: make(dtype=np.float16), "the tensor .* of a task is .*float32.* but .*float16"),
    ],
)
def test_tasks_that_mean_nothing_here_are_refused_with_both_values(exported, tmp_path, other, told):
    adapter_folder.write_adapter(tmp_path, **other())
    with pytest.raises(UserError, match=told) as caught:
        library.merged_in(exported, adapter_folder.read_adapter(tmp_path), ["ann"], new_name="x")
    assert "\n" not in str(caught.value)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: library.removed(a, ["an"]), "unknown task 'an'; did you mean 'ann'?"),
        (lambda a: library.removed(a, ["zzz"]), "unknown task 'zzz'; allowed: ann, Bob/é, cy"),
        (lambda a: library.picked(a, ["cy", "cy"]), "task 'cy' is given twice"),
        (lambda a: library.removed(library.removed(a, NAMES), ["cy"]), "allowed: none, it has no task"),
        (lambda a: library.renamed(a, "bob", "x"), "unknown task 'bob'"),
        (lambda a: library.renamed(a, "ann", "cy"), "task 'cy' is there already"),
        (lambda a: library.renamed(a, "ann", "ann"), "task 'ann' is there already"),
        (lambda a: library.renamed(a, "ann", "__base__"), "cannot have the name '__base__'; allowed: printable"),
        (lambda a: library.renamed(a, "ann", "__mean__"), "cannot have the name '__mean__'"),
        (lambda a: library.added(a, "", a.tasks["cy"], entry={}), "cannot have the name ''"),
        (lambda a: library.added(a, "a\nb", a.tasks["cy"], entry={}), r"cannot have the name 'a\nb'"),
        (lambda a: adding.started(a, "mea"), "cannot start as 'mea': neither zero, mean nor a task; did you mean"),
        (
            lambda a: adding.started(library.removed(a, NAMES), "mean"),
            "cannot start as 'mean': there is no task to take the mean of; allowed: zero",
        ),
        (lambda a: library.merged_in(a, a, ["cy"]), "task 'cy' is there already"),
        (lambda a: library.merged_in(a, a, ["cyr"]), "unknown task 'cyr'; did you mean 'cy'"),
        (lambda a: library.merged_in(a, a, ["ann", "cy"], new_name="x"), "2 tasks cannot all have the name 'x'"),
        (lambda a: merging.merged_weights(a, "x", {}, None), "unknown task 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(exported, change, told):
    with pytest.raises(UserError) as caught:
        change(exported)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_tasks_an_error_lists_few(exported):
    tasks = {f"speaker {number}": exported.tasks["cy"] for number in range(500)}
    many = exported
    for name in list(tasks)[:30]:
        many = library.added(many, name, tasks[name], entry={})
    with pytest.raises(UserError, match="and 23 more") as caught:
        library.removed(many, ["0"])
    assert len(str(caught.value)) < 200


def test_an_accounting_that_lacks_a_number_is_one_line(tmp_path):
    adapter_folder.write_adapter(tmp_path, **make())
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    content["accounting"]["trainable_parameters"] = "many"
    del content["sha256"]  # or that would be what is refused
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="needs an integer accounting.trainable_parameters; got 'many'"):
        library.removed(adapter_folder.read_adapter(tmp_path), ["cy"])


# --- What is told -----------------------------------------------------------------------------------------------------


def test_what_is_told_of_tasks_is_what_they_are(exported):
    found = descriptions.describe(exported)
    assert json.loads(json.dumps(found)) == found
    assert [task["name"] for task in found["tasks"]] == list(NAMES)
    for task in found["tasks"]:
        leaves = [leaf.astype(np.float64).ravel() for leaf in flatten(exported.tasks[task["name"]]).values()]
        assert task["parameters"] == sum(map(len, leaves)) == found["parameters_per_task"]
        np.testing.assert_allclose(task["norm"], np.linalg.norm(np.concatenate(leaves)))
        assert (task["wer"], task["note"]) == (0.25, [task["row"]])
    one = descriptions.describe_task(exported, "cy")
    assert {key: one[key] for key in found["tasks"][2]} == found["tasks"][2]
    assert one["tensors"].keys() == exported.config["tensors"]["task"].keys()
    total = sum(tensor["norm"] ** 2 for tensor in one["tensors"].values())
    np.testing.assert_allclose(total, one["norm"] ** 2)
    with pytest.raises(UserError, match="unknown task 'cx'"):
        descriptions.describe_task(exported, "cx")


# --- Storage ----------------------------------------------------------------------------------------------------------


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    exported = written(tmp_path / "a")
    before = contents(tmp_path / "a")
    library.write(tmp_path / "b", exported)
    library.write(tmp_path / "a", exported)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == before


def test_a_folder_with_a_file_for_each_task_becomes_the_one_that_is_written_now(tmp_path):
    written(tmp_path / "a")
    before = contents(tmp_path / "a")
    split_into_task_files(tmp_path / "a")
    assert len(list((tmp_path / "a" / "tasks").iterdir())) == len(NAMES)
    exported = adapter_folder.read_adapter(tmp_path / "a")
    assert exported.config["one_file_per_task"]
    for folder in ("b", "a"):
        library.write(tmp_path / folder, exported)
        assert contents(tmp_path / folder) == before
        assert not (tmp_path / folder / "tasks").exists()


def test_other_files_in_the_folder_and_a_link_to_it_stay(tmp_path):
    written(tmp_path / "a")
    split_into_task_files(tmp_path / "a")
    exported = adapter_folder.read_adapter(tmp_path / "a")
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "a" / "tasks" / "mine.txt").write_text("mine too")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a").chmod(0o750)
    library.write(tmp_path / "link", library.removed(exported, ["cy"]))
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "a").is_symlink()
    found = contents(tmp_path / "a")
    assert found["notes/mine.txt"] == b"mine" and found["tasks/mine.txt"] == b"mine too"
    assert {name for name in found if name.startswith("tasks/")} == {"tasks/mine.txt"}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


@pytest.mark.parametrize("fails", ["write_file", "exchange"])
def test_where_writing_fails_the_folder_is_what_it_was(tmp_path, monkeypatch, fails):
    exported = written(tmp_path / "a")
    before = contents(tmp_path / "a")
    if fails == "write_file":
        write_file, left = adapter_folder.write_file, [2]

        def full(path, content, **keywords):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            write_file(path, content, **keywords)

        monkeypatch.setattr(adapter_folder, "write_file", full)
    else:

        def refuse(fresh, folder):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(folders, "exchange_names", refuse)
    with pytest.raises(OSError):
        library.write(tmp_path / "a", library.removed(exported, ["cy"]))
    assert contents(tmp_path / "a") == before
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_that_is_refused_is_written(tmp_path):
    exported = written(tmp_path / "a")
    before = contents(tmp_path / "a")
    spoiled = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), exported.tasks["cy"])
    with pytest.raises(UserError, match="NaN or infinite"):
        library.write(tmp_path / "a", library.added(exported, "dee", spoiled, entry={}))
    assert contents(tmp_path / "a") == before and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("kill", ["before the exchange", "after the exchange", "between two renames"])
def test_what_a_killed_command_left_is_mended_by_the_next_one_and_be_it_a_look(tmp_path, capsys, kill):
    written(tmp_path / "a")
    before = contents(tmp_path / "a")
    copies = {"before the exchange": ["new"], "after the exchange": ["new"], "between two renames": ["new", "old"]}
    for kind in copies[kill]:
        shutil.copytree(tmp_path / "a", tmp_path / f".a.{kind}-{'0' * 16}")
    if kill == "between two renames":
        shutil.rmtree(tmp_path / "a")
    commands.list_tasks(str(tmp_path / "a"))
    assert contents(tmp_path / "a") == before and [path.name for path in tmp_path.iterdir()] == ["a"]


# --- Many tasks -------------------------------------------------------------------------------------------------------


def many(folder, count: int) -> adapter_folder.ExportedAdapter:
    """An adapter folder of so many tasks of the same parameters."""
    alone = make(names=("one",))
    rows = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), count, axis=0), alone["weights"]["tasks"])
    tasks = [{"name": f"speaker {row}", "row": row} for row in range(count)]
    adapter_folder.write_adapter(folder, **alone | {"weights": alone["weights"] | {"tasks": rows}, "tasks": tasks})
    return adapter_folder.read_adapter(folder)


def test_bringing_tasks_in_takes_work_in_proportion_to_their_number(tmp_path):
    calls = {}
    to = written(tmp_path / "to", names=("one",))
    for count in (200, 800):
        source = many(tmp_path / f"{count}", count)
        profile = cProfile.Profile()
        with profile:
            result = library.merged_in(to, source, list(source.tasks))
            library.write(tmp_path / f"to {count}", library.removed(result, list(source.tasks)[1:]))
        calls[count] = pstats.Stats(profile).total_calls
    assert calls[800] < 4.4 * calls[200]


@pytest.mark.slow(minutes=0.4)
def test_ten_thousand_tasks_are_imported_in_less_than_a_minute(tmp_path):
    source = many(tmp_path / "from", 10_000)
    written(tmp_path / "to", names=("one",))
    begin = time.monotonic()
    commands.import_tasks(str(tmp_path / "to"), str(tmp_path / "from"))
    assert time.monotonic() - begin < 60
    after = adapter_folder.read_adapter(tmp_path / "to")
    assert list(after.tasks) == ["one", *source.tasks]
    assert bytes_of(after.tasks["speaker 9999"]) == bytes_of(source.tasks["speaker 9999"])
