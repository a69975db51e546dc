"""The page of one system on one suite: what it is worth, where it fails, and how that sounds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import kaldialign

from hra_jax.console import bounds, html_text, percent
from hra_jax.evaluation import error_rates, page, plots, shots
from hra_jax.evaluation.page import Cell
from hra_jax.evaluation.paired import VERDICTS
from hra_jax.evaluation.predictions import Unscored, UtteranceResult
from hra_jax.evaluation.recordings import audio_uri
from hra_jax.evaluation.results import mean_scores

MOST_HEARD = 20  # utterances with their recordings
_MOST_SHOWN = 200  # utterances
_MOST_SECONDS = 200.0  # of all recordings, below 2 MB
_MOST_TASKS = 1000  # in the table; those with the highest rates


def page_of(
    results: Mapping[str, Any],
    worst: Sequence[UtteranceResult],
    unscored: tuple[str, Sequence[Unscored]],
    *,
    lines: Sequence[str],
    notes: Sequence[str],
    command: str = "",
) -> str:
    """The content of report.html.

    Args:
      results: as in results.json.
      worst: the utterances with errors, the worst first.
      unscored: how many utterances were not scored, in a sentence, and the first of them; '' and () for none.
      lines: what the tables say, in sentences.
      notes: how texts were compared, and what the intervals hold for.
      command: what repeats it; '' where nobody knows.
    """
    number, below, sentence = _held_out(results) or _sentence(results)
    title = f"suite {results['suite']}: {number} {_metric(results)}"
    return page.document(
        title,
        [
            f"<h1>{page.text(_subject(results))}</h1>",
            page.headline(number, below, sentence),
            _tasks(results),
            page.section("Held-out tasks", *_few_shot(results)),
            page.section("Slices", *_slices(results)),
            _utterances(worst, results),
            _not_scored(*unscored),
            page.section("In words", page.paragraphs(lines), page.paragraphs(notes, cls="quiet")),
            page.section("Repeat it", page.commands([command] if command else []), page.origin(results)),
        ],
    )


# --- One sentence -----------------------------------------------------------------------------------------------------


def _metric(results: Mapping[str, Any]) -> str:
    kinds = {task["metric"] for task in results["tasks"].values()}
    return page.METRICS[kinds.pop()] if len(kinds) == 1 else "error rate"


def _subject(results: Mapping[str, Any]) -> str:
    """What was scored, in a line."""
    seconds = results["audio_seconds"]
    audio = f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
    step = "" if results.get("step") is None else f", step {results['step']}"
    tasks = results["over_tasks"]["tasks"]
    return (
        f"Suite {results['suite']}{step}: {results['utterances']:,} utterances of {tasks:,} task{'s' * (tasks != 1)}, "
        f"{audio} of speech"
    )


def _sentence(results: Mapping[str, Any]) -> tuple[str, str, str]:
    """The number of the page, what it is, and what the page says."""
    rated, metric = results["over_tasks"], _metric(results)
    several = rated["tasks"] > 1
    interval = "" if rated["low"] is None else f", 95% interval {percent(rated['low'])} to {percent(rated['high'])}"
    below = f"{'mean ' if several else ''}{metric}{interval}"
    if rated["base_rate"] is None:
        tasks = f"{rated['tasks']:,} tasks" if several else "this task"
        return percent(rated["rate"]), below, f"Errors per reference word or character, over {tasks}."
    verdicts = rated["verdicts"] or {}
    base, own = percent(rated["base_rate"]), percent(rated["rate"])
    if not several:
        (task,) = results["tasks"].values()
        word = (task["difference"] or {}).get("verdict")
        return own, below, f"The backbone alone has {base}, the system {own}{f': {word}' if word else ''}."
    counts = [f"{verdict} in {verdicts[verdict]:,}" for verdict in VERDICTS if verdicts.get(verdict)]
    decided = f" It is {', '.join(counts)} of {rated['tasks']:,} tasks." if counts else ""
    return own, below, f"The backbone alone has {base}, the system {own}.{decided}"


def _held_out(results: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """As `_sentence` where all tasks are heads of held-out ones, whose rates at all shots have no meaningful mean."""
    found = results.get("few_shot")
    if not found or not found["shots"] or any("@" not in name for name in results["tasks"]):
        return None
    first, last = found["all"][0], found["all"][-1]
    several = len(found["tasks"]) > 1
    interval = "" if last["low"] is None else f", 95% interval {percent(last['low'])} to {percent(last['high'])}"
    below = f"{'mean ' * several}{_metric(results)} with {last['shots']} utterances{interval}"
    base = list(found["base"].values())
    alone = "" if None in base else f" The backbone alone has {percent(sum(base) / len(base))}."
    tasks = f"{len(found['tasks'])} tasks" if several else "A task"
    sentence = (
        f"{tasks} that the adapter has never heard: {percent(first['rate'])} with {first['shots']} utterances to learn "
        f"from, {percent(last['rate'])} with {last['shots']}.{alone}"
    )
    return percent(last["rate"]), below, sentence


# --- Tables -----------------------------------------------------------------------------------------------------------


def _dots(scores: Mapping[str, Any], metric: str) -> list[plots.Dot]:
    """The base and the system; the system alone where there is no base."""
    sides = [("base_", "base", 0)] * (scores[f"base_{metric}"] is not None) + [("", "adapted", 1)]
    return [
        plots.Dot(
            scores[f"{prefix}{metric}"], scores.get(f"{prefix}{metric}_low"), scores.get(f"{prefix}{metric}_high"),
            colour, name,
        )
        for prefix, name, colour in sides
    ]  # fmt: skip


def _limit(entries: Sequence[Mapping[str, Any]]) -> float:
    dots = [dot for scores in entries for dot in _dots(scores, scores["metric"])]
    return plots.nice_limit([rate for dot in dots for rate in (dot.rate, dot.high)])


_NUMBERS = ("base", "greedy", "adapted", "95% interval", "change", "verdict", "words")


def _scores(name: Cell, scores: Mapping[str, Any], limit: float | None) -> list[Cell]:
    """The cells of a task, of a slice or of all utterances; without a limit no dots are drawn."""
    metric = scores["metric"]
    base, own = scores[f"base_{metric}"], scores[metric]
    drawn = "" if limit is None else plots.dots(_dots(scores, metric), limit=limit)
    return [
        name,
        Cell(drawn, None, "drawn left"),
        Cell(percent(base), "" if base is None else base),
        *([Cell(percent(scores[greedy]), scores[greedy])] if (greedy := f"greedy_{metric}") in scores else []),
        Cell(f"<b>{percent(own)}</b>", own),
        Cell(bounds(scores, metric)),
        page.change(scores["difference"]),
        page.verdict(scores["difference"]),
        Cell(f"{scores['words']:,}", scores["words"]),
    ]


def _header(first: str, limit: float, results: Mapping[str, Any]) -> list[str | Cell]:
    numbers = [name for name in _NUMBERS if name != "greedy" or "greedy_wer" in results]
    return [first, Cell(plots.axis(limit), None, "left"), *numbers]


def _pick(name: str) -> Cell:
    """The name of a task; a click shows that task alone."""
    return Cell(f'<button type="button" class="pick" dir="auto">{html_text(name)}</button>', name)


def _marked(name: str, verdict: Mapping[str, Any] | None) -> dict[str, str]:
    return {"task": name, "verdict": (verdict or {}).get("verdict") or ""}


def _tasks(results: Mapping[str, Any]) -> str:
    tasks = results["tasks"]
    shown = sorted(tasks, key=lambda name: -tasks[name][tasks[name]["metric"]])[:_MOST_TASKS]
    chosen = set(shown)
    names = [name for name in tasks if name in chosen]
    limit = _limit([tasks[name] for name in names])
    rows = [(_scores(_pick(name), tasks[name], limit), _marked(name, tasks[name]["difference"])) for name in names]
    mean = results["over_tasks"]
    feet = {"mean of the tasks": mean_scores(results), "all utterances": results}
    foot = [_scores(Cell(name), scores, limit) for name, scores in feet.items()]
    keys = [("base", 0)] * (mean["base_rate"] is not None) + [("adapted", 1)]
    more = f"The {len(names):,} tasks with the highest rates, of {len(tasks):,}." if len(names) < len(tasks) else ""
    return page.section(
        "Tasks",
        _tools(results),
        plots.key(keys, limit),
        page.table(_header("task", limit, results), rows, foot=foot),
        page.paragraphs([more] if more else []),
    )


def _tools(results: Mapping[str, Any]) -> str:
    """What narrows the page to some tasks; it shows where scripts run."""
    if len(results["tasks"]) < 2:
        return ""
    options = "".join(f'<option value="{word}">{word}</option>' for word in VERDICTS)
    kinds = f'<select id="verdict" aria-label="verdict"><option value="">all verdicts</option>{options}</select>'
    return (
        '<div class="tools" hidden><input id="filter" type="search" placeholder="filter by task" '
        f'aria-label="filter by task" autocomplete="off">{kinds if results["over_tasks"]["verdicts"] else ""}'
        '<output id="shown" class="quiet"></output></div>'
    )


def _slices(results: Mapping[str, Any]) -> list[str]:
    found = []
    for item, slices in results.get("slices", {}).items():
        if slices:
            limit = _limit(slices)
            rows: list[page.Row] = [
                (_scores(Cell(page.text(one["value"]), one["value"]), one, limit), {}) for one in slices
            ]
            found.append(page.table(_header(item.partition(":")[0], limit, results), rows))
    return found


def _few_shot(results: Mapping[str, Any]) -> list[str]:
    """Error rates against the number of utterances that heads were trained on."""
    found = results.get("few_shot")
    if not found or not found["shots"]:
        return []
    places = plots.log_places([2 * k if k else 1 for k in found["shots"]])
    lines = dict(list(found["tasks"].items())[: plots.COLOURS - 1])
    if len(found["tasks"]) > 1:
        lines["mean of the tasks"] = found["all"]
    series = [
        plots.Series(
            name,
            number + 1,
            [
                (at, plots.Dot(point["rate"], point["low"], point["high"], number + 1))
                for at, point in zip(places, points, strict=True)
            ],
        )
        for number, (name, points) in enumerate(lines.items())
    ]
    header, rows = shots.table_of(found)
    cells: list[page.Row] = [([Cell(page.text(cell)) for cell in row], {}) for row in rows]
    ticks = [(at, str(k)) for at, k in zip(places, found["shots"], strict=True)]
    drawn = plots.plot(series, ticks=ticks, title="utterances of the task", label="error rate by utterances")
    return [drawn, page.table(header, cells, sortable=False)]


# --- Utterances -------------------------------------------------------------------------------------------------------


def _utterances(worst: Sequence[UtteranceResult], results: Mapping[str, Any]) -> str:
    shown, cards, left = worst[:_MOST_SHOWN], [], _MOST_SECONDS
    for number, row in enumerate(shown):
        heard = number < MOST_HEARD
        uri, why = audio_uri(row) if heard and row.duration <= left else ("", "too long for this page" * heard)
        left -= row.duration if uri else 0
        cards.append(_utterance(row, results, uri=uri, why=why))
    if not cards:
        return ""
    of = f", the worst {len(shown)} of {len(worst):,}" if len(shown) < len(worst) else ""
    legend = "What was said is in bold, below it what was recognised with the adapter, then by the backbone alone."
    alone = "What was said is in bold, below it what was recognised."
    has_base = any(row.base_pred_text is not None for row in shown)
    more = f'<p><button type="button" id="more" data-first="{MOST_HEARD}" hidden></button></p>'
    return page.section(
        f"Worst utterances{of}",
        f'<p class="quiet">{legend if has_base else alone} Errors are marked.</p>',
        *cards,
        more,
    )


def _utterance(row: UtteranceResult, results: Mapping[str, Any], *, uri: str, why: str) -> str:
    normalizer = results["normalizer"]
    said = error_rates.words(row.text, normalizer)
    sides = [text for text in (row.pred_text, row.base_pred_text) if text is not None]
    heard = [error_rates.words(text, normalizer) for text in sides]
    errors = [error_rates.errors_by_metric(row.text, text, normalizer)["wer"].errors for text in sides]
    counts = f"{errors[0]} of {len(said)} words wrong" + (f", {errors[1]} by the backbone" if errors[1:] else "")
    tags = ", ".join(f"{name}: {value}" for name, value in row.tags.items() if isinstance(value, str | int | float))
    player = f'<audio controls preload="metadata" src="{uri}"></audio>' if uri else ""
    missing = f'<p class="quiet">{html_text(why)}</p>' if why else ""
    mark = "".join(
        f' data-{name}="{html_text(value)}"'
        for name, value in _marked(row.task, results["tasks"][row.task]["difference"]).items()
    )
    about = f'<span class="quiet" dir="auto">{html_text(tags)}</span>' if tags else ""
    return (
        f'<article class="utterance"{mark}><header><b dir="auto">{html_text(row.task)}</b>'
        f'<span class="quiet" dir="auto">{html_text(row.key)}</span><span class="quiet">{counts}</span>{about}</header>'
        f"{player}{missing}{_aligned(said, heard)}</article>"
    )


@dataclasses.dataclass
class _Column:
    """A word that was said, or '' between two, and what each hypothesis has in its place."""

    said: str
    heard: list[str]


def aligned(said: Sequence[str], heard: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Words that were said, each with what several hypotheses have in its place; '' is nothing.

    Every hypothesis is aligned with the reference by itself; what they put between the same two words stands together.
    """
    columns = [_Column(word, ["" for _ in heard]) for word in said]
    between: list[list[_Column]] = [[] for _ in range(len(said) + 1)]
    for number, hypothesis in enumerate(heard):
        at, extra = 0, 0
        # No word is empty, so the empty string can stand for "nothing here".
        for reference, word in kaldialign.align(said, hypothesis, ""):
            if reference:
                columns[at].heard[number] = word
                at, extra = at + 1, 0
                continue
            if extra == len(between[at]):
                between[at].append(_Column("", ["" for _ in heard]))
            between[at][extra].heard[number] = word
            extra += 1
    found = list(between[0])
    for column, after in zip(columns, between[1:], strict=True):
        found += [column, *after]
    return [(column.said, tuple(column.heard)) for column in found]


def _aligned(said: Sequence[str], heard: Sequence[Sequence[str]]) -> str:
    """Words below each other, in the direction of the text."""
    shown = []
    for word, recognised in aligned(said, heard):
        cells = [f'<span class="said">{html_text(word)}</span>']
        for number, other in enumerate(recognised):
            right = "" if not word and not other else "ok" if other == word else "bad"
            cells.append(
                f'<span class="{" ".join(filter(None, ("second" * number, right)))}">'
                f"{html_text(other) or '–' * bool(word)}</span>"
            )
        shown.append(f"<span>{''.join(cells)}</span>")
    return f'<div class="words" dir="auto">{"".join(shown)}</div>'


def _not_scored(line: str, rows: Sequence[Unscored]) -> str:
    """The utterances that were not scored; '' where all were."""
    if not rows:
        return ""
    cells: list[page.Row] = [
        ([Cell(page.text(value), None, "left") for value in dataclasses.astuple(row)], {}) for row in rows
    ]
    columns = page.table(("task", "utterance", "why"), cells, sortable=False)
    return page.section("Utterances that were not scored", page.paragraphs([line]), columns)
