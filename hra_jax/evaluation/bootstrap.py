"""The bootstrap: how far error rates, and their differences, could be off if other data had been drawn.

A test set is drawn again from itself, with replacement, S times; the middle 95% of the rates of these resamples are the
interval (Bisani and Ney, ICASSP 2004). Utterances of one speaker are no independent draws, so where there are enough
speakers, speakers are drawn, and of each that is drawn as many of its utterances as it has, with replacement. A task or
a slice of fewer than `LEAST_BLOCKS` speakers draws utterances alone: its interval holds for these speakers only.

All systems of a table are rated on the same draws, so what makes an utterance hard for all of them cancels out in a
difference. A draw depends on the seed, on the name of the task, and on which utterances there are, and not on what was
recognised: so tables and comparisons see the same ones.

Letters: U utterances, C counts of an utterance, B blocks, K systems, T tasks, S resamples. Rates are fractions.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hra_jax.errors import UserError

CONFIDENCE = 0.95
LEAST_BLOCKS = 8
_CELLS = 2**20  # numbers drawn at a time, 8 MiB of them


@dataclasses.dataclass(frozen=True)
class Sample:
    """The utterances of a task, of a slice, or of all tasks together, in an order that their names give.

    Attributes:
      errors: int64 [U, K], errors of each of K systems.
      units: int64 [U], reference words or characters.
      blocks: int64 [U], the block of each utterance, from 0 on; None where utterances are resampled alone.
      names: (key, block) of each utterance; an utterance whose block is None is a block of its own.
      block_count: the number of blocks, whether they are resampled or not.
    """

    errors: NDArray[np.int64]
    units: NDArray[np.int64]
    blocks: NDArray[np.int64] | None
    names: tuple[tuple[str, str | None], ...]
    block_count: int

    @property
    def rates(self) -> NDArray[np.float64]:
        """[K] error rates as they are; nan where there is no unit."""
        found: NDArray[np.float64] = _rates(self.errors.sum(axis=0, keepdims=True), self.units.sum(keepdims=True))[0]
        return found


def make_sample(names: Sequence[tuple[str, str | None]], errors: NDArray[np.int64], units: NDArray[np.int64]) -> Sample:
    """The sample of some utterances, in any order.

    Args:
      names: the key and the block of each of U utterances.
      errors: [U, K].
      units: [U].
    """
    order = sorted(range(len(names)), key=lambda at: (names[at][0], names[at][1] or ""))
    ordered = tuple(names[at] for at in order)
    numbers: dict[object, int] = {}
    blocks = [numbers.setdefault(at if block is None else block, len(numbers)) for at, (_, block) in enumerate(ordered)]
    enough = len(numbers) >= LEAST_BLOCKS and any(block is not None for _, block in ordered)
    return Sample(errors[order], units[order], np.array(blocks, np.int64) if enough else None, ordered, len(numbers))


def joined(samples: Sequence[Sample]) -> Sample:
    """The utterances of several samples as one; what several tasks score counts as several utterances."""
    names = [name for sample in samples for name in sample.names]
    return make_sample(
        names,
        np.concatenate([sample.errors for sample in samples]),
        np.concatenate([sample.units for sample in samples]),
    )


# --- Drawing ----------------------------------------------------------------------------------------------------------


def drawn_rates(sample: Sample, *, samples: int, seed: int, name: str = "") -> NDArray[np.float64]:
    """Error rates of K systems on resamples of the same utterances.

    Args:
      sample: at least one of its utterances has units.
      samples: S, 1 or more.
      seed: 0 or more; the same seed and name give the same draws.
      name: of the task, so that tasks of equal utterances are drawn independently.

    Returns:
      float64 [S, K]; nan in resamples without units.

    Raises:
      UserError: no units, samples or a seed that are not allowed.
    """
    if samples < 1:
        raise UserError(f"bootstrap samples must be 1 or more; got {samples}")
    if seed < 0:
        raise UserError(f"the seed of a bootstrap must be 0 or more; got {seed}")
    if not sample.units.any():
        raise UserError(f"no bootstrap: the references of {len(sample.units)} utterances hold 0 words; need 1 or more")
    counts = np.column_stack([sample.errors, sample.units])
    sums = resampled_sums(counts, sample.blocks, samples=samples, seed=seed_of(seed, name))
    return _rates(sums[:, :-1], sums[:, -1])


def resampled_sums(
    counts: NDArray[np.int64], blocks: NDArray[np.int64] | None, *, samples: int, seed: Sequence[int]
) -> NDArray[np.int64]:
    """Sums of the counts of resampled utterances.

    Args:
      counts: int64 [U, C], U is 1 or more.
      blocks: int64 [U], numbers from 0 on without a gap; None to resample utterances alone.
      samples: S.
      seed: as `numpy.random.default_rng` takes it.

    Returns:
      int64 [S, C]. Memory does not grow with S times U.
    """
    size = len(counts)
    drawn = _drawn_utterances(size, samples, seed) if blocks is None else _drawn_in_blocks(blocks, samples, seed)
    values, parts = counts.astype(np.float64), []
    for part, rows, chosen in drawn:
        times = np.bincount(rows * size + chosen, minlength=part * size).reshape(part, size)
        # Exact in float64, where a product of matrices is many times faster than in int64.
        parts.append((times.astype(np.float64) @ values).astype(np.int64))
    return np.concatenate(parts)


_Draws = Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]  # resamples, number of each draw's, utterance drawn


def _parts(samples: int, size: int) -> Iterator[int]:
    """The resamples in parts that take little memory; the parts of a stream of draws continue it."""
    most = max(1, _CELLS // size)
    yield from (min(most, samples - start) for start in range(0, samples, most))


def _drawn_utterances(size: int, samples: int, seed: Sequence[int]) -> _Draws:
    generator = np.random.default_rng(seed)
    for part in _parts(samples, size):
        yield part, np.repeat(np.arange(part), size), generator.integers(0, size, size=part * size)


def _drawn_in_blocks(blocks: NDArray[np.int64], samples: int, seed: Sequence[int]) -> _Draws:
    """As many blocks as there are, and of each as many of its utterances as it has, all with replacement."""
    order, sizes = np.argsort(blocks, kind="stable"), np.bincount(blocks)
    starts, number = np.cumsum(sizes) - sizes, len(sizes)
    of_blocks, of_utterances = (np.random.default_rng([*seed, stream]) for stream in (0, 1))
    for part in _parts(samples, len(blocks)):
        drawn = of_blocks.integers(0, number, size=part * number)
        lengths = sizes[drawn]
        within = of_utterances.random(lengths.sum()) * np.repeat(lengths, lengths)
        chosen = order[np.repeat(starts[drawn], lengths) + within.astype(np.int64)]
        yield part, np.repeat(np.repeat(np.arange(part), number), lengths), chosen


def drawn_means(tasks: Sequence[NDArray[np.float64]], *, samples: int, seed: int) -> NDArray[np.float64]:
    """Means over tasks of resampled tasks: T tasks are drawn with replacement, and for each a draw of its own rates.

    Args:
      tasks: for each of T tasks `drawn_rates`, [S, K]; resamples without units are left out.
      samples: S, the number of means.
      seed: 0 or more.

    Returns:
      float64 [S, K]; of one task, its own draws.

    Raises:
      UserError: all resamples of a task are without units.
    """
    if len(tasks) == 1:
        return tasks[0]
    kept = [rates[~np.isnan(rates).any(axis=1)] if np.isnan(rates).any() else rates for rates in tasks]
    sizes = np.array([len(rates) for rates in kept])
    if not sizes.all():
        raise UserError(f"none of {samples} bootstrap samples holds a reference word of every task; more are needed")
    flat, starts, number = np.concatenate(kept), np.cumsum(sizes) - sizes, len(kept)
    key = seed_of(seed, "mean of tasks")
    of_tasks, of_draws = (np.random.default_rng([*key, stream]) for stream in (0, 1))
    means = []
    for part in _parts(samples, number):
        drawn = of_tasks.integers(0, number, size=(part, number))
        within = (of_draws.random((part, number)) * sizes[drawn]).astype(np.int64)
        means.append(flat[starts[drawn] + within].mean(axis=1))
    return np.concatenate(means)


def seed_of(seed: int, name: str) -> list[int]:
    """The seed of the draws of what has a name; '' is all utterances."""
    return [seed, *np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u4").tolist()]


def _rates(errors: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """[S, K] errors and [S] units to [S, K] rates; nan where there are no units."""
    found = np.full(errors.shape, np.nan)
    np.divide(errors, units[:, None], out=found, where=units[:, None] > 0)
    return found


# --- What the draws say -----------------------------------------------------------------------------------------------


def interval(drawn: NDArray[np.float64], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The (low, high) quantiles of bootstrap values [S] that hold the middle `confidence` of them; nan is left out.

    Raises:
      UserError: no value is left.
    """
    kept = drawn[~np.isnan(drawn)]
    if not kept.size:
        raise UserError(f"none of {len(drawn)} bootstrap samples holds a reference word; more are needed")
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
