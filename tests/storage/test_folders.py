"""Folders that are replaced whole."""

import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
from reference.full_disk import no_file_larger_than

from hra_jax.errors import UserError
from hra_jax.storage import folders, locks
from hra_jax.storage.files import write_file
from hra_jax.storage.folders import recover, replace_folder

KILLED = """
import os, signal, sys
from hra_jax.storage import folders
folder, act, exchanges = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
if not exchanges:
    folders.exchange_names = lambda first, second: False
acts = []
for module, name in ((folders, "rename_folder"), (folders, "remove_folder"), (folders, "exchange_names"),
                     (folders, "sync_tree"), (os, "mkdir")):
    def wrapped(*arguments, original=getattr(module, name), **keywords):
        if len(acts) == act:
            os.kill(os.getpid(), signal.SIGKILL)
        acts.append(None)
        return original(*arguments, **keywords)
    setattr(module, name, wrapped)
def write(fresh):
    for name in ("a", "b"):
        (fresh / name).write_text("new")
folders.replace_folder(folder, write)
print(len(acts))
"""


def fill(folder, content: str):
    def write(fresh):
        for name in ("a", "b"):
            (fresh / name).write_text(content)

    replace_folder(folder, write)


def contents(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def exchanges(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(folders, "exchange_names", lambda first, second: False)
    return request.param


def test_a_new_folder_and_then_another_in_its_place_with_nothing_beside_it(tmp_path, exchanges):
    for content in ("old", "new"):
        fill(tmp_path / "some" / "folder", content)
        assert contents(tmp_path / "some" / "folder") == {"a": content, "b": content}
        assert [path.name for path in (tmp_path / "some").iterdir()] == ["folder"]


def test_the_error_of_a_full_disk_names_the_file_where_it_would_have_been(tmp_path):
    with no_file_larger_than(1000), pytest.raises(OSError, match="File too large") as error:
        replace_folder(tmp_path / "F", lambda fresh: write_file(fresh / "a" / "b", b"x" * 2000))
    assert error.value.filename == str(tmp_path / "F" / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_folder_as_it_was(tmp_path, exchanges):
    def fail(fresh):
        (fresh / "a").write_text("half")
        raise OSError(28, "No space left on device")

    for there in (False, True):
        with pytest.raises(OSError, match="No space"):
            replace_folder(tmp_path / "folder", fail)
        assert [path.name for path in tmp_path.iterdir()] == (["folder"] if there else [])
        fill(tmp_path / "folder", "old")
    assert contents(tmp_path / "folder") == {"a": "old", "b": "old"}


def test_files_that_are_not_rewritten_and_the_mode_of_the_folder_stay(tmp_path, exchanges):
    fill(tmp_path / "folder", "old")
    (tmp_path / "folder" / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "notes" / "deep" / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "folder" / "notes" / "deep" / "mine").chmod(0o400)
    (tmp_path / "folder" / "empty").mkdir()
    (tmp_path / "folder" / "gone").mkdir()
    (tmp_path / "folder" / "gone" / "b").write_text("old", encoding="utf-8")
    (tmp_path / "folder").chmod(0o710)
    rewritten = {"a", "b", "gone/b"}
    replace_folder(tmp_path / "folder", lambda fresh: (fresh / "a").write_text("new"), rewritten=rewritten.__contains__)
    assert contents(tmp_path / "folder") == {"a": "new", "notes/deep/mine": "mine"}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"a", "notes", "empty"}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o710
    assert stat.S_IMODE((tmp_path / "folder" / "notes" / "deep" / "mine").stat().st_mode) == 0o400


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_files_that_are_rewritten_keep_their_permissions_and_are_at_no_moment_open_to_others(tmp_path, mode, exchanges):
    fill(tmp_path / "folder", "old")
    (tmp_path / "folder" / "a").chmod(mode)
    seen = []

    def write(fresh):
        seen.append(stat.S_IMODE(os.stat(fresh).st_mode))
        for name in ("a", "c"):
            (fresh / name).write_text("new")

    replace_folder(tmp_path / "folder", write)
    assert seen == [0o700] and contents(tmp_path / "folder") == {"a": "new", "c": "new"}
    (tmp_path / "plain").touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder").iterdir()}
    assert modes == {"a": mode, "c": stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


@pytest.mark.parametrize("name", ["a", "other", "inside/other"])
@pytest.mark.parametrize("target", ["secret", "nowhere", "../outside"])
def test_links_in_a_folder_that_is_rewritten_are_refused(tmp_path, name, target):
    (tmp_path / "outside").mkdir()
    fill(tmp_path / "folder", "old")
    (tmp_path / "folder" / "inside").mkdir()
    (tmp_path / "folder" / name).unlink(missing_ok=True)
    (tmp_path / "folder" / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name}' is a link"):
        replace_folder(tmp_path / "folder", lambda fresh: None, rewritten=lambda name: name == "a")
    assert (tmp_path / "folder" / name).is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "outside"}


def test_a_link_to_the_folder_stays_one(tmp_path, exchanges):
    fill(tmp_path / "disk" / "folder", "old")
    (tmp_path / "link").symlink_to("disk/folder")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "disk" / "folder")["a"] == "new"


def test_readers_find_one_of_the_two_folders_at_any_moment(tmp_path):
    fill(tmp_path / "folder", "old")
    if not folders.exchange_names(tmp_path / "folder", tmp_path / "folder") and sys.platform != "linux":
        pytest.skip("this system cannot exchange folders")
    writer = threading.Thread(target=lambda: [fill(tmp_path / "folder", f"{number}") for number in range(30)])
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(os.path.exists(tmp_path / "folder" / "a"))
    writer.join()
    assert seen <= {True}


@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_kill_at_any_act_leaves_the_old_or_the_new_folder_once_it_is_recovered(
    tmp_path, command_env, exchanged, there
):
    outcomes, act = set(), 0
    while True:
        place = tmp_path / f"{act}"
        place.mkdir()
        if there:
            fill(place / "folder", "old")
        command = [sys.executable, "-c", KILLED, str(place / "folder"), str(act), str(exchanged)]
        done = subprocess.run(command, env=command_env, capture_output=True, text=True, check=False)
        with locks.hold_beside(place / "folder", "recovery"):
            recover(place / "folder")
        names = [path.name for path in place.iterdir()]
        found = contents(place / "folder") if names else {}
        assert names in (["folder"], [] if not there else ["folder"]), names
        assert found in ({"a": "old", "b": "old"} if there else {}, {"a": "new", "b": "new"})
        outcomes.add(found.get("a"))
        if done.returncode == 0:
            break
        act += 1
    assert outcomes == {"new", "old" if there else None} and act > 2


def test_recovery_takes_no_link_and_no_stranger_s_folder_for_a_copy(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / f".folder.old-{'0' * 16}").symlink_to("secret")
    (tmp_path / ".folder.old-mine").mkdir()
    (tmp_path / f".other.old-{'0' * 16}").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    recover(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_another_process_removed_while_it_was_written_takes_no_place(tmp_path, exchanges):
    fill(tmp_path / "folder", "old")

    def write(fresh):
        (fresh / "a").write_text("new")
        shutil.rmtree(fresh)  # as `recover` does in a process that does not hold the lock
        write_file(fresh / "b", "new")

    with pytest.raises(UserError, match="another process has removed"):
        replace_folder(tmp_path / "folder", write)
    assert contents(tmp_path / "folder") == {"a": "old", "b": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "folder").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="folder' is there and is no folder"):
        fill(tmp_path / "folder", "new")
    assert (tmp_path / "folder").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("copies", [["old"], ["old", "new"]])
def test_a_folder_that_a_kill_left_between_two_renames_is_put_back_for_readers(tmp_path, copies):
    for kind in copies:
        fill(tmp_path / f".a.{kind}-{'0' * 16}", kind)
    with locks.hold_beside(tmp_path / "a", "tasks add"):
        pass  # it is over
    folders.put_back(tmp_path / "a")
    assert contents(tmp_path) == {"a/a": copies[-1], "a/b": copies[-1]}
    folders.put_back(tmp_path / "a")
    folders.put_back(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_readers_take_nothing_from_who_is_at_it(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_RENAMES_SECONDS", 0.2)
    fill(tmp_path / f".a.old-{'0' * 16}", "old")
    (tmp_path / ".a.lock").mkdir()  # no lock can be had
    with pytest.raises(UserError, match=r"/a' is gone: a process .* '.*/\.a\.old-0{16}' is what it was$"):
        folders.put_back(tmp_path / "a")
    assert contents(tmp_path) == {f".a.old-{'0' * 16}/{name}": "old" for name in "ab"}


def test_readers_wait_for_a_second_rename(tmp_path):
    fill(tmp_path / f".a.old-{'0' * 16}", "old")
    fill(tmp_path / f".a.new-{'0' * 16}", "new")
    (tmp_path / ".a.lock").mkdir()  # somebody has the lock
    second = threading.Timer(0.3, lambda: (tmp_path / f".a.new-{'0' * 16}").rename(tmp_path / "a"))
    second.start()
    folders.put_back(tmp_path / "a")
    second.join()
    assert (tmp_path / "a" / "b").read_text() == "new"


def test_a_folder_is_replaced_under_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "exchange_names", lambda first, second: False)
    rename, held = folders.rename_folder, []

    def looked_at(*names):
        held.append((tmp_path / ".a.lock").exists())
        rename(*names)

    monkeypatch.setattr(folders, "rename_folder", looked_at)
    for content in ("old", "new"):
        fill(tmp_path / "a", content)
    assert held == [True] * 3 and not (tmp_path / ".a.lock").exists()
    assert contents(tmp_path) == {"a/a": "new", "a/b": "new"}
