"""What a score that fails costs, the data report of a run that starts again, and which utterances are not scored."""

import errno
import json
import struct
import types
import zlib

import pytest

from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import Unscored, UtteranceResult
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.run import scoring
from hra_jax.run.scoring import attempt, data_report
from hra_jax.storage.remote import StorageUnavailable

ONE = {"counts": {"too_long": 1}, "utterances": {"too_long": [{"name": "a", "detail": "40 s"}]}}


@pytest.fixture
def run():
    return types.SimpleNamespace(report=DataReport(), failures=[])


def failing(error: BaseException):
    def act():
        raise error

    return act


@pytest.mark.parametrize("kind", [AssertionError, EOFError, ImportError, KeyError, UserError, struct.error, zlib.error])
def test_whatever_a_library_raises_in_a_score_is_told_and_the_run_goes_on(run, kind, capsys):
    assert attempt(run, "the validation at step 2", failing(kind("no good"))) is None
    assert run.failures == ["the validation at step 2 failed"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the validation at step 2 failed: ") and "no good" in line


def test_ctrl_c_and_sigterm_are_no_failures(run):
    for error in (KeyboardInterrupt(), SystemExit(75)):
        with pytest.raises(type(error)):
            attempt(run, "the validation", failing(error))
    assert not run.failures


def test_storage_that_is_away_ends_what_the_same_command_does_again_and_nothing_else(run):
    away = StorageUnavailable(errno.EAGAIN, "the storage does not answer")
    told = UserError("the report")
    told.__cause__ = away
    for error in (away, told):
        with pytest.raises(type(error)):
            attempt(run, "the evaluation", failing(error), comes_again=True)
    assert not run.failures
    assert attempt(run, "the validation", failing(away)) is None and run.failures == ["the validation failed"]


def test_what_an_earlier_start_found_is_kept(tmp_path, capsys):
    (tmp_path / "data_report.json").write_text(json.dumps(ONE))
    with data_report(tmp_path, strict=False, keep=True) as report:
        assert report.to_json() == ONE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", json.dumps(ONE)[:-20], '{"utterances": {"too_long": [3]}}', "[]", "\x00\xff"])
def test_a_damaged_report_is_told_of_and_costs_no_start(tmp_path, capsys, content):
    path = tmp_path / "data_report.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="stop"), data_report(tmp_path, strict=False, keep=True) as report:
        told = capsys.readouterr().out
        assert (
            told.startswith(str(path)) and told.endswith("; what it named is not counted\n") and told.count("\n") == 1
        )
        report.add("too_short", "b", "1 frame")
        raise UserError("stop")
    assert json.loads(path.read_text())["counts"] == {"too_short": 1}


def test_lines_that_the_manifest_refused_are_among_the_utterances_that_were_not_scored():
    refused = Refused("c.wav", "unreachable_audio: c.wav: http:// is not read here")
    rows = [Utterance(f"/{key}", 1.0, "one", key=key) for key in ("a.wav", "b.wav")]
    ann = SuiteTask("ann", "m.jsonl", "speaker", "ann", "ann", tuple(rows), (refused,))
    bob = SuiteTask("bob", "m.jsonl", "speaker", "bob", "bob", (), (refused,))
    report = DataReport()
    report.add("too_long", "ann: b.wav", "9 s")
    scored = [UtteranceResult(task="ann", key="a.wav", text="one", pred_text="one", base_pred_text="one", duration=1.0)]
    assert scoring._unscored(Suite("s", "basic", (ann,), (bob,)), scored, report) == [
        Unscored("ann", "b.wav", "too_long: 9 s"),
        Unscored("ann", "c.wav", refused.why),
        Unscored("bob", "c.wav", refused.why),
    ]
