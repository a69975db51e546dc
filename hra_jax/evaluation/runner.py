"""Runs a suite: every utterance once, through the adapter of its task and through the base beside it.

Each process decodes its own rows; the outputs are replicated, so every process sees every row and counts the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from hra_jax.config.settings import Rule, check_settings, integer, number, setting
from hra_jax.data import batching
from hra_jax.data.batching import BatchSettings
from hra_jax.data.loader import eval_batches
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings, TableSource
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite
from hra_jax.models import ctc
from hra_jax.models.features import FeatureConfig
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import BlankVocabulary, Vocabulary
from hra_jax.training import sharding
from hra_jax.training.agreement import agreed


class Base(Protocol):
    """What a suite must know of the backbone that it is run on."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the backbone itself writes in."""

    @property
    def features(self) -> FeatureConfig:
        """The settings of its features; of them the sample rate, in Hz, is read."""

    def output_length(self, num_samples: np.ndarray) -> np.ndarray:
        """Encoder frames of `num_samples` samples, elementwise."""


def _suite() -> Rule:
    return Rule(lambda: "'' or the name or path of a suite", lambda value: isinstance(value, str))


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The keys `eval.*`."""

    every_steps: int = setting(200, integer(1), "steps between two evaluations of select_suite")
    suite: str = setting("", _suite(), "name or path of the test suite that runs once at the end; '' for none")
    select_suite: str = setting(
        "", _suite(), "name or path of the validation suite that picks the best checkpoint; '' for none"
    )
    batch_seconds: float = setting(
        128.0,
        number(0, above=True, unit=" (seconds of audio)"),
        "seconds of audio in an evaluation batch, padding included",
    )
    bootstrap: int = setting(1000, integer(0), "resamples of the 95% interval; 0 for no interval")

    def __post_init__(self) -> None:
        check_settings(self, "eval")


class SuiteRunner:
    """A suite with its utterances looked up once, to be run on any number of checkpoints.

    Args:
      suite: what to score.
      base: what the encoder is built on: vocabulary, features, lengths.
      tasks: names of the adapter's rows, in order; () where there is no bank (`full`, `pretrain`).
      mesh: the device mesh.
      data, batch, evaluation: groups of the run's configuration.
      report: where unusable utterances go.
      own: the vocabularies of tasks that have their own (`text.task_vocabularies.OwnVocabularies`), or None.

    Attributes:
      rows: the adapter's rows that the suite uses, ascending.
      needs_mean: whether it also uses the mean of all rows.
      table: the usable utterances; source s holds those of task s of the suite.
      digest: a hash of what is scored, `UtteranceTable.digest`.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        base: Base,
        tasks: Sequence[str],
        mesh: Mesh,
        data: DataSettings,
        batch: BatchSettings,
        evaluation: EvaluationSettings,
        report: DataReport,
        own: OwnVocabularies | None = None,
    ):
        self.suite, self._base, self._mesh, self._report = suite, base, mesh, report
        self._data, self._batch, self._evaluation = data, batch, evaluation
        used = {task.adapter_task for task in suite.tasks} if tasks else set()
        # One row at least: nothing can be gathered from a bank without rows.
        self.rows = tuple(n for n, name in enumerate(tasks) if name in used) or ((0,) if tasks else ())
        self.needs_mean = MEAN_TASK in used
        self.table = UtteranceTable(
            [
                TableSource(task.name, task.utterances, task=task.adapter_task if tasks else BASE_TASK)
                for task in suite.tasks
            ],
            vocabulary=base.vocabulary,
            normalizer=data.text_normalizer,
            task_tag="",
            tasks=(*(tasks[row] for row in self.rows), *([MEAN_TASK] if self.needs_mean else [])),
            max_seconds=batch.buckets[-1],
            sample_rate=base.features.sample_rate,
            output_length=base.output_length,
            report=report,
            for_training=False,
            own=own,
        )
        self._has_outputs = not isinstance(base.vocabulary, BlankVocabulary)
        self.digest = self.table.digest()
        lengths = batching.label_capacities(
            batching.bucket_of(self.table.duration, batch.buckets),
            self.table.label_lengths,
            buckets=len(batch.buckets),
        )
        self.label_capacities = tuple(lengths)

    def run(
        self,
        evaluation_step: Callable[..., dict[str, jax.Array]],
        weights: dict[str, Any],
        frozen: dict[str, Any],
        *,
        progress: bool = False,
    ) -> tuple[list[UtteranceResult], float, dict[str, float]]:
        """Scores the suite.

        Args:
          evaluation_step: the compiled step of `training.step.make_evaluation_step`.
          weights: {'backbone'}, or {'shared', 'tasks'} whose bank holds the rows `rows` and, with `needs_mean`, the
            mean of all tasks after them.
          frozen: the backbone's weights; the base that results are compared with.
          progress: whether to show a bar.

        Returns:
          A list of `UtteranceResult`, the mean loss, and {task: largest difference of its log-probabilities from those
          without what the adapter's row adds: the base's, or those of an output layer that all tasks share}.

        Raises:
          UserError: no utterance of the suite could be read.
        """
        batches = eval_batches(
            self.table,
            batch_seconds=self._evaluation.batch_seconds,
            buckets=self._batch.buckets,
            multiple=self._batch.multiple,
            threads=self._data.threads,
            report=self._report,
            label_capacities=self.label_capacities,
            local_rows=functools.partial(sharding.local_rows, self._mesh),
        )
        results: list[UtteranceResult] = []
        losses: list[float] = []
        differences = {task.name: 0.0 for task in self.suite.tasks}
        shown = progress and jax.process_index() == 0
        bar = tqdm(total=len(self.table), desc=f"evaluating {self.suite.name}", unit="utterance", disable=not shown)
        with bar:
            # One process may fail to decode its part, and the others would wait for it in the step.
            while (batch := agreed(lambda: next(batches, None))) is not None:
                step_outputs = evaluation_step(weights, frozen, sharding.shard_batch(batch, self._mesh))
                outputs = {name: np.asarray(value) for name, value in step_outputs.items()}
                found = self._results(outputs)
                for row, result in found.items():
                    # Unlike max, this does not lose a NaN.
                    largest = np.maximum(differences[result.task], outputs["difference"][row])
                    differences[result.task] = float(largest)
                    losses.append(float(outputs["loss"][row]))
                results += found.values()
                bar.update(len(found))
        if not results:
            raise UserError(
                f"suite {self.suite.name!r}: none of its utterances could be read; {self._report.summary()}"
            )
        return results, float(np.mean(losses)), differences

    def _results(self, outputs: Mapping[str, np.ndarray]) -> dict[int, UtteranceResult]:
        """What was recognised in the rows of a batch that hold an utterance, by the number of the row."""
        paths = ctc.greedy_decode(outputs["paths"], outputs["lengths"], self.table.blank_id)
        base_paths = ctc.greedy_decode(outputs["base_paths"], outputs["lengths"], self._base.vocabulary.blank_id)
        found = {}
        for row in np.flatnonzero((outputs["utterance"] >= 0) & (outputs["weight"] > 0)):
            number = int(outputs["utterance"][row])
            task, utterance = self.suite.tasks[self.table.source[number]], self.table.utterances[number]
            text = self.table.vocabulary_of(task.adapter_task).decode(paths[row])
            # A backbone without an output layer of its own recognises nothing that could be compared.
            base_text = self._base.vocabulary.decode(base_paths[row]) if self._has_outputs else None
            found[int(row)] = UtteranceResult(
                task=task.name,
                key=utterance.key,
                text=utterance.text,
                # `__base__` is the backbone, also beside a fine-tuned one.
                pred_text=text if base_text is None or task.adapter_task != BASE_TASK else base_text,
                base_pred_text=base_text,
                duration=utterance.duration,
                audio_filepath=utterance.audio_filepath,
                offset=utterance.offset,
                tags=utterance.tags,
            )
        return found


def share_shapes(*runners: SuiteRunner) -> None:
    """Gives runners of one configuration batches of the same shapes, so that they share their compiled programs."""
    most = tuple(map(max, zip(*(runner.label_capacities for runner in runners), strict=True)))
    for runner in runners:
        runner.label_capacities = most


def check_adapter_acts(suite: Suite, differences: Mapping[str, float], *, idle: Collection[str] = ()) -> None:
    """Checks that the adapter of every task that was scored changes the log-probabilities.

    Args:
      suite: what was scored.
      differences: of each task that was scored, as `SuiteRunner.run` gives them.
      idle: tasks of the adapter that cannot act yet.

    Raises:
      UserError: the adapter of a task is loaded and does nothing, or gives no numbers.
    """
    for task in suite.tasks:
        if not np.isfinite(differences.get(task.name, 0.0)):
            raise UserError(
                f"task {task.name!r}: the log-probabilities with the adapter {task.adapter_task!r} are not finite; its "
                "weights are too large or not numbers"
            )
        if task.adapter_task != BASE_TASK and task.adapter_task not in idle and differences.get(task.name) == 0.0:
            raise UserError(
                f"task {task.name!r}: the log-probabilities with the adapter {task.adapter_task!r} equal those without "
                "it exactly; the adapter does nothing"
            )
