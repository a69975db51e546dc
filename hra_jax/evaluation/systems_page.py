"""The page of several systems on one suite: their error rates side by side, and what each two of them differ in."""

from collections.abc import Mapping, Sequence
from typing import Any

from hra_jax.console import html_text, percent, points
from hra_jax.evaluation import matrix, page, plots
from hra_jax.evaluation.page import Cell
from hra_jax.evaluation.side_by_side import Pair, columns, common_means, rate_of

_MOST_DRAWN = 8  # systems in a row of dots


def page_of(
    suite: str,
    results: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    *,
    notes: Sequence[str] = (),
    matrices: Mapping[str, Mapping[str, Any]] | None = None,
    command: str = "",
) -> str:
    """The content of report.html for a suite.

    Args:
      suite: its name.
      results: results.json by system.
      pairs: what each two of them differ in.
      notes: what is missing, in sentences.
      matrices: `matrix.matrix_of` by system, where there are any.
      command: what repeats it; '' where nobody knows.
    """
    means = {name: mean for name, mean in common_means(results)[0].items() if mean is not None and name in results}
    best = min(means, key=lambda name: means[name]) if means else next(iter(results))
    rate = means[best] if means else results[best]["over_tasks"]["rate"]
    first = next(iter(results.values()))
    subject = f"Suite {suite}: {len(results)} systems, {first['utterances']:,} utterances"
    return page.document(
        f"suite {suite}: {len(results)} systems",
        [
            f"<h1>{page.text(subject)}</h1>",
            page.headline(
                percent(rate),
                f"mean error rate of {best}",
                _sentence(best, results, pairs) if means else "No task is scored in all systems: see each.",
            ),
            page.section("Error rates", *_rates(results)),
            page.section("Error rate and trained parameters", _against_parameters(results)),
            page.section("Differences", *_differences(pairs)),
            *(_matrix(name, found) for name, found in (matrices or {}).items()),
            page.section("Missing", page.paragraphs(notes)),
            page.section("Repeat it", page.commands([command] if command else []), page.origin(first)),
        ],
    )


def _sentence(best: str, results: Mapping[str, Mapping[str, Any]], pairs: Sequence[Pair]) -> str:
    """Which system is the best, and whether that is decided."""
    if len(results) == 1:
        return f"{best} is the only system."
    undecided = []
    for a, b, found, _ in pairs:
        if best in (a, b) and (found is None or found["macro"]["verdict"] not in ("better", "worse")):
            undecided.append(b if best == a else a)
    if not undecided:
        return f"{best} has the fewest errors; its difference from every other system is decided."
    return f"{best} has the fewest errors; its difference from {', '.join(undecided)} is not decidable."


def _dot(scores: Mapping[str, Any], colour: int, name: str) -> plots.Dot:
    metric = scores["metric"]
    return plots.Dot(scores[metric], scores.get(f"{metric}_low"), scores.get(f"{metric}_high"), colour, name)


def _mean(results: Mapping[str, Any], colour: int, name: str) -> plots.Dot:
    over = results["over_tasks"]
    return plots.Dot(over["rate"], over["low"], over["high"], colour, name)


def _rates(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for every task, one column or two for every system, and dots."""
    drawn = list(results)[:_MOST_DRAWN]
    tasks = list(dict.fromkeys(task for found in results.values() for task in found["tasks"]))
    by_task = {
        task: [_dot(results[name]["tasks"][task], n, name) for n, name in enumerate(drawn) if _has(results[name], task)]
        for task in tasks
    }
    means = [_mean(results[name], number, name) for number, name in enumerate(drawn)]
    known = [dot for dots in (*by_task.values(), means) for dot in dots]
    limit = plots.nice_limit([rate for dot in known for rate in (dot.rate, dot.high)])
    rows, shown = [], columns(results)
    for task in tasks:
        rates = {
            title: rate_of(results[name]["tasks"][task], kind)
            for title, (name, kind) in shown.items()
            if _has(results[name], task)
        }
        cells = [Cell(_best(rates[title], rates), rates[title]) if title in rates else Cell("-", "") for title in shown]
        dots = Cell(plots.dots(by_task[task], limit=limit), None, "drawn left")
        rows.append(([Cell(page.text(task), task), dots, *cells], {"task": task, "verdict": ""}))
    over, label = common_means(results)
    known_means = {name: rate for name, rate in over.items() if rate is not None}
    mean = [Cell("-", "") if rate is None else Cell(_best(rate, known_means), rate) for rate in over.values()]
    # Of other tasks for each system, they could not be compared.
    same = len({frozenset(found["tasks"]) for found in results.values()}) == 1
    foot = [[Cell(label), Cell(plots.dots(means if same else [], limit=limit), None, "drawn left"), *mean]]
    tools = (
        '<div class="tools" hidden><input id="filter" type="search" placeholder="filter by task" '
        'aria-label="filter by task" autocomplete="off"><output id="shown" class="quiet"></output></div>'
    )
    keys = [(name, number) for number, name in enumerate(drawn)]
    return [
        tools if len(tasks) > 1 else "",
        plots.key(keys, limit),
        page.table(["task", Cell(plots.axis(limit), None, "left"), *shown], rows, foot=foot),
    ]


def _has(results: Mapping[str, Any], task: str) -> bool:
    return task in results["tasks"]


def _best(rate: float, rates: Mapping[str, float]) -> str:
    """A rate; the lowest of a row is bold."""
    return f"<b>{percent(rate)}</b>" if rate == min(rates.values()) else percent(rate)


def _against_parameters(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A dot for every system, where they differ in how many parameters were trained."""
    counts = {name: found.get("trainable_parameters") for name, found in results.items()}
    known = {name: count for name, count in counts.items() if count is not None}
    means, _ = common_means(results)
    if len({*known.values()}) < 2 or None in means.values():
        return ""
    same = len({frozenset(found["tasks"]) for found in results.values()}) == 1
    places = dict(zip(known, plots.log_places(list(known.values())), strict=True))
    colours = {name: number for number, name in enumerate(results)}
    dots = {
        # An interval is known of the mean over all tasks of a system, not over those that all systems have.
        name: _mean(results[name], colours[name], name)
        if same
        else plots.Dot(means[name], None, None, colours[name], name)
        for name in known
    }
    series = [plots.Series(name, colours[name], [(places[name], dot)]) for name, dot in dots.items()]
    ticks = {count: (places[name], f"{count:,}") for name, count in known.items()}
    return plots.plot(
        series,
        ticks=list(ticks.values()),
        title="trained parameters, of all tasks together",
        label="mean error rate by trained parameters",
        shifted=False,
    )


def _differences(pairs: Sequence[Pair]) -> list[str]:
    rows = []
    for first, second, found, _ in pairs:
        entries = [] if found is None else [*found["tasks"].items(), ("mean of the tasks", found["macro"])]
        for task, entry in entries:
            cells = [Cell(page.text(name), name, "left") for name in (task, first, second)]
            cells += [
                page.change(entry),
                Cell(html_text(f"{points(entry['low'])} to {points(entry['high'])}")),
                page.verdict(entry),
            ]
            rows.append((cells, {"task": task, "verdict": entry["verdict"] or ""}))
    if not rows:
        return []
    header = ("task", "A", "B", "B - A", "95% interval", "B is")
    return [
        page.paragraphs(["In percentage points, below 0 where B makes fewer errors."], cls="quiet"),
        page.table(header, rows),
    ]


_SHADES = 4  # classes of page.css


def _matrix(system: str, found: Mapping[str, Any]) -> str:
    """Every adapter on the data of every task; the darker, the more errors."""
    known = [rate for rates in found["rates"] for rate in rates if rate is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def cell(rate: float | None, own: bool) -> str:
        shade = 0 if rate is None or high == low else round(_SHADES * (rate - low) / (high - low))
        cls = " ".join([f"h{shade}"] * bool(shade) + ["own"] * own)
        mark = f' class="{cls}"' if cls else ""
        return f"<td{mark}>{percent(rate)}</td>"

    rows = [
        f"<tr><th>{page.text(task)}</th><td>{percent(base)}</td>"
        + "".join(cell(rate, adapter == own) for adapter, rate in zip(found["adapters"], rates, strict=True))
        + "</tr>"
        for task, base, own, rates in zip(found["tasks"], found["base"], found["own"], found["rates"], strict=True)
    ]
    heads = "".join(f"<th>{page.text(name)}</th>" for name in ("data of", "no adapter", *found["adapters"]))
    said = "Error rates of the data of each task (rows) with each adapter (columns); its own has a frame."
    return page.section(
        f"Every adapter of {system} on the data of every task",
        page.paragraphs([said], cls="quiet"),
        f'<div class="scroll" tabindex="0"><table class="matrix">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>",
        page.paragraphs(matrix.remarks(found)),
    )
