"""Whose a work directory is, and who may write there."""

import json
import shutil
from pathlib import Path

import pytest
from reference import endless

from hra_jax.config.files import config_to_json, load_config
from hra_jax.errors import UserError
from hra_jax.run import own_exports, workdirs
from hra_jax.storage import checksums, locks

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture(scope="module")
def config():
    return load_config("fsdd")


def claimed(config, folder) -> workdirs.Claimed:
    with workdirs.claim(config, folder) as found:
        return found


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content", ["{}", '{"model_type": "bert"}', "[]", "", "{", '{"method": "adapter", "steps": 1}', '{"format": 2}']
)
def test_a_configuration_that_is_no_run_s_is_left_as_it_is(tmp_path, config, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="holds a config.json that is no configuration of a run"):
        claimed(config, tmp_path)
    assert tree(tmp_path) == {"config.json": content.encode()}


@pytest.mark.parametrize("name", [name for name in workdirs.WRITTEN if name not in ("config.json", "manifest.jsonl")])
def test_a_folder_of_another_kind_that_has_a_name_of_ours_is_left_as_it_is(tmp_path, config, name):
    path = tmp_path / name if "." in name else tmp_path / name / "mine.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine", encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"holds '{name}' and no config.json of a run"):
        claimed(config, tmp_path)
    assert tree(tmp_path) == before


def test_new_empty_and_own_folders_are_taken_and_other_files_are_no_obstacle(tmp_path, config):
    (tmp_path / "W").mkdir()
    (tmp_path / "W" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "W" / "checkpoints").mkdir()
    for _ in range(2):
        assert claimed(config, tmp_path / "W")[:2] == (tmp_path / "W", False)
    assert tree(tmp_path / "W") == {"notes.txt": b"mine", "config.json": config_to_json(config).encode()}
    # Nothing is there to be continued, so another configuration mends a first start that failed.
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.seed = 7
    claimed(other, tmp_path / "W")
    (tmp_path / "W" / "checkpoints" / "3").mkdir()
    assert claimed(other, tmp_path / "W").resumed
    with pytest.raises(UserError, match="another configuration: seed: 7 -> "):
        claimed(config, tmp_path / "W")


def test_work_directories_of_earlier_versions_are_runs(tmp_path):
    shutil.copytree(FIXTURES / "workdir", tmp_path / "W")
    workdirs.check_ours(tmp_path / "W")


def test_a_folder_without_a_name_and_a_file_are_refused(tmp_path, config):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="workdir = ''; allowed"):
        claimed(config, "")
    with pytest.raises(UserError, match="cannot be written"):
        claimed(config, tmp_path / "file")


@pytest.mark.parametrize("name", [*workdirs.WRITTEN, "eval/test", "eval/test/report.md", "checkpoints/3", "adapter/x"])
@pytest.mark.parametrize("target", ["kept", "nowhere"])
def test_links_in_the_place_of_what_is_written_are_refused_and_not_followed(tmp_path, config, name, target):
    (tmp_path / "kept").mkdir()
    claimed(config, tmp_path / "W")
    (tmp_path / "W" / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / "W" / name).unlink(missing_ok=True)
    (tmp_path / "W" / name).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"is a link|no config\.json of a run|holds a config\.json"):
        claimed(config, tmp_path / "W")
    assert (tmp_path / "W" / name).is_symlink()
    assert not list((tmp_path / "kept").iterdir()) and not (tmp_path / "nowhere").exists()


def test_names_that_look_like_steps_are_none(tmp_path, config):
    for name in ("²", "٣", "-1", "1e3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="holds 'checkpoints' and no config.json"):
        claimed(config, tmp_path)


def test_a_work_directory_is_held_until_the_end_and_may_itself_be_a_link(tmp_path, config):
    (tmp_path / "disk").mkdir()
    (tmp_path / "W").symlink_to("disk")
    with workdirs.claim(config, tmp_path / "W"):
        found = locks._read(locks.epath.Path(tmp_path / "disk" / ".lock"))
        assert found.owner["what"] == "training"
    assert not (tmp_path / "disk" / ".lock").exists()


def test_what_cannot_be_written_is_one_line(tmp_path, config):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/W': cannot be written \(Not a directory\)"):
        claimed(config, tmp_path / "file" / "W")


# --- What is listed of a finished run --------------------------------------------------------------------------------


def faults(workdir) -> dict[str, str]:
    found = checksums.check_listing(workdir)
    assert found is not None
    return {name: fault for name, fault in found.items() if fault}


@pytest.fixture
def finished(tmp_path):
    """A work directory with files of a run, of a sweep and of the user."""
    for name in (*OWN, "sweep.json", "output.txt", "notes.txt", "eval/test/notes.txt", "eval/notes.txt", "mine/x"):
        (tmp_path / "W" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "W" / name).write_text("first", encoding="utf-8")
    workdirs.list_files(tmp_path / "W")
    return tmp_path / "W"


OWN = ("config.json", "data_report.json", "metrics.jsonl", "metrics/events", "exported.json", "eval/test/results.json")


def test_only_what_a_run_itself_writes_is_listed(finished):
    assert set(json.loads((finished / "files.json").read_text())["files"]) == set(OWN)
    for name in ("sweep.json", "output.txt", "notes.txt", "eval/test/notes.txt", "eval/notes.txt", "mine/x"):
        (finished / name).write_text("second", encoding="utf-8")
    assert not faults(finished)
    for name in OWN:
        (finished / name).write_text("third", encoding="utf-8")
    assert set(faults(finished)) == set(OWN)
    assert not [path for path in finished.iterdir() if path.name.startswith(".")]


def test_the_listing_follows_an_evaluation_whatever_happens_meanwhile(finished, config):
    def evaluate(meanwhile=lambda: None):
        with workdirs.changing_files(finished):
            meanwhile()
            (finished / "data_report.json").write_text("changed", encoding="utf-8")

    def fail():
        (finished / "eval/test/results.json").write_text("changed", encoding="utf-8")
        raise UserError("no such suite")

    evaluate()
    assert not faults(finished)
    with pytest.raises(UserError, match="no such suite"):
        evaluate(fail)
    assert not faults(finished)
    # A training ends while the evaluation goes on, which began before there was a listing.
    (finished / "files.json").unlink()
    evaluate(lambda: workdirs.list_files(finished))
    assert not faults(finished)
    # A training has begun: what it writes from now on would be taken for damage.
    with locks.hold(finished, "training"):
        evaluate()
    assert not (finished / "files.json").exists()
    evaluate()
    assert not (finished / "files.json").exists()


# --- What a run exports -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Exports an adapter of these bytes to the work directory; whether it did."""

    def export(content: str, tasks=("ann", "bob")) -> bool:
        def write(fresh):
            for name in ("adapter_model.safetensors", "README.md", "adapter_config.json"):
                (fresh / name).write_text(content)
            (fresh / "tasks.json").write_text(json.dumps({"tasks": [{"name": name} for name in tasks]}))

        return own_exports.replace_adapter(tmp_path, write, tasks=tasks)

    return export


def test_a_run_replaces_what_it_has_exported_and_nothing_that_was_changed_since(tmp_path, run):
    assert run("one") and run("two") and run("two")
    (tmp_path / "adapter" / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("three")
    (tmp_path / "adapter" / "tasks.json").write_text("changed", encoding="utf-8")
    before = tree(tmp_path / "adapter")
    assert not run("four") and tree(tmp_path / "adapter") == before and before["notes.txt"] == b"mine"
    shutil.rmtree(tmp_path / "adapter")
    assert run("five")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "exported.json"}


def test_an_adapter_of_which_no_hash_was_kept_is_the_run_s_where_it_has_its_tasks(tmp_path, run):
    assert run("one")
    (tmp_path / "exported.json").unlink()
    assert run("two")
    (tmp_path / "exported.json").unlink()
    assert not run("three", tasks=("ann",))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"adapter": 3, "unfinished": false}'])
def test_a_damaged_note_costs_no_export(tmp_path, run, content, capsys):
    assert run("one")
    (tmp_path / "exported.json").write_text(content, encoding="utf-8")
    assert run("two") and "exported.json" in capsys.readouterr().out
    assert run("three")


@pytest.mark.parametrize("part", ["before the exchange", "before the last note"])
def test_a_run_that_was_killed_while_it_exported_exports_again(tmp_path, run, monkeypatch, part):
    assert run("one")

    def die(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if part == "before the exchange":
            patch.setattr(own_exports.folders, "exchange_names", die)
        else:
            patch.setattr(own_exports, "content_hash", _second_time(own_exports.content_hash, die, times=3))
        with pytest.raises(KeyboardInterrupt):
            run("two")
    assert run("two") and run("three")


def _second_time(function, other, *, times: int):
    """A function that does something else when it is called for the `times`-th time."""
    calls = []

    def called(*arguments):
        calls.append(None)
        return (other if len(calls) == times else function)(*arguments)

    return called


def test_no_adapter_is_exported_through_a_link(tmp_path, run):
    (tmp_path / "kept").mkdir()
    (tmp_path / "adapter").symlink_to("kept")
    with pytest.raises(UserError, match="is a link"):
        run("one")
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("kind", endless.KINDS)
def test_an_adapter_with_a_file_without_an_end_is_no_longer_the_run_s_and_nobody_waits_for_it(tmp_path, run, kind):
    assert run("one")
    endless.put(tmp_path / "adapter" / "README.md", kind)
    with endless.bounded():
        assert not run("two")


def test_fewer_steps_than_the_run_has_had_are_refused_and_not_stored(tmp_path, config):
    claimed(config, tmp_path)
    (tmp_path / "checkpoints" / "500").mkdir(parents=True)
    fewer = config.copy_and_resolve_references()
    with fewer.unlocked():
        fewer.steps = 499
    before = tree(tmp_path)
    with pytest.raises(UserError, match="steps = 499: the run is already at step 500; allowed is 500 or more"):
        claimed(fewer, tmp_path)
    assert tree(tmp_path) == before
    with fewer.unlocked():
        fewer.steps = 500
    assert claimed(fewer, tmp_path).resumed
