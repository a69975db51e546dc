"""The second stage of a run: everything that is known before anything is on a device, checked."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from hra_jax.adapters import initial, methods
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.data import groups
from hra_jax.data.batching import BatchSettings, bucket_rows
from hra_jax.data.mixtures import check_sources
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings
from hra_jax.data.utterance_table import NothingUsable, UtteranceTable, lost_line
from hra_jax.errors import UserError
from hra_jax.evaluation import suites
from hra_jax.evaluation.runner import EvaluationSettings, SuiteRunner, share_shapes
from hra_jax.models import augmentation
from hra_jax.models.augmentation import AugmentConfig
from hra_jax.run import programs
from hra_jax.run.foundation import Foundation
from hra_jax.run.read import Material
from hra_jax.run.settings import RunSettings
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import BlankVocabulary
from hra_jax.training import agreement, sharding, train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.sharding import MeshSettings


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run lies on its devices, and what it runs there.

    Attributes:
      mesh: the device mesh.
      method: the adaptation method.
      table: the usable training utterances.
      parts: what the mixture of its utterances draws from; () where tasks are drawn in turn.
      tasks: names of the bank's rows; () for full and pretrain.
      programs: what is compiled, with the shapes and shardings of its arguments.
      accounting: parameter counts, as `train_state.accounting` gives them.
      test, select: the suites, ready to run.
    """

    mesh: Mesh
    method: Adapter
    table: UtteranceTable
    parts: tuple[groups.Part, ...]
    tasks: tuple[str, ...]
    programs: programs.Programs
    accounting: dict[str, int]
    test: SuiteRunner | None
    select: SuiteRunner | None


def open_mesh(mesh: MeshSettings, *, multiple: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration, checked against its batches.

    Args:
      mesh: the group `mesh` of a validated configuration.
      multiple: `batch.multiple`.
      devices: all of the processes' if None.

    Raises:
      UserError: the mesh does not fit the devices, or `batch.multiple` the mesh.
    """
    found = sharding.make_mesh(mesh.data, mesh.fsdp, tensor=mesh.tensor, slices=mesh.slices, devices=devices)
    sharding.check_batch_multiple(found, multiple)
    return found


def connected_mesh(mesh: MeshSettings, *, multiple: int) -> Mesh:
    """As `open_mesh`, over all devices of all processes, which open their connections; a collective."""
    found = open_mesh(mesh, multiple=multiple)
    sharding.connect(found)
    return found


def check_rows(batch: BatchSettings, shards: int, *, accumulate: int, evaluation: EvaluationSettings) -> None:
    """Checks that every bucket has rows, in training and in evaluation, and that `accumulate` divides them.

    Where the buckets are still to be found, there is nothing to check.

    Args:
      batch, evaluation: groups of a validated configuration.
      shards: parts that the mesh splits the rows of a batch into.
      accumulate: parts in which the gradient of a batch is computed.

    Raises:
      UserError: a bucket has no rows, or `accumulate` does not divide those of one device.
    """
    if isinstance(batch.buckets, int):
        return
    rows = bucket_rows(batch.edges, batch_seconds=batch.seconds, multiple=batch.multiple)
    for seconds, count in zip(batch.edges, rows, strict=True):
        if count // shards % accumulate:
            each = f" on each of {shards} devices" if shards > 1 else ""
            raise UserError(
                f"accumulate = {accumulate}: must divide the {count // shards} rows of the {seconds:g} s "
                f"bucket{each}; change batch.seconds or batch.multiple"
            )
    if evaluation.suite or evaluation.select_suite:
        bucket_rows(batch.edges, batch_seconds=evaluation.batch_seconds, multiple=batch.multiple)


def adapter_method(
    settings: RunSettings, adapter: AdapterSettings, *, own: Mapping[str, Any], output_size: int = 0
) -> Adapter:
    """The adaptation method of a configuration; the identity unless `method='adapter'`.

    Args:
      settings, adapter: top-level keys and group `adapter` of a validated configuration.
      own: the settings that the method alone has, from `methods.own_settings`.
      output_size: outputs that hold every vocabulary, where tasks have their own.
    """
    return methods.from_config(adapter, own, output_size=output_size) if settings.method == "adapter" else Adapter()


def lay_out(
    material: Material,
    mesh: Mesh,
    *,
    settings: RunSettings,
    adapter: AdapterSettings,
    own: Mapping[str, Any],
    data: DataSettings,
    batch: BatchSettings,
    augment: AugmentConfig,
    optimizer: OptimizerConfig,
    evaluation: EvaluationSettings,
    report: DataReport,
) -> Layout:
    """Lays out what has been read; a collective.

    Args:
      material: from `read.read_material`.
      mesh: from `open_mesh`.
      own: the settings that the method of adaptation alone has, from `methods.own_settings`.
      settings, adapter, data, batch, augment, optimizer, evaluation: top-level keys and groups of a validated
        configuration.
      report: where unusable data goes.

    Raises:
      UserError: what has been read does not fit the configuration, or differs between processes.
    """
    base = material.base
    check_has_outputs(base, method=settings.method, output=adapter.output)
    augmentation.check(augment, base.features)
    method = adapter_method(settings, adapter, own=own, output_size=material.own.size if material.own else 0)
    if settings.method == "adapter":
        methods.check(method, base.encoder)
    if material.start is not None:
        initial.check_start(material.start, method, folder=material.start_folder)
    table = _table(material, adapted=settings.method == "adapter", data=data, batch=batch, report=report)
    test, select = _runners(material, table, mesh=mesh, data=data, batch=batch, evaluation=evaluation, report=report)
    mixed: tuple[groups.Part, ...] = ()
    if data.draw == "tasks":
        check_sources(table.specs())  # nothing is mixed, and nobody else would miss one
    else:
        mixed = groups.parts_of(table, temperature=data.temperature, cap_rows=data.cap_rows, groups=data.groups)
    scored = {f"suite {runner.suite.name!r}": runner.digest for runner in (test, select) if runner}
    heard = {f"augment.{kind}": hashlib.sha256(rows.tobytes()).hexdigest() for kind, rows in material.sounds.items()}
    read = {"backbone": base.fingerprint, "training data": table.digest(), "mixture": groups.digest(mixed)}
    agreement.check_agreement(read | scored | heard)
    laid_out = programs.lay_out_programs(
        base,
        method,
        mesh=mesh,
        tasks=len(table.task_names),
        settings=settings,
        adapter=adapter,
        max_tasks=batch.max_tasks,
        augment=augment,
        optimizer=optimizer,
    )
    accounting = train_state.accounting(
        laid_out.weights,
        len(table.task_names),
        train_state.count(base.shapes()),
        train=programs.trained_part(settings, adapter),
        learning=len(table.learning),
    )
    return Layout(mesh, method, table, mixed, table.task_names, laid_out, accounting, test, select)


def check_has_outputs(base: Foundation, *, method: str, output: str) -> None:
    """Refuses, with a UserError, to train in the vocabulary of a backbone that has none but the blank."""
    if isinstance(base.vocabulary, BlankVocabulary) and (method != "adapter" or output not in OWN_VOCABULARIES):
        what = f"adapter.output = {output!r}" if method == "adapter" else f"method = {method!r}"
        raise UserError(
            f"{what}: the backbone {base.name!r} has no output layer of its own; allowed: method 'adapter' with "
            f"adapter.output {', '.join(OWN_VOCABULARIES)}"
        )


def _table(
    material: Material, *, adapted: bool, data: DataSettings, batch: BatchSettings, report: DataReport
) -> UtteranceTable:
    """The usable training utterances, and the tasks of those where there is an adapter."""
    base, start = material.base, material.start
    return UtteranceTable(
        material.sources,
        vocabulary=base.vocabulary,
        normalizer=data.text_normalizer,
        task_tag=data.task_tag if adapted else "",
        tasks=data.tasks if adapted else (),
        first_tasks=() if start is None else tuple(start.tasks),
        output_length=base.output_length,
        sample_rate=base.features.sample_rate,
        max_seconds=data.max_seconds or batch.edges[-1],
        report=report,
        own=material.own,
    )


def _runners(
    material: Material,
    table: UtteranceTable,
    *,
    mesh: Mesh,
    data: DataSettings,
    batch: BatchSettings,
    evaluation: EvaluationSettings,
    report: DataReport,
) -> tuple[SuiteRunner | None, SuiteRunner | None]:
    """The runners of the test suite and of the selection suite, which share no utterance with each other."""
    test, select = (
        _runner(suite, material, table, key, mesh=mesh, data=data, batch=batch, evaluation=evaluation, report=report)
        if suite
        else None
        for suite, key in ((material.test, "eval.suite"), (material.select, "eval.select_suite"))
    )
    if test and select:
        suites.check_disjoint(
            test.suite.utterances, select.suite.utterances, suite=test.suite.name, other=select.suite.name
        )
        share_shapes(test, select)
    return test, select


def _runner(
    suite: suites.Suite,
    material: Material,
    table: UtteranceTable,
    key: str,
    *,
    mesh: Mesh,
    data: DataSettings,
    batch: BatchSettings,
    evaluation: EvaluationSettings,
    report: DataReport,
) -> SuiteRunner:
    """The runner of a suite that goes with the training data and the tasks; `key` names the suite."""
    base, own, tasks = material.base, material.own, table.task_names
    if tasks:
        for task in suite.tasks:
            if task.adapter_task in table.lost and task.adapter_task not in tasks:
                told = lost_line(task.adapter_task, table.lost[task.adapter_task])
                raise UserError(f"{told}; mend the manifest: suite {suite.name!r} needs the adapter")
    check_fits(suite, base, tasks or None, own)
    suites.check_disjoint(suite.utterances, table.utterances, suite=suite.name)
    settings: dict[str, Any] = {"mesh": mesh, "data": data, "batch": batch, "evaluation": evaluation, "own": own}
    try:
        return SuiteRunner(suite, base=base, tasks=tasks, report=report, trained_seconds=table.max_seconds, **settings)
    except NothingUsable as error:
        raise UserError(
            f"suite {suite.name!r}: {error}; mend the manifest, or train without the suite: --config.{key}="
        ) from error


def check_fits(suite: suites.Suite, base: Foundation, tasks: Sequence[str] | None, own: OwnVocabularies | None) -> None:
    """Checks that a suite can be recognised.

    Args:
      suite: what is to be scored.
      base: what the encoder is built on.
      tasks: of the adapter; None where there is no adapter, and every task of the suite is one of the backbone.
      own: the vocabularies of tasks that have their own, or None.

    Raises:
      UserError: an adapter task that does not exist, or one that has no outputs.
    """
    if tasks is not None:
        suites.check_adapter_tasks(suite, tasks)
    if own and own.shared is None and any(task.adapter_task == MEAN_TASK for task in suite.tasks):
        raise UserError(
            f"suite {suite.name!r}: tasks with vocabularies of their own have no mean; allowed: a task or __base__"
        )
    if isinstance(base.vocabulary, BlankVocabulary) and any(t.adapter_task == BASE_TASK for t in suite.tasks):
        raise UserError(
            f"suite {suite.name!r} has a task {BASE_TASK!r}, but the backbone {base.name!r} has no output layer of its "
            "own; allowed: tasks of the adapter"
        )
