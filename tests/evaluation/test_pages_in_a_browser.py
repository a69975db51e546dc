"""Pages in Chromium: they fit a phone, sort, filter and play, and texts of strangers do nothing.

HRA_PICTURES=FOLDER keeps pictures of the pages, to be looked at.
"""

import dataclasses
import os
from pathlib import Path

import pytest
from reference import browser
from reference.pages import EVIL, speech
from reference.scored import ACCOUNTING, evaluate, make_rows, make_suite

from hra_jax.evaluation import systems_page
from hra_jax.evaluation.predictions import Unscored
from hra_jax.evaluation.report import write_report

SCRIPT = "<script>document.title = 'ran'</script>"
HEBREW = "שלום עולם"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = browser.find()
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(browser.NAMES)} is on the path, and HRA_CHROMIUM is not set")
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two pages: R/report.html of three systems, R/own/report.html of one, with everything that a page can have."""
    place = tmp_path_factory.mktemp("pages")
    names = ("ann", "bob", EVIL, "a-task-with-a-rather-long-name-and-no-space-in-it-at-all")
    suite = dataclasses.replace(make_suite(**dict.fromkeys(names, "ann")), slices=("accent", "seconds:1,2"))
    rows = []
    for number, name in enumerate(names):
        path = speech(place, f"{number}.wav", rate=16000)
        made = make_rows(name, 20, seed=number)
        texts = (SCRIPT, HEBREW, "one " * 40, "word" * 60)
        made[:4] = [dataclasses.replace(row, text=text) for row, text in zip(made, texts, strict=False)]
        rows += [
            dataclasses.replace(row, audio_filepath=path, duration=0.5, tags={"accent": SCRIPT if n % 2 else "US"})
            for n, row in enumerate(made)
        ]
    results = evaluate(rows, suite, run={"step": 7, "method": "adapter"})
    points = [
        {"shots": k, "rate": rate, "low": rate - 0.1, "high": rate + 0.1, "by_draw": [rate]}
        for k, rate in ((0, 0.8), (1, 0.6), (10, 0.3), (100, 0.2))
    ]
    few = {"shots": [0, 1, 10, 100], "draws": 1, "tasks": {"ann": points, "bob": points}, "all": points}
    results["few_shot"] = few | {"base": {"ann": 0.9, "bob": 0.9}}
    unscored = [Unscored("ann", f"{SCRIPT}.wav", "too_long")]
    write_report(place / "own", results, rows, unscored, command=f"python -m hra_jax.evaluate --suite '{SCRIPT}'")
    systems = {
        name: evaluate(rows[number:], suite, accounting=ACCOUNTING | {"trainable_parameters": size})
        for number, (name, size) in enumerate((("__base__", 0), ("own", 500), (SCRIPT, 90_000)))
    }
    pair = {"tasks": {name: task["difference"] for name, task in systems["own"]["tasks"].items()}}
    pair |= {"macro": systems["own"]["over_tasks"]["difference"]}
    matrix = {"tasks": names, "adapters": names, "metric": ["wer"] * 4, "own": names, "base": [0.5] * 4}
    matrix |= {"rates": [[0.1 + 0.1 * abs(a - b) for a in range(4)] for b in range(4)], "left_out": 0}
    page = systems_page.page_of("digits", systems, [("__base__", "own", pair, "")], matrices={"own": matrix})
    (place / "report.html").write_text(page)
    for name, file in (("phone-own", "own/report.html"), ("phone-all", "report.html")):
        frame = f'<!DOCTYPE html><iframe id="phone" src="{file}" width="390" height="844"></iframe>'
        (place / f"{name}.html").write_text(frame)
    return place


@pytest.mark.slow(minutes=0.3)
def test_pages_fit_a_desk_and_a_phone_in_light_and_in_the_dark(chromium, folder):
    for name in ("report.html", "own/report.html"):
        grounds = set()
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            chromium.show(folder / name, width=width, dark=dark)
            assert chromium.run("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            assert chromium.faults() == []
            grounds.add(chromium.run("getComputedStyle(document.body).backgroundColor"))
            if os.environ.get("HRA_PICTURES"):
                kind = f"{name.replace('/', '-').removesuffix('.html')}-{width}-{'dark' if dark else 'light'}.png"
                chromium.picture(Path(os.environ["HRA_PICTURES"]) / kind)
        assert len(grounds) == 2
    for name in ("phone-own.html", "phone-all.html"):
        chromium.show(folder / name, width=1280)
        inside = "document.getElementById('phone').contentWindow"
        assert chromium.run(f"{inside}.innerWidth") == 390
        assert chromium.run(f"{inside}.document.documentElement.scrollWidth") <= 390


@pytest.mark.slow(minutes=0.1)
def test_texts_of_strangers_do_nothing_and_no_request_leaves_the_file(chromium, folder):
    for name in ("report.html", "own/report.html"):
        chromium.show(folder / name, width=1280)
        assert chromium.run("document.title").startswith("suite digits")
        assert chromium.run("document.scripts.length") == 1
        assert chromium.run("document.querySelectorAll('img, iframe, object, embed, a').length") == 0
        assert {url for url in chromium.requests() if not url.startswith("data:")} == {(folder / name).as_uri()}
    hebrew = f"[...document.querySelectorAll('.words')].find((line) => line.textContent.includes('{HEBREW[:4]}'))"
    assert chromium.run(f"getComputedStyle({hebrew}).direction") == "rtl"


@pytest.mark.slow(minutes=0.1)
def test_a_recording_plays_and_a_second_one_stops_it(chromium, folder):
    chromium.show(folder / "own" / "report.html", width=1280)
    heard = chromium.run(
        """(async () => {
          const [first, second] = document.querySelectorAll("audio");
          first.loop = second.loop = true;
          await first.play();
          while (!(first.currentTime > 0.1)) await new Promise((done) => setTimeout(done, 20));
          await second.play();
          while (!(second.currentTime > 0)) await new Promise((done) => setTimeout(done, 20));
          return {paused: first.paused, seconds: first.duration, other: second.paused};
        })()"""
    )
    assert heard["paused"] and not heard["other"]
    assert heard["seconds"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow(minutes=0.1)
def test_tasks_are_filtered_picked_and_sorted(chromium, folder):
    chromium.show(folder / "own" / "report.html", width=1280)
    rows = "[...document.querySelectorAll('tr[data-task]')].filter((row) => !row.hidden).map((row) => row.dataset.task)"
    cards = "[...document.querySelectorAll('.utterance')].filter((card) => !card.hidden).map((c) => c.dataset.task)"
    assert len(chromium.run(rows)) == 4
    type_bob = "filter.value = 'BOB'; filter.dispatchEvent(new Event('input'))"
    chromium.run(f"{{const filter = document.getElementById('filter'); {type_bob}}}")
    assert chromium.run(rows) == ["bob"] and set(chromium.run(cards)) == {"bob"}
    chromium.run("document.querySelector('tr[data-task=bob] .pick').click()")
    chromium.run("document.querySelector('tr[data-task=bob] .pick').click()")
    assert len(chromium.run(rows)) == 4
    chromium.run("document.querySelector('tr[data-task=ann] .pick').click()")
    assert chromium.run(rows) == ["ann"] and set(chromium.run(cards)) == {"ann"}
    chromium.run("document.querySelector('tr[data-task=ann] .pick').click()")
    more = "document.getElementById('more')"
    before = len(chromium.run(cards))
    assert not chromium.run(f"{more}.hidden")
    chromium.run(f"{more}.click()")
    assert len(chromium.run(cards)) > before == 20 and chromium.run(f"{more}.hidden")
    head = "[...document.querySelectorAll('thead button')].find((button) => button.textContent === 'adapted')"
    value = "[...document.querySelectorAll('tr[data-task]')].map((row) => Number(row.cells[3].dataset.value))"
    chromium.run(f"{head}.click()")
    up = chromium.run(value)
    chromium.run(f"{head}.click()")
    assert up == sorted(up) and chromium.run(value) == up[::-1]
