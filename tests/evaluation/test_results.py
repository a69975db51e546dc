"""The numbers of an evaluation."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from reference.scored import ACCOUNTING, ODD, ROWS, evaluate, make_rows, make_suite

import hra_jax
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.bootstrap import interval, resampled_sums, seed_of
from hra_jax.evaluation.predictions import UtteranceResult, read_predictions
from hra_jax.evaluation.results import decoding_words, evaluate_results, software_versions
from hra_jax.evaluation.suites import Suite, SuiteTask, data_digest, suite_digest

SCORES = {"metric", "utterances", "audio_seconds", "words", "substitutions", "deletions", "insertions", "characters"}
SCORES |= {"character_errors", "difference", "resampled", "blocks", "wer", "base_wer", "cer", "base_cer"}
SCORES |= {"wer_low", "wer_high", "base_wer_low", "base_wer_high"}
WHOLE = {"format", "suite", "normalizer", "block", "tasks", "tasks_not_scored", "over_tasks", "slices", "speed"}
WHOLE |= {"wer_macro", "base_wer_macro", "cer_macro", "base_cer_macro", "bootstrap", "suite_digest", "data_digest"}
WHOLE |= {"versions", "decoding", *ACCOUNTING}
GREEDY = {f"{side}greedy_{kind}" for side in ("", "base_") for kind in ("wer", "cer")}
SILENT = [UtteranceResult("a", "1", "...", "word", "", 1.0)]


def test_results_have_every_field_of_the_published_format_and_survive_json():
    results = json.loads(json.dumps(evaluate(run={"step": 7}), allow_nan=False))
    assert results.keys() == WHOLE | SCORES | {"step"}
    assert list(results["tasks"]) == ["george", ODD]
    for task in results["tasks"].values():
        assert task.keys() == SCORES | {"adapter_task", "parameters"}
        assert task["wer_low"] <= task["wer"] <= task["wer_high"]
    assert results["step"] == 7
    assert results["backbone_fingerprint"] == "f00d"


def test_greedy_rates_stand_beside_those_of_another_decoder_everywhere():
    """The greedy texts are those of other rows, whose rates are known."""
    other = [*make_rows("george", 40, seed=5), *make_rows(ODD, 20, seed=7)]
    pairs = list(zip(ROWS, other, strict=True))
    rows = [dataclasses.replace(r, greedy_text=g.pred_text, base_greedy_text=g.base_pred_text) for r, g in pairs]
    decoding = {"method": "beam", "beam": 16}
    results = json.loads(json.dumps(evaluate(rows, decoding=decoding), allow_nan=False))
    plain = [dataclasses.replace(r, pred_text=g.pred_text, base_pred_text=g.base_pred_text) for r, g in pairs]
    expected = evaluate(plain, decoding={"method": "greedy"})
    assert results["decoding"] == decoding and results.keys() == WHOLE | SCORES | GREEDY | {
        f"{name}_macro" for name in GREEDY
    }
    assert results["over_tasks"]["greedy_rate"] == expected["over_tasks"]["rate"]
    assert results["over_tasks"]["base_greedy_rate"] == expected["over_tasks"]["base_rate"]
    wholes = [(results, expected)] + [(task, expected["tasks"][name]) for name, task in results["tasks"].items()]
    for found, wanted in wholes:
        for name in GREEDY:
            assert found[name] == wanted[name.replace("greedy_", "")]
    assert not GREEDY & expected.keys() and not GREEDY & expected["tasks"]["george"].keys()
    # What is not greedy is counted as it was before.
    assert {**results["tasks"]["george"], "x": 0}.items() >= evaluate()["tasks"]["george"].items()


def test_a_greedy_rate_of_the_base_is_unknown_where_one_of_its_texts_is():
    rows = [dataclasses.replace(row, greedy_text=row.pred_text, base_greedy_text=row.base_pred_text) for row in ROWS]
    rows[3] = dataclasses.replace(rows[3], base_greedy_text=None)
    results = evaluate(rows, decoding={"method": "beam", "beam": 16})
    assert results["base_greedy_wer"] is None and results["over_tasks"]["base_greedy_rate"] is None
    assert results["tasks"][ODD]["base_greedy_wer"] == results["tasks"][ODD]["base_wer"]
    assert results["greedy_wer"] == results["wer"]


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        (None, ""),
        ({"method": "greedy"}, ""),
        ({"method": "beam", "beam": 8, "token_bonus": 0.0}, "a beam of 8, token_bonus 0"),
        (
            {"method": "beam", "beam": 16, "lm": {"name": "train", "digest": "0123456789abcdef"}, "lm_weight": 0.8}
            | {"token_bonus": 1.5, "phrase_weight": 3.0, "phrases": 2, "utterances_with_phrases": 1200},
            "a beam of 16, the language model 'train' (0123456789ab), lm_weight 0.8, token_bonus 1.5, phrase_weight 3, "
            "2 phrases, phrases of 1,200 utterances",
        ),
        (
            {"method": "beam", "beam": 16, "token_bonus": 0.0, "utterances_with_phrases": 2, "others": "greedy"},
            "a beam of 16, token_bonus 0, phrases of 2 utterances, and all other utterances greedily",
        ),
        (
            {"method": "beam", "beam": 16, "lm": {"ann": {"name": "a", "digest": "f0"}}, "lm_weight": {"ann": 0.8}},
            "a beam of 16, language models by task, lm_weight by task",
        ),
    ],
)
def test_how_texts_were_found_is_told_in_words(decoding, words):
    assert decoding_words(decoding) == words


def test_corpus_counts_are_sums_over_tasks_and_macro_rates_are_means():
    results = evaluate()
    tasks = list(results["tasks"].values())
    for field in ("substitutions", "deletions", "insertions", "words", "utterances"):
        assert results[field] == sum(task[field] for task in tasks)
    errors = sum(task["substitutions"] + task["deletions"] + task["insertions"] for task in tasks)
    assert results["wer"] == errors / results["words"]
    assert results["wer_macro"] == sum(task["wer"] for task in tasks) / 2
    assert results["base_wer_macro"] == sum(task["base_wer"] for task in tasks) / 2
    assert results["wer"] != results["wer_macro"]


def test_results_of_a_task_depend_on_its_own_utterances_in_any_order():
    alone = evaluate(make_rows("george", 40), make_suite(george="george"))
    assert evaluate(ROWS[::-1])["tasks"]["george"] == alone["tasks"]["george"]
    rows = sorted(ROWS[:40], key=lambda row: row.key)
    counts = [error_rates.word_errors(r.text, r.pred_text, normalizer="basic") for r in rows]
    pairs = np.array([(found.errors, found.words) for found in counts])
    errors, words = resampled_sums(pairs, None, samples=100, seed=seed_of(0, "george")).T
    expected = interval(errors / words)
    assert (alone["tasks"]["george"]["wer_low"], alone["tasks"]["george"]["wer_high"]) == expected


def test_normalizer_of_the_suite_is_applied_to_both_sides():
    rows = [UtteranceResult("a", "1", "Hello, WORLD", "hello world!", "HELLO world", 1.0)]
    assert evaluate(rows, make_suite(a="a"))["wer"] == 0
    assert evaluate(rows, make_suite(a="a"))["base_wer"] == 0
    suite = Suite("digits", "none", make_suite(a="a").tasks)
    assert evaluate(rows, suite)["wer"] == 1
    assert [evaluate(rows, some)["normalizer"] for some in (suite, make_suite(a="a"))] == ["none@2", "basic@2"]


def test_a_task_without_adapter_has_no_parameters():
    suite = make_suite(a="a", b="__base__", c="__mean__")
    results = evaluate([row for name in "abc" for row in make_rows(name, 2)], suite)
    assert [task["parameters"] for task in results["tasks"].values()] == [100, 0, 0]


def test_without_a_base_its_fields_are_none_and_without_bootstrap_the_bounds_are():
    results = evaluate(make_rows("a", 3, base=False), make_suite(a="a"), bootstrap=0)
    assert results["base_wer_macro"] is None
    task = results["tasks"]["a"]
    assert task["base_wer"] is None
    assert task["wer_low"] is None
    assert task["wer"] is not None


def test_a_task_that_lost_all_lines_of_its_manifest_is_named_and_changes_no_number_of_the_others():
    suite = make_suite(george="george")
    lines = tuple(Refused(f"{number}.wav", "empty_audio: duration is 0") for number in range(3))
    lost = SuiteTask("theo", "test.jsonl", "speaker", "theo", "theo", (), lines)
    results = evaluate(make_rows("george", 3), Suite(suite.name, suite.normalizer, suite.tasks, (lost,)))
    assert results["tasks_not_scored"] == {"theo": "none of its 3 utterances could be read"}
    assert {**results, "tasks_not_scored": {}} == evaluate(make_rows("george", 3), suite)


def test_a_suite_of_which_no_task_can_be_scored_is_an_error_that_names_suite_and_task():
    with pytest.raises(UserError, match="suite 'digits': no task could be scored; task 'a': .* hold 0 words"):
        evaluate(SILENT, make_suite(a="a"))


def test_rows_of_other_tasks_and_clashing_fields_are_refused():
    with pytest.raises(ValueError, match="no task of the suite"):
        evaluate(ROWS + make_rows("someone", 1))
    with pytest.raises(ValueError, match="'wer' is already"):
        evaluate(run={"wer": 0.0})
    with pytest.raises(ValueError, match="lacks 'shared_parameters'"):
        evaluate(accounting={k: v for k, v in ACCOUNTING.items() if k != "shared_parameters"})


def test_versions_name_the_libraries_that_results_depend_on():
    versions = software_versions()
    assert versions.keys() >= {"python", "jax", "numpy", "kaldialign"}
    assert versions["hra_jax"] == hra_jax.__version__
    assert evaluate()["versions"] == versions


# --- What decides, what is resampled, what is sliced ------------------------------------------------------------------


def tagged(rows, **tags):
    """Rows whose tags take the given values in turn."""
    turns = {name: itertools.cycle(values) for name, values in tags.items()}
    return [dataclasses.replace(row, tags={name: next(turn) for name, turn in turns.items()}) for row in rows]


def test_a_task_decides_by_its_own_metric_and_the_mean_over_tasks_by_that_of_each():
    whole = make_suite(a="a", b="b")
    tasks = (whole.tasks[0], dataclasses.replace(whole.tasks[1], metric="cer"))
    rows = make_rows("a", 20) + make_rows("b", 20, seed=1)
    results = evaluate(rows, dataclasses.replace(whole, tasks=tasks))
    a, b = results["tasks"].values()
    assert (a["metric"], b["metric"], results["metric"]) == ("wer", "cer", "wer")
    assert results["over_tasks"]["rate"] == (a["wer"] + b["cer"]) / 2
    assert (
        "cer_low" not in a and b["cer_low"] <= b["cer"] <= b["cer_high"] and b["wer_low"] <= b["wer"] <= b["wer_high"]
    )
    assert b["difference"]["difference"] == pytest.approx(b["cer"] - b["base_cer"])
    assert b["cer"] == b["character_errors"] / b["characters"]
    by_words = evaluate(rows, whole)
    for field in ("wer", "wer_low", "wer_high", "base_wer_low"):
        assert by_words["tasks"]["b"][field] == b[field]


def test_speakers_are_resampled_where_there_are_enough_and_the_results_say_which():
    rows = make_rows("a", 64) + make_rows("b", 64, seed=1)
    some = tagged(rows[:64], speaker=[f"s{n}" for n in range(8)]) + tagged(rows[64:], speaker=["x", "y"])
    results = evaluate(some, make_suite(a="a", b="b"))
    a, b = results["tasks"].values()
    assert [(part["resampled"], part["blocks"]) for part in (a, b, results)] == [
        ("speaker", 8),
        ("utterances", 2),
        ("speaker", 10),
    ]
    plain = evaluate(rows, make_suite(a="a", b="b"))["tasks"]
    assert plain["a"]["wer_low"] != a["wer_low"] and plain["b"]["wer_low"] == b["wer_low"]
    by_room = dataclasses.replace(make_suite(a="a", b="b"), block="room")
    other = evaluate(tagged(rows, room=range(16)), by_room)
    assert other["block"] == other["tasks"]["a"]["resampled"] == "room"


def test_slices_are_of_all_utterances_with_the_tag_or_of_that_duration_in_order():
    rows = tagged(make_rows("a", 30) + make_rows("b", 30, seed=1), accent=["x", None, 7])
    rows = [dataclasses.replace(row, duration=float(at % 12)) for at, row in enumerate(rows)]
    suite = dataclasses.replace(make_suite(a="a", b="b"), slices=("accent", "seconds:2,5.5,10"))
    slices = evaluate(rows, suite)["slices"]
    assert [(part["value"], part["utterances"]) for part in slices["accent"]] == [("7", 20), ("x", 20)]
    counts = [2, 4, 4, 2]
    labels = ["below 2 s", "2 to 5.5 s", "5.5 to 10 s", "10 s or more"]
    found = [(part["value"], part["utterances"]) for part in slices["seconds:2,5.5,10"]]
    assert found == [(label, 5 * count) for label, count in zip(labels, counts, strict=True)]
    picked = [row for row in rows if row.tags["accent"] == "x"]
    total = error_rates.total(error_rates.word_errors(r.text, r.pred_text, normalizer="basic") for r in picked)
    (_, x) = slices["accent"]
    assert (x["wer"], x["words"]) == (total.rate, total.words) and x.keys() == SCORES | {"value"}


def test_over_tasks_are_the_worst_the_spread_and_who_got_worse():
    results = evaluate(make_rows("a", 40) + make_rows("b", 40, seed=1), make_suite(a="a", b="b"))
    over, rates = results["over_tasks"], [task["wer"] for task in results["tasks"].values()]
    assert over["worst"]["rate"] == max(rates) and results["tasks"][over["worst"]["task"]]["wer"] == max(rates)
    assert over["spread"] == pytest.approx(abs(rates[0] - rates[1]) / 2)
    assert (over["got_worse"], over["verdicts"]) == (0, {"better": 2, "worse": 0, "not decidable": 0})
    assert over["difference"]["verdict"] == "better" and over["low"] <= over["rate"] <= over["high"]
    swapped = [dataclasses.replace(r, pred_text=r.base_pred_text, base_pred_text=r.pred_text) for r in ROWS]
    assert evaluate(swapped)["over_tasks"]["verdicts"]["worse"] == 2


def test_the_real_time_factor_is_that_of_the_utterances_whose_time_was_measured():
    rows = [dataclasses.replace(row, time=0.25 + at / 100) for at, row in enumerate(ROWS)]
    seconds = sum(row.time for row in rows[1:])
    audio = 1.5 * (len(rows) - 1)
    found = evaluate([*rows[1:], ROWS[0]])["speed"]
    assert found == pytest.approx({"audio_seconds": audio, "seconds": seconds, "real_time_factor": seconds / audio})
    assert evaluate(ROWS)["speed"] is None
    assert evaluate(rows, hardware={"device": "cpu"})["speed"]["hardware"] == {"device": "cpu"}


def test_digests_follow_what_is_asked_and_what_is_there_and_not_where_it_lies():
    utterances = (Utterance("/x/a.wav", 1.0, "one", key="a.wav", tags={"speaker": "ann"}),)
    task = SuiteTask("ann", "/x/test.jsonl", "speaker", "ann", "ann", utterances)
    suite = Suite("s", "basic", (task,))
    moved = (dataclasses.replace(utterances[0], audio_filepath="/y/a.wav"),)
    there = Suite("s", "basic", (dataclasses.replace(task, manifest="/y/test.jsonl", utterances=moved),))
    assert (suite_digest(suite), data_digest(suite)) == (suite_digest(there), data_digest(there))
    for changes in ({"metric": "cer"}, {"block": "room"}, {"slices": ("a",)}, {"normalizer": "none"}):
        other = dataclasses.replace(suite, **changes)
        assert suite_digest(other) != suite_digest(suite) and data_digest(other) == data_digest(suite)
    for changes in ({"text": "two"}, {"key": "b.wav"}, {"duration": 2.0}, {"tags": {}}):
        changed = dataclasses.replace(task, utterances=(dataclasses.replace(utterances[0], **changes),))
        assert data_digest(Suite("s", "basic", (changed,))) != data_digest(suite)


# --- Stored predictions -----------------------------------------------------------------------------------------------

STORED = Path(os.environ.get("HRA_STORED_RESULTS") or Path(__file__).parents[3] / "shared/data/quickstart-2026-11-26")


@pytest.fixture(scope="module")
def stored():
    if not STORED.exists():
        pytest.skip(f"no stored predictions in {STORED}: set HRA_STORED_RESULTS to the folder that has hard/")

    def results(suite):
        files = sorted((STORED / suite).glob("predictions_*.jsonl"))
        rows = [line.row for file in files for line in read_predictions(file)]
        whole = make_suite(**{name: name for name in dict.fromkeys(row.task for row in rows)})
        return evaluate_results(rows, whole, accounting=ACCOUNTING, bootstrap=10_000)

    return {suite: results(suite) for suite in ("hard", "hard_validation")}


def test_one_speaker_whom_the_adapter_makes_worse_is_called_worse(stored):
    croak, validated = (stored[suite]["tasks"]["croak"] for suite in ("hard", "hard_validation"))
    assert [f"{100 * croak[rate]:.1f}" for rate in ("base_wer", "wer")] == ["3.4", "4.8"]
    shown = [f"{100 * croak['difference'][bound]:+.1f}" for bound in ("difference", "low", "high")]
    assert (shown, croak["difference"]["verdict"]) == (["+1.4", "+0.3", "+2.8"], "worse")
    assert (croak["resampled"], croak["blocks"]) == ("utterances", 50)
    assert [f"{100 * validated[rate]:.1f}" for rate in ("base_wer", "wer")] == ["1.2", "3.0"]
    assert validated["difference"]["verdict"] == "not decidable"
    assert stored["hard"]["over_tasks"]["verdicts"] == {"better": 5, "worse": 1, "not decidable": 2}


def test_stored_predictions_are_counted_as_they_were(stored):
    for suite, results in stored.items():
        before = json.loads((STORED / suite / "results.json").read_text())
        for part, earlier in (
            (results, before),
            *((results["tasks"][name], before["tasks"][name]) for name in before["tasks"]),
        ):
            for field in ("substitutions", "deletions", "insertions", "words", "wer", "base_wer", "cer"):
                assert part[field] == earlier[field]
