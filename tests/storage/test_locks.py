"""One process at a time holds a lock; those of the dead are taken over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from reference.full_disk import no_file_larger_than

from hra_jax.errors import UserError
from hra_jax.storage import locks

HOLDER = """
import sys, time
from hra_jax.storage import locks
with locks.hold(sys.argv[1], "the other"):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys
from hra_jax.errors import UserError
from hra_jax.storage import locks
done = 0
while done < 40:
    try:
        with locks.hold_beside(sys.argv[1] + "/count", "counting"):
            with open(sys.argv[1] + "/count", encoding="utf-8") as file: number = int(file.read())
            with open(sys.argv[1] + "/count", "w", encoding="utf-8") as file: file.write(str(number + 1))
            done += 1
    except UserError:
        pass
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "RENEW_SECONDS", {False: 0.02, True: 0.02})
    monkeypatch.setattr(locks, "STALE_SECONDS", {False: 0.3, True: 0.3})
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.01)


def python(code: str, *arguments: object, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def started(folder, env) -> subprocess.Popen:
    process = python(HOLDER, folder, env=env)
    assert process.stdout.readline() == "held\n"
    return process


def store(folder, **owner) -> None:
    """A lock of an owner of which only so much is known."""
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(json.dumps(owner) + f"\n{0:016d}\n", encoding="utf-8")


def another_process(what: str) -> dict[str, object]:
    """An owner that lives on this machine for as long as the test does."""
    return locks._this_process(what) | {"process": os.getppid(), "started": locks._started(os.getppid())}


def take_at_once(take, path, owners, folder):
    """Has all owners take a lock in the same moment; what the lock is held for by who got it, and the errors."""
    taken, refused, barrier = [], [], threading.Barrier(len(owners))

    def try_to(owner):
        barrier.wait()
        try:
            take(path, owner, folder)
            taken.append(owner["what"])
        except (UserError, OSError) as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_to, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, refused


def test_a_lock_is_there_while_it_is_held_again_within_the_process_and_gone_afterwards(tmp_path):
    with locks.hold(tmp_path / "W", "one"):
        with locks.hold(tmp_path / "W", "two"):
            pass
        assert [path.name for path in (tmp_path / "W").iterdir()] == [".lock"]
    with locks.hold_beside(tmp_path / "A", "three"):
        assert {path.name for path in tmp_path.iterdir()} == {"W", ".A.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"W"} and not list((tmp_path / "W").iterdir())


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, command_env):
    process = started(tmp_path, command_env)
    with (
        pytest.raises(UserError, match=f"in use: 'the other', process '{process.pid}' on ") as caught,
        locks.hold(tmp_path, "this one"),
    ):
        pass
    assert "\n" not in str(caught.value)
    process.communicate()
    with locks.hold(tmp_path, "this one"):
        pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path, command_env):
    process = started(tmp_path, command_env)
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()
    begin = time.monotonic()
    with locks.hold(tmp_path, "this one"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text(encoding="utf-8")
    assert time.monotonic() - begin < 0.2


def test_who_is_patient_waits_for_the_end_of_the_first_and_says_so(tmp_path, command_env, capsys):
    process = started(tmp_path, command_env)
    ending = threading.Timer(0.2, process.stdin.close)
    ending.start()
    with locks.hold(tmp_path, "this one", patient=True):
        assert process.wait(5) == 0
    assert "waiting: " in capsys.readouterr().err


def test_a_number_that_another_process_has_got_is_no_sign_of_life(tmp_path):
    here = locks._this_process("x")
    store(tmp_path, **here | {"process": os.getppid(), "started": "1"})
    with locks.hold(tmp_path, "this one"):
        assert locks._read(epath.Path(tmp_path / ".lock")).owner["what"] == "this one"


def test_the_owner_on_another_machine_is_dead_when_it_is_seen_not_to_renew(tmp_path, monkeypatch, capsys):
    store(tmp_path, **locks._this_process("x") | {"machine": "another", "host": "far"})
    # Its clock does not count.
    os.utime(tmp_path / ".lock", (2**33, 2**33))
    begin = time.monotonic()
    with locks.hold(tmp_path, "this one"):
        assert 0.3 <= time.monotonic() - begin < 2
    told = capsys.readouterr().err
    assert "'far'; waiting up to 0 s" in told and "counts as dead" in told and told.count("\n") == 1


def test_the_owner_on_another_machine_is_alive_when_it_renews(tmp_path):
    owner = locks._this_process("far away") | {"machine": "another"}
    store(tmp_path, **owner)
    os.utime(tmp_path / ".lock", (0, 0))
    other = locks.Lock(epath.Path(tmp_path / ".lock"), owner)
    other.start()
    with pytest.raises(UserError, match="in use: 'far away'"), locks.hold(tmp_path, "this one"):
        pass
    other.release()
    with locks.hold(tmp_path, "this one"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"\xff", b"[" * 3000, b'{"token": NaN}', b"{}" + b" " * 9000])
def test_a_lock_that_cannot_be_read_is_one_that_nobody_renews(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with locks.hold(tmp_path, "this one"):
        assert b"this one" in (tmp_path / ".lock").read_bytes()


def test_a_link_or_folder_in_the_place_of_a_lock_is_refused_and_not_followed(tmp_path):
    (tmp_path / "secret").write_text("kept", encoding="utf-8")
    for make in ((lambda path: path.symlink_to("secret")), (lambda path: path.mkdir())):
        make(tmp_path / ".lock")
        with pytest.raises(UserError, match="no regular file"), locks.hold(tmp_path, "x"):
            pass
        (tmp_path / ".lock").unlink() if (tmp_path / ".lock").is_symlink() else (tmp_path / ".lock").rmdir()
    assert (tmp_path / "secret").read_text(encoding="utf-8") == "kept"


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path, monkeypatch):
    store(tmp_path, **locks._this_process("x") | {"process": 2**22 + 1})
    monkeypatch.setattr(locks, "_held", {})
    owners = [another_process(f"{number}") for number in range(8)]
    taken, refused = take_at_once(locks._take_local, epath.Path(tmp_path / ".lock"), owners, tmp_path)
    assert len(taken) == 1 and len(refused) == 7 and all("in use" in line for line in refused)
    assert json.loads((tmp_path / ".lock").read_text(encoding="utf-8").splitlines()[0])["what"] == taken[0]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_nothing_is_counted_twice_by_processes_that_take_turns(tmp_path, command_env):
    (tmp_path / "count").write_text("0", encoding="utf-8")
    processes = [python(COUNTER, tmp_path, env=command_env) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text(encoding="utf-8") == "120"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_who_stood_still_and_lost_its_lock_is_told_and_leaves_the_new_one_alone(tmp_path):
    with locks.hold(tmp_path, "this one") as lock:
        lock.check()
        store(tmp_path, **locks._this_process("the next"))
        end = time.monotonic() + 5
        while time.monotonic() < end and lock._thread.is_alive():
            time.sleep(0.01)
        with pytest.raises(UserError, match="taken this lock over"):
            lock.check()
    assert "the next" in (tmp_path / ".lock").read_text(encoding="utf-8")


def test_a_lock_that_somebody_tidied_away_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE_SECONDS", {False: 60.0, True: 60.0})
    with locks.hold(tmp_path, "this one") as lock:
        (tmp_path / ".lock").unlink()
        end = time.monotonic() + 5
        while time.monotonic() < end and not (tmp_path / ".lock").exists():
            time.sleep(0.01)
        lock.check()
        assert "this one" in (tmp_path / ".lock").read_text(encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_who_stood_still_for_long_and_finds_no_lock_has_lost_it(tmp_path, monkeypatch):
    with locks.hold(tmp_path, "this one") as lock:
        monkeypatch.setattr(locks, "STALE_SECONDS", {False: -1.0, True: -1.0})
        (tmp_path / ".lock").unlink()
        lock._thread.join(5)
        with pytest.raises(UserError, match="taken this lock over"):
            lock.check()


def test_a_lock_is_given_up_at_the_end_of_a_process_that_is_told_to_end(tmp_path, command_env):
    process = started(tmp_path, command_env)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert not (tmp_path / ".lock").exists()


def test_file_systems_without_second_names_get_a_lock_too(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(locks.os, "link", refuse)
    owner = locks._this_process("x")
    assert locks._made(epath.Path(tmp_path / ".lock"), locks._content(owner, 0))
    assert not locks._made(epath.Path(tmp_path / ".lock"), b"another")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert locks._read(epath.Path(tmp_path / ".lock")).token == owner["token"]


def test_on_an_object_store_the_last_writer_has_the_lock_and_the_others_see_it(tmp_path):
    """The acts of an object store, which are files written and read whole, on those of a disk."""
    path, owners = epath.Path(tmp_path / ".lock"), [another_process(f"{number}") for number in range(5)]
    taken, refused = take_at_once(locks._take_remote, path, owners, tmp_path)
    assert len(taken) == 1 and len(refused) == 4 and all("in use" in line for line in refused)
    assert locks._read(path).owner["what"] == taken[0]
    with pytest.raises(UserError, match="in use"):
        locks._take_remote(path, another_process("late"), tmp_path)


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "object store"])
def test_who_is_interrupted_while_taking_a_lock_leaves_none(tmp_path, monkeypatch, remote):
    def interrupt(*_):
        assert (tmp_path / ".lock").exists()
        raise KeyboardInterrupt

    if remote:
        monkeypatch.setattr(locks, "_take_local", locks._take_remote)  # its acts, on a disk
        monkeypatch.setattr(locks.time, "sleep", interrupt)
    else:
        monkeypatch.setattr(locks, "_remove_leftovers", interrupt)
    with pytest.raises(KeyboardInterrupt), locks.hold(tmp_path, "this one"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_of_this_process_that_it_does_not_hold_is_taken_over_at_once(tmp_path):
    store(tmp_path / "W", **locks._this_process("interrupted"))
    with locks.hold(tmp_path / "W", "again") as lock:
        # One that it does hold is not, by whatever name the folder has.
        (tmp_path / "V").mkdir()
        shutil.copy(tmp_path / "W" / ".lock", tmp_path / "V" / ".lock")
        with pytest.raises(UserError, match="in use: 'again'"), locks.hold(tmp_path / "V", "and again"):
            pass
        lock.check()


def test_who_waits_with_patience_says_each_thing_once_and_looks_at_a_bucket_seldom(tmp_path, monkeypatch, capsys):
    owner = locks._this_process("far away") | {"machine": "another"}
    store(tmp_path, **owner)
    other = locks.Lock(epath.Path(tmp_path / ".lock"), owner)
    other.start()
    ending = threading.Timer(0.3, other.release)
    ending.start()
    with locks.hold(tmp_path, "this one", patient=True):
        ending.join()
    told = capsys.readouterr().err
    assert told.count("waiting up to") == told.count("waiting: ") == 1
    monkeypatch.setattr(locks, "RENEW_SECONDS", {False: 5.0, True: 20.0})
    assert locks._look_seconds(epath.Path("gs://bucket/W/.lock")) == 5.0


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_that_does_not_fit_on_the_disk_is_none(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(locks, "_made", locks._made_without_links)
    full = no_file_larger_than(100)
    with full, pytest.raises(OSError, match="File too large: .*lock'"), locks.hold(tmp_path, "training"):
        raise AssertionError("it was taken")
    assert not list(tmp_path.iterdir()) and not locks.is_held(tmp_path)
    with locks.hold(tmp_path, "training"):
        assert locks.is_held(tmp_path)
    assert not locks.is_held(tmp_path)
