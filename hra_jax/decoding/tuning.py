"""How to decode, tuned: a suite is recognised once, and decoded from its log-probabilities again and again.

Nobody may tune on a suite that tests: see `run.tuning`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from hra_jax.console import percent, say, stdout, table
from hra_jax.decoding import grid
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.grid import MEAN, Axis, Beams, Tuned
from hra_jax.decoding.settings import DEFAULT_WEIGHTS, TUNED, DecodeSettings
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.runner import Recognised, SuiteRunner
from hra_jax.storage.scratch import on_disk
from hra_jax.text.ngram import LanguageModel

_MOST_MEMORY = 2**31  # bytes of log-probabilities, above which they are in a file
_ORDER = ("phrase_weight", "lm_weight", "token_bonus")  # of the axes: the last two are those of a table

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Heard:
    """The log-probabilities of a suite, in memory as long as they are few, and then in a file without a name.

    Args:
      batches: of `SuiteRunner.log_probs`.
      most_memory: bytes that are in memory.
    """

    def __init__(self, batches: Iterable[Batch], *, most_memory: int = _MOST_MEMORY):
        self._batches: list[Batch] = []
        used = 0
        for log_probs, lengths, numbers in batches:
            used += log_probs.nbytes
            if used > most_memory:
                log_probs = on_disk(log_probs)
            self._batches.append((log_probs, lengths, numbers))

    def __iter__(self) -> Iterator[Batch]:
        """Goes through the batches."""
        return iter(self._batches)


def axes_of(settings: DecodeSettings, *, models: bool, phrases: bool) -> tuple[Axis, ...]:
    """The weights that are to be found: those that are not given, and that something is weighted with.

    Args:
      settings: of decoding.
      models: whether any task has a language model.
      phrases: whether there are any.
    """
    acts = {"lm_weight": models, "token_bonus": models or phrases or settings.beam > 0, "phrase_weight": phrases}
    return tuple(grid.AXES[name] for name in _ORDER if acts[name] and getattr(settings, name) == TUNED)


def beams_of(settings: DecodeSettings) -> tuple[int, ...]:
    """The beams that are compared, each at least `n_best` wide; one that is given is the only one."""
    if settings.beam:
        return (settings.beam,)
    return tuple(sorted({max(beam, settings.n_best) for beam in grid.BEAMS}))


def tune(
    runner: SuiteRunner,
    heard: Iterable[Batch],
    decoder_of: Callable[[Mapping[str, float]], Decoder],
    axes: Iterable[Axis],
    *,
    per_task: bool = False,
    progress: bool = False,
) -> Tuned:
    """The best weights on a suite; the same in every process.

    Args:
      runner: of the suite.
      heard: what `SuiteRunner.log_probs` yields, to be gone through many times.
      decoder_of: gives the decoder with some weights.
      axes: the grid to begin with.
      per_task: whether the best is looked for in every task as well; a task is what utterances are recognised with.
      progress: whether to show a bar, in process 0.
    """
    with tqdm(
        desc=f"tuning on {runner.suite.name}", unit="point", disable=not progress or jax.process_index() != 0
    ) as bar:

        def rates_of(weights: dict[str, float]) -> grid.Rates:
            found = rates(runner, heard, decoder_of(weights))
            bar.update()
            return found

        def after(left: int) -> None:
            bar.total = bar.n + left
            bar.refresh()

        return grid.tune(rates_of, axes, tasks=sorted(set(runner.adapters)) if per_task else (), after=after)


def rates(runner: SuiteRunner, heard: Iterable[Batch], decoder: Decoder) -> dict[str, float]:
    """Error rates of a suite with a decoder: of every adapter task, and the mean over the tasks of the suite."""
    found: dict[int, Recognised] = {}
    for log_probs, lengths, numbers in heard:
        paths = runner.decoded(decoder, log_probs, lengths, numbers)
        for number, path in zip(numbers.tolist(), paths, strict=True):
            if number >= 0:
                found[number] = Recognised(runner.text_of(number, path), math.nan, None, None)
    return _rates(runner, runner.results_of(found))


def _rates(runner: SuiteRunner, rows: Iterable[UtteranceResult]) -> dict[str, float]:
    suite = runner.suite
    counts: dict[str, list[error_rates.ErrorCounts]] = {task.name: [] for task in suite.tasks}
    metrics = {task.name: task.metric for task in suite.tasks}
    for row in rows:
        errors = error_rates.errors_by_metric(row.text, row.pred_text, suite.normalizer)
        counts[row.task].append(errors[metrics[row.task]])
    totals = {name: error_rates.total(found) for name, found in counts.items()}
    by_adapter: dict[str, list[float]] = {}
    for task, adapter in zip(suite.tasks, runner.adapters, strict=True):
        if totals[task.name].words:
            by_adapter.setdefault(adapter, []).append(totals[task.name].rate)
    every = [rate for some in by_adapter.values() for rate in some]
    return {adapter: sum(some) / len(some) for adapter, some in by_adapter.items()} | {MEAN: sum(every) / len(every)}


def entries(
    tuned: Tuned,
    beams: Beams,
    settings: DecodeSettings,
    models: Mapping[str, LanguageModel | None],
    *,
    suite: str,
) -> dict[str, dict[str, Any]]:
    """What is stored for tasks: the field `decode` of their entries in tasks.json.

    Args:
      tuned: the weights that were found.
      beams: the beams.
      settings: they say the rest.
      models: of each task that gets an entry; None for none.
      suite: that it was found on.
    """
    found = {}
    for task, model in models.items():
        own = task if task in tuned.best else MEAN
        weights = {name: getattr(settings, name) for name in DEFAULT_WEIGHTS} | tuned.weights(own)
        lm = {} if model is None else {"lm": {"name": model.name, "digest": model.digest}}
        given = {name: float(value) for name, value in weights.items() if value != TUNED}
        rate = beams.rates[beams.best[own]].get(task, beams.rate(own))  # the mean, where the suite lacks the task
        found[task] = {**lm, "beam": beams.best[own], **given, "suite": suite, "wer": rate}
    return found


def with_values(settings: DecodeSettings, values: Mapping[str, float]) -> DecodeSettings:
    """Settings with some weights, or a beam, in place of those that are to be tuned."""
    changes: dict[str, Any] = dict(values)
    return dataclasses.replace(settings, **changes)


def print_tables(tuned: Tuned, beams: Beams, *, suite: str) -> None:
    """Prints the error rates over the grid and by beam, and what is the best."""
    console = stdout()
    for title, header, rows in grid.tables(tuned):
        console.print(table(header, rows, title=f"suite {suite}, mean error rate{f', {title}' if title else ''}"))
    if len(beams.rates) > 1:
        taken = beams.best[MEAN]
        rows = [(str(beam), f"{percent(found[MEAN])}{'*' * (beam == taken)}") for beam, found in beams.rates.items()]
        console.print(table(("beam", "error rate, the best weights"), rows, title=f"suite {suite}, mean error rate"))
    for task in tuned.best:
        values = tuned.weights(task) | {"beam": beams.best[task]}
        words = ", ".join(f"{name} {value:g}" for name, value in values.items())
        whose = f"task {task!r}" if task else "all tasks together"
        say(console, f"best for {whose}: {words}; {percent(beams.rate(task))} on {suite}")
