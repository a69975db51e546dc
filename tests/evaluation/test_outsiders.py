"""Predictions of other programs, matched with the utterances of a suite."""

import json

import pytest

from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.outsiders import match_predictions, matched_rows
from hra_jax.evaluation.suites import Suite, SuiteTask

ROWS = (
    Utterance("/data/a.wav", 1.0, "one", key="a.wav"),
    Utterance("/data/b.wav", 2.0, "two", 3.0, {"speaker": "ann"}, "b.wav@3+2"),
)
SUITE = Suite(
    "s", "basic", (SuiteTask("ann", "", "", "", "ann", ROWS), SuiteTask("again", "", "", "", "__base__", ROWS[:1]))
)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_are_matched_by_key_or_by_file_and_offset_whatever_their_order(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"audio_filepath": "/data/b.wav", "offset": 3.0, "pred_text": "too", "text": "something else"},
        {"key": "a.wav", "pred_text": "won"},
    )
    rows = matched_rows(path, SUITE, base={("ann", "a.wav"): "wan"})
    found = [(row.task, row.key, row.text, row.pred_text, row.base_pred_text) for row in rows]
    assert found == [
        ("ann", "a.wav", "one", "won", "wan"),
        ("ann", "b.wav@3+2", "two", "too", None),
        ("again", "a.wav", "one", "won", None),
    ]
    assert rows[1].tags == {"speaker": "ann"} and rows[1].duration == 2.0


def test_a_line_that_names_a_task_is_of_that_task(tmp_path):
    lines = [{"key": "a.wav", "pred_text": name, "task": name} for name in ("ann", "again")]
    path = write(tmp_path / "p.jsonl", *lines, {"key": "b.wav@3+2", "pred_text": "b"})
    assert [row.pred_text for row in matched_rows(path, SUITE)] == ["ann", "b", "again"]


def test_what_is_not_wanted_may_lack_and_what_is_wanted_may_not(tmp_path):
    path = write(tmp_path / "p.jsonl", {"key": "a.wav", "pred_text": "won"})
    assert [row.task for row in matched_rows(path, SUITE, only={("ann", "a.wav")})] == ["ann"]
    with pytest.raises(UserError, match=r"p.jsonl: lacks 1 of the utterances of suite 's', such as 'b.wav@3\+2'"):
        matched_rows(path, SUITE)


@pytest.mark.parametrize(
    ("path", "same"),
    [("a.wav", True), ("/else/data/a.wav", True), ("data/a.wav", True), ("/data/b/a.wav", False), ("ta/a.wav", False)],
)
def test_a_file_is_the_same_wherever_it_lies(tmp_path, path, same):
    utterances = (Utterance("/disk/data/a.wav", 1.0, "one", key="data/a.wav"),)
    suite = Suite("s", "basic", (SuiteTask("ann", "", "", "", "ann", utterances),))
    lines = write(tmp_path / "p.jsonl", {"audio_filepath": path, "pred_text": "x"})
    assert bool(match_predictions(lines, suite)) == same


def test_segments_of_a_file_are_told_apart_by_offset_and_names_that_are_no_tasks_are_not_taken_for_them(tmp_path):
    utterances = tuple(
        Utterance("/data/long.wav", 2.0, "one", start, key=f"long.wav@{start}+2") for start in (12345.67, 12347.67)
    )
    suite = Suite("s", "basic", (SuiteTask("ann", "", "", "", "ann", utterances),))
    rows = [
        {"audio_filepath": "long.wav", "offset": start, "pred_text": str(start), "task": "asr"}
        for start in (12345.671, 12347.67)
    ]
    found = match_predictions(write(tmp_path / "p.jsonl", *rows), suite)
    assert [row.pred_text for row in found.values()] == ["12345.671", "12347.67"]
