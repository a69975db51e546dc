"""Manifests: what is read, made and checked, and what happens to what is bad."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from hra_jax.data import manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError

GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "one"}
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def _write(path, *lines):
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def _sound(path, *, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * 8000)).astype(np.float32)
    soundfile.write(path, samples, 8000, subtype="FLOAT" if path.suffix == ".wav" else None)


def test_fields_tags_and_keys_survive_and_paths_are_resolved(tmp_path):
    segment = {**GOOD, "audio_filepath": "sub/b.flac", "offset": 2.5, "speaker": "anna", "age": 30}
    remote = {**GOOD, "audio_filepath": "gs://bucket/c.wav"}
    file = _write(tmp_path / "m.jsonl", GOOD, b"", segment, remote)
    first, second, third = manifest.load_manifest(file, report=DataReport(strict=True))
    assert first.audio_filepath == str(tmp_path / "a.wav")
    assert (first.key, first.offset, first.tags, first.line, first.source) == ("a.wav", 0.0, {}, 1, str(file))
    assert second.audio_filepath == str(tmp_path / "sub/b.flac")
    assert (second.key, second.offset, second.line) == ("sub/b.flac@2.5+1", 2.5, 3)
    assert second.tags == {"speaker": "anna", "age": 30}
    assert third.audio_filepath == third.key == "gs://bucket/c.wav"


def test_keys_do_not_depend_on_where_the_data_lies(tmp_path):
    keys = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        file = _write(tmp_path / name / "m.jsonl", GOOD, {**GOOD, "offset": 1.0})
        keys.append([utterance.key for utterance in manifest.load_manifest(file, report=DataReport())])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 2


BAD_LINES = {
    "cut short": (b'{"audio_filepath": "a.wav", "dur', "bad_json"),
    "a list": (b"[1, 2]", "bad_json"),
    "not utf-8": (b'{"audio_filepath": "\xff\xfe", "duration": 1.0, "text": "one"}', "bad_json"),
    "no text": ({"audio_filepath": "a.wav", "duration": 1.0}, "missing_field"),
    "no path": ({"duration": 1.0, "text": "one"}, "missing_field"),
    "no duration": ({"audio_filepath": "a.wav", "text": "one"}, "missing_field"),
    "text is a number": ({**GOOD, "text": 5}, "missing_field"),
    "path is empty": ({**GOOD, "audio_filepath": ""}, "missing_field"),
    "duration is a text": ({**GOOD, "duration": "1"}, "missing_field"),
    "duration is below 0": ({**GOOD, "duration": -1}, "missing_field"),
    "duration is NaN": ({**GOOD, "duration": float("nan")}, "bad_json"),
    "offset is a text": ({**GOOD, "offset": "0"}, "missing_field"),
    "duration is 0": ({**GOOD, "duration": 0}, "empty_audio"),
    "empty object": ({}, "missing_field"),
    "null": (b"null", "bad_json"),
    "a number": (b"1e999", "bad_json"),
    "only a bracket": (b"[", "bad_json"),
    "3,000 brackets": (b"[" * 3000, "bad_json"),
    "100,000 brackets": (b"[" * 100_000 + b"]" * 100_000, "bad_json"),
    "deep in a tag": (
        b'{"audio_filepath": "a.wav", "duration": 1, "text": "a", "x": %s}' % (b"[" * 99 + b"]" * 99),
        "bad_json",
    ),
    "a key twice": (b'{"audio_filepath": "a.wav", "duration": 1, "text": "a", "text": "b"}', "bad_json"),
    "a NUL byte": (b'{"audio_filepath": "a\0.wav", "duration": 1, "text": "a"}', "bad_json"),
    "a NUL in the path": ({**GOOD, "audio_filepath": "a\0.wav"}, "missing_field"),
    "half a character in the text": ({**GOOD, "text": "a\ud800"}, "bad_json"),
    "half a character in the path": ({**GOOD, "audio_filepath": "\udcff.wav"}, "bad_json"),
    "half a character in a tag": ({**GOOD, "speaker": {"name": ["\udfff"]}}, "bad_json"),
    "half a character in a key": ({**GOOD, "\ud800": 1}, "bad_json"),
    "2 MB": ({**GOOD, "comment": "a" * 2_000_000}, "bad_json"),
    "duration of 60 digits": ({**GOOD, "duration": 10**60}, "missing_field"),
    "duration of 400 digits": (
        b'{"audio_filepath": "a.wav", "duration": %s, "text": "a"}' % (b"1" * 400),
        "bad_json",
    ),
    "duration of 5,000 digits": (
        b'{"audio_filepath": "a.wav", "duration": %s, "text": "a"}' % (b"1" * 5000),
        "bad_json",
    ),
    "duration is true": ({**GOOD, "duration": True}, "missing_field"),
    "duration is a list": ({**GOOD, "duration": [1]}, "missing_field"),
    "duration is null": ({**GOOD, "duration": None}, "missing_field"),
    "duration of a century": ({**GOOD, "duration": 3e9}, "missing_field"),
    "offset is 1e308": ({**GOOD, "offset": 1e308}, "missing_field"),
    "offset is 1e999": (b'{"audio_filepath": "a.wav", "duration": 1, "offset": 1e999, "text": "a"}', "bad_json"),
    "offset is below 0": ({**GOOD, "offset": -0.5}, "missing_field"),
    "path is null": ({**GOOD, "audio_filepath": None}, "missing_field"),
    "path is a list": ({**GOOD, "audio_filepath": ["a.wav"]}, "missing_field"),
    "text is null": ({**GOOD, "text": None}, "missing_field"),
    "phrases are a text": ({**GOOD, "phrases": "anna"}, "missing_field"),
    "phrases are numbers": ({**GOOD, "phrases": [1, 2]}, "missing_field"),
    "an empty phrase": ({**GOOD, "phrases": ["anna", " "]}, "missing_field"),
    "a phrase of a page": ({**GOOD, "phrases": ["a" * 2000]}, "missing_field"),
    "http": ({**GOOD, "audio_filepath": "http://example.org/a.wav"}, "unreachable_audio"),
    "an unknown scheme": ({**GOOD, "audio_filepath": "nonsense://a.wav"}, "unreachable_audio"),
    "more text than audio": ({**GOOD, "text": "'" * 16_000}, "too_short"),
    "100,000 marks": ({**GOOD, "text": "a" + "\u0301\u0323" * 50_000}, "too_short"),
}


def test_every_kind_of_bad_line_is_counted_and_named_and_the_rest_goes_on(tmp_path):
    lines = [line for line, _ in BAD_LINES.values()]
    file = _write(tmp_path / "m.jsonl", GOOD, *lines, GOOD)
    report = DataReport()
    utterances = manifest.load_manifest(file, report=report)
    assert [utterance.line for utterance in utterances] == [1, len(lines) + 2]
    found = {row["name"]: kind for kind, rows in report.to_json()["utterances"].items() for row in rows}
    assert found == {f"{file}:{i}": kind for i, (_, kind) in enumerate(BAD_LINES.values(), start=2)}


def test_lines_have_phrases_and_wrong_ones_among_many_plain_lines_are_refused(tmp_path):
    lines = [dict(GOOD) for _ in range(40)]
    lines[3]["phrases"], lines[4]["phrases"], lines[30]["phrases"] = ["anna", "new york"], None, "anna"
    report = DataReport()
    utterances = manifest.load_manifest(_write(tmp_path / "m.jsonl", *lines), report=report)
    assert [utterance.line for utterance in utterances] == [line for line in range(1, 41) if line != 31]
    assert {utterance.line: utterance.tags.get("phrases") for utterance in utterances}[4] == ["anna", "new york"]
    assert report.counts()["missing_field"] == 1
    detail = report.to_json()["utterances"]["missing_field"][0]["detail"]
    assert detail == "phrases is 'anna'; needed: a list of texts"


def test_an_offset_of_null_is_none_and_long_texts_of_long_audio_are_kept(tmp_path):
    file = _write(tmp_path / "m.jsonl", {**GOOD, "offset": None}, {**GOOD, "duration": 100.0, "text": "a" * 21_000})
    whole, long = manifest.load_manifest(file, report=DataReport(strict=True))
    assert (whole.key, whole.offset, "offset" in whole.tags) == ("a.wav", 0.0, False)
    assert len(long.text) == 21_000


def test_keys_of_near_offsets_differ(tmp_path):
    offsets = (12345.678, 12345.679, 1234567.0, 1234568.0)
    file = _write(tmp_path / "m.jsonl", *({**GOOD, "offset": offset} for offset in offsets))
    keys = [utterance.key for utterance in manifest.load_manifest(file, report=DataReport(strict=True))]
    assert keys == ["a.wav@12345.678+1", "a.wav@12345.679+1", "a.wav@1234567+1", "a.wav@1234568+1"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_of_any_editor_change_nothing(tmp_path, end, mark):
    rows = [{**GOOD, "text": "één\u2028twee\x85", "speaker": "zoë"}, {**GOOD, "offset": 1.5}]
    text = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (tmp_path / "m.jsonl").write_bytes(mark + end.join([text[0], b"", text[1], b"[", b""]) + mark + text[1])
    report = DataReport()
    first, second, third = manifest.load_manifest(tmp_path / "m.jsonl", report=report)
    assert (first.text, first.tags, first.line) == ("één\u2028twee\x85", {"speaker": "zoë"}, 1)
    assert (second.offset, second.line) == (1.5, 3)
    assert (third.offset, third.line) == (1.5, 5)  # a file with a mark of its own that was put behind another
    assert [row["name"] for row in report.to_json()["utterances"]["bad_json"]] == [f"{tmp_path / 'm.jsonl'}:4"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_manifest_in_another_encoding_is_refused_in_one_line(tmp_path, encoding):
    (tmp_path / "m.jsonl").write_text(f"{json.dumps(GOOD)}\r\n" * 3, encoding=encoding)
    with pytest.raises(UserError, match=r"m\.jsonl is UTF-16 or UTF-32; needed: UTF-8$"):
        manifest.load_manifest(tmp_path / "m.jsonl", report=DataReport())


def test_checking_an_empty_manifest_is_an_error(tmp_path):
    for content in (b"", b"\n\n"):
        (tmp_path / "m.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"m\.jsonl is empty"):
            manifest.check(tmp_path / "m.jsonl")


def test_checking_shards_says_what_checks_them(tmp_path):
    (tmp_path / "columns.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=f"{tmp_path} holds shards; python -m hra_jax.verify {tmp_path} checks them"):
        manifest.check(tmp_path)


def test_interrupting_a_check_decodes_nothing_more(tmp_path, monkeypatch):
    _sound(tmp_path / "a.wav", seconds=1.0)
    file = _write(tmp_path / "m.jsonl", *[GOOD] * 2000)
    decoded = []

    def decode(utterance, sample_rate):
        decoded.append(utterance)
        if len(decoded) == 20:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.002)

    monkeypatch.setattr(manifest.audio, "decode", decode)
    # Processes that share the tests ignore the signal.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # JAX is called whenever garbage is collected, and an exception there is lost
    try:
        with pytest.raises(KeyboardInterrupt):
            manifest.check(file)
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, earlier)
    assert len(decoded) < 500


@pytest.mark.parametrize("name", BAD_LINES)
def test_strict_makes_each_bad_line_an_error_of_one_line(tmp_path, name):
    line, kind = BAD_LINES[name]
    file = _write(tmp_path / "m.jsonl", GOOD, line)
    with pytest.raises(UserError, match=f"^{kind}: .*m.jsonl:2") as error:
        manifest.load_manifest(file, report=DataReport(strict=True))
    assert "\n" not in str(error.value)


def test_a_missing_manifest_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"no manifest at .*none\.jsonl"):
        manifest.load_manifest(tmp_path / "none.jsonl", report=DataReport())
    with pytest.raises(UserError, match="cannot be read"):
        manifest.load_manifest(tmp_path, report=DataReport())


def test_make_reads_transcripts_beside_the_audio(tmp_path):
    _sound(tmp_path / "rec" / "anna" / "1.wav", seconds=0.5)
    _sound(tmp_path / "rec" / "bob" / "2.flac", seconds=1.0)
    _sound(tmp_path / "rec" / "bob" / "silent.wav")
    (tmp_path / "rec" / "anna" / "1.txt").write_text("hello  there\n")
    (tmp_path / "rec" / "bob" / "2.txt").write_text("good morning")
    (tmp_path / "rec" / "bob" / "broken.wav").write_text("no audio")
    (tmp_path / "rec" / "bob" / "broken.txt").write_text("broken")
    output = tmp_path / "lists" / "m.jsonl"
    count, silent, report, _ = manifest.make(tmp_path / "rec", output)
    assert (count, silent) == (2, ["bob/silent.wav"])
    assert report.to_json()["utterances"]["undecodable_audio"][0]["name"] == "bob/broken.wav"
    good, checked = manifest.check(output, sample_rate=8000)
    assert [(u.text, u.duration, u.tags["speaker"]) for u in good] == [
        ("hello there", 0.5, "anna"),
        ("good morning", 1.0, "bob"),
    ]
    assert not sum(checked.counts().values())
    shutil.move(tmp_path, f"{tmp_path}-moved")  # a manifest moves with its audio
    assert len(manifest.check(f"{tmp_path}-moved/lists/m.jsonl", sample_rate=8000)[0]) == 2


@pytest.mark.parametrize(("name", "separator"), [("transcripts.tsv", "\t"), ("transcripts.csv", ",")])
@pytest.mark.parametrize("header", [True, False])
def test_make_reads_a_table_of_transcripts(tmp_path, name, separator, header):
    _sound(tmp_path / "a.wav")
    _sound(tmp_path / "sub" / "b.wav")
    _sound(tmp_path / "c.wav")
    rows = [("file", "text")] if header else []
    rows += [("a.wav", "one"), ("sub/b", "two")]
    (tmp_path / name).write_text("".join(f"{separator.join(row)}\n" for row in rows))
    count, silent, *_ = manifest.make(tmp_path, tmp_path / "m.jsonl", speaker_from="none")
    assert (count, silent) == (2, ["c.wav"])
    utterances = manifest.load_manifest(tmp_path / "m.jsonl", report=DataReport(strict=True))
    assert [(u.key, u.text, u.tags) for u in utterances] == [("a.wav", "one", {}), ("sub/b.wav", "two", {})]


def test_make_says_when_there_is_nothing_to_make(tmp_path):
    with pytest.raises(UserError, match="no folder at"):
        manifest.make(tmp_path / "none", tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"no audio in .*\.flac"):
        manifest.make(tmp_path, tmp_path / "m.jsonl")
    _sound(tmp_path / "a.wav")
    with pytest.raises(UserError, match="1 without text"):
        manifest.make(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"'typo'.*parent"):
        manifest.make(tmp_path, tmp_path / "m.jsonl", speaker_from="typo")


def test_check_names_every_kind_of_bad_audio_and_strict_exits_with_2(tmp_path):
    _sound(tmp_path / "good.wav", seconds=1.0)
    samples = np.zeros(8000, np.float32)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 8000, subtype="FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    _sound(tmp_path / "cut.flac", seconds=1.0)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:4000])
    names = ("good.wav", "nan.wav", "empty.wav", "text.wav", "cut.flac", "none.wav")
    file = _write(tmp_path / "m.jsonl", b"{", *({**GOOD, "audio_filepath": name, "speaker": "anna"} for name in names))
    command = [sys.executable, "-m", "hra_jax.data.manifest", "check", str(file), "--sample_rate=8000"]
    command.append(f"--report={tmp_path / 'report.json'}")
    relaxed, strict = (
        subprocess.run([*command, *more], cwd=REPOSITORY, env=os.environ, capture_output=True, text=True)
        for more in ([], ["--strict"])
    )
    assert (relaxed.returncode, strict.returncode) == (0, 2), relaxed.stderr + strict.stderr
    found = json.loads((tmp_path / "report.json").read_text())["utterances"]
    assert {kind: [row["name"] for row in rows] for kind, rows in found.items()} == {
        "bad_json": [f"{file}:1"],
        "missing_file": ["none.wav"],
        "empty_audio": ["empty.wav"],
        "undecodable_audio": ["cut.flac", "text.wav"],
        "nan_samples": ["nan.wav"],
    }
    assert "1 good, 6 bad" in relaxed.stdout
    for name in names[1:]:
        assert name in relaxed.stdout


def test_lines_mean_the_same_alone_and_among_thousands(tmp_path):
    random = np.random.default_rng(2)
    kinds = [
        {"speaker": "anna", "age": 7},
        {"speaker": "7", "age": 7.0, "offset": 0},
        {"speaker": 7, "offset": 1.25, "more": [1, {"a": None}]},
        {"offset": None, "speaker": None},
        {"age": 10**30, "day": "2024-01-01"},
        {"text": "caf\u00e9 \U0001f600 [null]", "ok": True},
        {"audio_filepath": "gs://bucket/a.wav"},
        {"audio_filepath": "/data/a.wav", "duration": 3},
        *({f"tag{number}": number} for number in range(100)),  # more than have a column
    ]
    # Long runs of one kind, as tools write them, and lines of all kinds between them.
    chosen = [{**kinds[0], "text": "one " * 60}] * 5000 + [
        kinds[number] for number in random.integers(len(kinds), size=300)
    ]
    chosen += [kinds[1]] * 300 + [kinds[5]] * 300
    rows = [{**GOOD, **kind, "line": number} for number, kind in enumerate(chosen, start=1)]
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0).encode() for number, row in enumerate(rows)]
    bad = {number: [b"{", b'{"duration": 1}', b"", b"  "][number % 4] for number in range(7, len(lines), 997)}
    (tmp_path / "m.jsonl").write_bytes(b"\r\n".join(bad.get(number, line) for number, line in enumerate(lines)))
    report = DataReport()
    utterances, refused = manifest.read_manifest(tmp_path / "m.jsonl", report=report)
    good = [row for number, row in enumerate(rows) if number not in bad]
    assert len(utterances) == len(good) > 5000
    named = [number for number in bad if bad[number].strip()]
    assert [row.key for row in refused] == [f"{tmp_path / 'm.jsonl'}:{number + 1}" for number in named]
    for utterance, row in zip(utterances, good, strict=True):
        path, offset = row["audio_filepath"], row.get("offset")
        tags = {name: value for name, value in row.items() if name not in (*GOOD, "offset")}
        expected = Utterance(
            path if path.startswith("gs:") else os.path.normpath(tmp_path / path),
            float(row["duration"]),
            row["text"],
            0.0 if offset is None else float(offset),
            {name: tags[name] for name in utterance.tags},
            path if offset is None else f"{path}@{offset:g}+{row['duration']:g}",
            str(tmp_path / "m.jsonl"),
            row["line"],
        )
        assert repr(utterance) == repr(expected) and utterance.tags.keys() == tags.keys()
    for name in ("speaker", "age", "day", "more", "tag3", "tag99", "none"):
        codes, values = utterances.tag(name)
        assert [values[code] if code >= 0 else None for code in codes] == [row.tag(name) for row in utterances]


def test_without_texts_nothing_is_asked_of_them_in_few_lines_and_in_many(tmp_path):
    kinds = [{}, {"text": "one two"}, {"text": 7}, {"text": "x" * 5000}, {"phrases": ["a", "b"]}]
    for count in (5, 200):
        rows = [{"audio_filepath": f"{n}.wav", "duration": 0.5, **kinds[n % count % 5]} for n in range(count)]
        plain = [{"audio_filepath": f"{n}.wav", "duration": 0.5} for n in range(count)]
        for lines in (rows, plain):
            path = tmp_path / "m.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in lines))
            report = DataReport()
            found, refused = manifest.read_manifest(path, report=report, texts=False)
            assert [row.text for row in found] == [""] * count and refused == []
            assert [row.key for row in found] == [row["audio_filepath"] for row in lines]
            assert [row.tags for row in found] == [
                {name: value for name, value in row.items() if name == "phrases"} for row in lines
            ]
    assert len(manifest.read_manifest(path, report=DataReport())[0]) == 0
