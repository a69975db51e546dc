"""Loaders: batches that hosts and threads do not change, exact restarts, bad audio masked and named."""

import collections
import dataclasses
import hashlib
import itertools
import json
import threading
import time

import numpy as np
import pytest
import soundfile

from hra_jax.data import audio, manifest
from hra_jax.data.groups import parts_of
from hra_jax.data.loader import TrainLoader, eval_batches
from hra_jax.data.report import DataReport
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Recording
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_text
from hra_jax.text.vocabularies import CharacterVocabulary

RATE = 8000
BUCKETS = (0.2, 0.4, 0.6)
BATCH = {"batch_seconds": 2.4, "buckets": BUCKETS, "multiple": 4}
ROWS = {1600: 12, 3200: 4, 4800: 4}  # samples of a bucket -> rows of a global batch
COUNTS = {"first": 23, "second": 10, "third": 5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three manifests of short recordings: {name: path}."""
    folder, random, paths = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), {}
    for name, count in COUNTS.items():
        lines = []
        for i in range(count):
            samples = int(random.integers(960, 4800))
            soundfile.write(folder / f"{name}{i}.wav", random.uniform(-0.5, 0.5, samples), RATE, subtype="FLOAT")
            lines.append(
                {
                    "audio_filepath": f"{name}{i}.wav",
                    "duration": samples / RATE,
                    "text": "yes no"[: int(random.integers(1, 6))],
                    "speaker": f"speaker{i % 4}",
                }
            )
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def _sources(corpus, rates=(3, "proportional", 2.0)):
    report = DataReport()
    return [
        TableSource(name, manifest.load_manifest(path, report=report), rate)
        for (name, path), rate in zip(corpus.items(), rates, strict=False)
    ]


def _gone(source):
    """The source as if the audio of all of it were missing."""
    rows = [dataclasses.replace(row, audio_filepath=row.audio_filepath + ".gone") for row in source.utterances]
    return dataclasses.replace(source, utterances=rows)


def _table(sources, report=None, **settings):
    settings = {"task_tag": "speaker", "max_seconds": BUCKETS[-1]} | settings
    return UtteranceTable(
        sources,
        vocabulary=CharacterVocabulary(),
        normalizer="basic",
        sample_rate=RATE,
        output_length=lambda samples: samples // 160,
        report=report or DataReport(),
        **settings,
    )


def _train(table, **settings):
    settings = {"seed": 1, "max_tasks": 8, "threads": 2, "prefetch": 2, "report": DataReport()} | BATCH | settings
    return TrainLoader(table, **settings)


def _of_host(host, hosts):
    """The rows that one of several hosts decodes."""
    return lambda rows: np.arange(rows).reshape(hosts, -1)[host]


def _take(batches, count):
    return list(itertools.islice(batches, count))


def _joined(hosts):
    """The global batches of what each host got."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


def _assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_a_batch_holds_the_audio_labels_and_tasks_of_its_utterances(corpus):
    table = _table(_sources(corpus))
    with _train(table) as batches:
        for batch in _take(batches, 20):
            rows = ROWS[batch["waveform"].shape[1]]
            assert {name: (len(value), value.dtype.name) for name, value in batch.items()} == {
                "waveform": (rows, "float32"),
                "num_samples": (rows, "int32"),
                "labels": (rows, "int32"),
                "label_lengths": (rows, "int32"),
                "task": (rows, "int32"),
                "weight": (rows, "float32"),
                "utterance": (rows, "int64"),
            }
            assert batch["labels"].shape[1] == 8
            for row, index in enumerate(batch["utterance"]):
                samples, _ = soundfile.read(table.utterances[index].audio_filepath, dtype="float32")
                count, labels = batch["num_samples"][row], batch["label_lengths"][row]
                np.testing.assert_array_equal(batch["waveform"][row, :count], samples)
                assert not batch["waveform"][row, count:].any() and not batch["labels"][row, labels:].any()
                said = normalize_text(table.utterances[index].text, "basic")
                assert CharacterVocabulary().decode(batch["labels"][row, :labels]) == said
                assert table.task_names[batch["task"][row]] == table.utterances[index].tags["speaker"]
                assert batch["weight"][row] == 1.0


def test_a_position_restores_the_next_100_global_batches_on_1_2_and_4_hosts(corpus):
    table = _table(_sources(corpus))
    with _train(table) as batches:
        _take(batches, 37)
        position = json.loads(json.dumps(batches.position()))
        expected = _take(batches, 100)
    assert position["consumed"] > 37 * 4 and position["waiting"]
    assert len(json.dumps(position)) < 1_000_000
    for hosts in (1, 2, 4):
        parts = []
        for host in range(hosts):
            with _train(table, position=position, local_rows=_of_host(host, hosts)) as restored:
                parts.append(_take(restored, 100))
                assert len(parts[-1][0]["task"]) * hosts == len(expected[0]["task"])
        _assert_same(_joined(parts), expected)


def test_the_first_100_batches_of_a_mixture_are_the_same_in_all_versions():
    rows = [
        Recording(
            audio_filepath=f"{i}",
            duration=samples / RATE,
            text="yes no"[: 1 + i % 6],
            tags={"speaker": f"speaker{i % 4}"},
            key=f"{i}",
            samples=np.arange(samples, dtype=np.float32) % (61 + i) / 128,
            sample_rate=RATE,
        )
        for i, samples in enumerate(960 + np.arange(60) * 997 % 3840)
    ]
    table = _table([TableSource("first", rows[:40], 2.0), TableSource("second", rows[40:], "proportional")])
    hashes, found = UtteranceHashes(len(table)), hashlib.sha256()
    with _train(table, max_tasks=3, hashes=hashes) as batches:
        for batch in _take(batches, 100):
            for name in sorted(batch):
                found.update(f"{name} {batch[name].dtype} {batch[name].shape} ".encode())
                found.update(np.ascontiguousarray(batch[name]).tobytes())
    found.update(hashes.values.tobytes())
    assert found.hexdigest() == "9b054225c968a50ab8c4d1a844f3088afbe33968d460619941298cb148bfd8ab"


def test_hosts_may_have_any_rows_and_all_know_the_seconds_of_the_global_batch(corpus):
    table = _table(_sources(corpus))
    hosts = {host: lambda rows, host=host: np.arange(rows)[host % 2 :: 2] for host in (0, 1)}
    with _train(table) as whole, _train(table, local_rows=hosts[0]) as even, _train(table, local_rows=hosts[1]) as odd:
        for _ in range(20):
            batch, parts = next(whole), (next(even), next(odd))
            for name, values in batch.items():
                np.testing.assert_array_equal(values[0::2], parts[0][name])
                np.testing.assert_array_equal(values[1::2], parts[1][name])
            assert even.tasks == odd.tasks == whole.tasks
            used = batch["utterance"][batch["utterance"] >= 0]
            assert even.audio_seconds == odd.audio_seconds == pytest.approx(table.duration[used].sum())


def test_the_position_is_that_of_the_batch_handed_out_whatever_was_decoded_ahead(corpus):
    table = _table(_sources(corpus))
    positions = []
    for prefetch in (0, 5):
        with _train(table, prefetch=prefetch) as batches:
            start = batches.position()
            positions.append([start] + [batches.position() for _ in _take(batches, 9)])
    assert positions[0] == positions[1]
    assert positions[0][0] == {"consumed": 0, "waiting": {}, "rows": COUNTS}


def test_every_epoch_of_every_source_covers_every_usable_utterance_once(corpus):
    table = _table(_sources(corpus))
    seen = collections.Counter()
    with _train(table) as batches:
        for batch in _take(batches, 90):
            seen.update(batch["utterance"].tolist())
        waiting = [table.index(*row) for rows in batches.position()["waiting"].values() for row in rows]
        consumed = batches.position()["consumed"]
    seen.update(waiting)
    assert seen.total() == consumed
    for first, last in itertools.pairwise(table.starts):
        times = [seen[index] for index in range(first, last)]
        assert max(times) - min(times) <= 1 and min(times) >= 2


def test_tasks_in_turn_are_equally_often_in_the_batches_and_go_on_from_a_position_on_1_2_and_4_hosts(corpus):
    table = _table(_sources(corpus))
    with _train(table, draw="tasks", max_tasks=3) as batches:
        expected = _take(batches, 40)
    updates = collections.Counter(task for batch in expected for task in set(batch["task"].tolist()) - {-1})
    assert sorted(updates) == [0, 1, 2, 3] and max(updates.values()) - min(updates.values()) <= 1
    with _train(table, draw="tasks", max_tasks=3) as batches:
        _take(batches, 15)
        position = json.loads(json.dumps(batches.position()))
    assert position == {"consumed": 15, "waiting": {}, "rows": COUNTS}
    for hosts in (1, 2, 4):
        parts = []
        for host in range(hosts):
            local = _of_host(host, hosts)
            with _train(table, draw="tasks", max_tasks=3, position=position, local_rows=local) as batches:
                parts.append(_take(batches, 25))
        _assert_same(_joined(parts), expected[15:])


def test_groups_are_the_same_batches_on_1_2_and_3_hosts_and_go_on_in_an_epoch_on_another_number(corpus):
    table = _table(_sources(corpus, rates=["proportional"] * 3))
    settings = {"parts": parts_of(table, groups="speaker", temperature=3.0), "multiple": 6, "batch_seconds": 3.6}
    with _train(table, **settings) as batches:
        expected = _take(batches, 30)
        whole = batches.drawn

    def on_hosts(hosts, position, count):
        parts, positions = [], []
        for host in range(hosts):
            with _train(table, position=position, local_rows=_of_host(host, hosts), **settings) as batches:
                parts.append(_take(batches, count))
                positions.append(json.loads(json.dumps(batches.position(), sort_keys=True)))
        assert all(found == positions[0] for found in positions)
        return _joined(parts), positions[0]

    position, taken = None, []
    for hosts, count in ((2, 9), (3, 14), (1, 7)):
        batches, position = on_hosts(hosts, position, count)
        taken += batches
    _assert_same(taken, expected)
    drawn = {name: count for name, (_, count, _) in position["parts"].items()}
    assert drawn == dict(zip([part.spec.name for part in settings["parts"]], whole, strict=True))
    assert any(count % part.spec.rows for part, count in zip(settings["parts"], whole, strict=True))


def test_every_epoch_of_every_group_covers_each_of_its_utterances_once(corpus):
    table = _table(_sources(corpus, rates=("proportional", "proportional", 4.0)))
    parts = parts_of(table, groups="speaker", temperature=3.0)
    seen = collections.Counter()
    with _train(table, parts=parts) as batches:
        for batch in _take(batches, 90):
            seen.update(batch["utterance"].tolist())
        position, drawn = batches.position(), batches.drawn
    seen.update(table.index(*row) for rows in position["waiting"].values() for row in rows)
    assert seen.total() == position["consumed"] == sum(drawn)
    for part, count in zip(parts, drawn, strict=True):
        times = [seen[index] for index in part.utterances.tolist()]
        assert (min(times), sum(times)) == (count // len(times), count) and max(times) - min(times) <= 1


def test_a_position_without_counts_goes_on_as_one_with_them_and_one_of_other_groups_is_refused(corpus):
    table = _table(_sources(corpus))
    with _train(table) as batches:
        _take(batches, 23)
        position, drawn = batches.position(), batches.drawn
        expected = _take(batches, 20)
    counted = {name: found[:2] for name, found in position["parts"].items()}
    assert counted == {name: [rows, n] for (name, rows), n in zip(COUNTS.items(), drawn, strict=True)}
    earlier = {key: value for key, value in position.items() if key != "parts"}
    with _train(table, position=earlier) as batches:
        assert batches.drawn == drawn
        _assert_same(_take(batches, 20), expected)
    with pytest.raises(UserError, match="utterances in the group 'first', now there are 0: restore the manifests"):
        _train(table, position=position, parts=parts_of(table, groups="speaker"))


def test_a_position_of_other_rates_is_refused(corpus):
    table = _table(_sources(corpus, rates=(1.0, 2.0, 3.0)))
    with _train(table) as batches:
        _take(batches, 5)
        position = json.loads(json.dumps(batches.position()))
    _train(table, position=position).close()
    # As where a module of the user's gives the Tasks of a Mixture other rates than before.
    other = _table(_sources(corpus, rates=(1.0, 2.5, 3.0)))
    with pytest.raises(UserError, match="made with the rate 2 of '.*', now it is 2.5: restore the rates of"):
        _train(other, position=position)


def test_a_batch_keeps_to_its_tasks_and_threads_change_nothing(corpus, monkeypatch):
    table = _table(_sources(corpus))
    with _train(table, threads=1, prefetch=0, max_tasks=2) as batches:
        expected = _take(batches, 30)
    assert all(len(np.unique(batch["task"])) <= 2 for batch in expected)
    decode, random = audio.decode, np.random.default_rng(0)

    def slow_decode(utterance, sample_rate):
        time.sleep(random.uniform(0, 0.004))
        return decode(utterance, sample_rate)

    monkeypatch.setattr(audio, "decode", slow_decode)
    with _train(table, threads=5, prefetch=4, max_tasks=2) as batches:
        _assert_same(_take(batches, 30), expected)


@pytest.fixture
def damaged(tmp_path):
    """A manifest of 14 utterances of which six have bad audio: (path, {key: kind})."""
    random, lines, names = np.random.default_rng(1), [], [f"{i}.wav" for i in range(14)]
    for name in names:
        soundfile.write(tmp_path / name, random.uniform(-0.5, 0.5, 1600), RATE, subtype="FLOAT")
        lines.append({"audio_filepath": name, "duration": 0.2, "text": "seven", "speaker": "anna"})
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2]).write_text("not audio")
    (tmp_path / names[3]).write_bytes((tmp_path / names[3]).read_bytes()[:900])
    soundfile.write(tmp_path / names[4], np.full(1600, np.nan), RATE, subtype="FLOAT")
    # 0.16 s where the manifest says 0.2 s: within what rounding explains, but 8 frames cannot carry 9 labels.
    soundfile.write(tmp_path / names[5], random.uniform(-0.5, 0.5, 1280), RATE, subtype="FLOAT")
    lines[5]["text"] = "seven six"
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = ["missing_file", "empty_audio", "undecodable_audio", "undecodable_audio", "nan_samples", "too_short"]
    return path, dict(zip(names, kinds, strict=False))


def test_bad_audio_has_weight_0_and_is_named_and_the_rest_is_unaffected(damaged):
    path, bad = damaged
    table, report = _table(_sources({"m": path})), DataReport()
    with _train(table, report=report) as batches:
        for batch in _take(batches, 6):
            good = np.array([table.utterances[i].key not in bad for i in batch["utterance"]])
            np.testing.assert_array_equal(batch["weight"], good.astype(np.float32))
            for name in ("waveform", "num_samples", "labels", "label_lengths"):
                assert not batch[name][~good].any() and batch[name][good].any(axis=-1).all()
            assert (batch["task"][~good] == -1).all() and (batch["task"][good] == 0).all()
    named = {row["name"]: kind for kind, rows in report.to_json()["utterances"].items() for row in rows}
    assert named == {f"m: {key}": kind for key, kind in bad.items()}


def test_bad_audio_is_an_error_when_strict(damaged):
    table = _table(_sources({"m": damaged[0]}))
    with (
        pytest.raises(UserError, match="data.strict"),
        _train(table, report=DataReport(strict=True)) as batches,
    ):
        _take(batches, 6)


def test_audio_that_all_fails_ends_training_with_the_counts(corpus):
    sources = list(map(_gone, _sources(corpus)))
    with (
        pytest.raises(UserError, match="no usable audio: .* utterances in a row failed, of 38 .*missing_file"),
        _train(_table(sources)) as batches,
    ):
        _take(batches, 200)


def test_one_bad_source_does_not_end_training_while_another_is_good(corpus):
    sources = _sources(corpus, rates=(50, 1, 1))
    sources[0] = _gone(sources[0])
    with _train(_table(sources)) as batches:
        assert 0 < sum(batch["weight"].sum() for batch in _take(batches, 80)) < 40


def test_audio_a_little_longer_than_its_bucket_is_cut_and_much_longer_is_refused(corpus, monkeypatch):
    table, report = _table(_sources(corpus)[:1]), DataReport()
    monkeypatch.setattr(audio, "decode", lambda utterance, rate: np.ones(4800 + 100, np.float32))
    batches = list(eval_batches(table, threads=1, report=report, **BATCH))
    for batch in batches:
        fits = batch["waveform"].shape[1] == 4800
        assert (batch["num_samples"] == (4800 if fits else 0) * (batch["utterance"] >= 0)).all()
        assert (batch["weight"] == fits * (batch["utterance"] >= 0)).all()
    assert report.counts()["too_long"] == sum(
        (batch["utterance"] >= 0).sum() for batch in batches if batch["waveform"].shape[1] < 4800
    )


def test_an_error_in_a_thread_surfaces_and_closing_stops_all_threads(corpus, monkeypatch):
    def broken(utterance, rate):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(audio, "decode", broken)
    batches = _train(_table(_sources(corpus)))
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        next(batches)
    batches.close()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("decode")] == []
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_closing_waits_for_the_utterance_that_a_thread_is_at_alone(corpus, monkeypatch):
    decode, begun = audio.decode, []
    monkeypatch.setattr(audio, "decode", lambda *args: begun.append(1) or time.sleep(0.02) or decode(*args))
    with _train(_table(_sources(corpus)), threads=1) as batches:
        next(batches)
        before = len(begun)
    assert len(begun) <= before + 2


def test_waiting_for_input_is_measured(corpus, monkeypatch):
    decode = audio.decode
    with _train(_table(_sources(corpus)), prefetch=0, threads=1) as batches:
        next(batches)
        before = batches.wait_seconds
        monkeypatch.setattr(audio, "decode", lambda *args: time.sleep(0.02) or decode(*args))
        next(batches)
        assert batches.wait_seconds - before >= 4 * 0.02


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 23, 38])
def test_evaluation_covers_every_utterance_once_whatever_the_hosts(corpus, hosts, size):
    sources = _sources(corpus) if size == 38 else [TableSource("some", _sources(corpus)[0].utterances[:size])]
    table = _table(sources, for_training=False)
    assert len(table) == size
    parts = [
        list(eval_batches(table, threads=2, report=DataReport(), local_rows=_of_host(host, hosts), **BATCH))
        for host in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = _joined(parts)
    indices = np.concatenate([batch["utterance"] for batch in batches])
    assert sorted(indices[indices >= 0].tolist()) == list(range(size))
    last = {batch["waveform"].shape[1]: number for number, batch in enumerate(batches)}
    for number, batch in enumerate(batches):
        assert len(batch["weight"]) == ROWS[batch["waveform"].shape[1]]
        np.testing.assert_array_equal(batch["weight"], (batch["utterance"] >= 0).astype(np.float32))
        assert batch["weight"].all() or number == last[batch["waveform"].shape[1]]
        assert (np.diff(batch["num_samples"][batch["weight"] > 0]) >= 0).all()


def test_evaluation_keeps_the_index_of_bad_audio_and_of_hard_utterances(damaged):
    path, bad = damaged
    table = _table(_sources({"m": path}), for_training=False)
    failed = [
        table.utterances[index].key
        for batch in eval_batches(table, threads=2, report=DataReport(), **BATCH)
        for index, weight in zip(batch["utterance"], batch["weight"], strict=True)
        if index >= 0 and weight == 0
    ]
    assert sorted(failed) == sorted(key for key, kind in bad.items() if kind != "too_short")


def test_tables_evaluated_with_the_same_label_capacities_have_the_same_shapes(corpus):
    table = _table(_sources(corpus), for_training=False)
    batches = eval_batches(table, threads=1, report=DataReport(), label_capacities=(16, 16, 24), **BATCH)
    assert {batch["labels"].shape[1] for batch in batches} == {16, 24}
    with pytest.raises(UserError, match=r"\[8, 4, 8\] do not hold .* need \[8, 8, 8\]"):
        eval_batches(table, threads=1, report=DataReport(), label_capacities=(8, 4, 8), **BATCH)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threads": 0}, "data threads 0"),
        ({"prefetch": -1}, "data prefetch -1"),
        ({"max_tasks": 0}, "max_tasks 0"),
        ({"buckets": (0.2, 0.4)}, "the last bucket ends at 0.4 s"),
        ({"batch_seconds": 1.0}, "1 s of audio per batch hold 2 rows of the 0.4 s bucket"),
        ({"position": {"consumed": 3}}, "data position lacks 'waiting'"),
        ({"position": {"consumed": 3, "waiting": {}, "rows": {"first": 22}}}, "'first': 22.*'first': 23.*restore"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(corpus, settings, message):
    with pytest.raises(UserError, match=message):
        _train(_table(_sources(corpus)), **settings)


def test_a_source_with_nothing_usable_is_named(corpus):
    sources = [*_sources(corpus), TableSource("empty", [])]
    with pytest.raises(UserError, match="'empty' has no usable utterance"):
        _train(_table(sources))
