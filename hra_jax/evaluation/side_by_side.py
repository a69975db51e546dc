"""Several systems on one suite, side by side: a table of their error rates, and what each pair differs in."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from hra_jax.console import markdown_cell, percent, points, say, stdout, table

# Of a pair: the names of both, what `hra_jax.compare` finds of them, or why they cannot be compared.
Pair = tuple[str, str, Mapping[str, Any] | None, str]


def _rate(scores: Mapping[str, Any]) -> float:
    rate: float = scores[scores.get("metric", "wer")]
    return rate


def common_means(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float | None], str]:
    """The mean of each system over the tasks that all systems have a score of, None without any; and its name."""
    tasks = list(dict.fromkeys(task for found in results.values() for task in found["tasks"]))
    common = [task for task in tasks if all(task in found["tasks"] for found in results.values())]
    means = {
        name: sum(_rate(found["tasks"][task]) for task in common) / len(common) if common else None
        for name, found in results.items()
    }
    everywhere = len(common) == len(tasks)
    return means, "mean of the tasks" if everywhere else f"mean of what all have ({len(common)})"


def rates(results: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a table: a row for every task, and one for the mean over tasks.

    Args:
      results: results.json by system, of one suite.
    """
    names = list(dict.fromkeys(task for found in results.values() for task in _all_tasks(found)))
    rows: list[tuple[str, ...]] = []
    for task in names:
        cells = [percent(_rate(found["tasks"][task])) if task in found["tasks"] else "-" for found in results.values()]
        rows.append((task, *cells))
    means, label = common_means(results)
    rows.append((label, *(percent(mean) for mean in means.values())))
    return ("task", *results), rows


def _all_tasks(results: Mapping[str, Any]) -> list[str]:
    return [*results["tasks"], *results.get("tasks_not_scored", ())]


def differences(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Rows of a table: the task, A, B, the difference B - A in points, its interval, and the verdict on B."""
    rows: list[tuple[str, ...]] = []
    for first, second, found, _ in pairs:
        if found is not None:
            entries = [*found["tasks"].items(), ("mean of the tasks", found["macro"])]
            rows += [
                (
                    task,
                    first,
                    second,
                    points(entry["difference"]),
                    f"{points(entry['low'])} to {points(entry['high'])}",
                    entry["verdict"] or "not decidable",
                )
                for task, entry in entries
            ]
    return rows


_HEADER = ("task", "A", "B", "B - A", "95% interval", "B is")


def notes(results: Mapping[str, Mapping[str, Any]], pairs: Sequence[Pair]) -> list[str]:
    """Tasks without a score, faults of systems and pairs that are not compared, in lines."""
    left_out = [
        f"{name}: task {task!r} was not scored: {why}"
        for name, found in results.items()
        for task, why in found.get("tasks_not_scored", {}).items()
    ]
    faults = [f"{name}: {found['error']}" for name, found in results.items() if found.get("error")]
    return [*left_out, *faults, *(f"{a} and {b} are not compared: {why}" for a, b, _, why in pairs if why)]


def markdown(suite: str, results: Mapping[str, Mapping[str, Any]], pairs: Sequence[Pair]) -> str:
    """The report of a suite that all systems were run on; arguments as for `print_tables`."""
    header, rows = rates(results)
    lines = [f"# Suite {markdown_cell(suite)}", "", *_markdown_table(header, rows)]
    for note in notes(results, pairs):
        lines += ["", markdown_cell(note)]
    found = differences(pairs)
    if found:
        lines += ["", "## Differences", "", "In percentage points, below 0 where B makes fewer errors.", ""]
        lines += _markdown_table(_HEADER, found)
    return "\n".join([*lines, ""])


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(markdown_cell, row))} |" for row in (header, *rows)]
    return [lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]]


def print_tables(
    suite: str,
    results: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    *,
    console: rich.console.Console | None = None,
) -> None:
    """Prints the error rates of all systems, and the differences between them; to standard output by default.

    Args:
      suite: its name.
      results: results.json by system.
      pairs: what each two of them differ in.
      console: where to.
    """
    console = console or stdout()
    header, rows = rates(results)
    console.print(table(header, rows[:-1], rows[-1:], title=f"suite {suite}"))
    found = differences(pairs)
    if found:
        console.print(table(_HEADER, found, [], title="differences in percentage points"))
    for note in notes(results, pairs):
        say(console, note)
