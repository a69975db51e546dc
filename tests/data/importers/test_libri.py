"""LibriSpeech, LibriTTS and UserLibri: tags, and transcripts that are missing."""

import pytest
from reference import corpus_trees

from hra_jax.data.importers import importing


def parts(folder, output, **options):
    """{split: its rows}, and {kind: names} of what is left out."""
    found = importing.import_corpus(folder, output, **options)
    bad: dict[str, list[str]] = {}
    for part in found.values():
        for kind, rows in part.report.to_json()["utterances"].items():
            bad.setdefault(kind, []).extend(row["name"] for row in rows)
    return {part.split.name: part.rows for part in found.values()}, bad


@pytest.mark.parametrize("kind", ["librispeech", "libritts"])
def test_speakers_have_the_gender_of_the_table_of_readers(tmp_path, capsys, kind):
    corpus_trees.TREES[kind](tmp_path / "corpus")
    found, _ = parts(tmp_path / "corpus", tmp_path / "out")
    about = {(row["speaker"], row["chapter"], row["gender"]) for rows in found.values() for row in rows}
    assert about >= {("60", "121082", "male"), ("84", "121123", "female")}
    next((tmp_path / "corpus").glob("SPEAKERS.*")).unlink()
    found, _ = parts(tmp_path / "corpus", tmp_path / "out")
    assert all("gender" not in row for rows in found.values() for row in rows)
    assert "utterances have no gender" in capsys.readouterr().out


def test_users_are_a_reader_and_a_book(tmp_path):
    corpus_trees.user_libri(tmp_path / "corpus")
    for folder in ("corpus", "corpus/audio_data"):
        found, _ = parts(tmp_path / folder, tmp_path / "out")
        (about,) = {(row["user"], row["speaker"], row["book"]) for row in found["test_other"]}
        assert about == ("speaker-367-book-20027", "367", "20027")


def test_recordings_without_a_transcript_are_named(tmp_path):
    corpus_trees.librispeech(tmp_path / "corpus")
    chapter = tmp_path / "corpus" / "dev-clean" / "84" / "121123"
    corpus_trees.write(chapter / "84-121123.trans.txt", "84-121123-0000", "84-121123-0009 NO SUCH RECORDING")
    corpus_trees.sound(chapter.parent / "121550" / "84-121550-0000.flac")
    corpus_trees.sound(chapter.parent / "121551" / "84-121551-0000.flac")
    corpus_trees.write(chapter.parent / "121551" / "84-121551.trans.txt", "84-121551-0000 IT IS")
    found, bad = parts(tmp_path / "corpus", tmp_path / "out")
    assert [row["text"] for row in found["dev_clean"]] == ["it is"]
    place = "dev-clean/84/121123/84-121123"
    assert bad["missing_file"] == [f"{place}-0009"]
    assert bad["no_text"] == [f"{place}-0000", f"{place}-0001", "dev-clean/84/121550/84-121550-0000"]


def test_texts_of_libritts_are_taken_from_files_where_no_table_has_them(tmp_path):
    corpus_trees.libritts(tmp_path / "corpus")
    chapter = tmp_path / "corpus" / "train-clean-100" / "60" / "121082"
    corpus_trees.write(chapter / "60_121082.trans.tsv", "60_121082_000007_000000\tOnly two cells.")
    (chapter / "60_121082_000007_000000.normalized.txt").write_text(" From  a file.\r\n")
    (chapter / "60_121082_000008_000000.normalized.txt").write_bytes(b"\xe9t\xe9")
    corpus_trees.sound(chapter / "60_121082_000009_000000.wav")
    found, bad = parts(tmp_path / "corpus", tmp_path / "out")
    assert [row["text"] for row in found["train_clean100"]] == ["From a file."]
    place = "train-clean-100/60/121082/60_121082"
    assert bad["missing_field"] == [f"{place}.trans.tsv:1"]
    assert bad["unreadable_text"] == [f"{place}_000008_000000"]
    assert bad["no_text"] == [f"{place}_000009_000000"]
