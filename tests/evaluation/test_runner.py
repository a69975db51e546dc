"""Running a suite: each utterance once, with its own adapter, whatever batch it is in."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from reference import micro as world

from hra_jax.config.keys import group
from hra_jax.data.report import DataReport
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.errors import UserError
from hra_jax.evaluation.runner import SuiteRunner, check_adapter_acts, share_shapes
from hra_jax.evaluation.suites import load_suite
from hra_jax.models import ctc
from hra_jax.run.scoring import suite_weights
from hra_jax.text import ngram

pytestmark = pytest.mark.optimised  # adapters that act are told from those that do not by the last bit


def make(trained, micro, suite: str, *, data=None, report: DataReport | None = None, **changes) -> SuiteRunner:
    run, config = trained.run, micro.config(**changes)
    report = DataReport() if report is None else report
    return SuiteRunner(
        load_suite(micro.suite(suite), data_dir=str(data or micro.data), report=report),
        base=run.material.base,
        tasks=run.layout.tasks,
        mesh=run.layout.mesh,
        data=group(config, "data"),
        batch=group(config, "batch"),
        evaluation=group(config, "eval"),
        report=report,
    )


def scores(run, runner: SuiteRunner):
    rows, loss, differences = runner.run(run.layout.programs.evaluation, suite_weights(run, runner), run.frozen)
    return {(row.task, row.key): row for row in rows}, loss, differences, len(rows)


def test_every_utterance_is_scored_once_and_padding_rows_never(trained, micro):
    runner = make(trained, micro, "test")
    rows, loss, _, count = scores(trained.run, runner)
    expected = [(task.name, utterance.key) for task in runner.suite.tasks for utterance in task.utterances]
    assert count == len(expected) == 6 and set(rows) == set(expected)
    assert {row.text for row in rows.values()} == set(world.TEXTS["test"])
    assert np.isfinite(loss)


def test_the_batch_that_an_utterance_is_in_changes_nothing(trained, micro):
    """4 rows a batch here, 6 in the run: other neighbours, another amount of padding."""
    rows, loss, differences, _ = scores(trained.run, make(trained, micro, "test"))
    few, few_loss, few_differences, _ = scores(trained.run, make(trained, micro, "test", eval__batch_seconds=4.0))
    assert few == rows
    np.testing.assert_allclose(few_loss, loss, rtol=1e-5)
    for name, difference in differences.items():
        np.testing.assert_allclose(few_differences[name], difference, rtol=1e-4)


def test_a_suite_gets_the_rows_that_it_uses_and_the_mean_of_all_after_them(trained, micro):
    trainable = jax.device_get(trained.run.state.trainable)
    runner = make(trained, micro, "mixed")  # the mean, no adapter, and ann
    weights = suite_weights(trained.run, runner)
    assert runner.rows == (0,) and trained.run.layout.tasks[0] == "ann" and runner.needs_mean
    for before, after in zip(jax.tree.leaves(trainable["tasks"]), jax.tree.leaves(weights["tasks"]), strict=True):
        assert after.shape[0] == 2 and before.shape[0] == len(world.SPEAKERS)
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_allclose(after[1], before.mean(axis=0), rtol=1e-6)


def test_the_mean_row_gives_what_a_bank_of_means_would_give(trained, micro):
    run = trained.run
    rows, _, differences, _ = scores(run, make(trained, micro, "mixed"))
    means = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf.mean(axis=0), leaf.shape), jax.device_get(run.state.trainable["tasks"])
    )
    averaged = dataclasses.replace(run, state=run.state.replace(trainable={**run.state.trainable, "tasks": means}))
    others, _, other_differences, _ = scores(averaged, make(trained, micro, "mixed"))
    keys = [key for task, key in rows if task == "ann"]
    assert [rows["ann mean", key].pred_text for key in keys] == [others["ann", key].pred_text for key in keys]
    np.testing.assert_allclose(differences["ann mean"], other_differences["ann"], rtol=1e-4)


def test_the_base_differs_nowhere_from_itself_and_every_adapter_somewhere(trained, micro):
    runner = make(trained, micro, "mixed")
    _, _, differences, _ = scores(trained.run, runner)
    assert differences["ann base"] == 0.0
    assert differences["ann mean"] > 0.0 and differences["ann"] > 0.0
    check_adapter_acts(runner.suite, differences)
    with pytest.raises(UserError, match="'ann mean': .* '__mean__' equal those without it exactly; the adapter does"):
        check_adapter_acts(runner.suite, differences | {"ann mean": 0.0})


def test_an_adapter_that_gives_no_numbers_is_told_from_one_that_does_nothing(trained, micro):
    run = trained.run
    rows = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(run.state.trainable["tasks"]))
    for leaf in jax.tree.leaves(rows):
        leaf[run.layout.tasks.index("ann")] = np.nan
    spoilt = dataclasses.replace(run, state=run.state.replace(trainable={**run.state.trainable, "tasks": rows}))
    runner = make(trained, micro, "test")
    _, _, differences, _ = scores(spoilt, runner)
    assert {name for name, difference in differences.items() if np.isnan(difference)} == {"ann"}
    assert min(difference for name, difference in differences.items() if name != "ann") > 0.0
    told = "task 'ann': the log-probabilities with the adapter 'ann' are not finite"
    with pytest.raises(UserError, match=told):
        check_adapter_acts(runner.suite, differences)
    # Nor is it passed over as one that cannot act yet, and infinity is no number either.
    with pytest.raises(UserError, match=told):
        check_adapter_acts(runner.suite, differences | {"ann": np.inf}, idle=["ann"])


def test_a_new_adapter_is_found_out_as_doing_nothing(trained, micro):
    run = dataclasses.replace(trained.run, state=trained.run.state.replace(trainable=trained.start))
    runner = make(trained, micro, "test")
    rows, _, differences, _ = scores(run, runner)
    assert set(differences.values()) == {0.0}
    assert all(row.pred_text == row.base_pred_text for row in rows.values())
    with pytest.raises(UserError, match="task 'ann'"):
        check_adapter_acts(runner.suite, differences)


def counted(run, runner: SuiteRunner):
    """Scores of a run with `kept`, and how many batches ran with the base beside them and how many alone."""
    batches = {"both": 0, "alone": 0}

    def both(*arguments):
        batches["both"] += 1
        return run.layout.programs.evaluation(*arguments)

    def alone(*arguments):
        batches["alone"] += 1
        outputs = run.layout.programs.evaluation(*arguments)
        return {name: value for name, value in outputs.items() if name not in ("base_paths", "difference")}

    rows, _, differences = runner.run(both, suite_weights(run, runner), run.frozen, alone=alone)
    return rows, differences, batches


def test_the_base_is_recognised_once_and_each_adapter_is_checked_beside_it_in_one_batch(trained, micro):
    runner = make(trained, micro, "test", eval__batch_seconds=2.0)  # 3 batches of 2
    first, whole, batches = counted(trained.run, runner)
    assert batches == {"both": 3, "alone": 1} and len(runner.kept) == 6
    again, differences, batches = counted(trained.run, runner)
    assert again == first
    seen = {row.task for row in first}
    assert seen == set(world.SPEAKERS)
    # Sorted by length: the first two batches hold an utterance of every speaker.
    assert batches == {"both": 2, "alone": 1}
    assert all(0.0 < differences[task] <= whole[task] for task in seen)


def test_an_adapter_that_does_nothing_is_found_with_the_base_kept_too(trained, micro):
    run = trained.run
    rows = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(run.state.trainable["tasks"]))
    for leaf in jax.tree.leaves(rows):
        leaf[run.layout.tasks.index("bob")] = 0.0
    silent = dataclasses.replace(run, state=run.state.replace(trainable={**run.state.trainable, "tasks": rows}))
    runner = make(trained, micro, "test", eval__batch_seconds=2.0)
    counted(run, runner)
    found, differences, _ = counted(silent, runner)
    assert [name for name, difference in differences.items() if difference == 0.0] == ["bob"]
    assert all(row.pred_text == row.base_pred_text for row in found if row.task == "bob")


def test_what_was_recognised_before_is_not_recognised_again(trained, micro):
    runner = make(trained, micro, "test", eval__batch_seconds=2.0)
    parts, run = [], trained.run
    weights = suite_weights(run, runner)
    whole = runner.run(run.layout.programs.evaluation, weights, run.frozen, after=parts.append)
    assert [len(part) for part in parts] == [2, 2, 2]
    kept = make(trained, micro, "test", eval__batch_seconds=2.0)
    kept.kept |= runner.kept
    later: list = []
    rest = kept.run(run.layout.programs.evaluation, weights, run.frozen, done=parts[0] | parts[2], after=later.append)
    texts = [{number: row.text for number, row in part.items()} for part in (parts[1], *later)]
    assert len(later) == 1 and texts[0] == texts[1] and rest == whole


def test_a_decoder_finds_other_texts_and_those_of_greedy_decoding_stand_beside_them(trained, micro):
    run, settings = trained.run, {"eval__batch_seconds": 2.0}
    plain, *_ = scores(run, make(trained, micro, "test", **settings))
    runner = make(trained, micro, "test", **settings)
    vocabulary, weights = run.material.base.vocabulary, suite_weights(run, runner)
    lm = ngram.train([vocabulary.encode(text) for text in ("fed", "cab dab")], vocabulary, order=3)
    decoding = DecodeSettings(lm=lm, lm_weight=3.0, token_bonus=2.0, beam=4)
    decoder = Decoder(decoding, vocabularies=dict.fromkeys(world.SPEAKERS, vocabulary))
    both, alone = run.layout.programs.decoded
    parts: list = []
    rows, *_ = whole = runner.run(both, weights, run.frozen, decoder=decoder, after=parts.append)
    for row in rows:
        greedy = plain[row.task, row.key]
        assert (row.greedy_text, row.base_greedy_text) == (greedy.pred_text, greedy.base_pred_text)
        assert greedy.greedy_text is None and greedy.base_greedy_text is None
    assert any(row.pred_text != row.greedy_text for row in rows)
    assert any(row.base_pred_text != row.base_greedy_text for row in rows)

    # Each row is what the decoder makes of its log-probabilities, beside other rows.
    texts = {(row.task, row.key): row.pred_text for row in rows}
    for log_probs, lengths, numbers in make(trained, micro, "test", **settings).log_probs(alone, weights, run.frozen):
        tasks = [world.SPEAKERS[runner.table.source[number]] for number in numbers[::-1]]
        paths = decoder.paths(log_probs[::-1], lengths[::-1], tasks).paths[::-1]
        for number, path in zip(numbers.tolist(), paths, strict=True):
            name = world.SPEAKERS[runner.table.source[number]], runner.table.utterances[number].key
            assert texts.pop(name) == vocabulary.decode(ctc.labels_of_path(path, vocabulary.blank_id))
    assert texts == {}

    # What was found before keeps both texts, and that of the base too.
    again = make(trained, micro, "test", **settings)
    again.kept, again.kept_greedy = dict(runner.kept), dict(runner.kept_greedy)
    assert again.run(both, weights, run.frozen, decoder=decoder, done=parts[0] | parts[2]) == whole


def test_unreadable_audio_is_left_out_and_named_and_all_unreadable_is_an_error(trained, micro, tmp_path):
    shutil.copytree(micro.data, tmp_path / "data")
    keys = [row["audio_filepath"] for row in world.read_manifest(tmp_path / "data" / "test.jsonl")]
    (tmp_path / "data" / keys[0]).unlink()
    report = DataReport()
    runner = make(trained, micro, "test", data=tmp_path / "data", report=report)
    rows, *_ = scores(trained.run, runner)
    assert {key for _, key in rows} == set(keys[1:])
    assert report.to_json()["utterances"]["missing_file"][0]["name"] == f"ann: {keys[0]}"
    shutil.rmtree(tmp_path / "data" / "audio")
    with pytest.raises(UserError, match="suite 'test': none of its utterances could be read; 6 missing_file"):
        scores(trained.run, make(trained, micro, "test", data=tmp_path / "data"))


def test_runners_that_share_shapes_hold_the_longest_labels_of_both(trained, micro):
    test, validation = (make(trained, micro, name) for name in ("test", "validation"))
    test.label_capacities = (16,)
    share_shapes(test, validation)
    assert test.label_capacities == validation.label_capacities == (16,)
