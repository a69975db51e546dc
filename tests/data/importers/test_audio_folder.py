"""Audio folders of Hugging Face: tables of either kind, splits, tags, rows that cannot be used."""

import json

import pytest
from reference import corpus_trees

from hra_jax.data.importers import importing
from hra_jax.errors import UserError


def parts(folder, output, **options):
    return {part.split.name: part for part in importing.import_corpus(folder, output, **options).values()}


def test_columns_are_tags(tmp_path):
    corpus_trees.audio_folder(tmp_path / "corpus")
    first, second = parts(tmp_path / "corpus", tmp_path / "out")["train"].rows
    assert first["speaker"] == first["speaker_id"] == "7" and first["age"] == "41"
    assert second["speaker"] == "8" and not {"age", "file_name", "transcription"} & set(second)


def test_a_split_is_a_folder_with_metadata_of_its_own(tmp_path):
    rows = [
        {"file_name": "a.wav", "text": "one", "speaker": "ann", "words": [{"w": "one"}], "age": 7, "note": None},
        {"file_name": "sub/b.wav", "text": "two"},
    ]
    for split in ("train", "dev"):
        for row in rows:
            corpus_trees.sound(tmp_path / "corpus" / "data" / split / row["file_name"])
        corpus_trees.write(tmp_path / "corpus" / "data" / split / "metadata.jsonl", *map(json.dumps, rows), end="\r\n")
    found = parts(tmp_path / "corpus", tmp_path / "out")
    assert list(found) == ["train", "validation"]
    first, second = found["validation"].rows
    assert (first["text"], first["speaker"], first["age"]) == ("one", "ann", 7)
    assert not {"words", "note", "file_name"} & set(first) and second["text"] == "two"


def test_rows_that_cannot_be_used_are_named(tmp_path):
    corpus_trees.sound(tmp_path / "corpus" / "a.wav")
    lines = [
        '{"file_name": "a.wav", "text": "one"}',
        '{"file_name": "a.wav", "text": " "}',
        '{"text": "x"}',
        "[1]",
        "{",
    ]
    corpus_trees.write(tmp_path / "corpus" / "metadata.jsonl", *lines)
    part = parts(tmp_path / "corpus", tmp_path / "out")["train"]
    bad = {kind: [row["name"] for row in rows] for kind, rows in part.report.to_json()["utterances"].items()}
    name = "corpus/metadata.jsonl"
    assert bad == {"no_text": [f"{name}:2"], "missing_field": [f"{name}:3"], "bad_json": [f"{name}:4", f"{name}:5"]}
    (tmp_path / "corpus" / "metadata.jsonl").unlink()
    corpus_trees.write(
        tmp_path / "corpus" / "metadata.csv", "file_name,text", "a.wav,one,more", ",two", "a.wav,", "a.wav,x"
    )
    part = parts(tmp_path / "corpus", tmp_path / "out")["train"]
    bad = {kind: [row["name"] for row in rows] for kind, rows in part.report.to_json()["utterances"].items()}
    name = "corpus/metadata.csv"
    assert bad == {"no_text": [f"{name}:4"], "missing_field": [f"{name}:2", f"{name}:3"]}


def test_a_table_that_is_none_is_refused(tmp_path):
    corpus_trees.sound(tmp_path / "corpus" / "a.wav")
    table = tmp_path / "corpus" / "metadata.csv"
    corpus_trees.write(table, "file_name,words", "a.wav,one")
    with pytest.raises(UserError, match="none of 'file_name', 'words' is known to be the transcript; allowed"):
        parts(tmp_path / "corpus", tmp_path / "out")
    corpus_trees.write(table, "file_name,text", 'a.wav,"one', "a.wav,two")
    with pytest.raises(UserError, match=r"metadata.csv:3: .*quote"):
        parts(tmp_path / "corpus", tmp_path / "out")
    table.write_bytes(b"file_name,text\na.wav,\xe9t\xe9\n")
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        parts(tmp_path / "corpus", tmp_path / "out")
    corpus_trees.write(table, "LJ001-0001|Printing, in the only sense|Printing")  # of another corpus
    with pytest.raises(UserError, match="no corpus of a known kind"):
        parts(tmp_path / "corpus", tmp_path / "out")
