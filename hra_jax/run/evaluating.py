"""Suites run on systems: each pair once. An evaluation that was stopped, however it ended, goes on where it was.

R/<suite>/<system>/ holds what `evaluation.report` writes; its results.json has a digest of all that it depends on, and
who finds the same digest there does not recognise again. Until then R/<suite>/<system>/unfinished-*.jsonl hold what was
recognised so far, with the digest in their names. The first system is the frozen base: what it recognises stands beside
what every adapter does.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hra_jax.adapters import task_records
from hra_jax.config.keys import group
from hra_jax.data.batching import BatchSettings, bucket_rows
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings
from hra_jax.data.utterance import Utterance
from hra_jax.data.utterance_table import NothingUsable
from hra_jax.decoding.decoder import Decoder
from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import read_predictions
from hra_jax.evaluation.report import is_report_file
from hra_jax.evaluation.results import software_versions
from hra_jax.evaluation.runner import EvaluationSettings, Recognised, SuiteRunner, check_adapter_acts, share_shapes
from hra_jax.evaluation.suites import Suite, data_digest, suite_digest
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import decoders, layout, programs, scoring, unknown_tasks
from hra_jax.run.foundation import Foundation
from hra_jax.run.settings import RunSettings
from hra_jax.run.systems import System, suite_weights
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.storage.files import make_folder, remove_file, write_file
from hra_jax.storage.json_files import COUNT, Kind, read_lines, read_object
from hra_jax.tasks.names import AUTO_TASK, MEAN_TASK, task_file_names
from hra_jax.text.normalization import versioned
from hra_jax.training import sharding
from hra_jax.training.agreement import gather

BUCKETS = (2.0, 4.0, 8.0, 16.0, 20.0)  # seconds; of an evaluation without a run, whose buckets would be taken
_ROWS = 8  # every batch has a multiple of so many: the same batches on 1, 2, 4 and 8 devices
SAVE_SECONDS = 10.0  # between two files of what was recognised so far
_UNFINISHED = "unfinished-"
_ROW: dict[str, Kind] = {"utterance": COUNT, "text": str}


class Setup(NamedTuple):
    """Where suites run, and in which batches: the mesh, and groups of a configuration."""

    mesh: Mesh
    settings: RunSettings
    data: DataSettings
    batch: BatchSettings
    evaluation: EvaluationSettings


def setup_of(config: ConfigDict, *, free: bool) -> Setup:
    """The setup of a configuration; a collective.

    Args:
      config: a validated configuration.
      free: whether buckets and batches are those of no run, and so made for the devices that there are.

    Raises:
      UserError: the mesh or the batches do not fit the devices.
    """
    settings, data, batch, evaluation = (group(config, name) for name in ("", "data", "batch", "eval"))
    mesh = layout.connected_mesh(group(config, "mesh"), multiple=0 if free else batch.multiple)
    if free:
        multiple = math.lcm(_ROWS, sharding.batch_shards(mesh))
        batch = BatchSettings(seconds=batch.seconds, multiple=multiple, max_tasks=batch.max_tasks, buckets=BUCKETS)
        seconds = max(evaluation.batch_seconds, multiple * BUCKETS[-1])
        evaluation = EvaluationSettings(batch_seconds=seconds, bootstrap=evaluation.bootstrap)
    bucket_rows(batch.edges, batch_seconds=evaluation.batch_seconds, multiple=batch.multiple)
    return Setup(mesh, settings, data, batch, evaluation)


def make_runner(
    system: System, suite: Suite, setup: Setup, report: DataReport, *, finds_tasks: bool = False
) -> SuiteRunner:
    """A suite, ready to be run on a system; `finds_tasks`: whether by `run_job`, which finds those of `__auto__`.

    Raises:
      UserError: the suite needs a task that the system does not have, or has no usable utterance.
    """
    tasks = (*system.tasks, AUTO_TASK) if finds_tasks and unknown_tasks.check(suite, system) else system.tasks
    layout.check_fits(suite, system.base, tasks if system.is_adapter else None, system.own)
    try:
        return SuiteRunner(
            suite,
            base=system.base,
            tasks=system.tasks,
            mesh=setup.mesh,
            data=setup.data,
            batch=setup.batch,
            evaluation=setup.evaluation,
            report=report,
            own=system.own,
            trained_seconds=system.trained_seconds,
            set_aside=system.set_aside,
        )
    except NothingUsable as error:
        raise UserError(f"suite {suite.name!r}: {error}; mend the manifest") from error


@functools.lru_cache(maxsize=16)
def _steps(model: Any, mesh: Mesh, blank_id: int, log_probs: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    # Equal models are one program, of adapters of one kind too.
    return programs.evaluation_steps(model, mesh, blank_id=blank_id, log_probs=log_probs)


def steps_of(system: System, setup: Setup, *, log_probs: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The steps of a system: with the base beside it, and without; see `programs.evaluation_steps`."""
    model = programs.model_on(setup.mesh, system.base, system.method, settings=setup.settings)
    return _steps(model, setup.mesh, programs.blank_of(system.base, system.method), log_probs)


def recognise(
    system: System,
    runner: SuiteRunner,
    weights: dict[str, Any],
    frozen: dict[str, Any],
    setup: Setup,
    *,
    decoder: Decoder | None = None,
    **options: Any,
) -> tuple[list[Any], dict[str, float]]:
    """The results of a suite and the differences of `SuiteRunner.run`, which has the same `options`.

    Args:
      system: what is run.
      runner: of the suite, from `make_runner`.
      weights: of the system, from `System.weights`.
      frozen: the weights of the base.
      setup: where it runs.
      decoder: of `decoders.make_decoder`.
    """
    both, alone = steps_of(system, setup, log_probs=decoder is not None)
    chosen = suite_weights(weights, system.averaged or len(system.tasks), runner, setup.mesh)
    options["decoder"] = decoder
    if not system.beside:
        rows, _, differences = runner.run(alone, chosen, chosen, progress=True, **options)
    else:
        # Where the base is still to be recognised, one step does both.
        rows, _, differences = runner.run(
            both, chosen, frozen, alone=alone if runner.kept else None, progress=True, **options
        )
    return rows, differences


# --- What is finished, and what was begun -----------------------------------------------------------------------------


class Job(NamedTuple):
    """A suite on a system, and where its results are."""

    runner: SuiteRunner
    system: System
    output: epath.Path  # R
    name: str  # of the folder in R
    digest: str
    decoder: Decoder | None
    decoding: dict[str, Any]  # as results have it

    @property
    def folder(self) -> epath.Path:
        """R/<suite>/<system>."""
        return self.output / self.name

    def finished(self) -> dict[str, Any] | None:
        """Its results.json, where that is of the same digest; the same in every process."""
        found = None
        if jax.process_index() == 0:
            path = self.folder / "results.json"
            if path.exists():
                try:
                    found = read_object(path, {"digest": str, "tasks": dict})
                except UserError:
                    found = None  # half of something, or of another version
        found = gather(found)[0]
        return found if found is not None and found["digest"] == self.digest else None


def job(
    system: System,
    runner: SuiteRunner,
    setup: Setup,
    output: epath.Path,
    base: Foundation,
    decoder: Decoder | None = None,
) -> Job:
    """A suite on a system whose results go to `output`; `base` is what stands beside it."""
    decoding = decoders.facts_of(decoder, runner)
    found = decoding if decoder is None else decoding | {"content": decoder.digest}
    facts = {
        "suite": suite_digest(runner.suite),
        "data": data_digest(runner.suite),
        "system": system.digest,
        "backbone": base.fingerprint,
        "dtype": str(compute_dtype(setup.settings.backbone_dtype)),
        "decoding": {**found, "most_seconds": setup.batch.edges[-1]}
        | ({"chunk_seconds": runner.chunk_seconds} if runner.chunk_seconds else {}),
        "normalizer": versioned(runner.suite.normalizer),
        "bootstrap": setup.evaluation.bootstrap,
        "versions": software_versions(),
    }
    if unknown_tasks.check(runner.suite, system):
        facts["voices"] = hashlib.sha256(task_records.to_bytes(system.voices) or b"").hexdigest()
    return Job(
        runner,
        system,
        output,
        f"{runner.suite.name}/{system.name}",
        sha256_of_json(facts),
        decoder,
        decoding,
    )


class Unfinished:
    """What was recognised of a job so far, in files of process 0.

    Args:
      job: the job.
    """

    def __init__(self, job: Job):
        self._folder, self._runner = job.folder, job.runner
        self._prefix = f"{_UNFINISHED}{job.digest[:16]}-"
        self._fresh: dict[int, Recognised] = {}
        self._files, self._saved = 0, time.monotonic()

    def read(self) -> dict[int, Recognised]:
        """What there is, the same in every process; what is of other weights or of another suite is removed."""
        lines: list[dict[str, Any]] = []
        if jax.process_index() == 0 and self._folder.is_dir():
            for path in sorted(self._folder.glob(f"{_UNFINISHED}*.jsonl")):
                if not path.name.startswith(self._prefix):
                    remove_file(path)
                    continue
                self._files = max(self._files, int(path.name[len(self._prefix) : -len(".jsonl")]) + 1)
                # What is damaged is recognised again.
                with contextlib.suppress(UserError):
                    lines += [row for _, row in read_lines(path, _ROW, what="what was recognised so far")]
        found = {}
        for row in gather(lines)[0]:
            difference = row.get("difference")
            found[row["utterance"]] = Recognised(
                row["text"],
                math.nan,
                None if difference is None else float(difference),
                row.get("time"),
                row.get("greedy"),
            )
            if row.get("base") is not None:
                self._runner.keep(row["utterance"], row["base"], row.get("base_greedy"))
        return found

    def add(self, fresh: Mapping[int, Recognised]) -> None:
        """Notes what came of a batch; now and then it is written."""
        if jax.process_index() == 0:
            self._fresh |= fresh
            if time.monotonic() - self._saved >= SAVE_SECONDS:
                self._write()

    def _write(self) -> None:
        lines = []
        for number, row in self._fresh.items():
            base, base_greedy = self._runner.base_texts(number)
            # JSON has no NaN.
            difference = None if row.difference is None else str(row.difference)
            found = {"utterance": number, "text": row.text, "difference": difference, "base": base, "time": row.time}
            greedy = {"greedy": row.greedy, "base_greedy": base_greedy}
            lines.append(found | {name: text for name, text in greedy.items() if text is not None})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        make_folder(self._folder)
        write_file(self._folder / f"{self._prefix}{self._files:06d}.jsonl", text)
        self._files, self._saved = self._files + 1, time.monotonic()
        self._fresh.clear()


def is_written(name: str) -> bool:
    """Whether a file of R/<suite>/<system> is of an evaluation, finished or not, by its name."""
    return is_report_file(name) or re.fullmatch(rf"{_UNFINISHED}[0-9a-f]{{16}}-\d+\.jsonl", name) is not None


class BaseTexts(NamedTuple):
    """What the base recognises, by task and key of the utterance.

    Attributes:
      texts: as it is decoded.
      greedy: the same by greedy decoding, where that is something else.
      decoding: how it is decoded, as results have it.
    """

    texts: dict[tuple[str, str], str]
    greedy: dict[tuple[str, str], str]
    decoding: dict[str, Any]


NO_TEXTS = BaseTexts({}, {}, {})


def run_job(
    job: Job,
    setup: Setup,
    *,
    weights: Callable[[], dict[str, Any]],
    frozen: Callable[[], dict[str, Any]],
    kept: BaseTexts,
    report: DataReport,
    command: str = "",
    printed: bool = True,
    training: Sequence[Sequence[Utterance]] | None = None,
) -> dict[str, Any]:
    """The results of a job; what is finished is not run again. A collective.

    Args:
      job: a suite on a system.
      setup: where it runs.
      weights: gives those of the system, where they are needed.
      frozen: gives those of the base.
      kept: what the base recognises, `NO_TEXTS` for the base itself.
      report: where unusable data goes.
      command: what repeats it, for the report.
      printed: whether its table is printed.
      training: what the system was trained on, by source, where it is at hand.

    Returns:
      As in results.json. Its "error", where it has one, is for the end of the evaluation.

    Raises:
      UserError: no task of the suite could be scored.
    """
    done = job.finished()
    if done is not None:
        return done
    if kept.decoding == job.decoding:
        job.runner.kept.update(kept.texts)
        job.runner.kept_greedy.update(kept.greedy)
    if unknown_tasks.check(job.runner.suite, job.system):
        rows, differences, auto = _recognise_unknown(job, setup, weights(), frozen(), report)
    else:
        store, auto = Unfinished(job), {}
        rows, differences = recognise(
            job.system, job.runner, weights(), frozen(), setup, decoder=job.decoder, done=store.read(), after=store.add
        )
    error = None
    if job.system.beside:
        scored = {row.task for row in rows}
        try:
            check_adapter_acts(
                job.runner.suite, {name: differences[name] for name in scored}, idle=idle_of(job.system, job.runner)
            )
        except UserError as found:
            error = str(found)
    return scoring.write_scores(
        rows,
        job.runner.suite,
        report,
        root=job.output,
        name=job.name,
        accounting=job.system.accounting,
        facts=job.system.facts | {"digest": job.digest, "error": error} | ({"auto": auto} if auto else {}),
        bootstrap=setup.evaluation.bootstrap,
        untrained=job.system.untrained,
        decoding=job.decoding,
        rewritten=is_written,
        command=command,
        printed=printed,
        training=training,
    )


def _recognise_unknown(
    job: Job, setup: Setup, weights: dict[str, Any], frozen: dict[str, Any], report: DataReport
) -> tuple[list[Any], dict[str, float], dict[str, Any]]:
    """As `recognise`, of a suite with tasks that are still to be found; and what results.json says of them."""
    dtype = setup.settings.backbone_dtype
    expanded = unknown_tasks.expand(job.runner.suite, job.system, weights, frozen, dtype=dtype, report=report)
    runner = make_runner(job.system, expanded.suite, setup, report)
    share_shapes(runner, job.runner)
    runner.kept = unknown_tasks.kept_of(expanded, job.runner.kept)
    runner.kept_greedy = unknown_tasks.kept_of(expanded, job.runner.kept_greedy)
    rows, differences = recognise(job.system, runner, weights, frozen, setup, decoder=job.decoder)
    return unknown_tasks.given_back(rows, differences, expanded)


def idle_of(system: System, runner: SuiteRunner) -> tuple[str, ...]:
    """The adapter tasks of a suite that cannot act yet."""
    mean = runner.needs_mean and len(system.idle) == len(system.tasks)
    # What is found may be the base.
    return (*system.idle, AUTO_TASK, MEAN_TASK) if mean else (*system.idle, AUTO_TASK)


def texts_of(job: Job, results: Mapping[str, Any]) -> BaseTexts:
    """What a finished job of the base recognised; the same in every process."""
    lines: list[list[str | None]] = []
    if jax.process_index() == 0:
        for task, file in task_file_names(results["tasks"]).items():
            found = read_predictions(job.folder / f"predictions_{file}.jsonl")
            lines += [[task, line.row.key, line.row.pred_text, line.row.greedy_text] for line in found]
    told = gather(lines)[0]
    return BaseTexts(
        {(task, key): text for task, key, text, _ in told},
        {(task, key): greedy for task, key, _, greedy in told if greedy is not None},
        job.decoding,
    )
