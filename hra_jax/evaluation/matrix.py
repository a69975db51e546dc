"""Every task's adapter on every task's data: forgetting and confusion are seen, which the suite itself does not show.

What a task forgets is a cell beside the diagonal that is above the base; two tasks that are confused are two rows in
which each does as well with the other's adapter as with its own.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hra_jax.console import listed, markdown_cell, percent
from hra_jax.errors import UserError
from hra_jax.evaluation.suites import Suite, SuiteTask

MOST = 32  # tasks; of more a sample is taken
BASE = "__base__"


class Crossed(NamedTuple):
    """A suite of every pair of task and adapter.

    Attributes:
      suite: its tasks are the pairs.
      pairs: {name of the pair: (task of the first suite, adapter task)}.
      left_out: how many tasks the sample leaves out.
    """

    suite: Suite
    pairs: dict[str, tuple[str, str]]
    left_out: int


def cross(suite: Suite, adapters: Collection[str], *, most: int = MOST) -> Crossed:
    """Every task of a suite that has an adapter of its own, with the adapter of every such task.

    Args:
      suite: what is scored.
      adapters: the tasks of the adapter.
      most: of more tasks so many are drawn, always the same ones.

    Raises:
      UserError: no task of the suite has an adapter of its own.
    """
    tasks = [task for task in suite.tasks if task.adapter_task in adapters]
    if not tasks:
        raise UserError(
            f"suite {suite.name!r}: no task of it is recognised with an adapter of its own; --matrix has no use"
        )
    chosen = _sample(tasks, most)
    columns = list(dict.fromkeys(task.adapter_task for task in chosen))
    pairs = {f"{task.name} with {adapter}": (task, adapter) for task in chosen for adapter in columns}
    if len(pairs) < len(chosen) * len(columns):  # names that hold ' with ' themselves
        pairs = {
            f"{row}.{column} {task.name} with {adapter}": (task, adapter)
            for row, task in enumerate(chosen)
            for column, adapter in enumerate(columns)
        }
    crossed = [dataclasses.replace(task, name=name, adapter_task=adapter) for name, (task, adapter) in pairs.items()]
    whole = dataclasses.replace(suite, name=f"{suite.name}_matrix", tasks=tuple(crossed), lost=(), slices=())
    return Crossed(
        whole, {name: (task.name, adapter) for name, (task, adapter) in pairs.items()}, len(tasks) - len(chosen)
    )


def _sample(tasks: Sequence[SuiteTask], most: int) -> list[SuiteTask]:
    if len(tasks) <= most:
        return list(tasks)
    drawn = np.random.default_rng(0).choice(len(tasks), most, replace=False)
    return [tasks[at] for at in sorted(drawn.tolist())]


def matrix_of(crossed: Crossed, results: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """The matrix as JSON values.

    Args:
      crossed: from `cross`.
      results: of its suite, as results.json has them.
      own: the adapter task of each task of the first suite.

    Returns:
      {"tasks", "adapters", "metric": of each task, "base": its rate without an adapter, "rates": its rate with each
      adapter, "own": its own adapter, "left_out"}; None where there is no rate.
    """
    names = list(dict.fromkeys(task for task, _ in crossed.pairs.values()))
    adapters = list(dict.fromkeys(adapter for _, adapter in crossed.pairs.values()))
    found = {crossed.pairs[name]: entry for name, entry in results["tasks"].items()}
    first: dict[str, Mapping[str, Any]] = {
        name: next((entry for (task, _), entry in found.items() if task == name), {}) for name in names
    }
    metrics = {name: first[name].get("metric", "wer") for name in names}

    def rate(name: str, adapter: str) -> float | None:
        value: float | None = found.get((name, adapter), {}).get(metrics[name])
        return value

    return {
        "tasks": names,
        "adapters": adapters,
        "metric": [metrics[name] for name in names],
        "base": [first[name].get(f"base_{metrics[name]}") for name in names],
        "rates": [[rate(name, adapter) for adapter in adapters] for name in names],
        "own": [own[name] for name in names],
        "left_out": crossed.left_out,
    }


def remarks(matrix: Mapping[str, Any]) -> list[str]:
    """What the matrix shows, in lines: tasks that do better with the adapter of another one, and what was left out."""
    lines = []
    for name, own, rates in zip(matrix["tasks"], matrix["own"], matrix["rates"], strict=True):
        by_adapter = {a: rate for a, rate in zip(matrix["adapters"], rates, strict=True) if rate is not None}
        best = min(by_adapter, key=lambda adapter: by_adapter[adapter], default=own)
        if own in by_adapter and by_adapter[best] < by_adapter[own]:
            lines.append(
                f"task {name!r}: {percent(by_adapter[best])} with the adapter of {best!r}, "
                f"{percent(by_adapter[own])} with its own"
            )
    worse = [
        name
        for name, own, base, rates in zip(matrix["tasks"], matrix["own"], matrix["base"], matrix["rates"], strict=True)
        if base is not None
        and any(r is not None and r > base for a, r in zip(matrix["adapters"], rates, strict=True) if a != own)
    ]
    if worse:
        lines.append(f"worse with the adapter of some other task than without: {listed(worse)}")
    if matrix["left_out"]:
        lines.append(f"a sample of {len(matrix['tasks'])} tasks; {matrix['left_out']} are left out")
    return lines


def rows_of(matrix: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a table: a row for the data of each task, a column for each adapter."""
    parts = (matrix["tasks"], matrix["base"], matrix["own"], matrix["rates"])
    rows = []
    for name, base, own, rates in zip(*parts, strict=True):
        cells = [
            f"[{percent(rate)}]" if adapter == own else percent(rate)
            for adapter, rate in zip(matrix["adapters"], rates, strict=True)
        ]
        rows.append((name, percent(base), *cells))
    return ("data of", BASE, *matrix["adapters"]), rows


def markdown(title: str, matrix: Mapping[str, Any]) -> str:
    """The matrix as a page; each task's own adapter stands in brackets."""
    header, rows = rows_of(matrix)
    lines = [f"| {' | '.join(map(markdown_cell, row))} |" for row in (header, *rows)]
    lines[1:1] = ["|---" + "|---:" * (len(header) - 1) + "|"]
    notes = [f"* {markdown_cell(line)}" for line in remarks(matrix)]
    head = ["Error rates of the data of each task (rows) with each adapter (columns); its own is in brackets.", ""]
    return "\n".join([f"# {markdown_cell(title)}", "", *head, *lines, "", *notes, ""])
