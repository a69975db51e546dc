"""The look before a run: what it leaves alone, what it finds, and the status that it ends with."""

import concurrent.futures
import subprocess
import sys
import threading

import pytest
from reference import launching
from reference import micro as world

from hra_jax import check
from hra_jax.check import Finding
from hra_jax.storage import remote

CHECK = "hra_jax.check"


def test_a_work_directory_is_written_read_listed_and_left_as_it_was(tmp_path, gcs_storage):
    (tmp_path / "W").mkdir()
    for folder in (tmp_path / "W", tmp_path / "new", "gs://bucket/W"):
        (finding,) = check.check_workdir(folder)
        assert finding.state == "ok" and all(act in finding.found for act in ("written", "read", "listed", "removed"))
    assert list((tmp_path / "W").iterdir()) == [] and not (tmp_path / "new").exists()
    assert gcs_storage.names("gs://bucket/") == []


def test_trouble_with_a_work_directory_is_named(tmp_path, gcs_storage, monkeypatch):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine" / "eval").mkdir(parents=True)
    (tmp_path / "mine" / "eval" / "notes").write_text("mine")
    cases = [(tmp_path / "file", "wrong", ""), (tmp_path / "mine", "wrong", "holds 'eval'"), ("", "wrong", "''")]
    cases += [("gs://nobucket/W", "wrong", "nobucket")]
    for folder, state, told in cases:
        (finding,) = check.check_workdir(folder)
        assert finding.state == state and told in finding.found, finding
    gcs_storage.fail()
    (finding,) = check.check_workdir("gs://bucket/W")
    assert finding.state == "away" and "does not answer" in finding.found


def test_processes_that_look_together_leave_no_folder_that_was_not_there(tmp_path, monkeypatch):
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
        return check.check_workdir(folder)

    monkeypatch.setattr(check.processes, "gather", gather)
    monkeypatch.setattr(check.jax, "process_index", lambda: here.number)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for turn in range(20):
            found = list(pool.map(look, range(2), [tmp_path / str(turn)] * 2))
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
    words = [CHECK, "--config", file, "--workdir", tmp_path / "W"]
    done = launching.run(words, folder=tmp_path / "two", env=command_env, processes=2, devices=2)
    assert "4 x cpu; processes: 2" in done.printed and done.printed.count("work directory") == 1
    assert not (tmp_path / "W").exists()
    (tmp_path / "file").write_text("")
    words = [CHECK, "--config", file, "--workdir", tmp_path / "file"]
    settings = dict(env=command_env, processes=2, devices=2)
    with launching.Launched(words, folder=tmp_path / "wrong", **settings) as launched:
        assert launched.wait(60) == 2, launched.said()
    assert "work directory (process 1)" in launched.printed
