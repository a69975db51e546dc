"""What is asked for: files, folders and manifests."""

import json

import numpy as np
import pytest
import soundfile

from hra_jax.errors import UserError
from hra_jax.transcription import requests

KNOWN = ("ann", "bob", "__base__")


def sound(path, seconds=0.2, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(-0.5, 0.5, round(seconds * rate)), rate)
    return str(path)


def of_manifest(path, rows, *, task=None, **more):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    unknown = more.pop("unknown", lambda name: UserError(f"unknown task {name!r}"))
    found = requests.of_manifest(str(path), task=task, known=KNOWN, unknown=unknown, **more)
    made = list(found.make())
    assert len(made) == found.count and made == list(found.make())
    return made


def test_folders_are_searched_and_what_is_not_read_there_is_a_request_that_says_so(tmp_path):
    one = sound(tmp_path / "one.wav")
    for name in ("b/two.flac", "b/c/three.wav"):
        sound(tmp_path / "folder" / name)
    (tmp_path / "folder" / "b" / "notes.txt").write_text("no audio")
    (tmp_path / "folder" / "film.mp4").write_text("other audio")
    missing = str(tmp_path / "missing.wav")
    found = requests.of_paths([one, str(tmp_path / "folder"), missing], task="ann", session="s")
    made = list(found.make())
    folder = tmp_path / "folder"
    expected = [one, str(folder / "b/c/three.wav"), str(folder / "b/two.flac"), str(folder / "film.mp4"), missing]
    assert [request.path for request in made] == expected and found.count == 5
    assert [request.name for request in made] == ["one.wav", "b/c/three.wav", "b/two.flac", "film.mp4", "missing.wav"]
    assert [request.error for request in made] == [
        "",
        "",
        "",
        "undecodable_audio: .mp4 is not read; convert it to FLAC or WAV",
        "",
    ]
    assert {request.task for request in made} == {"ann"} and len(made[1].samples(8000)) == 1600


def test_a_name_that_is_no_text_is_an_error_that_every_output_can_hold():
    (one,) = requests.of_paths([b"x/\xe9.wav".decode("utf-8", "surrogateescape")], task="ann").make()
    assert (one.key, one.name) == (r"x/\xe9.wav", r"\xe9.wav")
    assert one.error == "undecodable_audio: the name is not UTF-8; rename it"


@pytest.mark.parametrize("path", ["empty", "lines.jsonl"])
def test_a_folder_without_audio_and_a_manifest_among_files_are_refused_in_one_line(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio in|is no audio; allowed: --manifest"):
        requests.of_paths([str(tmp_path / path)], task="ann")


def test_a_line_has_its_task_its_part_of_the_file_its_phrases_and_its_session(tmp_path):
    sound(tmp_path / "long.wav", 3.0)
    rows = [
        {"audio_filepath": "long.wav", "offset": 1.0, "duration": 0.5, "who": "bob", "phrases": ["x y"], "talk": 7},
        {"audio_filepath": "long.wav", "duration": 3.0, "text": "not needed"},
    ]
    first, second = of_manifest(tmp_path / "m.jsonl", rows, task="ann", task_tag="who", session_tag="talk")
    assert (first.key, first.task, first.session, first.name) == ("long.wav@1+0.5", "bob", "7", "long.wav")
    assert [phrase.text for phrase in first.phrases] == ["x y"] and first.offset == 1.0
    whole, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    np.testing.assert_array_equal(first.samples(8000), whole[8000:12000])
    assert (second.key, second.task, second.session, second.phrases) == ("long.wav", "ann", "", ())
    alone = of_manifest(tmp_path / "m.jsonl", rows, task="ann", session_tag=requests.ALL)
    assert [request.session for request in alone] == [requests.ALL] * 2


def test_unknown_tasks_and_bad_lines_are_requests_with_an_error_and_the_rest_goes_on(tmp_path):
    line = {"audio_filepath": "a.wav", "duration": 1.0}
    rows = [{**line, "task": "bop"}, {**line, "task": "ann"}, {"duration": 1.0}, "{", {**line, "task": "__base__"}]
    made = of_manifest(tmp_path / "m.jsonl", rows)
    kinds = [request.error.partition(":")[0] for request in made]
    assert kinds == ["unknown_task", "", "", "missing_field", "bad_json"]
    assert made[0].error == "unknown_task: unknown task 'bop'" and made[3].key == f"{tmp_path / 'm.jsonl'}:3"


def test_a_manifest_without_a_single_known_task_is_refused_in_one_line(tmp_path):
    rows = [{"audio_filepath": "a.wav", "duration": 1.0, "task": name} for name in ("bop", "bap")]
    with pytest.raises(
        UserError, match=r"no line has a task that there is \(task = 'bop', 'bap'\): unknown task 'bop'"
    ):
        of_manifest(tmp_path / "m.jsonl", rows, task="ann")


def test_a_field_for_tasks_or_sessions_that_no_line_has_is_refused_in_one_line(tmp_path):
    rows = [{"audio_filepath": "a.wav", "duration": 1.0, "who": "bob"}]
    for given, told in (
        ({"task_tag": "when"}, "--task_tag='when': no line"),
        ({"session_tag": "talk"}, "--session='t"),
    ):
        with pytest.raises(UserError, match=told):
            of_manifest(tmp_path / "m.jsonl", rows, task="ann", **given)
    assert of_manifest(tmp_path / "m.jsonl", rows, task="ann", session_tag="who")[0].session == "bob"


def test_a_line_without_a_task_takes_the_one_given_or_is_what_is_asked_for(tmp_path):
    rows = [{"audio_filepath": "a.wav", "duration": 1.0}, {"audio_filepath": "b.wav", "duration": 1.0, "task": "bob"}]
    assert [request.task for request in of_manifest(tmp_path / "m.jsonl", rows, task="ann")] == ["ann", "bob"]
    with pytest.raises(UserError, match="which task"):
        of_manifest(tmp_path / "m.jsonl", rows, missing=UserError("which task"))
    assert [request.task for request in of_manifest(tmp_path / "m.jsonl", rows[1:])] == ["bob"]
    with pytest.raises(UserError, match="is empty"):
        of_manifest(tmp_path / "m.jsonl", [])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.wav", "a/b.wav"),
        ("../../a.wav", "a.wav"),
        ("/etc/./x/a.wav", "etc/x/a.wav"),
        ("gs://bucket/a.wav", "bucket/a.wav"),
        ("a/../../b.wav", "a/b.wav"),
    ],
)
def test_the_name_of_a_result_leads_out_of_no_folder(tmp_path, path, name):
    (made,) = of_manifest(tmp_path / "m.jsonl", [{"audio_filepath": path, "duration": 1.0}], task="ann")
    assert made.name == name


def test_where_a_voice_is_to_be_found_the_lines_of_a_session_stand_together(tmp_path):
    rows = [{"audio_filepath": f"{number}.wav", "duration": 1.0, "talk": "xy"[number % 2]} for number in range(6)]
    made = of_manifest(tmp_path / "m.jsonl", rows, task="ann", session_tag="talk")
    assert [request.key for request in made] == [f"{number}.wav" for number in range(6)]
    made = of_manifest(tmp_path / "m.jsonl", rows, task="__auto__", session_tag="talk")
    assert [request.key for request in made] == [f"{number}.wav" for number in (0, 2, 4, 1, 3, 5)]
    assert "".join(request.session for request in made) == "xxxyyy"
