"""Held-out tasks with few utterances: which heads are trained on which of them, and error rates against their number.

A row of a suite with the adapter task `__few__` is a task that the adapter has never seen. For every number of shots k
above 0 and every draw, one head is trained on k utterances of the task's support; k = 0 is the mean of the heads that
the adapter has. Draws are nested: the utterances of a smaller k are among those of a greater k of the same draw.

Letters: k shots, N draws, U utterances of a task, S resamples.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hra_jax.console import percent
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import interval
from hra_jax.evaluation.error_rates import errors_by_metric
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite, SuiteTask, check_disjoint
from hra_jax.tasks.names import BASE_TASK, FEW_TASK, MEAN_TASK

Counts = NDArray[np.int64]  # [N, U, 2]: errors and reference words of each draw and utterance

_SOME_WORDS = 1  # reference words that a resample needs to have a rate


class Head(NamedTuple):
    """A task row that is trained on a few utterances.

    Attributes:
      task: the task of the suite.
      shots: k, at least 1.
      draw: from 1.
      support: the k utterances.
    """

    task: str
    shots: int
    draw: int
    support: tuple[Utterance, ...]

    @property
    def name(self) -> str:
        """The name of the row, and of the task that scores it."""
        return head_name(self.task, self.shots, self.draw)


def head_name(task: str, shots: int, draw: int = 0) -> str:
    """`task@shots#draw`, and `task@0` without a draw."""
    return f"{task}@{shots}#{draw}" if draw else f"{task}@{shots}"


def few_tasks(suite: Suite) -> list[SuiteTask]:
    """The tasks of a suite whose heads are trained on a few utterances."""
    return [task for task in suite.tasks if task.adapter_task == FEW_TASK]


def draw_heads(suite: Suite, held_out: Sequence[SuiteTask], *, seed: int, report: DataReport) -> list[Head]:
    """The heads of some tasks of a suite, by task, shots and draw.

    Args:
      suite: it has support, shots and draws.
      held_out: those of `few_tasks` that are new to the adapter.
      seed: decides the draws, with the name of the task: more tasks, shots or draws change none of the others.
      report: where bad lines of the support go.

    Raises:
      UserError: the support cannot be read, has fewer utterances of a task than `shots` asks for, or shares one with
        the suite.
    """
    utterances, _ = read_manifest(suite.support, report=report)
    check_disjoint(suite.utterances, utterances, suite=suite.name, other="support")
    heads, most = [], suite.shots[-1]
    for task in held_out:
        mine = [row for row in utterances if not task.tag or row.tag(task.tag) == task.tag_value]
        if len(mine) < most:
            raise UserError(
                f"suite {suite.name!r}, task {task.name!r}: {suite.support} has {len(mine)} utterances of it; needed "
                f"are {most}, the greatest of shots"
            )
        orders = [_order(mine, f"{seed}/{task.name}/{draw}") for draw in range(suite.draws)]
        heads += [
            Head(task.name, shots, draw + 1, tuple(order[:shots]))
            for shots in suite.shots
            if shots
            for draw, order in enumerate(orders)
        ]
    return heads


def _order(utterances: Sequence[Utterance], name: str) -> list[Utterance]:
    """The utterances in an order of chance that depends on their keys and a name, not on their order in a file."""
    return sorted(utterances, key=lambda row: hashlib.sha256(f"{name}/{row.key}".encode()).digest())


def scored_suite(suite: Suite, held_out: Sequence[SuiteTask], heads: Sequence[Head], *, has_mean: bool) -> Suite:
    """The suite as it is run: every head is a task of its own; `has_mean`: whether the adapter's heads have a mean."""
    rows = [task for task in suite.tasks if task.adapter_task != FEW_TASK]
    points = {head.name: (head.task, head.shots, head.draw) for head in heads}
    points |= {head_name(task.name, 0): (task.name, 0, 0) for task in held_out if 0 in suite.shots}
    for task in held_out:
        if 0 in suite.shots:
            zero = MEAN_TASK if has_mean else BASE_TASK
            rows.append(dataclasses.replace(task, name=head_name(task.name, 0), adapter_task=zero))
        rows += [
            dataclasses.replace(task, name=head.name, adapter_task=head.name)
            for head in heads
            if head.task == task.name
        ]
    return dataclasses.replace(suite, tasks=tuple(rows), heads=points)


# --- Error rates against shots ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    """An error rate at a number of shots.

    Attributes:
      shots: k.
      rate: the mean over draws of the rate of all utterances together, and over tasks; a fraction.
      low, high: its 95% interval, over draws and utterances, and over tasks where there are several; None without one.
      by_draw: the rate of each draw, the mean over tasks.
    """

    shots: int
    rate: float
    low: float | None
    high: float | None
    by_draw: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The point as JSON values."""
        return dataclasses.asdict(self) | {"by_draw": list(self.by_draw)}


def curves(
    by_task: Mapping[str, Sequence[UtteranceResult]], suite: Suite, *, samples: int, seed: int
) -> dict[str, Any]:
    """The field "few_shot" of results.json.

    Args:
      by_task: the scored utterances of each task of `scored_suite`; tasks without a rate are left out.
      suite: from `scored_suite`.
      samples, seed: as for `curve_point`.

    Returns:
      {"shots", "draws", "tasks": {task: [point by shots]}, "all": [point by shots], "base": {task: rate}}: "all" is the
      mean over the tasks, a point is `Point.to_json`, and "base" is the backbone without an adapter, or None.
    """
    counts: dict[int, dict[str, Counts]] = {}
    base: dict[str, float | None] = {}
    for task in dict.fromkeys(task for task, _, _ in suite.heads.values()):
        names = {(k, draw): name for name, (of, k, draw) in suite.heads.items() if of == task and name in by_task}
        kept = set.intersection(*({row.key for row in by_task[name]} for name in names.values())) if names else set()
        for k in sorted({shots for shots, _ in names}):
            tables = [
                _counted([row for row in by_task[names[k, draw]] if row.key in kept], suite)
                for draw in sorted(draw for shots, draw in names if shots == k)
            ]
            counts.setdefault(k, {})[task] = np.stack(tables)
        if names:
            rows = [row for row in by_task[next(iter(names.values()))] if row.key in kept]
            base[task] = _base_rate(rows, suite)
    return {
        "shots": sorted(counts),
        "draws": suite.draws,
        "tasks": {
            task: [
                curve_point(k, {task: counts[k][task]}, samples=samples, seed=seed).to_json() for k in sorted(counts)
            ]
            for task in base
        },
        "all": [curve_point(k, counts[k], samples=samples, seed=seed).to_json() for k in sorted(counts)],
        "base": base,
    }


def _metric(name: str, suite: Suite) -> str:
    return next(task.metric for task in suite.tasks if task.name == name)


def _counted(rows: Sequence[UtteranceResult], suite: Suite) -> Counts:
    """[U, 2]: errors and reference words of utterances, by key."""
    found = []
    for row in sorted(rows, key=lambda row: row.key):
        counts = errors_by_metric(row.text, row.pred_text, suite.normalizer)[_metric(row.task, suite)]
        found.append((counts.errors, counts.words))
    return np.array(found, np.int64)


def _base_rate(rows: Sequence[UtteranceResult], suite: Suite) -> float | None:
    """The error rate of the backbone; None where it was not run."""
    if any(row.base_pred_text is None for row in rows):
        return None
    texts = [dataclasses.replace(row, pred_text=row.base_pred_text or "") for row in rows]
    return float(_rates(_counted(texts, suite)[None])[0])


def table_of(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of "few_shot": the error rate of every task at every number of shots."""
    header = ("task", "base", *(f"{k} utterances" if k != 1 else "1 utterance" for k in found["shots"]))
    rows = [
        (task, percent(found["base"][task]), *(_cell(point) for point in points))
        for task, points in found["tasks"].items()
    ]
    if len(rows) > 1:
        base = list(found["base"].values())
        mean = None if None in base else sum(base) / len(base)
        rows.append(("mean of the tasks", percent(mean), *(_cell(point) for point in found["all"])))
    return header, rows


def _cell(point: Mapping[str, Any]) -> str:
    if point["low"] is None:
        return percent(point["rate"])
    return f"{percent(point['rate'])} ({percent(point['low'])} to {percent(point['high'])})"


def curve_point(shots: int, tasks: Mapping[str, Counts], *, samples: int, seed: int = 0) -> Point:
    """The error rate of some tasks at a number of shots, with its interval.

    In a resample the tasks are drawn again, and for each that was drawn its utterances, the same for all draws of it,
    and its draws: what differs between speakers, between supports and between utterances all widens the interval. A
    task by itself is not drawn again.

    Args:
      shots: k.
      tasks: errors and words of each task; one draw where all would be the same, as for k = 0.
      samples: S, 0 for no interval.
      seed: of the resamples.
    """
    rates = [_rates(counts) for counts in tasks.values()]
    draws = min(map(len, rates))
    by_draw = tuple(float(np.mean([rate[draw] for rate in rates])) for draw in range(draws))
    rate = float(np.mean([rate.mean() for rate in rates]))
    if not samples:
        return Point(shots, rate, None, None, by_draw)
    generator = np.random.default_rng([seed, shots])
    drawn = np.array([_resampled(list(tasks.values()), generator) for _ in range(samples)])
    low, high = interval(drawn)
    return Point(shots, rate, low, high, by_draw)


def _rates(counts: Counts) -> NDArray[np.float64]:
    """[N], the rate of each draw."""
    errors, words = counts.sum(axis=1).T
    rates: NDArray[np.float64] = errors / np.maximum(words, _SOME_WORDS)
    return rates


def _resampled(tasks: Sequence[Counts], generator: np.random.Generator) -> float:
    """The rate of one resample."""
    chosen = generator.integers(len(tasks), size=len(tasks)) if len(tasks) > 1 else [0]
    rates = []
    for number in chosen:
        draws, utterances, _ = tasks[number].shape
        times = np.bincount(generator.integers(utterances, size=utterances), minlength=utterances)
        some = generator.integers(draws, size=draws)
        sums = np.einsum("u,nuc->nc", times, tasks[number])[some]
        rates.append(float(np.mean(sums[:, 0] / np.maximum(sums[:, 1], _SOME_WORDS))))
    return float(np.mean(rates))
