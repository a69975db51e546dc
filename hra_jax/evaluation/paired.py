"""Is one system better than another on the same utterances? A paired bootstrap of the difference of their error rates.

Both systems are scored on every resample of the utterances (Bisani and Ney, ICASSP 2004), so what makes an utterance
hard for both of them cancels out, and a difference shows that two separate intervals would hide. Each interval stands
for itself: of twenty tasks without a difference, one is expected to be called significant.

Letters: U utterances, S resamples. The counts of an utterance are a triple: errors of A, errors of B, reference words.
Rates are fractions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import interval, resampled_sums

Counts = NDArray[np.integer[Any]] | Sequence[Sequence[int]]  # [U, 3]


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


def paired_bootstrap(tasks: Mapping[str, Counts], *, samples: int = 10_000, seed: int = 0) -> PairedDifferences:
    """Differences of two systems' error rates, B minus A, with 95% intervals.

    The cost does not grow with U, and neither the order of the utterances nor that of the tasks matters.

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
    if seed < 0:
        raise UserError(f"the seed of a bootstrap must be 0 or more; got {seed}")
    if not tasks:
        raise UserError("no paired bootstrap: 0 tasks were given; need 1 or more")
    counts = {name: _checked(name, utterances) for name, utterances in tasks.items()}
    # A stream for each task: the same draws in tasks of the same triples would not be independent.
    drawn = {
        name: _differences(resampled_sums(counts[name], samples=samples, seed=[seed, rank]))
        for rank, name in enumerate(sorted(counts))
    }
    whole = np.concatenate(list(counts.values()))
    exact = {name: _difference(utterances) for name, utterances in counts.items()}
    return PairedDifferences(
        tasks={name: _with_interval(exact[name], drawn[name]) for name in counts},
        # In one order, since the last digits of a mean depend on it.
        macro=_with_interval(
            float(np.mean([exact[name] for name in sorted(counts)])),
            np.mean([drawn[name] for name in sorted(counts)], axis=0),
        ),
        # The stream of the first task: so a suite of one task has one interval, not two that differ by chance.
        pooled=_with_interval(_difference(whole), _differences(resampled_sums(whole, samples=samples, seed=[seed, 0]))),
    )


def _checked(name: str, utterances: Counts) -> NDArray[np.int64]:
    counts = np.asarray(utterances) if len(utterances) else np.zeros((0, 3), np.int64)
    if counts.ndim != 2 or counts.shape[1] != 3 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"task {name!r}: counts are {counts.dtype} {counts.shape}; allowed: integers [U, 3], 0 or more"
        )
    if not counts[:, 2].any():
        raise UserError(f"task {name!r}: the references of {len(counts)} utterances hold 0 words; need 1 or more")
    return counts.astype(np.int64)


def _difference(counts: NDArray[np.int64]) -> float:
    """The difference of rates of [U, 3] counts that hold a reference word."""
    return float(_differences(counts.sum(axis=0, keepdims=True))[0])


def _differences(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """[S, 3] sums of counts to [S] differences of rates; nan where there are no words."""
    errors_a, errors_b, words = sums.T
    found = np.full(len(sums), np.nan)
    # Subtracted as integers, so that equal systems differ by exactly 0.
    np.divide(errors_b - errors_a, words, out=found, where=words > 0)
    return found


def _with_interval(difference: float, drawn: NDArray[np.float64]) -> PairedDifference:
    kept = drawn[~np.isnan(drawn)]
    if not kept.size:
        raise UserError(f"none of {len(drawn)} bootstrap samples holds a reference word of every task; more are needed")
    low, high = interval(kept)
    return PairedDifference(difference, low, high)


# --- As JSON ----------------------------------------------------------------------------------------------------------


def described_differences(
    tasks: Mapping[str, Sequence[tuple[int, int, int]]], *, samples: int, seed: int
) -> dict[str, Any]:
    """What `paired_bootstrap` finds, with the counts and rates of both systems, as JSON values.

    Args:
      tasks: of each task the counts of its utterances.
      samples: as `paired_bootstrap`.
      seed: as `paired_bootstrap`.

    Returns:
      {"tasks": {name: entry}, "macro": entry, "pooled": entry}. An entry has "utterances", "words", "wer_a", "wer_b",
      "difference", "low", "high", "significant" and "verdict": "better" or "worse", of B, or None where the interval
      holds 0.

    Raises:
      UserError: as `paired_bootstrap`.
    """
    found = paired_bootstrap(tasks, samples=samples, seed=seed)
    entries = {name: _entry(tasks[name], found.tasks[name]) for name in tasks}
    pooled = _entry([triple for triples in tasks.values() for triple in triples], found.pooled)
    means = {rate: sum(entry[rate] for entry in entries.values()) / len(entries) for rate in ("wer_a", "wer_b")}
    return {"tasks": entries, "macro": pooled | means | _judged(found.macro), "pooled": pooled}


def _entry(triples: Sequence[tuple[int, int, int]], found: PairedDifference) -> dict[str, Any]:
    errors_a, errors_b, words = map(sum, zip(*triples, strict=True))
    counts = {"utterances": len(triples), "words": words, "wer_a": errors_a / words, "wer_b": errors_b / words}
    return counts | _judged(found)


def _judged(found: PairedDifference) -> dict[str, Any]:
    verdict = None
    if found.significant:
        verdict = "better" if found.high < 0 else "worse"
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "significant": found.significant,
        "verdict": verdict,
    }
