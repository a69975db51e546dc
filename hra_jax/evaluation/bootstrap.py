"""The bootstrap: how far an error rate could be off if other utterances had been drawn (Bisani and Ney, ICASSP 2004).

A test set of U utterances is drawn again from itself, with replacement, S times; the middle 95% of the rates of these
resamples are the interval. `hra_jax.evaluation.paired` resamples two systems together.

Letters: U utterances, C counts of an utterance, K distinct rows of counts, S resamples. Rates are fractions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hra_jax.errors import UserError
from hra_jax.evaluation.error_rates import ErrorCounts, total

CONFIDENCE = 0.95
_CELLS = 2**22  # numbers drawn at a time, 32 MiB of them


def resampled_sums(counts: NDArray[np.int64], *, samples: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Sums of the counts of resampled utterances.

    A resample of U utterances holds each distinct row of counts a multinomial number of times, so the draw is made over
    the distinct rows: the same distribution, a cost that does not grow with U, and a result that does not depend on the
    order of the utterances.

    Args:
      counts: int64 [U, C], such as errors and reference words; U is 1 or more.
      samples: S, the number of resamples, 1 or more.
      seed: as `numpy.random.default_rng` takes it; the same seed gives the same sums.

    Returns:
      int64 [S, C].

    Raises:
      UserError: fewer than 1 sample.
    """
    if samples < 1:
        raise UserError(f"bootstrap samples must be 1 or more; got {samples}")
    distinct, times = np.unique(counts, axis=0, return_counts=True)
    generator, shares = np.random.default_rng(seed), times / len(counts)
    # In parts, since [S, K] draws of a large test set would not fit; the parts continue one stream.
    size = max(1, _CELLS // len(distinct))
    parts = [min(size, samples - start) for start in range(0, samples, size)]
    return np.concatenate([generator.multinomial(len(counts), shares, part) @ distinct for part in parts])


def interval(drawn: NDArray[np.float64], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The (low, high) quantiles of bootstrap values [S] that hold the middle `confidence` of them."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_rates(utterances: Sequence[ErrorCounts], *, samples: int, seed: int = 0) -> NDArray[np.float64]:
    """Error rates of test sets drawn from the given utterances with replacement.

    Args:
      utterances: the counts of single utterances.
      samples: the number of resamples, 1 or more.
      seed: the same seed gives the same rates.

    Returns:
      [samples] rates; resamples in which no word is left (all references empty) are dropped.

    Raises:
      UserError: no reference words at all, or fewer than 1 sample.
    """
    if not total(utterances).words:
        raise UserError(f"no bootstrap: the references of {len(utterances)} utterances hold 0 words; need 1 or more")
    pairs = np.array([(counts.errors, counts.words) for counts in utterances], np.int64)
    errors, words = resampled_sums(pairs, samples=samples, seed=seed).T
    kept = words > 0
    rates: NDArray[np.float64] = errors[kept] / words[kept]
    return rates


def bootstrap_interval(utterances: Sequence[ErrorCounts], *, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval (low, high) of the rate of these utterances; see `bootstrap_rates` for arguments and errors."""
    return interval(bootstrap_rates(utterances, samples=samples, seed=seed))
