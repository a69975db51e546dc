"""Predictions as JSON Lines: what is written, and what is read of other programs and other times."""

import json

import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import UtteranceResult, prediction_line, read_predictions

ROW = UtteranceResult(
    "ann", "a.wav@1.5+2", "one two", "one", None, 2.0, "/data/a.wav", 1.5, 0.25, {"accent": "x", "votes": 3}
)
COUNTS = {"words": 2, "errors": 1, "base_errors": None}


def read(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return list(read_predictions(path))


def test_what_is_written_is_read_back_with_its_tags_and_counts(tmp_path):
    line = prediction_line(ROW, COUNTS).rstrip("\n")
    (found,) = read(tmp_path / "p.jsonl", line)
    assert found.row == ROW and found.counts == {"words": 2, "errors": 1}
    leaderboard = {
        "audio_filepath": "/data/a.wav",
        "duration": 2.0,
        "time": 0.25,
        "text": "one two",
        "pred_text": "one",
    }
    assert json.loads(line).items() >= leaderboard.items()


def test_lines_of_the_leaderboard_and_of_earlier_versions_are_read(tmp_path):
    bare = {"audio_filepath": "x/a.wav", "duration": 1.5, "time": 0.1, "text": "one", "pred_text": "on", "age": 7}
    former = {"task": "ann", "key": "a.wav", "reference": "one", "hypothesis": "two", "base_hypothesis": "six"}
    former |= {"duration": 1.0, "words": 1, "errors": 1, "base_errors": 1}
    one, other = read(tmp_path / "p.jsonl", bare, former)
    assert one.row == UtteranceResult("", "x/a.wav", "one", "on", None, 1.5, "x/a.wav", 0.0, 0.1, {"age": 7})
    assert one.counts == {}
    assert other.row == UtteranceResult("ann", "a.wav", "one", "two", "six", 1.0)
    assert other.counts == {"words": 1, "errors": 1, "base_errors": 1}


def test_other_programs_may_call_anything_words(tmp_path):
    (found,) = read(tmp_path / "p.jsonl", {"audio_filepath": "a.wav", "pred_text": "one", "words": ["one"]})
    assert found.counts == {} and found.row.tags == {"words": ["one"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key": "a", "pred_text": "one"', "p.jsonl:1: not JSON"),
        ("[1]", "p.jsonl:1: must be a JSON object"),
        ({"key": "a", "text": "one"}, r"p.jsonl:1: needs 'pred_text' \(a string\); got nothing"),
        ({"key": "a", "pred_text": 5}, r"p.jsonl:1: needs 'pred_text' \(a string\); got 5"),
        ({"pred_text": "one"}, "p.jsonl:1: needs 'audio_filepath'"),
        ({"key": "a", "pred_text": "one", "duration": "2"}, r"needs 'duration' \(a number\); got '2'"),
        ({"key": "a", "pred_text": "one", "time": -1}, "time is -1; allowed: 0 or more"),
        ({"key": "a", "pred_text": "one", "tags": [1]}, "p.jsonl:1: tags: must be a JSON object"),
    ],
)
def test_damage_is_one_line_that_names_the_line(tmp_path, line, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "p.jsonl", line)
    assert "\n" not in str(error.value)
