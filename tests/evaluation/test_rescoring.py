"""Scoring predictions that are there already."""

import json

import pytest
from reference.scored import make_rows

from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import prediction_line
from hra_jax.evaluation.rescoring import rescore

SUITE = """
from ml_collections import ConfigDict


def get_config():
    tasks = (("*", "{dir}/test.jsonl", "speaker=*", "*"),)
    return ConfigDict({"name": "mine", "normalizer": "basic", "tasks": tasks})
"""


@pytest.fixture
def data(tmp_path):
    """A suite of two speakers, and what was recognised in it."""
    rows = make_rows("ann", 12) + make_rows("bob", 12, seed=1)
    lines = [
        {"audio_filepath": f"{row.task}/{row.key}", "duration": 1.5, "text": row.text, "speaker": row.task}
        for row in rows
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mine.py").write_text(SUITE)
    return tmp_path, [line | {"pred_text": row.pred_text} for line, row in zip(lines, rows, strict=True)], rows


def scored(data, lines, **keywords):
    folder, _, _ = data
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rescore(folder / "p.jsonl", str(folder / "mine.py"), data_dir=str(folder), bootstrap=100, **keywords)


def test_predictions_of_others_are_scored_without_a_model(data, capsys):
    _, lines, rows = data
    results = scored(data, lines)
    wrong = [
        sum(a != b for a, b in zip(r.text.split(), r.pred_text.split(), strict=True)) for r in rows if r.task == "ann"
    ]
    assert results["tasks"]["ann"]["wer"] == sum(wrong) / (5 * len(wrong)) > 0
    assert (results["normalizer"], results["method"], results["base_wer"]) == ("basic@2", "predictions", None)
    printed = capsys.readouterr().out
    assert "ann" in printed and "trained parameters" not in printed


def test_another_normalizer_takes_the_place_of_that_of_the_suite(data):
    _, lines, _ = data
    loud = [line | {"pred_text": line["text"].upper() + "\u00ad!"} for line in lines]
    found = {name: scored(data, loud, normalizer=name) for name in ("none", "basic@1", "basic")}
    assert [found[name]["wer"] > 0 for name in found] == [True, True, False]
    assert [found[name]["normalizer"] for name in found] == ["none@2", "basic@1", "basic@2"]
    filled = [line | {"pred_text": "uh, " + line["text"]} for line in lines]
    assert scored(data, filled)["wer"] > 0 == scored(data, filled, normalizer="english")["wer"]
    with pytest.raises(UserError, match="normalizer 'loud' is unknown"):
        scored(data, loud, normalizer="loud")


def test_the_report_of_a_folder_of_predictions_is_the_same_again(data):
    folder, _, rows = data
    for name in ("ann", "bob"):
        text = "".join(prediction_line(row, {}) for row in rows if row.task == name)
        (folder / f"predictions_{name}.jsonl").write_text(text.replace('"key": "', f'"key": "{name}/'))
    first = rescore(folder, str(folder / "mine.py"), data_dir=str(folder), output=folder / "R", bootstrap=50)
    again = rescore(folder / "R" / "mine", str(folder / "mine.py"), data_dir=str(folder), bootstrap=50)
    assert first == again and first["base_wer"] > first["wer"]
    assert json.loads((folder / "R" / "mine" / "results.json").read_text()) == first
    assert (folder / "R" / "mine" / "report.html").exists()


def test_utterances_without_a_prediction_are_named_and_the_rest_is_scored(data, capsys):
    _, lines, _ = data
    results = scored(data, lines[1:])
    assert (results["utterances"], results["utterances_not_scored"]) == (23, 1)
    assert "1 of 24 utterances were not scored, such as ann/0.wav: no prediction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [line | {"audio_filepath": "x" + line["audio_filepath"]} for line in lines],
            "holds no utterance",
        ),
        (lambda lines: [{"audio_filepath": "a.wav"}], "p.jsonl:1: needs 'pred_text'"),
        (lambda lines: [*lines, lines[0] | {"pred_text": "else"}], "p.jsonl:25: a second line for 'ann/0.wav'"),
    ],
)
def test_what_cannot_be_scored_is_one_line(data, change, message):
    _, lines, _ = data
    with pytest.raises(UserError, match=message) as error:
        scored(data, change(lines))
    assert "\n" not in str(error.value)
