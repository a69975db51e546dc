"""Is one system better than another on the same utterances? Differences of error rates, with a verdict.

Both systems are rated on every resample of the utterances (`hra_jax.evaluation.bootstrap`), so what makes an utterance
hard for both of them cancels out, and a difference shows that two separate intervals would hide. Each interval stands
for itself: of twenty tasks without a difference, one is expected to be called better or worse.

Letters as in the bootstrap: U utterances, K systems, S resamples. Rates are fractions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import Sample, drawn_means, drawn_rates, interval, joined

BETTER, WORSE, UNDECIDED = "better", "worse", "not decidable"
VERDICTS = (BETTER, WORSE, UNDECIDED)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Error rates of K systems on the same data.

    Attributes:
      exact: float64 [K], on the data as they are.
      drawn: float64 [S, K], on resamples of them; None where none were asked for.
    """

    exact: NDArray[np.float64]
    drawn: NDArray[np.float64] | None

    def interval(self, system: int) -> tuple[float, float] | tuple[None, None]:
        """The 95% interval (low, high) of the rate of a system; (None, None) without resamples."""
        return (None, None) if self.drawn is None else interval(self.drawn[:, system])

    def difference(self, system: int, reference: int) -> dict[str, Any]:
        """The rate of a system minus that of another one: below 0 where it makes fewer errors.

        Returns:
          {"difference", "low", "high", "verdict"}: the 95% interval of the paired difference, and what it says of the
          system: `BETTER` or `WORSE` where the interval excludes 0, else `UNDECIDED`. Without resamples the bounds and
          the verdict are None.
        """
        found: dict[str, Any] = {"difference": float(self.exact[system] - self.exact[reference])}
        if self.drawn is None:
            return found | {"low": None, "high": None, "verdict": None}
        low, high = interval(self.drawn[:, system] - self.drawn[:, reference])
        verdict = WORSE if low > 0 else BETTER if high < 0 else UNDECIDED
        return found | {"low": low, "high": high, "verdict": verdict}


@dataclasses.dataclass(frozen=True)
class SuiteRates:
    """The rates of K systems on a suite.

    Attributes:
      tasks: of each task, in the order given.
      macro: of the means over tasks; tasks are resampled, and the utterances of each.
      pooled: of all utterances together. What several tasks score counts as several utterances.
    """

    tasks: dict[str, Rates]
    macro: Rates
    pooled: Rates


def rate(sample: Sample, *, samples: int, seed: int, name: str = "") -> Rates:
    """The rates of K systems on one sample; arguments and errors as `bootstrap.drawn_rates`, but 0 samples for none."""
    drawn = drawn_rates(sample, samples=samples, seed=seed, name=name) if samples else None
    return Rates(sample.rates, drawn)


def rate_suite(
    tasks: Mapping[str, Sample], *, samples: int, seed: int, pooled: Mapping[str, Sample] | None = None
) -> SuiteRates:
    """The rates of K systems on the tasks of a suite.

    Args:
      tasks: of each task its utterances, in the units of its own metric.
      samples: S, the resamples of each interval; 0 for none.
      seed: 0 or more; the same seed gives the same intervals.
      pooled: the same utterances in one unit, where tasks have several metrics; None for `tasks`.

    Raises:
      UserError: no task, a task without reference words, or samples or a seed that are not allowed.
    """
    if not tasks:
        raise UserError("no error rates: 0 tasks were given; need 1 or more")
    for name, sample in tasks.items():
        if not sample.units.any():
            raise UserError(
                f"task {name!r}: the references of {len(sample.units)} utterances hold 0 words; need 1 or more"
            )
    rates = {name: rate(sample, samples=samples, seed=seed, name=name) for name, sample in tasks.items()}
    # In one order, since the last digits of a mean depend on it.
    names, together = sorted(tasks), tasks if pooled is None else pooled
    drawn = [found for name in names if (found := rates[name].drawn) is not None]
    macro = Rates(
        np.mean([rates[name].exact for name in names], axis=0),
        drawn_means(drawn, samples=samples, seed=seed) if drawn else None,
    )
    # The name of the only task: so a suite of one task has one interval, not two that differ by chance.
    name = names[0] if len(names) == 1 else ""
    whole = rate(joined([together[name] for name in names]), samples=samples, seed=seed, name=name)
    return SuiteRates(rates, macro, whole)
