"""What the report of bad data promises."""

import concurrent.futures
import json

import pytest

from hra_jax.data.report import KINDS, DataReport
from hra_jax.errors import UserError


def test_the_same_utterance_counts_once_per_kind():
    report = DataReport()
    for _ in range(3):
        report.add("nan_samples", "a.wav", "1 sample is NaN")
    report.add("too_long", "a.wav", "31 s")
    assert report.counts() == {**dict.fromkeys(KINDS, 0), "nan_samples": 1, "too_long": 1}


def test_additions_from_many_threads_are_all_kept():
    report = DataReport()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: report.add(KINDS[i % len(KINDS)], f"{i // len(KINDS)}", ""), range(4500)))
    assert sum(report.counts().values()) == 4500


def test_what_is_written_merges_back_to_the_same_report(tmp_path):
    report, other = DataReport(), DataReport(strict=True)
    report.add("missing_file", "b.wav", "no file at b.wav")
    report.add("missing_file", "a.wav", "no file at a.wav")
    report.add("unknown_text", "é.wav", "'é' is not in the vocabulary")
    report.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["counts"] == {"missing_file": 2, "unknown_text": 1}
    assert [row["name"] for row in content["utterances"]["missing_file"]] == ["a.wav", "b.wav"]
    other.merge(content)
    other.merge(content)
    assert other.to_json() == content


def test_what_was_drawn_of_a_mixture_stays_in_the_file_and_is_no_news(tmp_path):
    report, other = DataReport(), DataReport()
    report.mixture = {"references": 3, "parts": [], "tasks_never_drawn": ["ann"]}
    report.write(tmp_path / "report.json")
    other.read(tmp_path / "report.json")
    assert other.to_json() == report.to_json() and other.mixture == report.mixture and "mixture" not in report.news()
    (tmp_path / "report.json").write_text(json.dumps({"utterances": {}, "mixture": [1]}))
    other.read(tmp_path / "report.json")
    assert other.mixture is None


def test_the_news_are_what_no_other_report_has_told_yet():
    one, other = DataReport(), DataReport()
    one.add("missing_file", "a.wav", "no file at a.wav")
    other.add("missing_file", "b.wav", "no file at b.wav")
    first = one.news()
    assert first == one.to_json() and one.news() == {"counts": {}, "utterances": {}}
    other.merge(first)
    assert [row["name"] for row in other.news()["utterances"]["missing_file"]] == ["b.wav"]
    other.add("missing_file", "a.wav", "no file at a.wav")  # found there as well, later
    other.add("too_long", "a.wav", "99 s")
    assert other.news()["counts"] == {"too_long": 1}


def test_a_strict_report_raises_one_line_that_names_the_utterance():
    with pytest.raises(UserError, match=r"^empty_audio: x\.wav: no samples.*strict.*$") as error:
        DataReport(strict=True).add("empty_audio", "x.wav", "no samples")
    assert "\n" not in str(error.value)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'typo'.*bad_json"):
        DataReport().add("typo", "x")


def test_the_summary_is_one_line_with_counts_and_examples():
    report = DataReport()
    assert report.summary() == "no bad data"
    report.add("too_short", "b", "")
    report.add("too_short", "a", "")
    report.add("bad_json", "m.jsonl:3", "")
    assert report.summary() == "1 bad_json (such as m.jsonl:3); 2 too_short (such as a)"
