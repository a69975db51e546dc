"""Damaged and hostile files of corpora: each line is an utterance or is named, or one line says what is wrong.

The long form: HRA_FUZZ_INPUTS=300 HRA_FUZZ_SEEDS=1,2,3 pytest --slow tests/data/importers/test_fuzzed_corpora.py -s
"""

import os
import random

import pytest
from reference import corpus_trees, endless

from hra_jax.data import manifest
from hra_jax.data.importers import importing
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError

INPUTS = int(os.environ.get("HRA_FUZZ_INPUTS", "8"))
SEEDS = [int(seed) for seed in os.environ.get("HRA_FUZZ_SEEDS", "0").split(",")]
TABLES = {".TXT", ".txt", ".tsv", ".csv", ".jsonl", ".json", ".stm", ".scp", ""}
PIECES = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b" ", b'"', b'""', b",", b"|", b"\x1b[2J",
    b";;", "\u2028\u202e".encode(), b"<", b">", b"(", b"{", b"}", b"nan", b"inf", b"-1", b"1e999", b"9" * 400,
    b"a" * 5000, b"/dev/zero", b"/dev/stdin", b"../" * 2000, b"http://a/b.wav", b"file://", b"gs:", b"~", b"touch x |",
)  # fmt: skip


def damaged(content: bytes, source: random.Random) -> bytes:
    """The content with pieces put in or lines and bytes taken out, at some places."""
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.randrange(len(content) + 1)
        act = source.randrange(4)
        if act == 0:
            content = content[:at] + content[at + source.randrange(1, 40) :]
        elif act == 1:
            lines = content.splitlines(keepends=True) or [b""]
            number = source.randrange(len(lines))
            lines[number] *= source.choice((0, 2))
            content = b"".join(lines)
        else:
            content = content[:at] + source.choice(PIECES) + content[at:]
    return content


@pytest.mark.slow(minutes=0.3)
@pytest.mark.parametrize("kind", sorted(corpus_trees.TREES))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_corpus_is_imported_or_refused_in_one_line(tmp_path, kind, seed):
    corpus, source = tmp_path / "corpus", random.Random(f"{kind} {seed}")
    corpus_trees.TREES[kind](corpus)
    tables = sorted(path for path in corpus.rglob("*") if path.is_file() and path.suffix in TABLES)
    whole = {path: path.read_bytes() for path in tables}
    imported = 0
    for _ in range(INPUTS):
        path = source.choice(tables)
        path.write_bytes(damaged(whole[path], source))
        try:
            with endless.bounded(60):
                parts = importing.import_corpus(corpus, tmp_path / "out", kind=kind)
        except UserError as error:
            assert error.args[0] and "Traceback" not in str(error), path
            parts = {}
        imported += bool(parts)
        for name, part in parts.items():
            found = manifest.load_manifest(name, report=DataReport(strict=True))
            assert len(found) == len(part.rows), path.read_bytes()
            assert all(utterance.text.strip() and utterance.duration > 0 for utterance in found)
        path.write_bytes(whole[path])
    assert imported
