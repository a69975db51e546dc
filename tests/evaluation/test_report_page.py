"""The page of an evaluation: one file, inert, whole."""

import base64
import hashlib
import html
import io
import re

import numpy as np
import pytest
import soundfile
from reference.pages import EVIL, Tags, speech
from reference.scored import ODD, ROWS, evaluate, make_rows, make_suite

from hra_jax.evaluation import plots, report_page
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.report import write_report


def page_of(folder, rows=ROWS, results=None, **options) -> str:
    write_report(folder, results or evaluate(rows), rows, **options)
    return (folder / "report.html").read_text()


def test_page_is_well_formed_and_asks_for_nothing(tmp_path):
    rows = [
        UtteranceResult("a", f"{EVIL}{n}", EVIL, f"{EVIL} {EVIL}", EVIL, 0.5, speech(tmp_path, f"{n}.wav", rate=8000))
        for n in range(3)
    ]
    suite = make_suite(a="a", **{EVIL: "a"})
    rows += [UtteranceResult(EVIL, "k", "one", "two", "one", 1.0, tags={EVIL: EVIL})]
    tags = Tags(page_of(tmp_path, rows, evaluate(rows, suite), command=f"python {EVIL}"))
    assert tags.open == []
    sources = [value for _, given in tags.found for name, value in given.items() if name in ("src", "href", "srcset")]
    assert len(sources) == 3 and all(source.startswith("data:audio/ogg;base64,") for source in sources)
    assert [tag for tag, _ in tags.found].count("script") == 1 and not any(tag == "img" for tag, _ in tags.found)
    # A policy with hashes refuses attributes that are styles or scripts.
    assert not any(name == "style" or name.startswith("on") for _, given in tags.found for name in given)


def test_policy_allows_the_style_and_the_script_of_the_page_and_no_others(tmp_path):
    page = page_of(tmp_path)
    policy = next(given["content"] for tag, given in Tags(page).found if given.get("http-equiv"))
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for element, source in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[source] == f"'sha256-{digest}'"
    assert allowed["default-src"] == "'none'" and allowed["media-src"] == "data:"
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_page_says_first_what_the_results_say(tmp_path):
    results = evaluate(ROWS)
    page = page_of(tmp_path, results=results, command="python -m hra_jax.evaluate --suite digits")
    top = html.unescape(page[: page.index("<h2>")])
    over = results["over_tasks"]
    for rate in (over["rate"], over["base_rate"], over["low"], over["high"]):
        assert f"{rate:.1%}" in top
    assert "better in 2 of 2 tasks" in top and "60 utterances" in top
    assert html.escape(ODD) in page and "<b>|" not in page
    for name in ("suite_digest", "data_digest", "backbone_fingerprint"):
        assert results[name] in page
    assert results["versions"]["jax"] in page and "python -m hra_jax.evaluate --suite digits" in page


@pytest.mark.parametrize(("rate", "wanted"), [(4000, 8000), (11025, 12000), (16000, 16000), (96000, 48000)])
def test_recordings_are_heard_at_the_next_rate_of_opus(tmp_path, rate, wanted):
    row = UtteranceResult("a", "a", "one", "two", None, 0.4, speech(tmp_path, "a.wav", rate=rate), 0.1)
    page = page_of(tmp_path, [row], evaluate([row], make_suite(a="a")))
    (encoded,) = re.findall(r'src="data:audio/ogg;base64,([^"]*)"', page)
    samples, heard = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert heard == wanted and len(samples) == pytest.approx(0.4 * wanted, abs=2)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert np.argmax(spectrum) * wanted / len(samples) == pytest.approx(440, abs=5)
    assert page == page_of(tmp_path, [row], evaluate([row], make_suite(a="a")))


def test_what_cannot_be_heard_says_why(tmp_path):
    rows = [
        UtteranceResult("a", "gone", "one", "two", None, 0.4, str(tmp_path / "gone.wav")),
        UtteranceResult("a", "nowhere", "one", "two", None, 0.4),
        UtteranceResult("a", "long", "one two", "two three", None, 1000.0, speech(tmp_path, "a.wav", rate=8000)),
    ]
    page = page_of(tmp_path, rows, evaluate(rows, make_suite(a="a")))
    assert "<audio" not in page
    for why in ("missing_file", "do not say where", "too long for this page"):
        assert page.count(why) == 1


def test_words_of_all_hypotheses_stand_under_the_words_that_were_said():
    said, adapted, base = ["a", "b", "c", "d"], ["a", "x", "c", "d", "e"], ["y", "a", "b", "d"]
    columns = report_page.aligned(said, [adapted, base])
    assert [word for word, _ in columns if word] == said
    assert [heard[0] for _, heard in columns if heard[0]] == adapted
    assert [heard[1] for _, heard in columns if heard[1]] == base
    by_word = {word: heard for word, heard in columns if word}
    assert by_word == {"a": ("a", "a"), "b": ("x", "b"), "c": ("c", ""), "d": ("d", "d")}
    assert columns[0] == ("", ("", "y")) and columns[-1] == ("", ("e", ""))
    rng = np.random.default_rng(0)
    for _ in range(200):
        texts = [list(rng.choice(list("abc"), size=rng.integers(0, 6))) for _ in range(3)]
        columns = report_page.aligned(texts[0], texts[1:])
        assert [word for word, _ in columns if word] == texts[0]
        assert [[heard[n] for _, heard in columns if heard[n]] for n in range(2)] == texts[1:]


def test_page_of_a_thousand_utterances_is_below_three_megabytes(tmp_path):
    path = speech(tmp_path, "a.wav", rate=16000, seconds=2)
    rows = [
        UtteranceResult("ab"[n % 2], str(n), "one two three " * 8, "four five " * 8, "six " * 20, 2.0, path)
        for n in range(1000)
    ]
    page = page_of(tmp_path, rows, evaluate(rows, make_suite(a="a", b="b"), bootstrap=10))
    assert page.count("<audio") == report_page.MOST_HEARD and len(page.encode()) < 3e6


def test_slices_and_curves_are_drawn_with_every_number(tmp_path):
    results = evaluate(make_rows("a", 9), make_suite(a="a"))
    point = {"shots": 0, "rate": 0.5, "low": 0.4, "high": 0.6, "by_draw": [0.5]}
    slices = {"accent": [results["tasks"]["a"] | {"value": value} for value in ("x<y", "z")]}
    few = {"shots": [0, 10], "draws": 1, "tasks": {"new": [point, point | {"shots": 10, "rate": 0.123}]}}
    few |= {"all": few["tasks"]["new"], "base": {"new": 0.9}}
    page = page_of(tmp_path, make_rows("a", 9), results | {"slices": slices, "few_shot": few})
    assert "x&lt;y" in page and "12.3%" in page and page.count("<polyline") == 1
    assert Tags(page).open == []


@pytest.mark.parametrize("most", [0.0, 0.004, 0.012, 0.3, 0.999, 1.0, 3.7])
def test_an_axis_holds_what_it_shows_and_little_more(most):
    limit = plots.nice_limit([most, None])
    assert most <= limit <= max(2 * most, 0.01)
