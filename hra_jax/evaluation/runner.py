"""Runs a suite: every utterance once, through the adapter of its task and, the first time, through the base beside it.

Each process decodes its own rows; the outputs are replicated, so every process sees every row and counts the same.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from hra_jax.config.settings import Rule, boolean, check_settings, integer, number, setting
from hra_jax.data import batching
from hra_jax.data.batching import BatchSettings
from hra_jax.data.loader import eval_batches, eval_plans
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.phrases import Weighted, of_line
from hra_jax.errors import UserError
from hra_jax.evaluation import long_utterances
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, MEAN_TASK
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import BlankVocabulary, Vocabulary
from hra_jax.training import sharding
from hra_jax.training.agreement import agreed
from hra_jax.training.step import LOG_PROBS


class Base(Protocol):
    """What a suite must know of the backbone that it is run on."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the backbone itself writes in."""

    @property
    def features(self) -> FeatureConfig:
        """The settings of its features; of them the sample rate, in Hz, and the stride, in samples, are read."""

    @property
    def encoder(self) -> EncoderConfig:
        """The geometry of its encoder; of it the subsampling is read."""

    def output_length(self, num_samples: np.ndarray) -> np.ndarray:
        """Encoder frames of `num_samples` samples, elementwise."""


_Plan = tuple[int, np.ndarray]  # of a batch: its bucket, and the numbers of its utterances


class Recognised(NamedTuple):
    """What came of one utterance.

    Attributes:
      text: what was recognised with the adapter of its task; see `long_utterances.recognised`.
      greedy: the same by greedy decoding; None where `text` is that.
      loss: its CTC loss.
      difference: the largest difference of its log-probabilities from those without what the adapter's row adds; None
        where the base did not run beside it.
      time: seconds that recognising it took, its share of its batch; None where its batch was the first of its shape,
        which is compiled.
    """

    text: str
    loss: float
    difference: float | None
    time: float | None
    greedy: str | None = None


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
    calibrate: bool = setting(
        True,
        boolean(),
        "whether confidences and times of words are calibrated on select_suite once all steps are done, for the export",
    )

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
      trained_seconds: of the longest utterances that the tasks were trained on; 0 where that is not known.
      set_aside: tasks of the adapter that are recognised as `__base__`.

    Attributes:
      rows: the adapter's rows that the suite uses, ascending.
      needs_mean: whether it also uses the mean of all rows.
      table: the usable utterances, long ones in parts; source s holds those of task s of the suite.
      chunk_seconds: of the longest of these parts; 0 where no utterance is too long to be recognised at once.
      digest: a hash of what is scored, `UtteranceTable.digest`.
      kept: what the base recognises, as far as it is known, by task and key of the utterance.
      kept_greedy: the same by greedy decoding, where `kept` is not.
      adapters: what each task of the suite is recognised with.
      tasks: names of all rows of the adapter.
      finds_tasks: whether what recognises some tasks of the suite is still to be found.
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
        trained_seconds: float = 0.0,
        set_aside: Collection[str] = (),
    ):
        self.suite, self._base, self._mesh, self._report = suite, base, mesh, report
        self._data, self._batch, self._evaluation = data, batch, evaluation
        # What is still to be found is the base until it is.
        by_base = {*set_aside, AUTO_TASK}
        self.adapters = [BASE_TASK if t.adapter_task in by_base else t.adapter_task for t in suite.tasks]
        self.tasks, self.finds_tasks = tuple(tasks), any(task.adapter_task == AUTO_TASK for task in suite.tasks)
        used = set(self.adapters) if tasks else set()
        # One row at least: nothing can be gathered from a bank without rows.
        self.rows = tuple(n for n, name in enumerate(tasks) if name in used) or ((0,) if tasks else ())
        self.needs_mean = MEAN_TASK in used
        limit, longest = long_utterances.lengths(suite, last_bucket=batch.edges[-1], trained_seconds=trained_seconds)
        cut = functools.partial(
            long_utterances.cut,
            limit=limit,
            longest_seconds=longest,
            sample_rate=base.features.sample_rate,
            hop=base.features.stride * base.encoder.subsampling,
            threads=data.threads,
            report=report,
        )
        self.table = UtteranceTable(
            [
                cut(task, adapter if tasks else BASE_TASK)
                for task, adapter in zip(suite.tasks, self.adapters, strict=True)
            ],
            vocabulary=base.vocabulary,
            normalizer=data.text_normalizer,
            task_tag="",
            tasks=(*(tasks[row] for row in self.rows), *([MEAN_TASK] if self.needs_mean else [])),
            max_seconds=batch.edges[-1],
            sample_rate=base.features.sample_rate,
            output_length=base.output_length,
            report=report,
            for_training=False,
            own=own,
        )
        self._has_outputs = not isinstance(base.vocabulary, BlankVocabulary)
        self._parts = long_utterances.parts_in(self.table)
        self.chunk_seconds = longest if self._parts else 0.0
        self.digest = self.table.digest()
        self.kept: dict[tuple[str, str], str] = {}
        self.kept_greedy: dict[tuple[str, str], str] = {}
        lengths = batching.label_capacities(
            batching.bucket_of(self.table.duration, batch.edges),
            self.table.label_lengths,
            buckets=len(batch.edges),
        )
        self.label_capacities = tuple(lengths)

    def run(
        self,
        evaluation_step: Callable[..., dict[str, jax.Array]],
        weights: dict[str, Any],
        frozen: dict[str, Any],
        *,
        alone: Callable[..., dict[str, jax.Array]] | None = None,
        decoder: Decoder | None = None,
        done: Mapping[int, Recognised] | None = None,
        after: Callable[[dict[int, Recognised]], None] = lambda found: None,
        progress: bool = False,
    ) -> tuple[list[UtteranceResult], float, dict[str, float]]:
        """Scores the suite.

        With `alone`, the base runs beside the adapters in few batches that hold an utterance of each, which are the
        same ones every time; so every adapter is seen to act. Elsewhere it runs besides, where what it recognises is
        not known (it is kept in `kept`), or an adapter has not acted yet. Which program recognises an utterance does
        not depend on what is known.

        Args:
          evaluation_step: the compiled step of `training.step.make_evaluation_step`.
          weights: {'backbone'}, or {'shared', 'tasks'} whose bank holds the rows `rows` and, with `needs_mean`, the
            mean of all tasks after them.
          frozen: the backbone's weights; the base that results are compared with.
          alone: the step without the base beside it; None runs the base beside every batch.
          decoder: what turns log-probabilities into paths, for which the steps must give them; None for the paths of
            the steps themselves, which are those of greedy decoding. The base is decoded with the same settings where
            all tasks write in its vocabulary, and greedily elsewhere.
          done: what was recognised before, by number of the utterance. Batches that hold nothing else are left out.
          after: called after each batch with what was recognised in it.
          progress: whether to show a bar.

        Returns:
          A list of `UtteranceResult` in the order of the table, the mean loss of those that were recognised at once
          (NaN where none was), and {task: largest difference of its
          log-probabilities from those without what the adapter's row adds: the base's, or those of an output layer that
          all tasks share}, from the batches beside which the base ran.

        Raises:
          UserError: no utterance of the suite could be read.
        """
        found = dict(done or {})
        plans, checks = self._checks_first(eval_plans(self.table, **self._sizes))
        wanted = [
            (at < checks, plan)
            for at, plan in enumerate(plans)
            if not all(number in found for number in plan[1].tolist())
        ]
        acting = {int(self.table.source[number]) for number, row in found.items() if row.difference}
        batches = self._batches([plan for _, plan in wanted])
        bar = self._bar(len(found), shown=progress)
        compiled: set[tuple[Any, int]] = set()
        with bar, contextlib.closing(batches):
            for check, (bucket, numbers) in wanted:
                # One process may fail to decode its part, and the others would wait for it in the step.
                batch = agreed(lambda: next(batches))
                arrays = sharding.shard_batch(batch, self._mesh)
                step = evaluation_step if alone is None or check else alone
                started = time.perf_counter()
                outputs = self._outputs(step(weights, frozen, arrays), decoder)
                seconds = time.perf_counter() - started if (step, bucket) in compiled else None
                compiled.add((step, bucket))
                fresh = self._recognised(outputs, seconds=seconds)
                if step is alone and self._needs_base(numbers, acting):
                    beside = evaluation_step(weights, frozen, arrays)
                    fresh = self._beside(fresh, self._outputs(beside, decoder))
                acting |= {int(self.table.source[number]) for number, row in fresh.items() if row.difference}
                found |= fresh
                after(fresh)
                bar.update(len(fresh))
        differences = self._differences(found)
        losses = [found[at].loss for at in sorted(found) if self.table.utterances[at].labelled]
        return self.results_of(found), float(np.mean(losses)) if losses else math.nan, differences

    def log_probs(
        self,
        evaluation_step: Callable[..., dict[str, jax.Array]],
        weights: dict[str, Any],
        frozen: dict[str, Any],
        *,
        progress: bool = False,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The log-probabilities of the suite, a batch at a time; arguments as for `run`.

        Args:
          evaluation_step: one without the base beside it, which gives log-probabilities.
          weights: of `run`.
          frozen: of `run`.
          progress: whether to show a bar.

        Yields:
          Log-probabilities, float32 `[B, T, V]`; frames of each row, int32 `[B]`; and the numbers of its utterances in
          `table`, int `[B]`, -1 for none.
        """
        plans = eval_plans(self.table, **self._sizes)
        batches = self._batches(plans)
        with self._bar(0, shown=progress) as bar, contextlib.closing(batches):
            for _ in plans:
                batch = agreed(lambda: next(batches))
                outputs = evaluation_step(weights, frozen, sharding.shard_batch(batch, self._mesh))
                numbers = np.where(np.asarray(outputs["weight"]) > 0, np.asarray(outputs["utterance"]), -1)
                yield np.asarray(outputs[LOG_PROBS]), np.asarray(outputs["lengths"]), numbers
                bar.update(int((numbers >= 0).sum()))

    def decoded(
        self, decoder: Decoder, log_probs: np.ndarray | jax.Array, lengths: np.ndarray, numbers: np.ndarray
    ) -> list[np.ndarray]:
        """What a decoder makes of a batch, as `log_probs` yields it: the path of each row, int32 `[frames]`."""
        known = np.where(numbers >= 0, numbers, numbers.max())  # a row of nothing is of any task
        tasks = [self.adapters[self.table.source[number]] for number in known]
        phrases = [self.phrases_of(number) for number in known]
        return decoder.paths(log_probs, np.where(numbers >= 0, lengths, 0), tasks, phrases=phrases).paths

    def text_of(self, number: int, path: np.ndarray) -> str:
        """What a path says of an utterance or part, by its number in `table`; see `long_utterances.recognised`."""
        vocabulary = self.table.vocabulary_of(self.adapters[self.table.source[number]])
        return long_utterances.recognised(self.table.utterances[number], path, vocabulary)

    def results_of(self, found: Mapping[int, Recognised]) -> list[UtteranceResult]:
        """The results of what was recognised, by number, in the order of the table.

        Raises:
          UserError: there is nothing.
        """
        whole = self._whole(found)
        if not whole:
            raise UserError(
                f"suite {self.suite.name!r}: none of its utterances could be read; {self._report.summary()}"
            )
        return [self._result(at, whole[at]) for at in sorted(whole)]

    @property
    def _sizes(self) -> dict[str, Any]:
        return {
            "batch_seconds": self._evaluation.batch_seconds,
            "buckets": self._batch.edges,
            "multiple": self._batch.multiple,
        }

    def _batches(self, plans: Sequence[_Plan]) -> Generator[dict[str, np.ndarray], None, None]:
        return eval_batches(
            self.table,
            **self._sizes,
            threads=self._data.threads,
            report=self._report,
            label_capacities=self.label_capacities,
            local_rows=functools.partial(sharding.local_rows, self._mesh),
            plans=plans,
        )

    def base_texts(self, number: int) -> tuple[str | None, str | None]:
        """What `kept` and `kept_greedy` have of an utterance, by its number in `table`; None where nothing."""
        return self.kept.get(self._name(number)), self.kept_greedy.get(self._name(number))

    def keep(self, number: int, text: str, greedy: str | None = None) -> None:
        """Notes what the base recognises in an utterance, and the same by greedy decoding, where `text` is not."""
        self.kept[self._name(number)] = text
        if greedy is not None:
            self.kept_greedy[self._name(number)] = greedy

    def phrases_of(self, number: int) -> tuple[Weighted, ...]:
        """The phrases that the line of an utterance in its manifest has, by its number in `table`."""
        return of_line(self.table.utterances[number].tags)

    def _outputs(self, outputs: Mapping[str, jax.Array], decoder: Decoder | None) -> dict[str, np.ndarray]:
        """What a step gave, with the paths of the decoder in place of those of the step, which become `greedy_*`."""
        found = {name: np.asarray(value) for name, value in outputs.items() if not name.endswith(LOG_PROBS)}
        if decoder is None:
            return found
        numbers = np.where(found["weight"] > 0, found["utterance"], -1)
        for side in ("", "base_"):
            log_probs = outputs.get(f"{side}{LOG_PROBS}")
            # The base writes in its own vocabulary.
            if log_probs is not None and (not side or self.table.symbols is None):
                paths = found[f"{side}greedy_paths"] = found[f"{side}paths"]
                found[f"{side}paths"] = np.zeros_like(paths)
                for row, path in enumerate(self.decoded(decoder, log_probs, found["lengths"], numbers)):
                    found[f"{side}paths"][row, : len(path)] = path
        if "base_paths" in found:
            found.setdefault("base_greedy_paths", found["base_paths"])
        return found

    def _checks_first(self, plans: list[_Plan]) -> tuple[list[_Plan], int]:
        """The batches with few that hold an utterance of every adapter first, and how many these are."""
        missing = {source for source, task in enumerate(self.suite.tasks) if task.adapter_task != BASE_TASK}
        sources = [set(self.table.source[numbers].tolist()) & missing for _, numbers in plans]
        first: list[int] = []
        for at in sorted(range(len(plans)), key=lambda at: -len(sources[at])):
            if missing & sources[at]:
                missing -= sources[at]
                first.append(at)
        chosen = set(first)
        return [plans[at] for at in (*first, *(at for at in range(len(plans)) if at not in chosen))], len(first)

    def _needs_base(self, numbers: np.ndarray, acting: Collection[int]) -> bool:
        """Whether the base runs beside a batch: not all is known of it that is needed."""
        for at in numbers.tolist():
            source = int(self.table.source[at])
            names = {self._name(at), self._name_of_whole(at)}
            if self._has_outputs and names.isdisjoint(self.kept):
                return True
            if source not in acting and self.adapters[source] != BASE_TASK:
                return True
        return False

    def _name(self, at: int) -> tuple[str, str]:
        """The task and the key of an utterance or part, which name it in every table of the suite."""
        return self.suite.tasks[self.table.source[at]].name, long_utterances.name_of(self.table.utterances[at])

    def _name_of_whole(self, at: int) -> tuple[str, str]:
        """As `_name`, of the utterance that the one with this number is a part of, if it is one."""
        return self._name(at)[0], self.table.utterances[at].key

    def _differences(self, found: Mapping[int, Recognised]) -> dict[str, float]:
        differences = {task.name: 0.0 for task in self.suite.tasks}
        for at, row in found.items():
            if row.difference is not None:
                name = self._name(at)[0]
                # Unlike max, this does not lose a NaN.
                differences[name] = float(np.maximum(differences[name], row.difference))
        return differences

    def _bar(self, done: int, *, shown: bool) -> "tqdm[Any]":
        """How far the suite is recognised, for the person who waits for process 0."""
        return tqdm(
            total=len(self.table),
            initial=done,
            desc=f"evaluating {self.suite.name}",
            unit="utterance",
            disable=not shown or jax.process_index() != 0,
        )

    def _beside(self, fresh: dict[int, Recognised], outputs: Mapping[str, np.ndarray]) -> dict[int, Recognised]:
        """What was recognised in a batch, with the differences from what the base makes of it, which is kept."""
        known = self._recognised(outputs, seconds=None)
        return {number: row._replace(difference=known[number].difference) for number, row in fresh.items()}

    def _recognised(self, outputs: Mapping[str, np.ndarray], *, seconds: float | None) -> dict[int, Recognised]:
        """What was recognised in a batch in some seconds, by number of the utterance; what the base did is kept."""
        # A backbone without an output layer of its own recognises nothing that could be compared.
        beside = "base_paths" in outputs and self._has_outputs
        rows = np.flatnonzero((outputs["utterance"] >= 0) & (outputs["weight"] > 0))
        if seconds is not None:
            # The base beside it takes as long; where tasks have vocabularies of their own, it runs once more.
            passes = 1 if "difference" not in outputs else 2 if self.table.symbols is None else 3
            seconds /= passes * max(float(self.table.duration[outputs["utterance"][rows]].sum()), 1e-9)
        found = {}
        for row in rows:
            number, length = int(outputs["utterance"][row]), int(outputs["lengths"][row])
            adapter, utterance = self.adapters[self.table.source[number]], self.table.utterances[number]
            vocabulary = self.table.vocabulary_of(adapter)
            texts = {
                name: long_utterances.recognised(
                    utterance, outputs[name][row, :length], self._base.vocabulary if "base" in name else vocabulary
                )
                for name in ("paths", "greedy_paths", "base_paths", "base_greedy_paths")
                if name in outputs and ("base" not in name or beside)
            }
            for name, kept in (("base_paths", self.kept), ("base_greedy_paths", self.kept_greedy)):
                if name in texts:
                    kept.setdefault(self._name(number), texts[name])
            found[number] = Recognised(
                texts["paths"],
                float(outputs["loss"][row]),
                float(outputs["difference"][row]) if "difference" in outputs else None,
                None if seconds is None else seconds * float(self.table.duration[number]),
                texts.get("greedy_paths"),
            )
        return found

    def _whole(self, found: Mapping[int, Recognised]) -> dict[int, Recognised]:
        """The same with long utterances whole, each under the number of its first part; none that lacks a part."""
        whole = dict(found)
        for parts in self._parts:
            rows = [whole.pop(at) for at in parts if at in whole]
            if len(rows) < len(parts):
                continue
            first, chunks = min(parts), list(parts.values())
            vocabulary = self.table.vocabulary_of(self.adapters[self.table.source[first]])
            text = long_utterances.text_of(chunks, [row.text for row in rows], vocabulary)
            written = [row.greedy for row in rows if row.greedy is not None]
            greedy = long_utterances.text_of(chunks, written, vocabulary) if len(written) == len(parts) else None
            for kept in (self.kept, self.kept_greedy):
                base = [path for at in parts if (path := kept.pop(self._name(at), None)) is not None]
                if len(base) == len(parts):
                    base_text = long_utterances.text_of(chunks, base, self._base.vocabulary)
                    kept.setdefault(self._name_of_whole(first), base_text)
            # The time of a part that a program was compiled for is not known, nor is then that of the whole.
            times = [row.time for row in rows if row.time is not None]
            whole[first] = Recognised(text, math.nan, None, sum(times) if len(times) == len(parts) else None, greedy)
        return whole

    def _result(self, number: int, found: Recognised) -> UtteranceResult:
        task, adapter = self.suite.tasks[self.table.source[number]], self.adapters[self.table.source[number]]
        utterance, name = long_utterances.whole_of(self.table.utterances[number]), self._name_of_whole(number)
        base_text, base_greedy = self.kept.get(name), self.kept_greedy.get(name)
        # `__base__` is the backbone, also beside a fine-tuned one.
        is_base = adapter == BASE_TASK and base_text is not None
        return UtteranceResult(
            task=task.name,
            key=utterance.key,
            text=utterance.text,
            pred_text=base_text if is_base and base_text is not None else found.text,
            base_pred_text=base_text,
            duration=utterance.duration,
            audio_filepath=utterance.audio_filepath,
            offset=utterance.offset,
            time=found.time,
            tags=utterance.tags,
            greedy_text=base_greedy if is_base and base_greedy is not None else found.greedy,
            base_greedy_text=base_greedy,
        )


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
