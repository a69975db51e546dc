"""The look before a run: what it leaves alone, what it finds, and the status that it ends with."""

import concurrent.futures
import hashlib
import subprocess
import sys
import threading

import pytest
from etils import epath
from reference import launching
from reference import micro as world

from hra_jax import check
from hra_jax.check import Finding
from hra_jax.config.files import config_to_json, load_config
from hra_jax.errors import UserError
from hra_jax.storage import files, locks, remote

CHECK = "hra_jax.check"


@pytest.fixture(scope="module")
def config():
    return load_config("fsdd")


def everything(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_work_directory_is_written_read_listed_and_left_as_it_was(tmp_path, config, gcs_storage):
    (tmp_path / "W").mkdir()
    for folder in (tmp_path / "W", tmp_path / "new" / "folders" / "W", "gs://bucket/runs/W"):
        (finding,), resumed = check.check_workdir(config, folder)
        assert finding.state == "ok" and all(act in finding.found for act in ("written", "read", "listed", "removed"))
        assert not resumed
    assert everything(tmp_path) == ["W"]
    assert not epath.Path("gs://bucket/runs").exists()  # no mark of a folder either


def test_trouble_with_a_work_directory_is_named(tmp_path, config, gcs_storage, monkeypatch):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine" / "eval").mkdir(parents=True)
    (tmp_path / "mine" / "eval" / "notes").write_text("mine")
    cases = [(tmp_path / "file", "wrong", ""), (tmp_path / "mine", "wrong", "holds 'eval'"), ("", "wrong", "''")]
    cases += [("gs://nobucket/W", "wrong", "nobucket")]
    for folder, state, told in cases:
        (finding,), _ = check.check_workdir(config, folder)
        assert finding.state == state and told in finding.found, finding
    gcs_storage.fail()
    (finding,), _ = check.check_workdir(config, "gs://bucket/W")
    assert finding.state == "away" and "does not answer" in finding.found


def test_a_work_directory_that_training_would_refuse_is_wrong_and_one_that_goes_on_is_not(tmp_path, config):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(config_to_json(config), encoding="utf-8")
    before = everything(tmp_path)
    (finding,), resumed = check.check_workdir(config, tmp_path)
    assert finding.state == "ok" and resumed
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.seed = 7
    (finding,), _ = check.check_workdir(other, tmp_path)
    assert finding.state == "wrong" and "another configuration: seed: " in finding.found
    assert everything(tmp_path) == before
    owner = locks._this_process("training") | {"process": 1, "started": locks._started(1)}
    (tmp_path / ".lock").write_bytes(locks._content(owner, 0))
    (finding,), _ = check.check_workdir(config, tmp_path)
    assert finding.state == "wrong" and "is in use: 'training', process '1'" in finding.found
    (tmp_path / ".lock").write_bytes(locks._content(owner | {"started": "0"}, 0))  # one that is dead
    (finding,), _ = check.check_workdir(config, tmp_path)
    assert finding.state == "ok"
    assert everything(tmp_path) == sorted([*before, ".lock"])


@pytest.mark.parametrize("resumed", [False, True])
def test_only_a_run_that_begins_is_held_up_by_what_goes_wrong_after_its_end(tmp_path, config, monkeypatch, resumed):
    if resumed:
        (tmp_path / "checkpoints" / "3").mkdir(parents=True)
        (tmp_path / "config.json").write_text(config_to_json(config), encoding="utf-8")

    def survey(config, workdir, report, *, begins):
        raise UserError(f"begins: {begins}")

    monkeypatch.setattr(check, "survey", survey)
    with pytest.raises(UserError, match=f"begins: {not resumed}"):
        check.check(config, tmp_path)


def test_a_lock_of_another_machine_is_watched_until_its_owner_would_have_renewed_it(tmp_path, monkeypatch):
    monkeypatch.setitem(locks.RENEW_SECONDS, False, 0.2)
    owner = locks._this_process("training") | {"machine": "another"}
    (tmp_path / ".lock").write_bytes(locks._content(owner, 0))
    locks.check_free(tmp_path)  # nobody renews it
    renewal = threading.Timer(0.1, (tmp_path / ".lock").write_bytes, [locks._content(owner, 1)])
    renewal.start()
    with pytest.raises(UserError, match="is in use"):
        locks.check_free(tmp_path)
    renewal.join()


def test_a_process_with_other_storage_than_the_first_one_says_so(tmp_path):
    probe = check.new_probe(tmp_path / "W" / "shared")
    files.write_file(probe.path, probe.content)
    digest = hashlib.sha256(probe.content).hexdigest()
    assert len(check.find_probe(probe.path, digest, writes=True)) == 4
    with pytest.raises(UserError, match="what process 0 wrote there cannot be read; allowed: storage that all"):
        check.find_probe(tmp_path / "other" / probe.path.name, digest, writes=True)
    with pytest.raises(UserError, match="what process 0 wrote there cannot be read; allowed: storage that all"):
        check.find_probe(probe.path, "0", writes=True)
    assert everything(tmp_path) == ["W", "W/shared", f"W/shared/{probe.path.name}"]
    (tmp_path / "W" / "of another run").touch()
    check.remove_probe(probe)
    assert everything(tmp_path) == ["W", "W/of another run"]


def test_processes_that_look_together_leave_no_folder_that_was_not_there(tmp_path, config, monkeypatch):
    """Threads in place of processes, which look at one folder as fast as they can."""
    here, together, told = threading.local(), threading.Barrier(2), {}

    def gather(value):
        told[here.number] = value
        together.wait()
        found = [told[number] for number in range(2)]
        together.wait()
        return found

    def look(number: int, folder) -> list[Finding]:
        here.number = number
        return check.check_workdir(config, folder)[0]

    monkeypatch.setattr(check.agreement, "gather", gather)
    monkeypatch.setattr(check.jax, "process_index", lambda: here.number)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for turn in range(20):
            found = list(pool.map(look, range(2), [tmp_path / "runs" / str(turn)] * 2))
            assert [finding.state for (finding,) in found] == ["ok", "ok"], found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["ok", "slow"], 0),
        (["ok", "away"], 75),
        (["wrong", "away"], 2),
    ],
)
def test_the_status_says_whether_the_same_command_may_help(states, status, capsys):
    found = [[Finding("decoding", f"as {state} as ever", state)] for state in states]
    assert check.print_table(found) == status
    shown = capsys.readouterr().out
    assert all(f"as {state} as ever" in shown for state in states) and "decoding (process 1)" in shown


@pytest.mark.slow(minutes=0.5)
def test_one_process_finds_all_well_and_names_what_training_would_refuse(micro, tmp_path, command_env):
    config = micro.config(eval__suite=micro.suite("test"), eval__select_suite=micro.suite("validation"))
    words = [sys.executable, "-m", CHECK, "--config", world.write_config(tmp_path / "c.py", config)]
    words += ["--workdir", str(tmp_path / "W")]
    done = subprocess.run(words, env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for what in ("work directory", "devices", "sum over all devices", "a small step", "data", "decoding"):
        assert f"{what} " in done.stdout
    assert "12 utterances of 3 tasks" in done.stdout and not (tmp_path / "W").exists()
    wrong = ["--config.data.sources=(('micro', '{dir}/none.jsonl', 1.0),)"]
    done = subprocess.run([*words, *wrong], env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "none.jsonl" in done.stderr and "work directory" in done.stdout
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow(minutes=0.5)
def test_two_processes_look_together(micro, tmp_path, command_env):
    file = world.write_config(tmp_path / "c.py", micro.config(**launching.SETTINGS))
    words = [CHECK, "--config", file, "--workdir", tmp_path / "runs" / "W"]
    done = launching.run(words, folder=tmp_path / "two", env=command_env, processes=2, devices=2)
    assert "4 x cpu; processes: 2" in done.printed and done.printed.count("work directory") == 1
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    words = [CHECK, "--config", file, "--workdir", tmp_path / "file"]
    settings = dict(env=command_env, processes=2, devices=2)
    with launching.Launched(words, folder=tmp_path / "wrong", **settings) as launched:
        assert launched.wait(60) == 2, launched.said()
    assert "work directory (process 0)" in launched.printed
