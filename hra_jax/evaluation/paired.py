"""Is one system better than another on the same utterances? A paired bootstrap of the difference of their error rates.

Both systems are scored on every resample of the utterances (Bisani and Ney, ICASSP 2004), so what makes an utterance
hard for both of them cancels out, and a difference shows that two separate intervals would hide. Each interval stands
for itself: of twenty tasks without a difference, one is expected to be called significant.

Letters: U utterances, K distinct triples (errors of A, errors of B, reference words), S resamples. Rates are fractions.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from hra_jax.errors import UserError
from hra_jax.evaluation.error_rates import interval

_CELLS = 2**22  # numbers drawn at a time, 32 MiB of them


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The error rate of B minus that of A: below 0 where B makes fewer errors.

    Attributes:
      difference: over the utterances as they are.
      low: lower end of the 95% interval.
      high: upper end of the 95% interval.
    """

    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class PairedDifferences:
    """The differences of one comparison.

    Attributes:
      tasks: of each task.
      macro: of the means over tasks; the utterances of each task are resampled by themselves.
      pooled: of all utterances together, resampled together. What several tasks score counts as several utterances.
    """

    tasks: dict[str, PairedDifference]
    macro: PairedDifference
    pooled: PairedDifference


def paired_bootstrap(tasks: Mapping[str, ArrayLike], *, samples: int = 10_000, seed: int = 0) -> PairedDifferences:
    """Differences of two systems' error rates, B minus A, with 95% intervals.

    As in `error_rates.bootstrap_rates`, the draw is made over distinct triples: the cost does not grow with U, and
    neither the order of the utterances nor that of the tasks matters.

    Args:
      tasks: [U, 3] counts of each task's utterances: errors of A, errors of B, reference words.
      samples: S, the number of resamples, 1 or more.
      seed: 0 or more; the same seed gives the same intervals.

    Returns:
      The differences, the tasks in the order given. Resamples in which no reference word is left are dropped.

    Raises:
      UserError: no task, a task without reference words, or samples or a seed that are not allowed.
      ValueError: counts of another shape, or negative ones.
    """
    if samples < 1:
        raise UserError(f"bootstrap samples must be 1 or more; got {samples}")
    if seed < 0:
        raise UserError(f"the seed of a bootstrap must be 0 or more; got {seed}")
    if not tasks:
        raise UserError("no paired bootstrap: 0 tasks were given; need 1 or more")
    counts = {name: _checked(name, utterances) for name, utterances in tasks.items()}
    # A stream for each task: the same draws in tasks of the same triples would not be independent.
    drawn = {name: _drawn(counts[name], samples, [seed, rank]) for rank, name in enumerate(sorted(counts))}
    whole = np.concatenate(list(counts.values()))
    exact = {name: _difference(utterances.sum(axis=0)) for name, utterances in counts.items()}
    return PairedDifferences(
        tasks={name: _with_interval(exact[name], drawn[name]) for name in counts},
        # In one order, since the last digits of a mean depend on it.
        macro=_with_interval(
            np.mean([exact[name] for name in sorted(counts)]), np.mean([drawn[name] for name in sorted(counts)], axis=0)
        ),
        # The stream of the first task: so a suite of one task has one interval, not two that differ by chance.
        pooled=_with_interval(_difference(whole.sum(axis=0)), _drawn(whole, samples, [seed, 0])),
    )


def _checked(name: str, utterances: ArrayLike) -> np.ndarray:
    counts = np.asarray(utterances) if len(utterances) else np.zeros((0, 3), np.int64)
    if counts.ndim != 2 or counts.shape[1] != 3 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"task {name!r}: counts are {counts.dtype} {counts.shape}; allowed: integers [U, 3], 0 or more"
        )
    if not counts[:, 2].any():
        raise UserError(f"task {name!r}: the references of {len(counts)} utterances hold 0 words; need 1 or more")
    return counts.astype(np.int64)


def _difference(sums: np.ndarray) -> np.ndarray:
    """[..., 3] sums of counts to [...] differences of rates; nan where there are no words."""
    errors_a, errors_b, words = np.moveaxis(sums, -1, 0)
    # Subtracted as integers, so that equal systems differ by exactly 0.
    return np.divide(errors_b - errors_a, words, out=np.full(np.shape(words), np.nan), where=words > 0)


def _drawn(counts: np.ndarray, samples: int, seed: list[int]) -> np.ndarray:
    """[S] differences of the resamples of [U, 3] counts."""
    distinct, times = np.unique(counts, axis=0, return_counts=True)
    generator, shares = np.random.default_rng(seed), times / len(counts)
    # In parts, since [S, K] draws of a large test set would not fit; the parts continue one stream.
    size = max(1, _CELLS // len(distinct))
    parts = [min(size, samples - start) for start in range(0, samples, size)]
    return _difference(np.concatenate([generator.multinomial(len(counts), shares, part) @ distinct for part in parts]))


def _with_interval(difference: float, drawn: np.ndarray) -> PairedDifference:
    kept = drawn[~np.isnan(drawn)]
    if not kept.size:
        raise UserError(f"none of {len(drawn)} bootstrap samples holds a reference word of every task; more are needed")
    low, high = interval(kept)
    return PairedDifference(float(difference), low, high)
