"""Shards in a bucket: a request for each record, and trouble is waited for and then counted."""

import threading
import time

import numpy as np
import pytest

from hra_jax.data import cache, shard_files, shards
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.shard_files import Shard, read_record
from hra_jax.data.sound_files import AudioError
from hra_jax.storage import remote

RATE = 16000
FOLDER = "gs://bucket/shards"


@pytest.fixture
def written(gcs_storage, tmp_path):
    """A shard on this machine and in the bucket, and its records, which are larger than what is read ahead."""
    random = np.random.default_rng(0)
    records = [
        shard_files.make_record(random.bytes(50_000 + 20_000 * number), number, {"id": "a"}) for number in range(12)
    ]
    counts = shard_files.write_shard(tmp_path / "shard", records)
    gcs_storage.write(f"{FOLDER}/shard", (tmp_path / "shard").read_bytes())
    yield Shard(f"{FOLDER}/shard", *counts, RATE), records
    gcs_storage.clear()
    shard_files._readers.drop(Shard(f"{FOLDER}/shard"))


def test_a_record_is_one_request(written, gcs_storage):
    shard, records = written
    read_record(shard, 0)
    before = len(gcs_storage.requests)
    order = np.random.default_rng(1).permutation(12).tolist()
    assert [read_record(shard, number) for number in order] == [records[number] for number in order]
    asked = gcs_storage.requests[before:]
    assert len(asked) == 12 and all(line.endswith("/o/shards/shard") for line in asked)


def test_a_shard_is_opened_once_for_all_threads(written, gcs_storage):
    shard, records = written
    found = {}
    threads = [threading.Thread(target=lambda at=at: found.update({at: read_record(shard, at)})) for at in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(12)] == records and len(gcs_storage.requests) == 13


def test_what_is_wrong_with_a_shard_in_a_bucket_is_told_from_a_bucket_that_is_away(written, gcs_storage, monkeypatch):
    shard, records = written
    content = gcs_storage.read(shard.path)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    cases = {"flipped": bytes(flipped), "cut": content[:70_000], "short": content[:100], "none": b""}
    for name, damaged in cases.items():
        gcs_storage.write(f"{FOLDER}/{name}", damaged)
    for name in (*cases, "gone"):
        kinds = set()
        for number in range(12):
            try:
                found = read_record(Shard(f"{FOLDER}/{name}", 12, len(content), 0, RATE), number)
                assert found == records[number]
            except AudioError as error:
                assert f"{FOLDER}/{name}" in error.detail
                kinds.add(error.kind)
        assert kinds == {"missing_file" if name == "gone" else "undecodable_audio"}, name
    # It answers nobody: a record is given up after a while, and had again when it answers.
    read_record(shard, 3)
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "1")
    gcs_storage.fail("shards/shard")
    start = time.monotonic()
    with pytest.raises(AudioError, match=f"unreachable_audio: the shard {FOLDER}/shard: no answer within 1 s"):
        read_record(shard, 4)
    assert time.monotonic() - start < 5
    gcs_storage.work()
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "60")
    assert read_record(shard, 4) == records[4]


def test_shards_are_read_where_array_record_reads(monkeypatch):
    with pytest.raises(shards.UserError, match="shards at s3://bucket/x are not read; allowed: a folder"):
        shards.read_index("s3://bucket/x")


@pytest.mark.slow(minutes=1)
def test_shards_are_written_to_a_bucket_in_trouble_as_to_a_disk(gcs_storage, tmp_path):
    random = np.random.default_rng(0)
    sounds = [random.integers(-9000, 9000, 8000 + 100 * number).astype(np.int16) for number in range(12)]
    examples = [Example(str(number), sound, RATE, "a", {"n": number}) for number, sound in enumerate(sounds)]
    settings = cache.ShardSettings(shard_seconds=2.0)

    def make(folder, count):
        items = cache.Items("test", 1, iter(examples[:count]), None)
        return cache.cache(items, folder, settings=settings, report=DataReport())

    make(tmp_path / "s", 12)
    gcs_storage.fail("o/s|upload", every=15)
    with pytest.raises(ZeroDivisionError):  # stopped when some are complete
        items = cache.Items("test", 1, (row if number < 7 else 1 / 0 for number, row in enumerate(examples)), None)
        cache.cache(items, "gs://bucket/s", settings=settings, report=DataReport())
    kept = [name for name in gcs_storage.names("gs://bucket/s/") if name.startswith("shards-")]
    made = make("gs://bucket/s", 12)
    gcs_storage.work()
    assert kept and made.new == made.shards - len(kept)
    names = {path.name for path in (tmp_path / "s").iterdir() if not path.name.startswith(".")}
    assert {name for name in gcs_storage.names("gs://bucket/s/") if not name.startswith(".")} == names
    for name in names - {"columns.parquet", "files.json"}:  # what has no path in it
        assert gcs_storage.read(f"gs://bucket/s/{name}") == (tmp_path / "s" / name).read_bytes(), name
    utterances, _ = shards.read_shards("gs://bucket/s", report=DataReport(strict=True))
    for row, sound in zip(utterances, sounds, strict=True):
        np.testing.assert_array_equal(shards.samples(row) * 32768, sound)
