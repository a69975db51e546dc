"""The grid that the weights of decoding are looked for on; where the best is on its edge, it is widened.

Then beams are compared with the best weights: of those that make about as few errors the narrowest is taken.

Nothing here recognises anything: error rates come from a function of the weights.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from hra_jax.console import percent
from hra_jax.decoding.settings import DEFAULT_WEIGHTS

MEAN = ""  # in rates by task: the mean over tasks
_MOST_WIDENED = 8  # times that an axis grows
BEAMS = (8, 16, 32)  # no wider ones: the time of a search grows as they do
_AS_GOOD = 1.02  # times the lowest error rate: a beam with so much is as good

Rates = Mapping[str, float]  # by task, and `MEAN`
Point = tuple[float, ...]  # a value for each axis


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of one weight.

    Attributes:
      name: of `DEFAULT_WEIGHTS`.
      values: ascending, at equal distances.
      least: no value is below it.
    """

    name: str
    values: tuple[float, ...]
    least: float

    @property
    def step(self) -> float:
        """The distance of two values; 0 where there is one alone, which is given."""
        return round(self.values[1] - self.values[0], 6) if len(self.values) > 1 else 0.0

    def widened(self, best: Collection[float]) -> "Axis":
        """With a value more on each side where one of the best values is at the edge, as far as that is allowed."""
        below, above = (round(end + sign * self.step, 6) for end, sign in ((self.values[0], -1), (self.values[-1], 1)))
        lower = (below,) if self.step and self.values[0] in best and below >= self.least else ()
        upper = (above,) if self.step and self.values[-1] in best else ()
        return dataclasses.replace(self, values=(*lower, *self.values, *upper))


AXES = {
    "lm_weight": Axis("lm_weight", (0.2, 0.5, 0.8, 1.1, 1.4), 0.0),
    "token_bonus": Axis("token_bonus", (0.0, 1.0, 2.0, 3.0), -100.0),
    "phrase_weight": Axis("phrase_weight", (0.5, 1.5, 2.5), 0.0),
}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
      axes: the grid in the end.
      rates: of every point of it.
      best: the best point of the mean, and of every task that was asked for.
    """

    axes: tuple[Axis, ...]
    rates: Mapping[Point, Rates]
    best: Mapping[str, Point]

    def weights(self, task: str = MEAN) -> dict[str, float]:
        """The best weights, by name."""
        return dict(zip((axis.name for axis in self.axes), self.best[task], strict=True))

    def rate(self, task: str = MEAN) -> float:
        """The error rate with them."""
        return self.rates[self.best[task]][task]


def tune(
    rates_of: Callable[[dict[str, float]], Rates],
    axes: Iterable[Axis],
    *,
    tasks: Collection[str] = (),
    after: Callable[[int], Any] = lambda points: None,
) -> Tuned:
    """The best point of a grid, which grows while the best is on one of its edges.

    Of equal rates the point that is nearest to the defaults is the best, and the grid grows for no other.

    Args:
      rates_of: gives the error rates with some weights, by name.
      axes: the grid; the order decides between points that are as good and as near.
      tasks: for which of the tasks the best is looked for as well.
      after: called with the number of points that are still to be tried, as far as that is known.
    """
    axes, rates = tuple(axes), {}
    for widened in range(_MOST_WIDENED + 1):
        points = [point for point in itertools.product(*(axis.values for axis in axes)) if point not in rates]
        for number, point in enumerate(points):
            after(len(points) - number)
            rates[point] = dict(rates_of(dict(zip((axis.name for axis in axes), point, strict=True))))
        best = {task: _best(rates, axes, task) for task in (MEAN, *tasks)}
        if widened == _MOST_WIDENED:
            break
        wider = tuple(axis.widened({point[n] for point in best.values()}) for n, axis in enumerate(axes))
        if wider == axes:
            break
        axes = wider
    after(0)
    return Tuned(axes, rates, best)


def _best(rates: Mapping[Point, Rates], axes: Sequence[Axis], task: str) -> Point:
    def order(point: Point) -> tuple[float, float, Point]:
        steps = [
            abs(value - DEFAULT_WEIGHTS[axis.name]) / (axis.step or 1.0)
            for axis, value in zip(axes, point, strict=True)
        ]
        return rates[point][task], round(sum(steps), 6), point

    return min(rates, key=order)


@dataclasses.dataclass(frozen=True)
class Beams:
    """Error rates by beam, with the best weights.

    Attributes:
      rates: of every beam that was tried.
      best: the beam of the mean, and of every task that was asked for.
    """

    rates: Mapping[int, Rates]
    best: Mapping[str, int]

    def rate(self, task: str = MEAN) -> float:
        """The error rate with the beam that is taken."""
        return self.rates[self.best[task]][task]


def compare_beams(rates_of: Callable[[int], Rates], tuned: Tuned, *, tuned_with: int, others: Iterable[int]) -> Beams:
    """The narrowest of some beams whose error rate is at most 1.02 times the lowest.

    Args:
      rates_of: gives the error rates with a beam and the best weights.
      tuned: the best weights.
      tuned_with: the beam that they were found with.
      others: the beams that are tried beside it.
    """
    found = {**tuned.rates[tuned.best[MEAN]], **{task: tuned.rate(task) for task in tuned.best}}
    rates: dict[int, Rates] = {tuned_with: found}
    rates |= {beam: dict(rates_of(beam)) for beam in others if beam != tuned_with}
    best = {}
    for task in tuned.best:
        most = _AS_GOOD * min(found[task] for found in rates.values())
        best[task] = min(beam for beam, found in rates.items() if found[task] <= most)
    return Beams(dict(sorted(rates.items())), best)


def tables(tuned: Tuned, task: str = MEAN) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Titles, headers and rows: the last two axes as rows and columns, and a table for each point of the others.

    The best rate is marked with `*`. There are none where there was no weight to look for.
    """
    axes = tuned.axes
    if not axes:
        return []
    *others, down = axes[:-1] if len(axes) > 1 else axes
    across = axes[-1] if len(axes) > 1 else None
    found = []
    for fixed in itertools.product(*(axis.values for axis in others)):
        title = ", ".join(f"{axis.name} {value:g}" for axis, value in zip(others, fixed, strict=True))
        header = (down.name, *(("error rate",) if across is None else (_named(across, v) for v in across.values)))
        rows = []
        for value in down.values:
            points = [(*fixed, value)] if across is None else [(*fixed, value, other) for other in across.values]
            marked = [f"{percent(tuned.rates[point][task])}{'*' * (point == tuned.best[task])}" for point in points]
            rows.append((f"{value:g}", *marked))
        found.append((title, header, rows))
    return found


def _named(axis: Axis, value: float) -> str:
    return f"{axis.name} {value:g}"
