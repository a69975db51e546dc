"""Which utterances share audio."""

import json
import os

import numpy as np
import pytest

from hra_jax.data import overlaps
from hra_jax.data.columns import joined
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.shards import Sharded
from hra_jax.data.utterance import Utterance


def said(path, offset=0.0, duration=1.0):
    return Utterance(str(path), duration, "one", offset, {}, f"{path}@{offset}")


def meet(these, others):
    return [utterance.key for utterance in overlaps.shared(these, others)]


@pytest.mark.parametrize(
    ("offset", "duration", "found"),
    [
        (10.0, 2.0, True),  # the same
        (9.5, 1.0, True),
        (11.9, 5.0, True),
        (0.0, 100.0, True),  # around it
        (10.5, 0.1, True),  # inside of it
        (10.00004, 2.0, True),
        (8.0, 2.0, False),  # before it
        (12.0, 2.0, False),
        (8.0, 2.04, False),  # an edge that was rounded
        (11.99, 0.01, True),  # shorter than an edge
        (30.0, 2.0, False),
        (18.0, 3.0, True),  # meets the second one alone
    ],
)
def test_segments_that_overlap_share_audio(offset, duration, found):
    others = [said("/d/a.wav", 20.0, 2.0), said("/d/a.wav", 10.0, 2.0), said("/d/b.wav", 0.0, 1000.0)]
    assert bool(meet([said("/d/a.wav", offset, duration)], others)) is found


def test_a_long_segment_is_seen_behind_many_short_ones():
    others = [said("/d/a.wav", 0.0, 100.0), *(said("/d/a.wav", float(second), 0.5) for second in range(1, 50))]
    assert meet([said("/d/a.wav", 80.0, 1.0)], others)


def test_a_file_is_the_same_through_every_path(tmp_path, monkeypatch):
    real = tmp_path / "real"
    real.mkdir()
    (real / "a b.wav").write_bytes(b"audio")
    (tmp_path / "folder").symlink_to(real)
    (tmp_path / "link.wav").symlink_to(real / "a b.wav")
    (tmp_path / "again.wav").symlink_to(tmp_path / "link.wav")
    os.link(real / "a b.wav", tmp_path / "hard.wav")
    (real / "copy.wav").write_bytes(b"audio")
    monkeypatch.chdir(tmp_path)
    paths = [
        tmp_path / "folder" / "a b.wav",
        tmp_path / "link.wav",
        tmp_path / "again.wav",
        tmp_path / "hard.wav",
        real / ".." / "folder" / "a b.wav",
        f"file://{real}/a%20b.wav",
        "real/a b.wav",
        "hard.wav",
    ]
    for path in paths:
        assert meet([said(path)], [said(real / "a b.wav")]), path
        assert meet([said(real / "a b.wav")], [said(path)]), path
    for path in (real / "copy.wav", tmp_path / "none.wav", "gs://bucket/a b.wav", "a b.wav"):
        assert not meet([said(path)], [said(real / "a b.wav")]), path
    assert meet([said("gs://bucket/a.wav")], [said("gs://bucket/a.wav")])
    assert meet([said(tmp_path / "folder" / "none.wav")], [said(real / "none.wav")])


def test_what_is_given_twice_is_named_once():
    assert meet([said("/d/a.wav"), said("/d/a.wav"), said("/d/b.wav")], [said("/d/a.wav")]) == ["/d/a.wav@0.0"]


def test_of_shards_a_copy_under_another_name_is_known_by_its_samples():
    train = [Sharded(f"/data/{number}.wav", 1.0, "a", sample_hash=number) for number in (1, 2, 3)]
    copies = [Sharded(f"/other/{number}.wav", 1.0, "a", key=str(number), sample_hash=number) for number in (3, 4)]
    assert meet(copies, train) == ["3"]
    assert meet(copies[1:], train) == []


def test_a_table_of_columns_is_compared_as_a_list_of_utterances(tmp_path):
    for name in ("real/a.wav", "real/b.wav", "real/c.wav", "real/sub/a.wav", "other/a.wav", "other/b b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"audio")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "other" / "link.wav").symlink_to(tmp_path / "real" / "c.wav")
    os.link(tmp_path / "real" / "b.wav", tmp_path / "other" / "hard.wav")
    paths = [
        *("real/a.wav", "real/b.wav", "real/c.wav", "real/sub/a.wav", "other/a.wav", "other/b b.wav", "folder/a.wav"),
        *("other/link.wav", "other/hard.wav", "folder/../real/./b.wav", "folder/gone.wav", "real/gone.wav", "no/a.wav"),
        *("a.wav", "real/a.wav/.", "real//c.wav", f"file://{tmp_path}/other/b%20b.wav", f"{tmp_path}/folder/sub/a.wav"),
        *("gs://bucket/a.wav", "gs://bucket/real/a.wav", "gs://other/a.wav"),
    ]
    random = np.random.default_rng(4)
    met = 0
    for _ in range(60):
        lines = []
        for path in random.choice(paths, 9):
            row = {"audio_filepath": path, "duration": 1.0, "text": "one"}
            lines.append(json.dumps(row if random.random() < 0.7 else {**row, "offset": float(random.integers(3))}))
        for name, some in (("suite", lines[:3]), ("more", lines[3:5]), ("train", lines[5:])):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(some) + "\n")
        suite, more, train = (
            load_manifest(tmp_path / f"{name}.jsonl", report=DataReport(strict=True))
            for name in ("suite", "more", "train")
        )
        expected = meet(list(suite), [*more, *train])
        assert meet(suite, joined([more, train])) == expected, lines
        assert meet(suite, train) == meet(list(suite), list(train))
        met += bool(expected)
    assert 15 < met < 55
