"""Damaged and hostile lines of manifests: each is an utterance or is named, and the rest goes on.

The long form: HRA_FUZZ_INPUTS=1000 HRA_FUZZ_SEEDS=1,2,3 pytest --slow tests/data/test_fuzzed_manifests.py -s
"""

import json
import os
import random
import re
import time

import numpy as np
import pytest
import soundfile

from hra_jax.data import audio, manifest, overlaps
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_text

MOST_SECONDS = 20  # for one line, with all that is done with it
# Written as JSON; what is bytes is written as it is.
VALUES = (
    None, True, False, 0, -0.0, 1, -1, 0.3, 1e-320, 1e308, -1e308, 10**30, 2**63, "", "one",
    [], {}, [[]], {"a": {"b": []}}, ["a.wav"], {"text": "one"}, list(range(1000)),
)  # fmt: skip
PATHS = (
    "a.wav", "./a.wav", "../a.wav", "gone.wav", "x.raw", "/dev/zero", "/dev/stdin", "/proc/self/mem", "..", "/", "~",
    " ", "a" * 300, "a/" * 3000, "a\0.wav", "a\n.wav", "\ud800", "a\udcff.wav", "\u202ea.wav", "{dir}", "%s", "://",
    "http://example.org/a.wav", "https://a", "ftp://a/b", "a://b", "data:,a", "file://", "file:///", "file:///%00",
    "file://elsewhere/a", "file:///a%",
)  # fmt: skip
TEXTS = (
    "'" * 16_000, "e\u0301\u0323" * 300, "\u0301" * 100_000, "\ufdfa" * 900, "\u200b", "\ufeff", "<b>", "\x1b[2J",
    "a\ud800", "\udfffa", "a\0b", "a\u2028b", "\u202eabc", "NaN",
)  # fmt: skip
RAW = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"9" * 400, b"9" * 5000, b"0" * 50, b"01",
    b"0x10", b"1.", b".5", b"+1", b"1e", b"'a'", b"[" * 3000, b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000, b'"\\ud800"',
    b'"\\u0000.wav"', b'"\\x"', b'"\xff"', b'"\xed\xa0\x80"', b'"', b"nul", b"", b"\x00",
)  # fmt: skip
FIELDS = ("audio_filepath", "duration", "text", "offset", "speaker", "lang", "", "\u0000", "a" * 1000, "AUDIO_FILEPATH")


def written(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=True).encode()


def line(source: random.Random) -> bytes:
    """A line: good fields, some replaced or added, some bytes damaged."""
    fields = [("audio_filepath", "a.wav"), ("duration", 0.5), ("text", "one two"), ("speaker", "ann")]
    fields = [field for field in fields if source.random() > 0.03]
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        name = source.choice(FIELDS)
        value = source.choice(source.choices((PATHS, VALUES, TEXTS, RAW), (4, 3, 2, 1))[0])
        if source.random() < 0.5 and value in (*PATHS, *TEXTS):
            name = "audio_filepath" if value in PATHS else "text"
        if source.random() < 0.9:
            fields = [field for field in fields if field[0] != name]
        fields.append((name, value))
    found = bytearray(b"{" + b", ".join(written(name) + b": " + written(value) for name, value in fields) + b"}")
    if source.random() < 0.15:
        for _ in range(source.randint(1, 5)):
            at = source.randrange(len(found) + 1)
            found[at : at + source.choice((0, 1, 1, 10))] = source.randbytes(source.choice((0, 1, 1, 8)))
    return bytes(found).replace(b"\n", b"").replace(b"\r", b"") or b"{}"


def fuzz(folder, *, seed, count):
    """Reads many lines as training does; returns how many were good, and how many of each kind were not."""
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    source = random.Random(seed)
    lines = [line(source) for _ in range(count)]
    lines = [text for text in lines if text.strip()]
    (folder / "m.jsonl").write_bytes(b"\n".join(lines))
    report = DataReport()
    utterances = manifest.load_manifest(folder / "m.jsonl", report=report)
    named = {int(row["name"].rsplit(":", 1)[1]) for rows in report.to_json()["utterances"].values() for row in rows}
    assert len(named) + len(utterances) == len(lines), "a line is neither an utterance nor named"
    assert named.isdisjoint(utterance.line for utterance in utterances)
    for utterance in utterances:
        check(utterance, report)
    overlaps.shared(utterances, utterances)
    report.write(folder / "report.json")
    kinds = {kind: number for kind, number in report.counts().items() if number}
    for rows in json.loads((folder / "report.json").read_text())["utterances"].values():
        for row in rows:
            assert row["detail"] and row["name"].isprintable() and row["detail"].isprintable(), row
    print(f"seed {seed}: {len(lines)} lines, {len(utterances)} utterances, {kinds}")
    return len(utterances), kinds


def check(utterance: Utterance, report: DataReport) -> None:
    """Does with an utterance what training does."""
    started = time.process_time()
    assert 0 < utterance.duration < 1e9 and 0 <= utterance.offset < 1e9
    normalize_text(utterance.text, "basic")
    json.dumps(utterance.tags, ensure_ascii=False).encode()
    try:
        assert np.isfinite(audio.decode(utterance, 16000)).all()
    except audio.AudioError as error:
        report.add(error.kind, f"{utterance.key}", error.detail)
    assert time.process_time() - started < MOST_SECONDS, utterance.line


def test_every_line_is_an_utterance_or_named(tmp_path):
    good, kinds = fuzz(tmp_path, seed=int(os.environ.get("HRA_SEED", "0")), count=500)
    assert good > 100
    assert {"bad_json", "missing_field", "missing_file", "unreachable_audio", "undecodable_audio"} <= set(kinds)


CELLS = (b"a.wav", b"b.wav", b"sub/a.wav", b"sub", b"a", b"", b" ", b"one", b"two words", b'"one', b'"one"', b'"a, b"')
MARKS = (
    b",",
    b"\t",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\x85",
    b"\\",
    b"..",
)


# One column of each holds the text; where it has no known name, and is one of three, no manifest may be made.
HEADERS = (
    (b"file", b"text"), (b"path", b"words"), (b"file", b"text", b"speaker"), (b"path", b"age", b"sentence"),
    (b"file", b"speaker", b"words"),
)  # fmt: skip


def fuzz_tables(folder, *, seed, count):
    """Makes manifests with damaged tables of transcripts; returns how many were made."""
    for name in ("a.wav", "b.wav", "sub/a.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, np.zeros(80, np.int16), 8000)
    source, made = random.Random(seed), 0
    for _ in range(count):
        separator, name = source.choice(((b",", "transcripts.csv"), (b"\t", "transcripts.tsv")))
        header = source.choices(HEADERS, (4, 2, 1, 1, 1))[0]
        text_at = next((at for at, cell in enumerate(header) if cell in (b"text", b"sentence")), len(header) - 1)
        rows = [separator.join(header)] if source.random() < 0.5 or len(header) > 2 else []
        for _ in range(source.randint(0, 3)):
            cells = [source.choice(CELLS)] + [b"another column"] * (len(header) - 1)
            cells[text_at] = source.choice(CELLS)
            rows.append(separator.join(cells))
        content = bytearray(b"\n".join(rows) + b"\n")
        for _ in range(source.choice((0, 0, 1, 3))):
            at = source.randrange(len(content) + 1)
            content[at:at] = source.choice((*MARKS, *CELLS, source.randbytes(2)))
        (folder / name).write_bytes(content)
        try:
            manifest.make(folder, folder / "m.jsonl")
        except UserError as error:
            assert str(error).isprintable()
        else:
            made += 1
            for utterance in manifest.load_manifest(folder / "m.jsonl", report=DataReport(strict=True)):
                # Of one line, and from one end of a cell to the other.
                lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
                plain = [" ".join(line.replace('"', "").replace(separator.decode(), "|").split()) for line in lines]
                text = re.escape(utterance.text.replace('"', "").replace(separator.decode(), "|"))
                whole = re.compile(text.replace(r"\ ", "[ |]+") + r" ?(\||$)")
                assert any(map(whole.search, plain)), utterance.text
                assert utterance.text != "another column"
                assert "\n" not in utterance.text and utterance.text == " ".join(utterance.text.split())
        (folder / name).unlink()
    print(f"seed {seed}: {count} tables, {made} manifests")
    return made


def test_every_table_of_transcripts_makes_a_manifest_or_is_refused_in_one_line(tmp_path):
    assert 20 < fuzz_tables(tmp_path, seed=int(os.environ.get("HRA_SEED", "0")), count=400) < 360


@pytest.mark.slow(minutes=0.2)
@pytest.mark.parametrize("seed", os.environ.get("HRA_FUZZ_SEEDS", "1").split(","))
def test_every_one_of_many_lines_is_an_utterance_or_named(tmp_path, seed):
    fuzz(tmp_path, seed=int(seed), count=int(os.environ.get("HRA_FUZZ_INPUTS", "1000")))
