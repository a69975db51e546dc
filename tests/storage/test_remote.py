"""Paths in buckets, through TensorFlow's own client and an emulator of the other side."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from array_record.python import array_record_module
from etils import epath
from google.api_core import exceptions
from reference import gcs
from tensorflow.python.framework import errors_impl

from hra_jax.data.audio import decode
from hra_jax.data.sound_files import AudioError
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.storage import locks, remote
from hra_jax.storage.files import Replacement, remove_folder, rename_folder, write_file


def of_tensorflow(code: int, text: str) -> Exception:
    """An error of TensorFlow with a canonical code."""
    return errors_impl.exception_type_from_error_code(code)(None, None, text)


def of_google(status: int) -> Exception:
    """An error of google-cloud-storage with the status of an answer."""
    return exceptions.from_http_status(status, "said Google")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (of_tensorflow(5, "not there"), FileNotFoundError),
        (of_tensorflow(6, "there"), FileExistsError),
        (of_tensorflow(7, "no"), PermissionError),
        (of_tensorflow(16, "who are you"), PermissionError),
        (of_tensorflow(9, "gs://b/x is a directory"), IsADirectoryError),
        (of_tensorflow(9, "gs://b/x is not a directory"), NotADirectoryError),
        *((of_tensorflow(code, "away"), remote.StorageUnavailable) for code in (1, 2, 4, 8, 10, 13, 14, 15)),
        (of_tensorflow(12, "File system scheme 's3' not implemented"), OSError),
        (of_google(404), FileNotFoundError),
        (of_google(403), PermissionError),
        (of_google(429), remote.StorageUnavailable),
        (of_google(503), remote.StorageUnavailable),
        (exceptions.RetryError("too often", None), remote.StorageUnavailable),
        (ValueError("ABORTED: All 32 retry attempts failed: x [http_response_code='503']"), remote.StorageUnavailable),
        (ValueError("PERMISSION_DENIED: no [http_response_code='403']"), PermissionError),
        (ValueError("NOT_FOUND: Metadata at gs://bucket/a/.zarray does not exist"), FileNotFoundError),
    ],
)
def test_errors_of_every_client_are_the_os_errors_of_local_files(error, kind):
    found = remote.as_os_error(error, "gs://b/x")
    assert type(found) is kind and found.filename == "gs://b/x" and "\n" not in found.strerror


@pytest.mark.parametrize(
    "error",
    [
        ValueError("UNAVAILABLE: a peer is gone"),
        RuntimeError("shapes differ"),
        KeyError("a"),
        UserError("UNAVAILABLE: gs://b"),
    ],
)
def test_errors_of_other_libraries_are_not_taken_for_those_of_storage(error):
    assert remote.as_os_error(error) is None and remote.unavailable(error) is None


def test_what_is_not_there_or_not_allowed_is_not_asked_for_again(monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("asked again"))
    for error, kind in ((of_tensorflow(5, "x"), FileNotFoundError), (of_tensorflow(7, "x"), PermissionError)):
        with pytest.raises(kind):
            remote.retried(lambda error=error: (_ for _ in ()).throw(error), "gs://b/x")


def test_storage_that_is_away_is_asked_again_with_growing_pauses_for_a_bounded_time(monkeypatch):
    now, pauses = [0.0], []
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        remote.time, "sleep", lambda seconds: (pauses.append(seconds), now.__setitem__(0, now[0] + seconds))
    )
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: high)
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "30")

    def away():
        raise of_tensorflow(14, "away")

    with pytest.raises(remote.StorageUnavailable, match="does not answer"):
        remote.retried(away, "gs://b/x")
    assert pauses[:5] == [0.5, 1, 2, 4, 8] and sum(pauses) <= 30
    answers = iter([of_tensorflow(14, "away"), of_tensorflow(14, "away"), None])

    def sometimes():
        error = next(answers)
        if error:
            raise error
        return "content"

    assert remote.retried(sometimes, "gs://b/x") == "content"


# --- The emulator and TensorFlow's client -----------------------------------------------------------------------------


@pytest.fixture
def bucket(gcs_storage, monkeypatch):
    """An empty bucket; storage that is away is asked again for a second and a half."""
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "1.5")
    return gcs_storage


def test_paths_of_buckets_behave_as_local_ones(bucket, tmp_path):
    for root in (epath.Path("gs://bucket/a"), epath.Path(tmp_path) / "a"):
        root.mkdir(parents=True, exist_ok=True)
        (root / "one.txt").write_text("first\nsecond ä\n")
        (root / "two").mkdir()
        (root / "two" / "b").write_bytes(b"0123456789")
        assert sorted(path.name for path in root.iterdir()) == ["one.txt", "two"]
        assert root.is_dir() and not (root / "one.txt").is_dir() and not (root / "none").exists()
        assert (root / "two" / "b").stat().length == 10
        with (root / "two" / "b").open("rb") as file:
            assert file.seek(-3, io.SEEK_END) == 7 and file.read() == b"789" and file.seek(2) == 2
            assert file.read(3) == b"234"
        with (root / "one.txt").open() as file:
            assert [line for line in file] == ["first\n", "second ä\n"]
        with pytest.raises(FileNotFoundError):
            (root / "none").read_bytes()
        with pytest.raises(FileNotFoundError):
            (root / "none").stat()
        with pytest.raises(FileNotFoundError):
            (root / "none").unlink()
        (root / "none").unlink(missing_ok=True)
        (root / "one.txt").replace(root / "three.txt")
        assert not (root / "one.txt").exists() and (root / "three.txt").read_text().startswith("first")
        (root / "two").rmtree()
        assert not (root / "two").exists()


def test_a_bucket_that_is_not_there_is_said_at_once(bucket):
    for act in (
        lambda: epath.Path("gs://nobucket/W/x").mkdir(parents=True, exist_ok=True),
        lambda: write_file("gs://nobucket/W/x", "text"),
        lambda: epath.Path("gs://nobucket/W/x").read_bytes(),
    ):
        with pytest.raises(FileNotFoundError):
            act()


def test_files_arrive_whole_or_not_at_all_however_they_are_written(bucket):
    path = epath.Path("gs://bucket/file")
    write_file(path, "old")
    with pytest.raises(ZeroDivisionError), path.open("w") as file:
        file.write("half")
        1 / 0  # noqa: B018
    with Replacement(path) as replacement:
        replacement.stream.write(b"half")
        replacement.close()
    with pytest.raises(ZeroDivisionError), Replacement(path) as replacement:
        replacement.stream.write(b"half")
        1 / 0  # noqa: B018
    assert bucket.read("gs://bucket/file") == b"old" and bucket.names("gs://bucket/") == ["file"]
    with Replacement(path) as replacement:
        replacement.stream.write(b"new")
        replacement.close()
        assert bucket.read("gs://bucket/file") == b"old"
        replacement.commit()
    assert bucket.read("gs://bucket/file") == b"new" and bucket.names("gs://bucket/") == ["file"]
    with path.open("a") as file:
        file.write("er")
    assert path.read_text() == "newer"


@pytest.mark.slow
def test_every_act_survives_storage_that_fails_now_and_then(bucket):
    bucket.fail(every=7)  # a second each, which the client sleeps
    root = epath.Path("gs://bucket/often")
    for number in range(3):
        write_file(root / f"{number}.txt", f"{number}" * 1000)
    assert sorted(path.name for path in root.iterdir()) == ["0.txt", "1.txt", "2.txt"]
    assert [(root / f"{number}.txt").read_text()[0] for number in range(3)] == list("012")
    (root / "0.txt").replace(root / "4.txt")
    (root / "1.txt").unlink()
    bucket.work()
    assert bucket.names("gs://bucket/often/") == ["2.txt", "4.txt"]


def test_one_object_that_cannot_be_had_is_told_from_storage_that_is_away(bucket, monkeypatch):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    bucket.write("gs://bucket/audio/a.flac", b"x")
    bucket.fail("a.flac")
    path = epath.Path("gs://bucket/audio/a.flac")
    with pytest.raises(remote.StorageUnavailable, match="does not answer"):
        path.read_bytes()
    assert remote.answers(path)
    bucket.fail()
    assert not remote.answers(path)
    bucket.fail(status=403)
    with pytest.raises(PermissionError):
        path.read_bytes()


def test_a_recording_that_cannot_be_had_is_named_and_storage_that_is_away_ends_the_run(bucket, monkeypatch):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    samples = io.BytesIO()
    soundfile.write(samples, np.zeros(800), 8000, format="FLAC")
    bucket.write("gs://bucket/audio/a.flac", samples.getvalue())
    utterance = Utterance("gs://bucket/audio/a.flac", 0.1, "a")
    assert len(decode(utterance, 8000)) == 800
    bucket.fail("a.flac")
    with pytest.raises(AudioError) as caught:
        decode(utterance, 8000)
    assert caught.value.kind == "unreachable_audio" and "a.flac" in caught.value.detail
    bucket.fail()
    with pytest.raises(remote.StorageUnavailable):
        decode(utterance, 8000)
    bucket.clear()
    with pytest.raises(AudioError) as caught:
        decode(utterance, 8000)
    assert caught.value.kind == "missing_file"


def test_a_command_whose_storage_is_away_ends_with_one_line_and_status_75(bucket, command_env):
    """In a process of its own, which imports neither JAX nor a model."""
    code = """
import sys
from hra_jax import cli
from hra_jax.errors import UserError
from hra_jax.storage.remote import StorageUnavailable

def main(argv):
    try:
        raise StorageUnavailable(11, "the storage does not answer: 503", "gs://bucket/W")
    except OSError as error:
        if argv[1] == "told":
            raise UserError(f"workdir = 'gs://bucket/W': cannot be written ({error.strerror})") from error
        raise

cli.run(main, takes_words=True)
"""
    for how in ("told", "raw"):
        words = [sys.executable, "-c", code, how]
        done = subprocess.run(words, env=command_env | os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 75, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.strip()]
        assert line.startswith("error: ") and "gs://bucket/W" in line and line.endswith("goes on from what is saved")


def test_storage_that_is_away_is_not_taken_for_an_empty_folder(bucket, monkeypatch):
    """TensorFlow's own `isdir` then says no, and `listdir` that nothing is there: a run would begin again."""
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    bucket.write("gs://bucket/W/checkpoints/4/state", b"x")
    bucket.fail()
    folder = epath.Path("gs://bucket/W/checkpoints")
    for act in (folder.exists, folder.is_dir, folder.iterdir, lambda: folder.mkdir(parents=True, exist_ok=True)):
        with pytest.raises(remote.StorageUnavailable):
            act()
    bucket.work()
    assert folder.is_dir() and [path.name for path in folder.iterdir()] == ["4"]


def test_the_emulator_lists_by_pages_and_refuses_what_preconditions_refuse():
    storage = gcs._Buckets(["bucket"])
    for name in (*(f"a/{number}" for number in range(5)), "a/b/c"):
        storage.put("bucket", name, b"x", {}, {})
    first = storage.listing("bucket", {"prefix": "a/", "delimiter": "/", "maxResults": "4"})
    assert [item["name"] for item in first["items"]] == [f"a/{number}" for number in range(4)]
    second = storage.listing("bucket", {"prefix": "a/", "delimiter": "/", "pageToken": first["nextPageToken"]})
    assert [item["name"] for item in second["items"]] == ["a/4"] and second["prefixes"] == ["a/b/"]
    assert "nextPageToken" not in second
    generation = storage.describe("bucket", "a/0")["generation"]
    for parameters in ({"ifGenerationMatch": "0"}, {"ifGenerationNotMatch": generation}):
        with pytest.raises(gcs._Refused, match="pre-conditions"):
            storage.put("bucket", "a/0", b"y", parameters, {})
    storage.put("bucket", "a/0", b"y", {"ifGenerationMatch": generation}, {})
    assert storage.find("bucket", "a/0").content == b"y"


def test_array_record_reads_the_records_that_it_is_asked_for_by_its_own_client(bucket, tmp_path):
    """Where it opens a file it reads the end of it, which holds the places of all groups of records."""
    records = [f"record {number} ".encode() * (1 + number % 7 * 500) for number in range(200)]
    for size in (1, 8):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / "records"), f"group_size:{size}")
        for record in records:
            writer.write(record)
        writer.close()
        bucket.write(f"gs://bucket/{size}.array_record", (tmp_path / "records").read_bytes())
        asked = len(bucket.requests)

        def count(asked=asked, size=size):
            new = bucket.requests[asked:]
            assert set(new) == {f"GET /storage/v1/b/bucket/o/{size}.array_record"}
            return len(new)

        reader = array_record_module.ArrayRecordReader(
            f"gs://bucket/{size}.array_record", options="readahead_buffer_size:0"
        )
        assert reader.num_records() == len(records) and count() == 1
        for wanted in ([7], [199, 0, 64], list(range(40, 48)), list(range(200))):
            before = count()
            assert reader.read(wanted) == [records[number] for number in wanted]
            assert count() - before == len({number // size for number in wanted})
        reader.close()


# --- Locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_locks(monkeypatch):
    """Sets the seconds of locks in buckets: between renewals, and until one that is not renewed is a dead one's."""

    def set_seconds(*, renew: float, stale: float) -> None:
        monkeypatch.setattr(locks, "RENEW_SECONDS", {False: renew, True: renew})
        monkeypatch.setattr(locks, "STALE_SECONDS", {False: stale, True: stale})
        monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.1)

    return set_seconds


def owner(what: str, *, alive: bool) -> locks.Lock:
    """Another machine's lock on gs://bucket/W, which is renewed or not."""
    path = epath.Path("gs://bucket/W/.lock")
    other = locks.Lock(path, locks._this_process(what) | {"machine": "another"})
    path.write_bytes(locks._content(other._owner, 0))
    if alive:
        other.start()
    return other


def test_a_lock_in_a_bucket_refuses_who_comes_second_and_is_gone_at_the_end(bucket, quick_locks):
    quick_locks(renew=0.2, stale=60)
    other = owner("the first", alive=True)
    with pytest.raises(UserError, match="'gs://bucket/W' is in use: 'the first'"), locks.hold("gs://bucket/W", "x"):
        pass
    other.release()
    with locks.hold("gs://bucket/W", "x"), locks.hold_beside("gs://bucket/W/adapter", "y"):
        assert sorted(path.name for path in epath.Path("gs://bucket/W").iterdir()) == [".adapter.lock", ".lock"]
    assert not list(epath.Path("gs://bucket/W").iterdir())


def test_a_lock_in_a_bucket_that_nobody_renews_is_taken_over(bucket, quick_locks):
    quick_locks(renew=1, stale=0.5)
    owner("the dead", alive=False)
    with locks.hold("gs://bucket/W", "the next"):
        assert b"the next" in epath.Path("gs://bucket/W/.lock").read_bytes()


def test_who_was_overwritten_in_a_bucket_is_told_before_it_saves(bucket, quick_locks):
    quick_locks(renew=2, stale=60)
    with locks.hold("gs://bucket/W", "slow") as lock:
        locks.check_held("gs://bucket/W")
        owner("quick", alive=False)
        lock._thread.join(30)
        with pytest.raises(UserError, match="another process has taken this lock over"):
            locks.check_held("gs://bucket/W")
    assert b"quick" in epath.Path("gs://bucket/W/.lock").read_bytes()


def test_a_folder_in_a_bucket_gets_another_name_with_all_that_is_in_it(bucket):
    folder, new = epath.Path("gs://bucket/W/checkpoints/2"), epath.Path("gs://bucket/W/checkpoints/2.damaged")
    for name in ("state/d/a", "commit_success.txt"):
        write_file(folder / name, name)
    rename_folder(folder, new)
    assert not folder.exists()
    for name in ("state/d/a", "commit_success.txt"):
        assert (new / name).read_text() == name
    remove_folder(new)
    assert not new.exists()
