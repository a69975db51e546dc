"""Outputs that are begun by one process and finished by another."""

import contextlib
import json
import types

import pytest

from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.storage import files
from hra_jax.transcription import outputs
from hra_jax.transcription.outputs import Result
from hra_jax.transcription.requests import Request, Requests

RUN = {"format": "x", "task": "ann", "chunk_seconds": 2.0}


def request(key, task="ann", *, path=None, **more) -> Request:
    return Request(key, path or key, task, key, **more)


def result(asked, text="one two", error="", words=(), task=None) -> Result:
    return Result(asked, 1.5, None if error else text, task or asked.task, error, words)


def word(text, start, end):
    return types.SimpleNamespace(text=text, start=start, end=end, confidence=0.5)


def all_of(asked) -> Requests:
    return Requests(len(asked), frozenset(), lambda: iter(asked))


def finish(path, form, asked, *, run=RUN):
    """Writes what is not there; how many of the requests that were."""
    output = outputs.open_output(str(path), form, run, all_of(asked))
    missing = [one for one in asked if not output.has(one)]
    for one in missing:
        output.write(result(one, words=[word("one", 0.0, 0.5), word("two", 0.6, 1.0)]))
    output.close()
    return len(asked) - len(missing)


ASKED = [request(f"{number}.wav") for number in range(20)]


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_wherever_the_writing_was_cut_the_same_again_has_every_line_once(tmp_path, form):
    finish(tmp_path / "whole", form, ASKED)
    whole = (tmp_path / "whole").read_bytes()
    assert whole.count(b"\n") == len(ASKED)
    for cut in (0, 1, len(whole) // 3, whole.find(b"\n"), whole.find(b"\n") + 1, len(whole) - 1, len(whole)):
        path = tmp_path / f"{cut}"
        finish(path, form, [])
        path.write_bytes(whole[:cut])
        assert finish(path, form, ASKED) == whole[:cut].count(b"\n")
        assert path.read_bytes() == whole


def test_several_requests_of_one_name_have_a_line_each(tmp_path):
    asked = [request("a.wav"), request("a.wav"), request("a.wav", "bob"), request("a.wav@1+2", path="a.wav")]
    for form in ("text", "jsonl"):
        path = tmp_path / form
        assert finish(path, form, asked[:2]) == 0 and finish(path, form, asked) == 2 and finish(path, form, asked) == 4
        assert path.read_text().count("\n") == 4


def test_what_could_not_be_recognised_is_tried_again_and_then_has_one_line(tmp_path):
    path = tmp_path / "texts.jsonl"
    output = outputs.open_output(str(path), "jsonl", RUN, all_of(ASKED))
    for one in ASKED[:3]:
        output.write(result(one, error="missing_file: no file" if one is ASKED[1] else ""))
    output.close()
    assert json.loads(path.read_text().splitlines()[1])["error"] == "missing_file: no file"
    assert finish(path, "jsonl", ASKED[:3]) == 2
    keys = [json.loads(line)["audio_filepath"] for line in path.read_text().splitlines()]
    assert keys == ["0.wav", "2.wav", "1.wav"] and "error" not in path.read_text()


def test_a_task_that_was_chosen_does_not_change_what_was_asked_for(tmp_path):
    path, asked = tmp_path / "texts.jsonl", [request("a.wav", "__auto__"), request("a.wav", "bob")]
    output = outputs.open_output(str(path), "jsonl", RUN, all_of(asked))
    output.write(result(asked[0], task="bob"))
    output.close()
    assert finish(path, "jsonl", asked) == 1
    assert [json.loads(line)["task"] for line in path.read_text().splitlines()] == ["bob", "bob"]


def test_a_json_line_says_where_its_words_are_and_how_sure_they_are(tmp_path):
    asked = request("a.wav@1+2", path="/data/a.wav", session="s")
    line = json.loads(outputs.line_of(result(asked, words=[word("one", 1.00049, 1.5)]), "jsonl"))
    assert line == {
        "audio_filepath": "/data/a.wav",
        "key": "a.wav@1+2",
        "duration": 1.5,
        "text": "one two",
        "task": "ann",
        "words": [{"word": "one", "start": 1.0, "end": 1.5, "confidence": 0.5}],
        "decoding": {},
        "session": "s",
    }


@pytest.mark.parametrize("form", ["text", "jsonl", "srt"])
def test_nobody_goes_on_with_anything_else(tmp_path, form):
    path = tmp_path / "out"
    finish(path, form, ASKED[:2])
    with pytest.raises(UserError, match='was begun with task = "ann", not "bob"; allowed: the same command, or'):
        finish(path, form, ASKED, run={**RUN, "task": "bob"})
    assert finish(path, form, ASKED) == 2


@pytest.mark.parametrize("form", ["text", "jsonl", "srt"])
def test_what_another_command_wrote_is_left_as_it_is(tmp_path, form):
    path = tmp_path / ("folder" if form == "srt" else "mine.txt")
    mine = path / "0.srt" if form == "srt" else path
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine\n")
    with pytest.raises(UserError, match="is there, and is not of this command; allowed: another path"):
        finish(path, form, ASKED)
    assert mine.read_text() == "mine\n"
    mine.unlink()
    other = path / "run.json" if form == "srt" else path.with_name("mine.txt.run.json")
    other.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="run.json is not of this command; allowed: another path"):
        finish(path, form, ASKED)
    assert other.read_text() == '{"mine": 1}'
    other.write_text('{"audio_filepath": "0.wav", "task": "ann"}')  # of no other name, and yet not of this command
    with pytest.raises(UserError, match="run.json is not of this command; allowed: another path"):
        finish(path, form, ASKED)
    assert other.read_text().startswith('{"audio')


@pytest.mark.parametrize("beside", ["S/parts.jsonl", "0.srt.parts.jsonl"])
@pytest.mark.parametrize("lines", ['{"audio_filepath": "0.wav"}', '{"audio_filepath": "0.wav"}\n' * 2 + "{}", "\n"])
def test_what_another_command_wrote_beside_subtitles_is_left_as_it_is(tmp_path, beside, lines):
    mine = tmp_path / beside
    mine.parent.mkdir(exist_ok=True)
    mine.write_text(lines)
    with pytest.raises(UserError, match="is there, and is not of this command; allowed: another path"):
        finish(tmp_path / beside.removesuffix("parts.jsonl").rstrip("/."), "srt", ASKED[:1])
    assert mine.read_text() == lines and list(mine.parent.iterdir()) == [mine]


def test_half_a_line_beside_subtitles_is_cut_off(tmp_path):
    finish(tmp_path / "S", "srt", ASKED[:2])
    said = (tmp_path / "S" / "parts.jsonl").read_bytes()
    (tmp_path / "S" / "parts.jsonl").write_bytes(said[:-5])
    (tmp_path / "S" / "1.srt").unlink()
    assert finish(tmp_path / "S", "srt", ASKED[:2]) == 1
    assert (tmp_path / "S" / "parts.jsonl").read_bytes() == said


def test_no_manifest_is_written_over(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for path, form, manifest in (
        ("S", "srt", "S/parts.jsonl"),
        ("S", "vtt", "link/S/run.json"),
        ("a.srt", "srt", "a.srt.parts.jsonl"),
        ("t.jsonl", "jsonl", "t.jsonl.run.json"),
        ("t.jsonl", "jsonl", "t.jsonl"),
    ):
        with pytest.raises(UserError, match=f"would be written over the manifest .*{manifest}; allowed: another path"):
            outputs.check_apart(str(tmp_path / path), form, str(tmp_path / manifest))
        outputs.check_apart(str(tmp_path / path), form, str(tmp_path / "m.jsonl"))
    outputs.check_apart("t.txt", "text", "t.txt.parts.jsonl")  # nothing of that name lies beside lines
    outputs.check_apart(str(tmp_path), "srt", str(tmp_path))  # shards may have subtitles beside them


def test_a_line_that_is_none_of_this_command_is_named(tmp_path):
    for form, line in (("text", "no tab\n"), ("jsonl", '{"audio": 1}\n')):
        path = tmp_path / form
        finish(path, form, ASKED)
        with path.open("a") as file:
            file.write(line)
        with pytest.raises(UserError, match=f"{form}:21"):
            finish(path, form, ASKED)


def test_subtitles_are_a_file_for_each_recording_when_all_its_parts_are_there(tmp_path):
    asked = [
        request("a.wav@1+2", path="a.wav")._replace(name="x/a.wav"),
        request("b.wav")._replace(name="b.wav"),
        request("a.wav@0+1", path="a.wav")._replace(name="x/a.wav"),
    ]
    output = outputs.open_output(str(tmp_path / "S"), "vtt", RUN, all_of(asked))
    output.write(result(asked[0], words=[word("later", 1.0, 1.5)]))
    assert not (tmp_path / "S" / "x").exists()
    output.write(result(asked[1], words=[word("other", 0.0, 0.5)]))
    assert (tmp_path / "S" / "b.vtt").read_text().startswith("WEBVTT\n")
    output = outputs.open_output(str(tmp_path / "S"), "vtt", RUN, all_of(asked))
    assert [output.has(one) for one in asked] == [False, True, False]
    for one in (asked[0], asked[2]):
        output.write(result(one, words=[word("later" if one is asked[0] else "first", one.key == "x", 1.5)]))
    text = (tmp_path / "S" / "x" / "a.vtt").read_text()
    assert "later" in text and "first" in text


def test_recordings_whose_names_differ_in_their_endings_have_a_file_each_and_one_name_is_refused(tmp_path):
    asked = [request(name) for name in ("a.wav", "a.flac", "b.wav")]
    finish(tmp_path / "S", "srt", asked)
    written = sorted(path.name for path in (tmp_path / "S").iterdir())
    assert written == ["a.flac.srt", "a.wav.srt", "b.srt", "parts.jsonl", "run.json"]
    twice = [request(f"{folder}/a.wav")._replace(name="a.wav") for folder in "xy"]
    with pytest.raises(UserError, match=r"x/a.wav and y/a.wav would both be a.srt; allowed: a folder"):
        finish(tmp_path / "T", "srt", twice)


def test_a_recording_has_subtitles_when_no_part_of_it_failed_and_is_tried_again_until_then(tmp_path):
    asked = [request(f"a.wav@{number}+1", path="a.wav")._replace(name="a.wav") for number in range(2)]
    output = outputs.open_output(str(tmp_path / "S"), "srt", RUN, all_of(asked))
    for one in asked:
        output.write(result(one, error="missing_file: no file" if one is asked[1] else ""))
    output.close()
    assert not (tmp_path / "S" / "a.srt").exists()
    assert finish(tmp_path / "S", "srt", asked) == 0
    assert (tmp_path / "S" / "a.srt").exists() and finish(tmp_path / "S", "srt", asked) == 2


def utterance(name, offset, *, error="") -> Request:
    row = Utterance(f"/data/{name}", 1.0, "", offset, key=f"{name}@{offset:g}+1")
    return Request(row.key, row.audio_filepath, "ann", name, row, error=error)


def test_subtitles_are_made_anew_where_other_parts_of_a_recording_are_asked_for(tmp_path):
    folder = tmp_path / "S"
    parts = [utterance(name, offset) for offset in (0.0, 1.0) for name in ("a.wav", "b.wav")]
    assert finish(folder, "srt", parts[:3]) == 0
    for name in "ab":
        (folder / f"{name}.srt").write_text("mended by hand")
    said = (folder / "parts.jsonl").read_bytes()
    assert finish(folder, "srt", parts[:3][::-1]) == 3 and (folder / "parts.jsonl").read_bytes() == said
    assert finish(folder, "srt", parts) == 2  # those of a.wav, which has no other parts than before
    assert (folder / "a.srt").read_text() == "mended by hand"
    assert (folder / "b.srt").read_text().count("one two") == 2
    # Killed after a part was written down, and before the file was.
    (folder / "b.srt").unlink()
    assert finish(folder, "srt", parts) == 2 and finish(folder, "srt", parts) == 4
    # As earlier versions wrote them: nothing is said of the files.
    (folder / "parts.jsonl").unlink()
    assert finish(folder, "srt", parts) == 4


@pytest.mark.slow(minutes=0.5)
def test_in_a_bucket_no_subtitles_are_there_of_which_nothing_is_said(gcs_storage, monkeypatch):
    parts = [utterance(name, offset) for offset in (0.0, 1.0) for name in ("a.wav", "b.wav")]
    for seconds, there in ((60.0, 0), (-1.0, 2)):  # killed before an upload, and after it
        monkeypatch.setattr(files, "_REMOTE_SECONDS", seconds)
        gcs_storage.clear()
        output = outputs.open_output("gs://bucket/S", "srt", RUN, all_of(parts[:2]))
        for one in parts[:2]:
            output.write(result(one, words=[word("one", 0.0, 0.5)]))
        written = [name for name in gcs_storage.names("gs://bucket/S/") if name.endswith(".srt")]
        assert len(written) == there
        assert finish("gs://bucket/S", "srt", parts[:3]) == there // 2  # there is more of a.wav
        assert finish("gs://bucket/S", "srt", parts) == 2 and finish("gs://bucket/S", "srt", parts) == 4
        for name in "ab":
            assert gcs_storage.read(f"gs://bucket/S/{name}.srt").count(b"one two") == 2


def test_subtitles_of_another_recording_or_another_run_are_neither_taken_nor_mixed(tmp_path):
    first, second = (request(f"{folder}/a.wav")._replace(name="a.wav") for folder in "xy")
    finish(tmp_path / "S", "srt", [first])
    with pytest.raises(UserError, match=r"a.srt is of x/a.wav, not of y/a.wav; allowed: another --output"):
        finish(tmp_path / "S", "srt", [second])
    with pytest.raises(UserError, match="was begun with task"):
        finish(tmp_path / "S", "srt", ASKED[:1], run={**RUN, "task": "bob"})


def test_a_recording_that_is_given_twice_says_its_words_once(tmp_path):
    finish(tmp_path / "S", "srt", [ASKED[0], ASKED[0]])
    assert (tmp_path / "S" / "0.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,000\none two\n"


def test_a_line_that_cannot_be_used_keeps_its_recording_from_subtitles_and_no_other(tmp_path):
    refused = Request("a.wav", "a.wav", "ann", "a.wav", error="missing_field: duration is -1")
    nameless = Request("m.jsonl:3", "m.jsonl:3", "ann", "m.jsonl:3", error="bad_json: the line")
    asked = [utterance("a.wav", 0.0), utterance("b.wav", 0.0), refused, nameless]
    output = outputs.open_output(str(tmp_path / "S"), "srt", RUN, all_of(asked))
    for one in asked:
        assert not output.has(one)
        output.write(result(one, error=one.error, words=[word("one", 0.0, 0.5)]))
    output.close()
    assert [path.name for path in (tmp_path / "S").glob("*.srt")] == ["b.srt"]
    assert finish(tmp_path / "mine.srt", "srt", [asked[1]]) == 0


def test_what_two_say_at_once_has_cues_of_its_own_in_the_order_of_their_times():
    first, other = [word("one", 0.1, 2.0), word("two", 2.0, 4.0)], [word("yes", 1.2, 1.6)]
    said = {0.0: first, 1.0: other, 4.0: [word("three", 4.0, 4.9)]}
    results = [result(utterance("a.wav", offset), words=words) for offset, words in said.items()]
    assert outputs.subtitles_of(results, "vtt").split("\n\n")[1:] == [
        "00:00:00.100 --> 00:00:04.900\none two three",
        "00:00:01.200 --> 00:00:02.200\nyes\n",
    ]


def test_one_recording_may_be_given_its_file_of_subtitles(tmp_path):
    assert finish(tmp_path / "mine.srt", "srt", ASKED[:1]) == 0
    assert finish(tmp_path / "mine.srt", "srt", ASKED[:1]) == 1
    with pytest.raises(UserError, match="is one file for 20 recordings; allowed: a folder"):
        finish(tmp_path / "other.srt", "srt", ASKED)


@pytest.mark.parametrize("form", ["text", "jsonl", "srt"])
def test_outputs_are_written_through_no_link(tmp_path, form):
    for number, name in enumerate(
        ("O.run.json", "O") if form != "srt" else ("O", "O/run.json", "O/parts.jsonl", "O/x", "O/x/a.srt")
    ):
        place, outside = tmp_path / f"{number}", tmp_path / f"outside{number}"
        place.mkdir()
        outside.mkdir()
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(outside if name in ("O", "O/x") and form == "srt" else outside / "file")
        with contextlib.suppress(UserError):
            finish(place / "O", form, [request("x/a.wav")])
        assert list(outside.iterdir()) == [], name
