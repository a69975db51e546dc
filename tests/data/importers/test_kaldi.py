"""Kaldi directories: their tags, their segments, and what is never run."""

import pytest
from reference import corpus_trees

from hra_jax.data.importers import importing
from hra_jax.errors import UserError


def rows(folder, output, **options):
    """What is imported of a directory, and why the rest is left out: {utterance: kind}."""
    (part,) = importing.import_corpus(folder, output / "m.jsonl", **options).values()
    bad = part.report.to_json()["utterances"]
    return part.rows, {row["name"]: kind for kind, found in bad.items() for row in found}


def append(path, *lines):
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_tags_are_those_of_the_utterance_and_of_its_speaker(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    train = tmp_path / "corpus" / "train"
    append(train / "spk2age", "2001-A 41", "2005-B")
    append(train / "spk2lang", "2001-A de", "2005-B de")  # what is known of the utterance itself counts
    append(train / "utt2dur", "sw02001 0.8")
    append(train / "utt2text", "sw02001 WRONG")
    append(train / "spk2utt", "2001-A sw02001")
    found, bad = rows(train, tmp_path)
    tags = [{name: row[name] for name in row if name not in ("audio_filepath", "duration")} for row in found]
    assert tags == [
        {"text": "HI UM YEAH I'D LIKE TO", "speaker": "2001-A", "age": "41", "gender": "m", "lang": "en"},
        {"text": "UM-HUM", "speaker": "2005-B", "gender": "f", "lang": "de"},
    ]
    assert bad == {}


def test_of_what_is_given_twice_the_first_counts_and_the_second_is_named(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    train = tmp_path / "corpus" / "train"
    expected, _ = rows(train, tmp_path)
    for name in ("text", "wav.scp", "utt2spk", "utt2lang"):
        append(train / name, "sw02001 other")
    found, bad = rows(train, tmp_path)
    places = ("text:3", "wav.scp:3", "utt2spk:3", "utt2lang:2")
    assert found == expected and bad == dict.fromkeys((f"train/{place}" for place in places), "missing_field")


@pytest.mark.slow(minutes=0.2)
def test_a_directory_in_a_bucket_is_read_as_one_on_a_disk(gcs_storage, tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    expected, _ = rows(tmp_path / "corpus" / "train", tmp_path)
    gcs_storage.upload_folder(tmp_path / "corpus", "gs://bucket/corpus")
    for place in ("gs://bucket/corpus", "gs://bucket/corpus/"):
        (part,) = importing.import_corpus(place, "gs://bucket/lists", splits=["train"]).values()
        paths = [f"gs://bucket/corpus/{row['audio_filepath'].removeprefix('corpus/')}" for row in expected]
        assert [row["audio_filepath"] for row in part.rows] == paths
        assert [row["text"] for row in part.rows] == [row["text"] for row in expected]


def test_commands_and_places_in_archives_are_named_and_nothing_is_run(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    train, witness = tmp_path / "corpus" / "train", tmp_path / "witness"
    append(
        train / "wav.scp",
        "a sph2pipe -f wav -p -c 1 a.sph |",
        f"b touch {witness}|",
        f"c | touch {witness}",
        "d raw.ark:1234",
        "e",
    )
    append(train / "text", *(f"{name} ONE" for name in "abcde"))
    found, bad = rows(train, tmp_path)
    assert len(found) == 2 and not witness.exists()
    command = dict.fromkeys(("train/a", "train/b", "train/c"), "command")
    assert bad == command | {"train/d": "undecodable_audio", "train/e": "missing_file"}


def test_utterances_without_text_or_recording_are_named(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    train = tmp_path / "corpus" / "train"
    append(train / "wav.scp", "silent wav/sw02001.wav", "unsaid wav/sw02001.wav")
    append(train / "text", "silent", "unheard WORDS", "sw02001 AGAIN")
    found, bad = rows(train, tmp_path)
    assert len(found) == 2 and found[0]["text"] != "AGAIN"
    expected = {"train/silent": "no_text", "train/unsaid": "no_text", "train/unheard": "missing_file"}
    assert bad == expected | {"train/text:5": "missing_field"}


def test_segments_that_are_none_are_named(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    test = tmp_path / "corpus" / "test"
    append(
        test / "segments",
        "late sw02008-A 3.9 5.0",
        "after sw02008-A 5.0 -1",
        "back sw02008-A 2.0 1.0",
        "before sw02008-A -1 1.0",
        "odd sw02008-A one 1.0",
        "more sw02008-A 0.0 1.0 2",
        "endless sw02008-A 0.0 inf",
        "elsewhere sw02009-A 0.0 1.0",
    )
    names = ("late", "after", "back", "before", "endless", "elsewhere")
    append(test / "text", *(f"{name} ONE" for name in names))
    found, bad = rows(test, tmp_path)
    assert [row["offset"] for row in found] == [0.98, 2.5]
    assert [row["duration"] for row in found] == [1.12, 1.5]  # -1 is the end of the recording
    late = {"test/late": "undecodable_audio", "test/elsewhere": "missing_file"}
    empty = dict.fromkeys((f"test/{name}" for name in ("after", "back", "before", "endless")), "empty_audio")
    assert bad == late | empty | dict.fromkeys(("test/odd", "test/more"), "missing_field")


def test_relative_paths_begin_where_recordings_are_found_or_where_the_user_says(tmp_path, monkeypatch):
    corpus_trees.kaldi(tmp_path / "corpus")
    train = tmp_path / "corpus" / "train"
    (tmp_path / "far").mkdir()
    (tmp_path / "corpus" / "wav").rename(tmp_path / "far" / "wav")
    with pytest.raises(UserError, match="2 missing_file"):
        rows(train, tmp_path, splits=["train"])
    assert len(rows(train, tmp_path, audio_dir=tmp_path / "far")[0]) == 2
    (tmp_path / "far" / "wav").rename(train / "wav")
    assert len(rows(train, tmp_path)[0]) == 2
    (tmp_path / "recipe").mkdir()
    (train / "wav").rename(tmp_path / "recipe" / "wav")
    monkeypatch.chdir(tmp_path / "recipe")
    assert len(rows(train, tmp_path)[0]) == 2
    with pytest.raises(UserError, match="no folder at .*/none"):
        rows(train, tmp_path, audio_dir=tmp_path / "none")


def test_a_directory_without_transcripts_is_an_error(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    (tmp_path / "corpus" / "test" / "text").unlink()
    with pytest.raises(UserError, match="test has a wav.scp and no text"):
        importing.import_corpus(tmp_path / "corpus", tmp_path / "out")
    assert len(importing.import_corpus(tmp_path / "corpus", tmp_path / "out", splits=["train"])) == 1


def test_sphere_files_that_are_compressed_are_named(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    header = (
        "NIST_1A\n   1024\nsample_count -i 800\nsample_n_bytes -i 2\nchannel_count -i 1\nsample_byte_format -s2 01\n"
    )
    header += "sample_rate -i 8000\nsample_coding -s27 pcm,embedded-shorten-v2.00\nend_head\n"
    shortened = header.encode().ljust(1024, b"\0") + b"ajkg\2" + bytes(800)
    (tmp_path / "corpus" / "wav" / "sw02005.wav").write_bytes(shortened)
    (part,) = importing.import_corpus(tmp_path / "corpus" / "train", tmp_path / "m.jsonl").values()
    (row,) = part.report.to_json()["utterances"]["undecodable_audio"]
    assert row["name"] == "train/sw02005" and "convert what is compressed (shorten)" in row["detail"]
