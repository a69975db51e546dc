"""Steps that were skipped: counted, named and told of, and how many in a row are too many."""

import numpy as np
import pytest

from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run.skipped_steps import SkippedSteps
from hra_jax.training.step import SKIPPED


def skipped_of(most=3, strict=False, position=None):
    report = DataReport(strict=strict)
    return SkippedSteps(most=most, report=report, name_of="utterance {}".format, position=position), report


def stepped(skipped, step, flag, utterances=(4, -1)):
    metrics = {SKIPPED: np.float32(flag), "loss": np.float32(1)}
    skipped.stepped(step, metrics, np.array(utterances))
    assert list(metrics) == ["loss"]


def test_what_was_skipped_is_told_once_and_its_utterances_are_named():
    skipped, report = skipped_of()
    lines = []
    for step, flag in enumerate((0, 1, 0, 1), start=1):
        stepped(skipped, step, flag, (step, 10 * step, -1))
    skipped.look(lines.append)
    skipped.look(lines.append)
    assert lines == [f"step {step} is skipped: its loss or a gradient is not finite" for step in (2, 4)]
    rows = report.to_json()["utterances"]["not_finite"]
    assert [row["name"] for row in rows] == [f"utterance {number}" for number in (2, 20, 4, 40)]
    assert "step 4, which was skipped" in rows[-1]["detail"]


def test_so_many_in_a_row_are_too_many_and_a_good_one_begins_anew():
    skipped, _ = skipped_of()
    for step, (flag, expected) in enumerate([(1, 1), (1, 2), (0, 0), (1, 1), (1, 2), (1, 3)], start=1):
        assert not skipped.too_many
        stepped(skipped, step, flag)
        skipped.look(str)
        assert skipped.in_row == expected
    assert skipped.too_many
    error = str(skipped.error(6, report="data_report.json"))
    assert "the last 3 steps" in error and "checkpoint 6 holds the weights of step 3" in error


def test_a_resumed_run_knows_its_last_good_step_and_says_what_can_be_done():
    position = {"skipped_steps": 3, "last_good_step": 4, "consumed": 9}
    for given, good in ((position, 4), ({"consumed": 9}, 7)):  # the second of an earlier version
        report = DataReport(strict=False)
        skipped = SkippedSteps(most=2, report=report, name_of="utterance {}".format, start=7, position=given)
        assert skipped.onto({})["last_good_step"] == good
        for step in (8, 9):
            stepped(skipped, step, 1)
        skipped.look(str)
        error = str(skipped.error(9, report="data_report.json"))
        assert f"checkpoint 9 holds the weights of step {good};" in error
        assert "another optimizer.max_skipped_steps" in error
        assert "learning_rate needs a new work directory" in error and "export-checkpoint" in error


def test_a_skipped_step_is_an_error_where_bad_data_is():
    skipped, _ = skipped_of(strict=True)
    stepped(skipped, 1, 1)
    with pytest.raises(UserError, match="not_finite: utterance 4: in the batch of step 1"):
        skipped.look(str)


def test_the_number_of_skipped_steps_outlives_a_resume():
    skipped, _ = skipped_of()
    for step, flag in enumerate((0, 1, 0, 1), start=1):
        stepped(skipped, step, flag)
    assert skipped.total == 0  # nobody has waited for the device
    skipped.look(str)
    assert skipped.total == 2
    position = skipped.onto({"consumed": 4})
    assert position["consumed"] == 4
    resumed, _ = skipped_of(position=position)
    stepped(resumed, 5, 1)
    resumed.look(str)
    assert (resumed.total, resumed.in_row) == (3, 1)


@pytest.mark.parametrize("position", [{"consumed": 4}, {"consumed": 4, "skipped_steps": "many"}])
def test_a_checkpoint_without_a_number_of_skipped_steps_counts_from_zero(position):
    assert skipped_of(position=position)[0].total == 0
