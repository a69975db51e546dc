"""Several systems on one suite, side by side: a table of their error rates, and what each pair differs in."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from hra_jax.console import markdown_cell, percent, points, say, stdout, table
from hra_jax.evaluation.results import decoding_words

# Of a pair: the names of both, what `hra_jax.compare` finds of them, or why they cannot be compared.
Pair = tuple[str, str, Mapping[str, Any] | None, str]


def rate_of(scores: Mapping[str, Any], kind: str = "") -> float:
    """The rate that decides in a task; of greedy decoding where `kind` is 'greedy_'."""
    rate: float = scores[f"{kind}{scores.get('metric', 'wer')}"]
    return rate


def columns(results: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """The columns of rates, {title: (system, kind of rate)}: one more where a system is not decoded greedily."""
    found = {}
    for name, content in results.items():
        if "greedy_wer" in content:
            found[f"{name} (greedy)"] = (name, "greedy_")
        found[name] = (name, "")
    return found


def common_means(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float | None], str]:
    """The mean of each of `columns` over the tasks that all systems have a score of, None without any; and its name."""
    tasks = list(dict.fromkeys(task for found in results.values() for task in found["tasks"]))
    common = [task for task in tasks if all(task in found["tasks"] for found in results.values())]
    means = {
        title: sum(rate_of(results[name]["tasks"][task], kind) for task in common) / len(common) if common else None
        for title, (name, kind) in columns(results).items()
    }
    everywhere = len(common) == len(tasks)
    return means, "mean of the tasks" if everywhere else f"mean of what all have ({len(common)})"


def rates(results: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a table: a row for every task, and one for the mean over tasks.

    Args:
      results: results.json by system, of one suite.
    """
    names = list(dict.fromkeys(task for found in results.values() for task in _all_tasks(found)))
    shown = columns(results)
    rows: list[tuple[str, ...]] = []
    for task in names:
        scores = [(results[name]["tasks"].get(task), kind) for name, kind in shown.values()]
        rows.append((task, *("-" if found is None else percent(rate_of(found, kind)) for found, kind in scores)))
    means, label = common_means(results)
    rows.append((label, *(percent(mean) for mean in means.values())))
    return ("task", *shown), rows


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
    """Tasks without a score, faults of systems, how they are decoded, and pairs that are not compared, in lines."""
    left_out = [
        f"{name}: task {task!r} was not scored: {why}"
        for name, found in results.items()
        for task, why in found.get("tasks_not_scored", {}).items()
    ]
    faults = [f"{name}: {found['error']}" for name, found in results.items() if found.get("error")]
    decoded = {name: decoding_words(found.get("decoding")) for name, found in results.items()}
    with_what = [f"{name}: decoded with {words}" for name, words in decoded.items() if words]
    missing = [f"{a} and {b} are not compared: {why}" for a, b, _, why in pairs if why]
    return [*left_out, *faults, *with_what, *missing]


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
