"""Files that are replaced whole."""

import os
import stat
import threading

import pytest
from etils import epath
from reference.full_disk import no_file_larger_than

from hra_jax.errors import UserError
from hra_jax.storage import files
from hra_jax.storage.files import Replacement, remove_leftovers, replaced_name, write_file


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_and_its_folders_appear_with_nothing_beside_them(tmp_path):
    write_file(tmp_path / "a" / "b" / "file", "é\n")
    write_file(tmp_path / "a" / "bytes", b"\xff\x00")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "é\n".encode()
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\xff\x00"
    assert names(tmp_path / "a") == {"b", "bytes"} and names(tmp_path / "a" / "b") == {"file"}


def test_a_new_file_has_the_permissions_that_the_umask_leaves_and_an_old_one_keeps_its_own(tmp_path):
    (tmp_path / "plain").touch()
    write_file(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    for mode in (0o600, 0o640, 0o444, 0o755):
        (tmp_path / "new").chmod(mode)
        write_file(tmp_path / "new", f"{mode}")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
        assert (tmp_path / "new").read_text() == f"{mode}"


def test_links_are_replaced_and_never_written_through(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "file").symlink_to("secret")
    write_file(tmp_path / "file", "new")
    assert (tmp_path / "secret").read_text() == "kept" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    # Even who guesses the temporary name gains nothing.
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / ".file.0000000000000000.tmp").symlink_to("secret")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", "newer")
    assert (tmp_path / "secret").read_text() == "kept" and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "link to a file", "link to a folder", "link to nothing", "pipe", "device"])
def test_what_a_user_names_to_be_written_is_refused_where_it_is_no_file(tmp_path, kind):
    path = tmp_path / "out.json"
    (tmp_path / "file").write_text("kept")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/null"
    else:
        path.symlink_to(tmp_path / {"file": "file", "folder": "", "nothing": "none"}[kind.rpartition(" ")[2]])
    with pytest.raises(UserError, match=rf"^--json='{path}' is .*; allowed: the path of a file to write$"):
        files.check_output(path, name="--json")
    for good in (tmp_path / "file", tmp_path / "new" / "out.json", "gs://bucket/out.json"):
        if not files.is_remote(good):
            files.check_output(good, name="--json")


def test_a_file_may_have_the_longest_name_that_the_disk_takes(tmp_path):
    name = "字" * 83 + ".wavs"  # of 254 bytes
    write_file(tmp_path / name, "whole")
    assert names(tmp_path) == {name}


def test_temporary_names_are_new_each_time(tmp_path):
    found = set()
    for _ in range(20):
        with Replacement(tmp_path / "file"):
            (name,) = names(tmp_path)
            assert replaced_name(name) == "file"
            found.add(name)
    assert len(found) == 20 and not names(tmp_path)


@pytest.mark.parametrize("part", ["write", "close", "commit"])
def test_the_old_content_stays_where_writing_fails(tmp_path, monkeypatch, part):
    write_file(tmp_path / "file", "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    if part == "write":
        monkeypatch.setattr(files, "_NamedFile", fail)
    elif part == "close":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(type(epath.Path(tmp_path)), "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", "new")
    monkeypatch.undo()
    assert names(tmp_path) == {"file"} and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("content", [b"x" * 2000, b"x" * 200_000])  # one that waits in a buffer, one that does not
def test_the_error_of_a_full_disk_names_the_file(tmp_path, content):
    path = tmp_path / "a"
    with no_file_larger_than(1000):
        with pytest.raises(OSError, match="File too large") as replaced:
            files.write_file(path, content)
        growing = files.GrowingFile(tmp_path / "b")
        with pytest.raises(OSError, match="File too large") as grown:
            growing.write(content)
            growing.flush()
    assert (replaced.value.filename, grown.value.filename) == (str(path), str(tmp_path / "b"))
    assert not path.exists()


def test_the_content_is_on_the_disk_before_the_name_is_and_then_the_folder(tmp_path, monkeypatch):
    order, sync = [], os.fsync

    def noted(descriptor):
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        order.append((tmp_path / "file").exists())
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted)
    write_file(tmp_path / "file", "new")
    assert order == ["content", False, "folder", True]
    write_file(tmp_path / "file", "newer", durable=False)
    assert len(order) == 4 and (tmp_path / "file").read_text() == "newer"


def test_readers_see_whole_files_while_writers_replace_them(tmp_path):
    contents = {letter * 200_000 for letter in "abc"}
    write_file(tmp_path / "file", "a" * 200_000)
    writers = [
        threading.Thread(target=lambda c=c: [write_file(tmp_path / "file", c) for _ in range(20)]) for c in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert (tmp_path / "file").read_text() in contents
    assert names(tmp_path) == {"file"}


class Bucket:
    """A path in a bucket, as much of one as a replacement needs; the files lie in a local folder."""

    def __init__(self, local):
        self.local, self.name = local, local.name

    def __fspath__(self) -> str:
        return f"gs://bucket/{self.name}"

    def __truediv__(self, name: str) -> "Bucket":
        return Bucket(self.local / name)

    @property
    def parent(self) -> "Bucket":
        return Bucket(self.local.parent)

    def mkdir(self, **_) -> None: ...

    def open(self, mode: str):
        return self.local.open(mode)

    def write_bytes(self, content: bytes) -> None:
        self.local.write_bytes(content)

    def replace(self, target: "Bucket") -> None:
        self.local.replace(target.local)

    def unlink(self, *, missing_ok: bool) -> None:
        self.local.unlink(missing_ok=missing_ok)


def test_a_file_that_grows_keeps_what_it_holds_and_shows_more_when_it_is_flushed(tmp_path):
    (tmp_path / "file").write_bytes(b"old\n")
    file = files.GrowingFile(tmp_path / "file", content=b"old\n")
    for line in (b"new\n", b"newer\n"):
        file.write(line)
    file.flush_if_cheap()
    assert (tmp_path / "file").read_bytes() == b"old\nnew\nnewer\n"
    file.close()


@pytest.mark.parametrize("target", ["secret", "nowhere"])
def test_a_file_does_not_grow_through_a_link(tmp_path, target):
    (tmp_path / "secret").write_bytes(b"kept")
    (tmp_path / "file").symlink_to(target)
    with pytest.raises(UserError, match="file' is a link"):
        files.GrowingFile(tmp_path / "file")
    assert (tmp_path / "secret").read_bytes() == b"kept" and not (tmp_path / "nowhere").exists()


def test_a_pipe_in_the_place_of_a_file_that_grows_is_refused_without_waiting_for_a_reader(tmp_path):
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match=r"No such device or address|no regular file"):
        files.GrowingFile(tmp_path / "file")


def test_a_file_that_cannot_be_appended_to_is_uploaded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files.epath, "Path", lambda path: path)
    file = files.GrowingFile(Bucket(tmp_path / "file"), content=b"old\n")
    file.write(b"new\n")
    file.flush_if_cheap()
    assert not (tmp_path / "file").exists()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"old\nnew\n"


def test_removing_takes_links_away_and_not_what_they_point_at(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").symlink_to("../kept")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").symlink_to("kept/file")
    files.remove_folder(tmp_path / "folder")
    files.remove_folder(tmp_path / "link")
    files.remove_file(tmp_path / "file")
    files.remove_file(tmp_path / "absent")
    files.remove_folder(tmp_path / "absent")
    assert names(tmp_path) == {"kept"} and (tmp_path / "kept" / "file").read_text(encoding="utf-8") == "kept"


def test_no_folder_is_renamed_onto_anything(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "link"):
        with pytest.raises(FileExistsError):
            files.rename_folder(tmp_path / "folder", tmp_path / name)
    files.rename_folder(tmp_path / "folder", tmp_path / "new")
    assert names(tmp_path) == {"empty", "link", "new"}


def test_names_of_temporary_files_are_told_from_others(tmp_path):
    for name, of in (
        (".a.json.tmp", "a.json"),
        (".a.json.0123456789abcdef.tmp", "a.json"),
        ("a.json.tmp", None),
        (".hidden", None),
        ("a", None),
    ):
        assert replaced_name(name) == of
        (tmp_path / name).touch()
    (tmp_path / ".b.json.tmp").touch()
    remove_leftovers(tmp_path, ("a.json", "a"))
    assert names(tmp_path) == {"a.json.tmp", ".hidden", "a", ".b.json.tmp"}


def test_a_file_that_was_written_again_has_another_stamp_also_by_its_address(tmp_path):
    file = tmp_path / "a b.txt"
    assert files.stamp(file) is None and files.stamp("gs://bucket/a") is None
    file.write_text("one")
    first = files.stamp(file)
    assert first is not None and files.stamp(file.as_uri()) == first
    file.write_text("longer")
    assert files.stamp(file.as_uri()) not in (None, first)
