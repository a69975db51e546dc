"""`manifest make`: which recordings and transcripts are found, and that no transcript is ever a wrong one."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
from reference import endless

from hra_jax.data import manifest, recordings
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.storage.remote import StorageUnavailable

TABLES = {"transcripts.csv": ",", "transcripts.tsv": "\t"}


def record(folder, name, text=None, *, seconds=0.1, format=None):
    """A recording below a folder, and its transcript beside it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, int(8000 * seconds)), 8000, format=format)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def rows(folder, **options):
    """What `make` writes of a folder, as {path: text}, and its report as {kind: {name: detail}}."""
    made = manifest.make(folder, folder / "m.jsonl", **options)
    utterances = manifest.load_manifest(folder / "m.jsonl", report=DataReport(strict=True))
    bad = made.report.to_json()["utterances"]
    named = {kind: {row["name"]: row["detail"] for row in found} for kind, found in bad.items()}
    return {utterance.key: utterance.text for utterance in utterances}, named


def table(folder, name, *lines, header=False):
    content = [("file", "text"), *lines] if header else lines
    (folder / name).write_text("".join(TABLES[name].join(cells) + "\n" for cells in content), encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("cells", [("ann/b.wav", "well", " hello there"), ("ann/b.wav",)])
def test_a_row_of_another_number_of_cells_is_an_error_that_names_its_line(tmp_path, name, header, cells):
    for file in ("ann/a.wav", "ann/b.wav"):
        record(tmp_path, file)
    table(tmp_path, name, ("ann/a.wav", "one"), cells, header=header)
    with pytest.raises(UserError, match=rf"{name}:{3 if header else 2}: the row 'ann/b.wav' has {len(cells)} cells"):
        rows(tmp_path)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("text", ['"two', 'two "2" "', '"two" and a half'])
def test_quotes_that_do_not_close_are_an_error_that_names_the_line(tmp_path, name, text):
    for file in ("a.wav", "b.wav", "c.wav"):
        record(tmp_path, file)
    table(tmp_path, name, ("a.wav", '"one, 1"'), ("b.wav", text), ("c.wav", '"three"'))
    if text == 'two "2" "':  # quotes inside of a cell that does not begin with one are characters
        assert rows(tmp_path)[0]["b.wav"] == text
    else:
        with pytest.raises(UserError, match=rf"{name}:2: ") as caught:
            rows(tmp_path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", TABLES)
def test_quotes_around_a_cell_are_no_part_of_the_text(tmp_path, name):
    record(tmp_path, "a.wav")
    table(tmp_path, name, ("a.wav", '"well, ""hello"" there"'))
    assert rows(tmp_path)[0] == {"a.wav": 'well, "hello" there'}


@pytest.mark.parametrize("key", ["1.wav", "1"])
def test_a_bare_name_that_two_folders_have_is_refused(tmp_path, key):
    record(tmp_path, "ann/1.wav")
    record(tmp_path, "bob/1.wav")
    table(tmp_path, "transcripts.tsv", (key, "one"))
    with pytest.raises(UserError, match=rf"'{key}' names 2 recordings: 'ann/1.wav', 'bob/1.wav'"):
        rows(tmp_path)
    table(tmp_path, "transcripts.tsv", ("ann/1", "one"), ("bob/1.wav", "two"))
    assert rows(tmp_path)[0] == {"ann/1.wav": "one", "bob/1.wav": "two"}


def test_a_path_is_that_recording_and_no_other_of_its_name(tmp_path):
    record(tmp_path, "1.wav")
    record(tmp_path, "ann/1.wav")
    table(tmp_path, "transcripts.tsv", ("1.wav", "one"))
    assert rows(tmp_path)[0] == {"1.wav": "one"}


@pytest.mark.parametrize("second", ["a.wav", "a", "./a.wav", "ann/../a.wav"])
def test_a_recording_twice_in_the_table_is_refused(tmp_path, second):
    record(tmp_path, "a.wav")
    table(tmp_path, "transcripts.csv", ("a.wav", "one"), (second, "two"))
    with pytest.raises(UserError, match=r"transcripts\.csv:2: 'a.wav' is given twice, in line 1 too"):
        rows(tmp_path)


def test_byte_order_marks_are_no_text(tmp_path):
    record(tmp_path / "beside", "a.wav", "\ufeffone")
    assert rows(tmp_path / "beside")[0] == {"a.wav": "one"}
    record(tmp_path / "table", "a.wav")
    (tmp_path / "table" / "transcripts.tsv").write_text("\ufeffa.wav\tone\n", encoding="utf-8")
    assert rows(tmp_path / "table")[0] == {"a.wav": "one"}
    (tmp_path / "table" / "transcripts.tsv").write_text("\ufefffile\ttext\na.wav\tone\n", encoding="utf-8")
    assert rows(tmp_path / "table")[0] == {"a.wav": "one"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_of_any_editor_change_no_transcript(tmp_path, end, mark):
    for name in ("a", "b"):
        record(tmp_path / "beside", f"{name}.wav")
        (tmp_path / "beside" / f"{name}.txt").write_text(f"{mark}één{end}twee{end}", encoding="utf-8", newline="")
    assert rows(tmp_path / "beside")[0] == {"a.wav": "één twee", "b.wav": "één twee"}
    for name, separator in TABLES.items():
        for header in ("", f"file{separator}text{end}"):
            folder = tmp_path / name / (header and "header")
            record(folder, "a.wav")
            record(folder, "b.wav")
            lines = [f"a.wav{separator}één\u2028twee", "", f"b.wav{separator}drie"]
            (folder / name).write_text(mark + header + end.join([*lines, ""]), encoding="utf-8", newline="")
            assert rows(folder)[0] == {"a.wav": "één twee", "b.wav": "drie"}
            (folder / name).write_text(mark + header + end.join(lines), encoding="utf-16")
            with pytest.raises(UserError, match=rf"{name}: line 1 is not UTF-8 .*save it as UTF-8"):
                rows(folder)
            (folder / name).unlink()
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        ("sph", "NIST"),
        ("nist", "NIST"),
        ("voc", "VOC"),
        ("aiff", None),
        ("aif", "AIFF"),
        ("au", None),
        ("caf", None),
        ("w64", None),
        ("WAV", "WAV"),
    ],
)
def test_what_the_decoder_reads_is_taken(tmp_path, suffix, format):
    record(tmp_path, f"a.{suffix}", "one", format=format)
    assert rows(tmp_path)[0] == {f"a.{suffix}": "one"}


def test_audio_that_is_not_read_is_counted_and_named(tmp_path):
    record(tmp_path, "a.wav", "one")
    for name in ("b.m4a", "c.MP4", "d.raw", "e.mov"):
        (tmp_path / name).write_bytes(b"anything")
        (tmp_path / f"{name[0]}.txt").write_text("two")
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"}
    assert set(bad) == {"undecodable_audio"}
    assert set(bad["undecodable_audio"]) == {"b.m4a", "c.MP4", "d.raw", "e.mov"}
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match="no audio in .*; convert 'b.m4a', 'c.MP4', 'd.raw'"):
        rows(tmp_path)


def test_transcripts_without_a_recording_are_counted_and_named(tmp_path):
    record(tmp_path, "a.wav", "one")
    (tmp_path / "b.txt").write_text("two")
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"}
    assert bad == {"missing_file": {"b.txt": "there is no recording of that name beside it"}}


def test_transcripts_are_found_in_whatever_way_their_names_are_written(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    record(tmp_path / "beside", "a.wav")
    (tmp_path / "beside" / "a.TXT").write_text("one")
    record(tmp_path / "beside", f"{composed}.wav")
    (tmp_path / "beside" / f"{decomposed}.txt").write_text("two")
    assert rows(tmp_path / "beside")[0] == {"a.wav": "one", f"{composed}.wav": "two"}
    for name in ("ann/a.wav", f"{decomposed}.wav", "b.wav"):
        record(tmp_path / "table", name)
    here = os.path.join(tmp_path, "table", "b.wav")
    table(tmp_path / "table", "transcripts.csv", ("ann\\a.wav", "one"), (f"{composed}.wav", "two"), (here, "three"))
    assert rows(tmp_path / "table")[0] == {"ann/a.wav": "one", f"{decomposed}.wav": "two", "b.wav": "three"}


def test_texts_that_are_not_utf8_are_counted_and_named_and_the_rest_goes_on(tmp_path):
    record(tmp_path, "a.wav", "one")
    for name, content in (("b", "deux été".encode("latin-1")), ("c", "three".encode("utf-16")), ("d", b"f\0o\0")):
        record(tmp_path, f"{name}.wav")
        (tmp_path / f"{name}.txt").write_bytes(content)
    record(tmp_path, "e.wav")
    (tmp_path / "e.txt").mkdir()
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"}
    assert set(bad["unreadable_text"]) == {"b.wav", "c.wav", "d.wav"}
    assert "save it as UTF-8" in bad["unreadable_text"]["b.wav"]
    (tmp_path / "transcripts.tsv").write_bytes(b"a.wav\tone\nb.wav\tdeux \xe9t\xe9\n")
    with pytest.raises(UserError, match=r"transcripts\.tsv: line 2 is not UTF-8"):
        rows(tmp_path)


def test_what_macos_leaves_and_names_that_are_not_utf8_are_counted_and_named(tmp_path):
    record(tmp_path, "a.wav", "one")
    for name in ("._a.wav", "._a.txt", "._.DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2")
    for name in (b"\xe9.wav", b"\xe9.txt", b"\xe9.pdf"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write((tmp_path / "a.wav").read_bytes())
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"}
    assert set(bad["undecodable_audio"]) == {"._a.wav", r"\xe9.wav"}
    assert set(bad["unreadable_text"]) == {"._a.txt", r"\xe9.txt"}


def test_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"\xe9")
    os.mkdir(folder)
    soundfile.write(os.path.join(tmp_path, "a.wav"), np.zeros(800), 8000)
    os.rename(tmp_path / "a.wav", os.path.join(folder, b"a.wav"))
    with open(os.path.join(folder, b"a.txt"), "w") as file:
        file.write("one")
    with pytest.raises(UserError, match="1 undecodable_audio"):
        manifest.make(os.fsdecode(folder), tmp_path / "m.jsonl")


def test_two_transcripts_of_one_recording_are_named(tmp_path):
    record(tmp_path, "a.wav", "one")
    (tmp_path / "a.TXT").write_text("two")
    record(tmp_path, "b.wav", "three")
    texts, bad = rows(tmp_path)
    assert texts == {"b.wav": "three"}
    assert set(bad["unreadable_text"]) == {"a.wav"}


def test_a_transcript_is_given_to_one_recording(tmp_path):
    for suffix in ("mp3", "wav", "ogg"):
        record(tmp_path / "beside", f"a.{suffix}", "one", seconds=0.2)
    (tmp_path / "beside" / "a.m4a").write_bytes(b"anything")
    texts, bad = rows(tmp_path / "beside")
    assert texts == {"a.wav": "one"}
    assert set(bad["unreadable_text"]) == {"a.mp3", "a.ogg"} and set(bad["undecodable_audio"]) == {"a.m4a"}
    assert "that of a.wav" in bad["unreadable_text"]["a.mp3"]
    record(tmp_path / "table", "a.wav")
    (tmp_path / "table" / "a.m4a").write_bytes(b"anything")
    table(tmp_path / "table", "transcripts.csv", ("a", "one"))
    assert rows(tmp_path / "table")[0] == {"a.wav": "one"}
    record(tmp_path / "table", "a.flac")
    with pytest.raises(UserError, match="names 2 recordings: 'a.flac', 'a.wav'"):
        rows(tmp_path / "table")


def test_rows_without_a_recording_are_counted_and_named(tmp_path):
    record(tmp_path, "a.wav")
    table(tmp_path, "transcripts.tsv", ("a.wav", "one"), ("gone.wav", "two"))
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"}
    assert bad == {"missing_file": {"transcripts.tsv:2": "there is no recording 'gone.wav'"}}
    table(tmp_path, "transcripts.csv", ("a.wav", "two"))
    with pytest.raises(UserError, match=r"transcripts.csv and transcripts.tsv; allowed: one of them"):
        rows(tmp_path)


def test_a_header_names_the_columns(tmp_path):
    record(tmp_path, "a.wav")
    (tmp_path / "transcripts.csv").write_text("path,age,sentence\na.wav,30,one\n")
    assert rows(tmp_path)[0] == {"a.wav": "one"}
    (tmp_path / "transcripts.csv").write_text("file,words\na.wav,two\n")
    assert rows(tmp_path)[0] == {"a.wav": "two"}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("columns", [("file", "speaker", "words"), ("path", "duration", "normalized_text"), ("file",)])
def test_a_header_that_does_not_name_the_text_is_refused(tmp_path, name, columns):
    record(tmp_path, "a.wav")
    table(tmp_path, name, columns, ("a.wav", "ann", "one")[: len(columns)])
    with pytest.raises(UserError, match=rf"{name}:1: none of the columns {columns[0]!r}.* allowed: one named text"):
        rows(tmp_path)


@pytest.mark.parametrize("where", ["transcripts.tsv", "transcripts.csv", "beside"])
def test_transcripts_keep_no_outer_and_no_double_spaces(tmp_path, where):
    record(tmp_path, "a.wav", " one \u00a0 two\t\n" if where == "beside" else None)
    if where != "beside":
        table(tmp_path, where, ("a.wav", "  one \u00a0  two "))
    assert rows(tmp_path)[0] == {"a.wav": "one two"}


def test_an_empty_transcript_is_none(tmp_path):
    record(tmp_path, "a.wav", " \n")
    record(tmp_path, "b.wav", "two")
    made = manifest.make(tmp_path, tmp_path / "m.jsonl")
    assert (made.lines, made.silent) == (1, ["a.wav"])


def test_links_are_followed_and_nothing_is_taken_twice(tmp_path):
    record(tmp_path / "data", "ann/a.wav", "one")
    record(tmp_path / "elsewhere", "bob/b.wav", "two")
    data = tmp_path / "data"
    (data / "again").symlink_to(data / "ann")
    (data / "ann" / "up").symlink_to(data)
    (data / "ann" / "self").symlink_to(data / "ann" / "self")
    (data / "more").symlink_to(tmp_path / "elsewhere")
    (data / "most").symlink_to(tmp_path / "elsewhere")
    (data / "z.wav").symlink_to(data / "ann" / "a.wav")
    (data / "z.txt").symlink_to(data / "ann" / "a.txt")
    assert rows(data)[0] == {"ann/a.wav": "one", "more/bob/b.wav": "two"}


def test_a_link_has_the_transcript_beside_it(tmp_path):
    record(tmp_path, "store/a.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "store" / "a.wav")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.wav").symlink_to(tmp_path / "none.wav")
    (tmp_path / "c.txt").write_text("two")
    texts, bad = rows(tmp_path)
    assert texts == {"b.wav": "one"}
    assert set(bad["missing_file"]) == {"c.wav"}


def test_a_file_and_a_link_to_it_have_one_text(tmp_path):
    record(tmp_path, "a.wav", "one")
    (tmp_path / "z.wav").symlink_to(tmp_path / "a.wav")
    (tmp_path / "z.txt").write_text("two")
    texts, bad = rows(tmp_path)
    assert texts == {"a.wav": "one"} and set(bad["unreadable_text"]) == {"z.wav"}
    table(tmp_path, "transcripts.tsv", ("z.wav", "one"), ("a.wav", "one"))
    assert rows(tmp_path) == ({"a.wav": "one"}, {})
    table(tmp_path, "transcripts.tsv", ("z.wav", "two"), ("a.wav", "one"))
    with pytest.raises(UserError, match=r"tsv:2: 'a.wav' is 'z.wav' of line 1, with another text"):
        rows(tmp_path)


def test_the_speaker_is_the_folder_wherever_it_is_named_from(tmp_path, monkeypatch):
    record(tmp_path / "ann", "a.wav", "one")
    monkeypatch.chdir(tmp_path / "ann")
    for folder in (".", "../ann", tmp_path / "ann"):
        manifest.make(folder, "m.jsonl")
        assert json.loads((tmp_path / "ann" / "m.jsonl").read_text())["speaker"] == "ann"


def test_a_manifest_behind_a_link_finds_its_audio(tmp_path):
    record(tmp_path / "data", "a.wav", "one")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "lists").symlink_to(tmp_path / "far" / "away")
    manifest.make(tmp_path / "data", tmp_path / "lists" / "m.jsonl")
    good, report = manifest.check(tmp_path / "lists" / "m.jsonl")
    assert len(good) == 1, report.summary()


def test_a_split_keeps_every_recording_and_speakers_with_few_are_in_train_only(tmp_path):
    for speaker, count in (("ann", 20), ("bob", 3), ("cat", 2), ("dan", 1)):
        for number in range(count):
            record(tmp_path / "data", f"{speaker}/{number}.wav", "one", seconds=0.01)
    made = manifest.make(tmp_path / "data", tmp_path / "lists", split=True)
    assert (made.lines, made.unsplit) == (26, ["cat", "dan"])
    counts, paths = {}, []
    for name in ("train", "validation", "test"):
        for line in (tmp_path / "lists" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            counts.setdefault(row["speaker"], dict.fromkeys(("train", "validation", "test"), 0))[name] += 1
            paths.append(row["audio_filepath"])
    assert len(set(paths)) == len(paths) == 26
    assert counts == {
        "ann": {"train": 16, "validation": 2, "test": 2},
        "bob": {"train": 1, "validation": 1, "test": 1},
        "cat": {"train": 2, "validation": 0, "test": 0},
        "dan": {"train": 1, "validation": 0, "test": 0},
    }
    for number in range(3, 20):
        (tmp_path / "data" / "ann" / f"{number}.wav").unlink()
    for name in ("ann/0.wav", "bob/0.wav"):
        (tmp_path / "data" / name).unlink()
    with pytest.raises(UserError, match="no speaker has 3 recordings"):
        manifest.make(tmp_path / "data", tmp_path / "lists", split=True)


@pytest.mark.slow(minutes=0.3)
def test_a_bucket_is_searched_as_a_folder_is(gcs_storage, tmp_path, monkeypatch):
    gcs_storage.clear()
    record(tmp_path / "data", "ann/a.wav", "one")
    record(tmp_path / "data", "bob/b.flac", "two")
    (tmp_path / "data" / "bob" / "c.wav").write_bytes(b"not audio")
    (tmp_path / "data" / "bob" / "c.txt").write_text("three")
    gcs_storage.upload_folder(tmp_path / "data", "gs://bucket/data")
    for output in ("gs://bucket/data/m.jsonl", "gs://bucket/lists/m.jsonl", str(tmp_path / "m.jsonl")):
        made = manifest.make("gs://bucket/data", output)
        assert (made.lines, made.silent, made.report.counts()["undecodable_audio"]) == (2, [], 1)
        good, report = manifest.check(output)
        assert [(utterance.text, utterance.tags["speaker"]) for utterance in good] == [("one", "ann"), ("two", "bob")]
        assert not sum(report.counts().values())
    monkeypatch.setenv("HRA_STORAGE_SECONDS", "0")
    gcs_storage.fail()
    with pytest.raises(StorageUnavailable):
        manifest.make("gs://bucket/data", tmp_path / "m.jsonl")
    gcs_storage.work()
    gcs_storage.fail(".txt")
    with pytest.raises(StorageUnavailable):
        manifest.make("gs://bucket/data", tmp_path / "m.jsonl")
    gcs_storage.clear()


@pytest.mark.parametrize("kind", endless.KINDS)
def test_nobody_waits_for_a_transcript_or_a_table_without_an_end(tmp_path, kind):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(800), 8000)
    (tmp_path / "b.txt").write_text("be")
    endless.put(tmp_path / "a.txt", kind)
    report = DataReport()
    with endless.bounded():
        found, _ = recordings.find(tmp_path, report=report)
    assert [recording.text for recording in found] == ["be"]
    (row,) = report.to_json()["utterances"]["unreadable_text"]
    assert row["name"] == "a.wav" and "not a regular file" in row["detail"]
    endless.put(tmp_path / "transcripts.csv", kind)
    with endless.bounded(), pytest.raises(UserError, match="transcripts.csv: .*not a regular file"):
        recordings.find(tmp_path, report=DataReport())


def test_a_table_of_any_size_is_refused_unread(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    (tmp_path / "transcripts.csv").touch()
    os.truncate(tmp_path / "transcripts.csv", 2**40)
    with endless.bounded(), pytest.raises(UserError, match="transcripts.csv: more than 1,073,741,824 bytes"):
        recordings.find(tmp_path, report=DataReport())
