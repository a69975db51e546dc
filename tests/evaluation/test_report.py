"""Results and reports of an evaluation."""

import base64
import html
import io
import json
import os
import re

import numpy as np
import pytest
import rich.console

import hra_jax
from hra_jax.data.utterance import Refused
from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.bootstrap import bootstrap_interval
from hra_jax.evaluation.predictions import Unscored, UtteranceResult
from hra_jax.evaluation.report import print_table, write_report
from hra_jax.evaluation.results import evaluate_results, software_versions
from hra_jax.evaluation.suites import Suite, SuiteTask

ACCOUNTING = {
    "trainable_parameters": 500,
    "shared_parameters": 300,
    "parameters_per_task": 100,
    "backbone_parameters": 20000,
    "backbone_fingerprint": "f00d",
}
CONTRACT_TASK = {
    "wer",
    "cer",
    "substitutions",
    "deletions",
    "insertions",
    "words",
    "utterances",
    "wer_low",
    "wer_high",
    "base_wer",
}
CONTRACT = {
    "tasks",
    "wer",
    "wer_macro",
    "base_wer_macro",
    "normalizer",
    "trainable_parameters",
    "shared_parameters",
    "parameters_per_task",
    "backbone_fingerprint",
}
ODD = "a/b <b>|$x$ [red]"


def make_suite(**adapters):
    tasks = tuple(SuiteTask(name, "test.jsonl", "speaker", name, adapter, ()) for name, adapter in adapters.items())
    return Suite("digits", "basic", tasks)


def make_rows(task, number, *, seed=0, base=True):
    rng = np.random.default_rng(seed)
    words = ["one", "two", "three", "four"]
    rows = []
    for index in range(number):
        reference = " ".join(rng.choice(words, size=5))
        hypothesis, base_text = (
            " ".join(rng.choice(words) if rng.random() < p else w for w in reference.split()) for p in (0.1, 0.6)
        )
        rows.append(UtteranceResult(task, f"{index}.wav", reference, hypothesis, base_text if base else None, 1.5))
    return rows


SUITE = make_suite(**{"george": "george", ODD: "__base__"})
ROWS = make_rows("george", 40) + make_rows(ODD, 20, seed=3)


def evaluate(rows=ROWS, suite=SUITE, **changes):
    return evaluate_results(rows, suite, **({"accounting": ACCOUNTING, "bootstrap": 100} | changes))


def test_results_have_every_field_of_the_published_format_and_survive_json():
    results = json.loads(json.dumps(evaluate(run={"step": 7}), allow_nan=False))
    assert results.keys() >= CONTRACT
    assert list(results["tasks"]) == ["george", ODD]
    for task in results["tasks"].values():
        assert task.keys() == CONTRACT_TASK | {"adapter_task", "parameters", "base_wer_low", "base_wer_high"}
        assert task["wer_low"] <= task["wer"] <= task["wer_high"]
    assert results["step"] == 7
    assert results["backbone_fingerprint"] == "f00d"


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
    counts = [error_rates.word_errors(r.text, r.pred_text, normalizer="basic") for r in ROWS[:40]]
    interval = bootstrap_interval(counts, samples=100)
    assert (alone["tasks"]["george"]["wer_low"], alone["tasks"]["george"]["wer_high"]) == interval


def test_normalizer_of_the_suite_is_applied_to_both_sides():
    rows = [UtteranceResult("a", "1", "Hello, WORLD", "hello world!", "HELLO world", 1.0)]
    assert evaluate(rows, make_suite(a="a"))["wer"] == 0
    assert evaluate(rows, make_suite(a="a"))["base_wer"] == 0
    suite = Suite("digits", "none", make_suite(a="a").tasks)
    assert evaluate(rows, suite)["wer"] == 1


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


SILENT = [UtteranceResult("a", "1", "...", "word", "", 1.0)]


def test_a_task_that_cannot_be_scored_is_named_and_changes_no_number_of_the_others(tmp_path):
    alone = evaluate(make_rows("george", 3), make_suite(george="george"))
    rows = make_rows("george", 3) + SILENT
    results = evaluate(rows, make_suite(george="george", a="a", b="b"))
    assert list(results["tasks"]) == ["george"]
    reasons = {
        "a": "the references of its 1 utterances hold 0 words",
        "b": "none of its 0 utterances could be read",
    }
    assert results["tasks_not_scored"] == reasons
    assert {**results, "tasks_not_scored": {}} == alone
    write_report(tmp_path, results, rows)
    stream = io.StringIO()
    print_table(results, console=rich.console.Console(file=stream, width=140))
    told = [(tmp_path / name).read_text() for name in ("report.md", "report.html")] + [stream.getvalue()]
    for name, reason in reasons.items():
        assert all(f"task '{name}' was not scored: {reason}" in html.unescape(text) for text in told)
    assert sum("not scored" in line and "│" in line for line in stream.getvalue().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.glob("predictions_*")) == ["predictions_george.jsonl"]


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


def test_utterances_that_were_not_scored_are_in_both_reports_with_the_reason(tmp_path):
    unscored = [Unscored("george", f"long-{number}.wav", "too_long: <9 s>") for number in range(40)]
    write_report(tmp_path, evaluate(), ROWS, unscored)
    for file in ("report.md", "report.html"):
        text = html.unescape((tmp_path / file).read_text().replace("\\", ""))
        assert "The rates leave out 40 utterances; the first 30 of them." in text
        assert text.count("too_long: <9 s>") == 30 and "long-29.wav" in text and "long-30.wav" not in text


def test_rows_of_other_tasks_and_clashing_fields_are_refused():
    with pytest.raises(ValueError, match="no task of the suite"):
        evaluate(ROWS + make_rows("someone", 1))
    with pytest.raises(ValueError, match="'wer' is already"):
        evaluate(run={"wer": 0.0})
    with pytest.raises(ValueError, match="lacks 'shared_parameters'"):
        evaluate(accounting={k: v for k, v in ACCOUNTING.items() if k != "shared_parameters"})


def test_report_files_are_whole_and_agree_with_the_results(tmp_path):
    results = evaluate()
    folder = tmp_path / "eval" / "digits"
    folder.mkdir(parents=True)
    (folder / "predictions_gone.jsonl").write_text("{}\n")
    write_report(folder, results, ROWS)
    odd_file = "predictions_a%2Fb%20%3Cb%3E%7C%24x%24%20%5Bred%5D.jsonl"
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "report.md",
        "report.html",
        "wer.png",
        "predictions_george.jsonl",
        odd_file,
    }
    assert json.loads((folder / "results.json").read_text()) == results
    for name, file in (("george", "predictions_george.jsonl"), (ODD, odd_file)):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        errors = sum(line["errors"] for line in lines)
        assert errors / sum(line["words"] for line in lines) == results["tasks"][name]["wer"]
        assert sum(line["base_errors"] for line in lines) / results["tasks"][name]["words"] == pytest.approx(
            results["tasks"][name]["base_wer"]
        )
        assert {line["task"] for line in lines} == {name}
    assert (folder / "wer.png").read_bytes().startswith(b"\x89PNG")


def test_html_report_needs_no_other_file_and_escapes_names(tmp_path):
    write_report(tmp_path, evaluate(), ROWS)
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1
    embedded = sources[0].removeprefix("data:image/png;base64,")
    assert base64.b64decode(embedded) == (tmp_path / "wer.png").read_bytes()
    assert html.escape(ODD) in page
    assert "<b>" not in page
    markdown = (tmp_path / "report.md").read_text()
    columns = {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert columns == {8, 6}  # the cells of the two tables, not split by a name


def test_worst_utterances_come_first_and_right_ones_not_at_all(tmp_path):
    rows = [
        UtteranceResult("a", "right.wav", "one two", "one two", "", 1.0),
        UtteranceResult("a", "worse.wav", "one two", "three four", "one", 1.0),
        UtteranceResult("a", "bad.wav", "one two", "one three", "two", 1.0),
    ]
    write_report(tmp_path, evaluate(rows, make_suite(a="a")), rows)
    for file in ("report.md", "report.html"):
        text = (tmp_path / file).read_text()
        assert "right.wav" not in text
        assert text.index("worse.wav") < text.index("bad.wav")
    assert "one <del>two</del> <ins>three</ins>" in (tmp_path / "report.html").read_text()


def test_report_bytes_repeat(tmp_path):
    for name in "ab":
        write_report(tmp_path / name, evaluate(), ROWS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_report_is_written_without_a_base_without_intervals_and_for_many_tasks(tmp_path):
    names = [f"speaker {i}" for i in range(50)]
    rows = [row for i, name in enumerate(names) for row in make_rows(name, 2, seed=i, base=False)]
    results = evaluate(rows, make_suite(**{name: name for name in names}), bootstrap=0)
    write_report(tmp_path, results, rows)
    assert len(list(tmp_path.glob("predictions_*.jsonl"))) == 50
    assert "None" not in (tmp_path / "report.html").read_text() + (tmp_path / "report.md").read_text()


def test_table_shows_every_task_and_what_is_trained():
    stream = io.StringIO()
    results = evaluate()
    print_table(results, console=rich.console.Console(file=stream, width=140))
    text = stream.getvalue()
    for name, task in results["tasks"].items():
        line = next(line for line in text.splitlines() if name in line)
        for rate in (task["base_wer"], task["wer"], task["cer"]):
            assert f"{rate:.1%}" in line
        assert f"{task['wer_low']:.1%} to {task['wer_high']:.1%}" in line
    assert "300 shared, 100 per task, 500 in total: 2.50% of the backbone's 20,000" in text


def test_table_without_a_terminal_keeps_a_task_on_one_line(capsys):
    print_table(evaluate())
    out = capsys.readouterr().out
    assert all(len(line) <= 120 for line in out.splitlines())
    assert sum("│" in line and "george" in line and "100" in line for line in out.splitlines()) == 1


def test_versions_name_the_libraries_that_results_depend_on():
    versions = software_versions()
    assert versions.keys() >= {"python", "jax", "numpy", "kaldialign"}
    assert versions["hra_jax"] == hra_jax.__version__
    assert evaluate()["versions"] == versions


def test_a_report_that_is_put_on_the_disk_as_a_whole_is_not_put_there_file_by_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    write_report(tmp_path / "a", evaluate(), ROWS, durable=False)
    assert not synced
    write_report(tmp_path / "b", evaluate(), ROWS)
    assert len(synced) >= 5
