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

from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import interval
from hra_jax.evaluation.suites import Suite, SuiteTask, check_disjoint
from hra_jax.tasks.names import BASE_TASK, FEW_TASK, MEAN_TASK

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
    for task in held_out:
        if 0 in suite.shots:
            zero = MEAN_TASK if has_mean else BASE_TASK
            rows.append(dataclasses.replace(task, name=head_name(task.name, 0), adapter_task=zero))
        rows += [
            dataclasses.replace(task, name=head.name, adapter_task=head.name)
            for head in heads
            if head.task == task.name
        ]
    return dataclasses.replace(suite, tasks=tuple(rows))


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


Counts = NDArray[np.int64]  # [N, U, 2]: errors and reference words of each draw and utterance


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
