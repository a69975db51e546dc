"""Any checkpoint of a run as an adapter or backbone folder, without its data."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from reference import endless
from reference import micro as world

from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.errors import UserError
from hra_jax.evaluate import evaluate
from hra_jax.models.encoder_config import SIZES
from hra_jax.run.checkpoint_export import _allowed_names, export_checkpoint
from hra_jax.run.exporting import _check_names
from hra_jax.storage.checksums import of_json
from hra_jax.storage.row_log import RowLog
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.training.stored_checkpoint import StoredCheckpoint


@pytest.fixture
def workdir(trained, tmp_path):
    """A finished run, whose data and suites are gone."""
    shutil.copytree(trained.workdir, tmp_path / "W")
    path = tmp_path / "W" / "config.json"
    config = json.loads(path.read_text())
    config["eval"] |= {"suite": "gone", "select_suite": "gone"}
    config["data"]["dir"] = "gone"
    path.write_text(json.dumps(config))
    return tmp_path / "W"


def test_the_last_checkpoint_is_what_the_run_itself_exported(workdir, tmp_path):
    step, tasks = export_checkpoint(workdir, tmp_path / "out")
    own, made = read_adapter(workdir / "adapter"), read_adapter(tmp_path / "out")
    assert step == 4 and tasks == list(own.tasks)
    for part in ("shared", "tasks"):
        expected, found = flatten(getattr(own, part)), flatten(getattr(made, part))
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name])
    assert made.records and task_records.to_bytes(made.records) == task_records.to_bytes(own.records)
    assert {key: value for key, value in made.config.items() if key != "sha256"} == {
        key: value for key, value in own.config.items() if key != "sha256"
    }
    assert [entry["step"] for entry in made.tasks_json] == [entry["step"] for entry in own.tasks_json]


def test_the_newest_whole_checkpoint_is_taken_and_a_damaged_number_refused(workdir, tmp_path, capsys):
    (workdir / "checkpoints" / "4" / "run" / "metadata").write_text("{}")
    assert export_checkpoint(workdir, tmp_path / "out")[0] == 2
    assert "checkpoint 4 cannot be read: run/metadata is not what was written; taking" in capsys.readouterr().out
    with pytest.raises(UserError, match="checkpoint 4 cannot be read"):
        export_checkpoint(workdir, tmp_path / "other", step=4)
    with pytest.raises(UserError, match="there is no checkpoint 3; allowed are last, best, 1, 2, 4"):
        export_checkpoint(workdir, tmp_path / "other", step=3)
    assert not (tmp_path / "other").exists()


def test_names_that_no_task_may_have_are_changed_and_told(capsys):
    names = _allowed_names(["ann", "bob\u00a0b", "", "__mean__", "c\td"])
    assert names == ["ann", "bob b", "task-2", "task-3", "c d"]
    assert capsys.readouterr().out.count("is called") == 4


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', b"{", b"[]", b"{}", b'{"a": 1}', "pipe", "link"])
def test_a_configuration_that_is_none_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "config.json"
    endless.put(path, content) if isinstance(content, str) else path.write_bytes(content)
    with endless.bounded(), pytest.raises(UserError, match=r"config\.json: ") as error:
        export_checkpoint(tmp_path, tmp_path / "out")
    assert str(error.value).isprintable()


def with_rows(workdir, change):
    """Changes the rows of the last checkpoint, and signs them, as a stranger may."""
    folder = workdir / "checkpoints"
    (segment, *_) = StoredCheckpoint(epath.Path(folder / "4")).item("rows")["bank"]
    log = RowLog(folder / "rows" / "bank")
    ((ids, rows), *_) = log.read([segment])
    (folder / "rows" / "bank" / f"{segment}.safetensors").unlink()
    ids, rows = change(np.array(ids), rows)
    RowLog(folder / "rows" / "bank").append(segment, ids, rows, after=[])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ids, rows: (ids + 1000, rows), "checkpoint 4 cannot be read: rows/bank holds the row 100"),
        (lambda ids, rows: (ids, {"count": rows["count"]}), "is of another run: rows/bank: mu/.* is absent there"),
        (lambda ids, rows: (ids, {"tasks": rows["tasks"]}), "is of another run: rows/bank: count is absent there"),
        (
            lambda ids, rows: (ids, rows | {"count": rows["count"].astype(np.int64)}),
            "count is int64.. there, but int32",
        ),
    ],
)
def test_rows_that_are_none_of_the_run_s_are_refused_in_one_line(workdir, tmp_path, change, told):
    with_rows(workdir, change)
    with pytest.raises(UserError, match=told):
        export_checkpoint(workdir, tmp_path / "out", step=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow(minutes=0.2)
def test_a_run_takes_no_rows_of_another_one_back(trained, micro, tmp_path, monkeypatch):
    world.use_devices(monkeypatch, 1)
    shutil.copytree(trained.workdir, tmp_path / "W")

    def wider(ids, rows):
        leaf = next(iter(flatten(rows["mu"])))
        flat = flatten(rows)
        return ids, unflatten(flat | {f"mu/{leaf}": np.repeat(flat[f"mu/{leaf}"], 2, axis=-1)})

    with_rows(tmp_path / "W", wider)
    with pytest.raises(UserError, match="checkpoint 4 is of another run: rows/bank: mu/.* there, but .* here"):
        evaluate(tmp_path / "W", micro.suite("test"))


def call_tasks(checkpoint, names):
    """Gives the tasks of a checkpoint other names, as in a run that was begun before names were looked at."""
    file, sums = checkpoint / "run" / "metadata", checkpoint / "checksums" / "metadata"
    facts, told = json.loads(file.read_text()), json.loads(sums.read_text())
    facts["tasks"] = list(names)
    told["items"]["run"] = of_json(facts)
    del told["self"]
    file.write_text(json.dumps(facts))
    sums.write_text(json.dumps(told | {"self": of_json(told)}))


def test_a_run_with_a_name_that_no_task_may_have_is_exported_under_other_names(workdir, tmp_path):
    names = ["ann", "bob\u00a0b", "a=b"]
    call_tasks(workdir / "checkpoints" / "4", names)
    assert export_checkpoint(workdir, tmp_path / "own")[1] == ["ann", "bob b", "a=b"]
    for old in names[1], "bob b":
        renames = [f"{old}=Bob", "a=b=c"]
        assert export_checkpoint(workdir, tmp_path / "out", renames=renames)[1] == ["ann", "Bob", "c"]
        assert list(read_adapter(tmp_path / "out").tasks) == ["ann", "Bob", "c"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zoe=x", "--rename='zoe=x'; allowed: OLD=NEW, where OLD is one of 'ann', 'bob', 'cy'"),
        ("ann", "allowed: OLD=NEW"),
        ("ann=bob", "task 'bob' is there already"),
        ("ann=__mean__", "a task cannot have the name '__mean__'"),
        ("ann=", "a task cannot have the name ''"),
    ],
)
def test_a_rename_of_no_task_or_to_no_name_is_refused_and_writes_nothing(workdir, tmp_path, text, told):
    with pytest.raises(UserError) as caught:
        export_checkpoint(workdir, tmp_path / "out", renames=[text])
    assert told in str(caught.value) and not (tmp_path / "out").exists()


def test_the_export_of_a_run_that_cannot_have_its_names_tells_the_way_out():
    _check_names(["ann", "bob"], "W")
    with pytest.raises(UserError, match="a task cannot have the name .*export-checkpoint --workdir W .* --rename OLD="):
        _check_names(["ann", "bob\u00a0b"], "W")


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize("method", ["full", "pretrain"])
def test_the_last_checkpoint_of_a_run_that_trains_a_backbone_is_what_it_exported(method, micro, tmp_path, monkeypatch):
    pretrained = dict(backbone="builtin:none", pretrain__size="micro") if method == "pretrain" else {}
    monkeypatch.setitem(SIZES, "micro", (world.FEATURES, world.GEOMETRY))
    done = world.train(micro.config(method=method, steps=2, **pretrained), tmp_path / "W")
    assert done.status == 0
    own = {path.name: path.read_bytes() for path in (done.workdir / "backbone").iterdir()}
    for name in ["as exported", *(["of the texts"] if pretrained else [])]:
        out = tmp_path / name
        assert export_checkpoint(done.workdir, out) == (2, [])
        assert {path.name: path.read_bytes() for path in out.iterdir()} == own
        # Without what the run has exported the vocabulary of a new backbone is made of the texts again.
        shutil.rmtree(done.workdir / "backbone", ignore_errors=True)
    with pytest.raises(UserError, match="--rename='a=b' has no use with method"):
        export_checkpoint(done.workdir, tmp_path / "other", renames=["a=b"])
