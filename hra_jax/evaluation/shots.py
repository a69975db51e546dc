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
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_source
from hra_jax.data.utterance import Utterance, tag_value
from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import Sample, drawn_means, drawn_rates, interval, make_sample, seed_of
from hra_jax.evaluation.error_rates import errors_by_metric
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite, SuiteTask, check_disjoint
from hra_jax.tasks.names import BASE_TASK, FEW_TASK, MEAN_TASK


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
    utterances, _ = read_source(suite.support, report=report)
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
    counts: dict[int, dict[str, Sample]] = {}
    base: dict[str, float | None] = {}
    for task in dict.fromkeys(task for task, _, _ in suite.heads.values()):
        names = {(k, draw): name for name, (of, k, draw) in suite.heads.items() if of == task and name in by_task}
        kept = set.intersection(*({row.key for row in by_task[name]} for name in names.values())) if names else set()
        rows = {point: [row for row in by_task[name] if row.key in kept] for point, name in names.items()}
        shots = sorted({k for k, _ in names})
        found = {k: _sample([rows[point] for point in sorted(rows) if point[0] == k], suite) for k in shots}
        if not all(sample.units.any() for sample in found.values()) or not found:
            continue
        for k, sample in found.items():
            counts.setdefault(k, {})[task] = sample
        base[task] = _base_rate(next(iter(rows.values())), suite)
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


def _sample(draws: Sequence[Sequence[UtteranceResult]], suite: Suite) -> Sample:
    """The same utterances as N draws recognise them: errors [U, N]."""
    ordered = [sorted(rows, key=lambda row: row.key) for rows in draws]
    counts = [
        [errors_by_metric(row.text, row.pred_text, suite.normalizer)[_metric(row.task, suite)] for row in rows]
        for rows in ordered
    ]
    return make_sample(
        [(row.key, tag_value(row.tags, suite.block)) for row in ordered[0]],
        np.array([[count.errors for count in rows] for rows in counts], np.int64).T,
        np.array([count.words for count in counts[0]], np.int64),
    )


def _base_rate(rows: Sequence[UtteranceResult], suite: Suite) -> float | None:
    """The error rate of the backbone; None where it was not run."""
    if any(row.base_pred_text is None for row in rows):
        return None
    texts = [dataclasses.replace(row, pred_text=row.base_pred_text or "") for row in rows]
    return float(_sample([texts], suite).rates[0])


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


def curve_point(shots: int, tasks: Mapping[str, Sample], *, samples: int, seed: int = 0) -> Point:
    """The error rate of some tasks at a number of shots, with its interval.

    In a resample the tasks are drawn again, and for each that was drawn its utterances, or speakers where it has enough
    of them, the same for all draws of it, and its draws: what differs between speakers, between supports and between
    utterances all widens the interval. A task by itself is not drawn again.

    Args:
      shots: k.
      tasks: errors `[U, N]` of each task; one draw where all would be the same, as for k = 0.
      samples: S, 0 for no interval.
      seed: of the resamples.
    """
    rates = [sample.rates for sample in tasks.values()]
    draws = min(map(len, rates))
    by_draw = tuple(float(np.mean([rate[draw] for rate in rates])) for draw in range(draws))
    rate = float(np.mean([rate.mean() for rate in rates]))
    if not samples:
        return Point(shots, rate, None, None, by_draw)
    drawn = [_drawn(name, sample, samples=samples, seed=seed) for name, sample in tasks.items()]
    low, high = interval(drawn_means(drawn, samples=samples, seed=seed)[:, 0])
    return Point(shots, rate, low, high, by_draw)


def _drawn(name: str, sample: Sample, *, samples: int, seed: int) -> NDArray[np.float64]:
    """[S, 1], the rate of a task: its utterances are drawn again, and as many draws of it as it has."""
    rates = drawn_rates(sample, samples=samples, seed=seed, name=name)
    draws = np.random.default_rng(seed_of(seed, f"draws of {name}")).integers(rates.shape[1], size=rates.shape)
    found: NDArray[np.float64] = np.take_along_axis(rates, draws, axis=1).mean(axis=1, keepdims=True)
    return found
