"""Shards: what is read from them is what was put there, and what is damaged is named."""

import json

import numpy as np
import pyarrow as pa
import pytest

from hra_jax.data import audio, shard_files, shards, sources
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError

RATE = 16000


def _rows(count, *, seed=0):
    """Rows and sounds of utterances; the last one cannot be used."""
    random = np.random.default_rng(seed)
    rows, sounds = [], []
    for number in range(count):
        whole = random.integers(-30000, 30000, 1500 + 37 * number).astype(np.int16)
        tags = {"speaker": f"s{number % 2}", "age": 30 + number, "words": [number]} | (
            {"x": None} if number == 1 else {}
        )
        rows.append(
            {
                "id": f"é{number}.wav",
                "text": f"text {number}",
                "duration": len(whole) / RATE,
                "file": f"/data/é{number}.wav",
                "offset": 0.5 * number,
                "line": number + 1,
                "hash": 2**63 + seed * 100 + number,
                "why": None,
                "tags": tags,
            }
        )
        sounds.append(whole)
    rows.append({**rows[-1], "id": "bad.wav", "why": "empty_audio: no samples", "hash": 0, "tags": {"speaker": "s9"}})
    return rows, sounds


def write(folder, *, encoding="int16", count=5, in_shard=3, seed=0):
    """A folder of shards, by the functions of the format alone."""
    rows, sounds = _rows(count, seed=seed)
    found = []
    for number, start in enumerate(range(0, count, in_shard)):
        records = []
        for at in range(start, min(start + in_shard, count)):
            rows[at] |= {"shard": number, "record": at - start}
            samples = sounds[at].astype(np.float32) / 32768
            sound = shard_files.encode_samples(samples, sample_rate=RATE, encoding=encoding)
            row = rows[at] | {"tags": json.dumps(rows[at]["tags"])}
            records.append(shards.record_of(row, sound, sample_rate=RATE))
        path = folder / shards.shard_name(number)
        found.append(shard_files.Shard(str(path), *shard_files.write_shard(path, records), RATE, encoding))
    rows[-1] |= {"shard": -1, "record": -1}
    table = pa.Table.from_pylist([{name: row[name] for name in shards.ROWS.names} for row in rows], schema=shards.ROWS)
    index = shards.index_bytes(table, [row["tags"] for row in rows], found, made_from={"source": "a test"})
    (folder / shards.INDEX).write_bytes(index)
    (folder / shards.FEATURES).write_text(shards.features_text(sample_rate=RATE, encoding=encoding))
    (folder / shards.INFO).write_text(shards.info_text(found))
    return rows, sounds


def _read(folder, *, strict=False):
    report = DataReport(strict=strict)
    utterances, refused = sources.read_source(folder, report=report)
    return utterances, refused, report


@pytest.mark.parametrize("encoding", shard_files.ENCODINGS)
def test_utterances_are_what_was_put_into_shards(tmp_path, encoding):
    rows, sounds = write(tmp_path, encoding=encoding)
    utterances, refused, report = _read(tmp_path)
    assert len(utterances) == 5 and [row.key for row in refused] == ["bad.wav"]
    assert refused[0].why == "empty_audio: no samples" and refused[0].tags == {"speaker": "s9"}
    assert report.counts()["empty_audio"] == 1
    for utterance, row, whole in zip(utterances, rows, sounds, strict=False):
        assert (utterance.key, utterance.text, utterance.duration) == (row["id"], row["text"], row["duration"])
        assert (utterance.audio_filepath, utterance.offset, utterance.line) == (row["file"], row["offset"], row["line"])
        assert utterance.tags == row["tags"]
        assert audio.sample_hash(utterance) == row["hash"]
        samples, hashed = audio.decode_hashed(utterance, RATE)
        assert hashed == row["hash"] and samples.dtype == np.float32
        np.testing.assert_array_equal(samples, whole / np.float32(32768))
        half = audio.decode(utterance, RATE // 2)
        np.testing.assert_array_equal(half, audio.resample(samples, RATE, RATE // 2))
    codes, values = utterances.tag("speaker")
    assert [values[code] for code in codes] == ["s0", "s1", "s0", "s1", "s0"]


def test_a_record_stands_where_a_manifest_names_a_file(tmp_path):
    write(tmp_path)
    utterances, _, _ = _read(tmp_path)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row.as_line() | {"speaker": "x"}) + "\n" for row in utterances))
    for row, line in zip(utterances, _read(manifest)[0], strict=True):
        assert (line.audio_filepath, line.duration, line.offset) == (row.address, row.duration, 0.0)
        np.testing.assert_array_equal(audio.decode(line, RATE), audio.decode(row, RATE))
        assert audio.sample_hash(line) == audio.decode_hashed(line, RATE)[1] == row.sample_hash
        assert audio.rate_of(line) == RATE
    for name in (f"{tmp_path}/{shards.shard_name(0)}#3", f"{tmp_path}/none/{shards.shard_name(0)}#0"):
        with pytest.raises(audio.AudioError, match="missing_file: no utterance at"):
            audio.decode(Utterance(name, 1.0, "a"), RATE)


def test_what_is_louder_than_full_scale_is_cut_and_not_wrapped():
    samples = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 1 / 65536, 3 / 65536], np.float32)
    sound = shard_files.encode_samples(samples, sample_rate=RATE, encoding="int16")
    assert np.frombuffer(sound, "<i2").tolist() == [-32768, -32768, 0, 32767, 32767, 0, 2]


def test_records_are_protocol_buffers_and_the_same_bytes_each_time(tmp_path):
    # The wire format, by the documentation of protocol buffers: read by a parser that knows nothing of the layout.
    def parse(content):
        fields, at = [], 0

        def varint():
            nonlocal at
            value = shift = 0
            while True:
                byte = content[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(content):
            tag = varint()
            assert tag & 7 == 2
            size = varint()
            fields.append((tag >> 3, content[at : at + size]))
            at += size
        assert at == len(content)
        return fields

    row = {"id": "a" * 300, "text": "ä", "tags": '{"b": 1}', "hash": 5}
    record = shards.record_of(row, b"\1\2" * 200, sample_rate=16000)
    ((number, features),) = parse(record)
    found = {}
    for entry_number, entry in parse(features):
        (_, name), (_, feature) = parse(entry)
        ((kind, values),) = parse(feature)
        ((_, value),) = parse(values)
        assert (number, entry_number) == (1, 1)
        found[name.decode()] = kind, value
    assert found == {
        "audio": (1, b"\1\2" * 200),
        "hash": (1, b"0000000000000005"),
        "id": (1, b"a" * 300),
        "text": (1, "ä".encode()),
        "tags": (1, b'{"b": 1}'),
        "sample_rate": (3, b"\x80\x7d"),
    }
    sound, hashed = shard_files.sound_of(record)
    assert bytes(sound) == b"\1\2" * 200 and hashed == 5
    written = [write(tmp_path / name) and (tmp_path / name / shards.shard_name(1)).read_bytes() for name in "ab"]
    assert written[0] == written[1]


def _damaged(folder, name, change):
    path = folder / name
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def _flip(content, at):
    content[at] ^= 4
    return content


def test_a_flipped_bit_costs_one_utterance_and_names_its_shard(tmp_path):
    write(tmp_path)
    _damaged(tmp_path, shards.shard_name(0), lambda content: _flip(content, content.find(b"audio") + 1000))
    utterances, _, report = _read(tmp_path)
    failed = []
    for utterance in utterances:
        try:
            audio.decode(utterance, RATE)
        except audio.AudioError as error:
            failed.append((utterance.key, error.kind, shards.shard_name(0) in error.detail))
    assert failed == [("é0.wav", "undecodable_audio", True)] and report.counts()["undecodable_audio"] == 0


@pytest.mark.parametrize("size", [0, 1000, 70000])
def test_a_shard_that_is_cut_short_is_named_before_anything_is_read(tmp_path, size):
    write(tmp_path)
    _damaged(tmp_path, shards.shard_name(0), lambda content: content[:size])
    utterances, _, report = _read(tmp_path)
    assert f"has {size:,} bytes" in report.to_json()["utterances"]["undecodable_audio"][0]["detail"]
    with pytest.raises(audio.AudioError, match=f"{shards.shard_name(0)} has {size:,} bytes in place of"):
        audio.decode(utterances[0], RATE)
    assert audio.decode(utterances[4], RATE).size
    with pytest.raises(UserError, match=shards.shard_name(0)):
        _read(tmp_path, strict=True)


def test_a_shard_that_is_gone_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / shards.shard_name(1)).unlink()
    utterances, _, report = _read(tmp_path)
    assert report.counts()["missing_file"] == 1
    with pytest.raises(audio.AudioError, match=f"{shards.shard_name(1)} is missing"):
        audio.decode(utterances[4], RATE)


def test_a_shard_of_another_index_is_found_though_it_has_the_same_size(tmp_path):
    for seed, name in enumerate(("one", "other")):
        write(tmp_path / name, seed=seed)
    name = shards.shard_name(0)
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    utterances, _, report = _read(tmp_path / "one")
    assert not report.counts()["undecodable_audio"]
    with pytest.raises(audio.AudioError, match=f"{name} is another utterance than its index says"):
        audio.decode(utterances[0], RATE)


def _changed_index(folder, **changes):
    """The index of a folder with other columns or another `hra_jax` than was written."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / shards.INDEX)
    own = json.loads(table.schema.metadata[b"hra_jax"]) | changes.pop("own", {})
    for name, values in changes.items():
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table.replace_schema_metadata({b"hra_jax": json.dumps(own).encode()}), folder / shards.INDEX)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": {"format": 2}}, "format 2"),
        ({"own": {"encoding": "mp3"}}, "encoding 'mp3'; allowed: int16, flac"),
        ({"own": {"shards": [["../x", 3, 1, 1], ["y", 2, 1, 1]]}}, "'../x' is no file of the folder"),
        ({"own": {"shards": [["x", 3, 1], ["y", 2, 1, 1]]}}, "needed: .name, records"),
        ({"own": {"shards": []}}, "no index of its 0 shards"),
        ({"shard": [0, 0, 0, 1, 2, -1]}, "no index of its 2 shards"),
        ({"shard": [0, 0, 0, 1, -1, -1]}, "no index of its 2 shards"),
        ({"shard": [0, 0, 0, 0, 1, -1]}, "not the records of its shards"),
        ({"text": ["a", "b", "c", "d", None, "f"]}, "no index of its 2 shards"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(tmp_path, change, message):
    write(tmp_path)
    _changed_index(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        _read(tmp_path)


def test_an_index_with_a_flipped_bit_is_named(tmp_path):
    write(tmp_path)
    size = (tmp_path / shards.INDEX).stat().st_size
    before = (tmp_path / shards.INDEX).read_bytes()
    for at in (100, size // 4, size // 2, size - 20):
        (tmp_path / shards.INDEX).write_bytes(_flip(bytearray(before), at))
        try:
            utterances, _, _ = _read(tmp_path)
        except UserError as error:
            assert shards.INDEX in str(error)
        else:  # of the names and sizes in its footer some mean nothing
            assert [row.text for row in utterances] == [f"text {number}" for number in range(5)]


def test_a_folder_that_is_not_finished_is_told_from_a_manifest(tmp_path):
    (tmp_path / shards.shard_name(0)).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no columns.parquet; needed: a manifest, or shards"):
        _read(tmp_path)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "a.wav", "duration": 1, "text": "a"}) + "\n")
    assert isinstance(_read(manifest)[0][0], Utterance)
