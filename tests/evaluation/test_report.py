"""Results and reports of an evaluation."""

import dataclasses
import html
import io
import json
import os

import pytest
import rich.console
from reference.scored import ODD, ROWS, evaluate, make_rows, make_suite

from hra_jax.decoding.language_models import search_digest
from hra_jax.evaluation.predictions import Unscored, UtteranceResult
from hra_jax.evaluation.report import print_table, write_report

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
    whole = {"tasks_not_scored": {}} | {name: alone[name] for name in ("suite_digest", "data_digest")}
    assert results | whole == alone
    write_report(tmp_path, results, rows)
    stream = io.StringIO()
    print_table(results, console=rich.console.Console(file=stream, width=140))
    told = [(tmp_path / name).read_text() for name in ("report.md", "report.html")] + [stream.getvalue()]
    for name, reason in reasons.items():
        assert all(f"task '{name}' was not scored: {reason}" in html.unescape(text) for text in told)
    assert sum("not scored" in line and "│" in line for line in stream.getvalue().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.glob("predictions_*")) == ["predictions_george.jsonl"]


def test_utterances_that_were_not_scored_are_in_both_reports_with_the_reason(tmp_path):
    unscored = [Unscored("george", f"long-{number}.wav", "too_long: <9 s>") for number in range(40)]
    write_report(tmp_path, evaluate(), ROWS, unscored)
    for file in ("report.md", "report.html"):
        text = html.unescape((tmp_path / file).read_text().replace("\\", ""))
        assert "The rates leave out 40 utterances; the first 30 of them." in text
        assert text.count("too_long: <9 s>") == 30 and "long-29.wav" in text and "long-30.wav" not in text


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


def test_markdown_report_escapes_names(tmp_path):
    write_report(tmp_path, evaluate(), ROWS)
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
        for rate in (task["base_wer"], task["wer"]):
            assert f"{rate:.1%}" in line
        assert f"{100 * task['difference']['difference']:+.2f}" in line and task["difference"]["verdict"] in line
        assert f"{task['wer_low']:.1%} to {task['wer_high']:.1%}" in line
    assert "300 shared, 100 per task, 500 in total: 2.50% of the backbone's 20,000" in text


def test_greedy_rates_have_a_column_in_every_report_where_not_all_is_greedy(tmp_path):
    rows = [dataclasses.replace(row, greedy_text=row.base_pred_text, base_greedy_text="") for row in ROWS]
    results = evaluate(rows, decoding={"method": "beam", "beam": 16})
    write_report(tmp_path, results, rows)
    markdown, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    assert "| task | base WER | greedy WER | adapted WER |" in markdown
    task = results["tasks"]["george"]
    rates = [f"{task[name]:.1%}" for name in ("base_wer", "greedy_wer", "wer")]
    assert f"| george | {' | '.join(rates)} |" in markdown
    assert "decoded with a beam of 16" in markdown and "decoded with a beam of 16" in page and ">greedy<" in page
    greedy = tmp_path / "greedy"
    write_report(greedy, evaluate(decoding={"method": "greedy"}), ROWS)
    assert "greedy" not in (greedy / "report.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "predictions_george.jsonl").read_text().splitlines()]
    assert sum(line["greedy_errors"] for line in lines) == sum(line["base_errors"] for line in lines)
    assert all(line["base_greedy_errors"] == line["words"] for line in lines)
    assert all("greedy_text" not in line for line in (greedy / "predictions_george.jsonl").read_text().splitlines())


def test_reports_say_by_how_much_confidences_are_off_before_and_after_calibration(tmp_path):
    mixed = {"method": {"george": "greedy", "jackson": "beam"}}
    errors = {
        "george": {"suite": "chosen", "ece_before": 0.10, "ece_after": 0.02},
        "jackson": {"suite": "chosen", "ece_before": 0.20, "ece_after": 0.04}
        | {"search_ece_before": 0.06, "search_ece_after": 0.05},
    }
    digest = search_digest({"lm": {"digest": "f0"}, "lm_weight": 0.8, "token_bonus": 1.0})
    beam = {"method": "beam", "beam": 8, "lm": {"name": "a", "digest": "f0"}, "lm_weight": 0.8, "token_bonus": 1.0}
    by_task = beam | {"method": mixed["method"], "lm": {"jackson": beam["lm"]}, "lm_weight": {"jackson": 0.8}}
    for decoding, measured, before, after in (
        ({"method": "greedy"}, {}, "15.0%", "3.0%"),
        (beam, {}, "6.0%", "5.0%"),  # of the task whose searched words were calibrated
        (mixed, {}, "8.0%", "3.5%"),
        # What was measured with the model and the weights that are searched with, whatever the beam, or with others.
        (beam | {"beam": 16}, {"search_digest": digest}, "6.0%", "5.0%"),
        (by_task, {"search_digest": digest}, "8.0%", "3.5%"),
        (beam | {"lm": {"name": "a", "digest": "f1"}}, {"search_digest": digest}, "", ""),
        (beam | {"token_bonus": {"jackson": 0.0, "george": 1.0}}, {"search_digest": digest}, "", ""),
        (mixed, {"search_digest": digest}, "10.0%", "2.0%"),
    ):
        errors["jackson"] = {name: value for name, value in errors["jackson"].items() if name != "search_digest"}
        errors["jackson"] |= measured
        results = evaluate(decoding=decoding) | {"calibration": errors}
        write_report(tmp_path, results, ROWS)
        stream = io.StringIO()
        print_table(results, console=rich.console.Console(file=stream, width=200))
        markdown, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
        for told in (stream.getvalue(), markdown, page):
            line = f"calibrated on suite chosen: they were off by {before}, and are by {after}"
            assert line in told if before else "calibrated on suite" not in told
        assert "| jackson | chosen | 20.0% | 4.0% | 6.0% | 5.0% |" in markdown


def test_table_without_a_terminal_keeps_a_task_on_one_line(capsys):
    print_table(evaluate())
    out = capsys.readouterr().out
    assert all(len(line) <= 120 for line in out.splitlines())
    assert sum("│" in line and "george" in line and "200" in line for line in out.splitlines()) == 1


def test_a_report_that_is_put_on_the_disk_as_a_whole_is_not_put_there_file_by_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    write_report(tmp_path / "a", evaluate(), ROWS, durable=False)
    assert not synced
    write_report(tmp_path / "b", evaluate(), ROWS)
    assert len(synced) >= 5
