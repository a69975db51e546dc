"""A run laid out from its configuration: data, backbone, state on the mesh, compiled steps, suites.

Training and evaluation start from the same layout. Whatever is wrong with a configuration or its data fails here,
before anything is compiled.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from hra_jax import build
from hra_jax.data import batching, synthesize
from hra_jax.data.report import DataReport
from hra_jax.data.table import TableSource, UtteranceTable, read_sources
from hra_jax.data.text import normalize_text
from hra_jax.errors import UserError
from hra_jax.evaluation import report as reports
from hra_jax.evaluation import runner as running
from hra_jax.evaluation import suites
from hra_jax.training import placement, sharding
from hra_jax.training import state as states
from hra_jax.training import step as steps
from hra_jax.training.checkpoints import Checkpoints

DATA_REPORT = "data_report.json"  # in the work directory


@dataclasses.dataclass
class Run:
    """Everything that a run is made of, before its first step."""

    config: Any
    workdir: epath.Path
    report: DataReport
    base: build.Foundation
    table: UtteranceTable
    tasks: tuple[str, ...]  # names of the bank's rows; () for full and pretrain
    mesh: jax.sharding.Mesh
    state: states.TrainState
    frozen: Any  # backbone weights on the device; None where the backbone itself is trained
    accounting: dict
    train_step: Any
    evaluation_step: Any
    select: running.SuiteRunner | None
    test: running.SuiteRunner | None

    @property
    def fingerprint(self) -> dict:
        """What a checkpoint and this run must agree on."""
        return {"method": self.config.method, "backbone": self.base.fingerprint, "tasks": list(self.tasks)}

    def checkpoints(self, *, read_only: bool = False) -> Checkpoints:
        """Opens W/checkpoints; `read_only` is for who looks on while a run may be writing."""
        settings = self.config.checkpoint
        return Checkpoints(
            self.workdir / "checkpoints",
            keep_latest=settings.keep_latest,
            keep_best=settings.keep_best,
            every_steps=settings.every_steps,
            fingerprint=self.fingerprint,
            read_only=read_only,
        )


@contextlib.contextmanager
def data_report(config, workdir, *, keep: bool) -> Iterator[DataReport]:
    """The report of unusable data, in W/data_report.json also when a user's error ends the run.

    Args:
      config: a validated configuration.
      workdir: the work directory, which must be there.
      keep: whether what the file names already stays in it.
    """
    path = epath.Path(workdir) / DATA_REPORT
    report = DataReport(strict=config.data.strict)
    if keep and path.exists():
        report.merge(json.loads(path.read_text()))
    try:
        yield report
    except UserError:
        # The full disk that may be the error is not worth a second one.
        with contextlib.suppress(OSError):
            if jax.process_index() == 0:
                report.write(path)
        raise


def prepare(config, workdir, report: DataReport, *, suite_dir: str | None = None) -> Run:
    """Reads data and backbone, and lays out state and mesh.

    Args:
      config: a validated configuration.
      workdir: the work directory.
      report: where unusable data goes.
      suite_dir: what `{dir}` in the manifests of suites stands for; None means `data.dir`.

    Raises:
      UserError: anything that is wrong with the configuration, the data or the backbone.
    """
    workdir = epath.Path(workdir)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, tensor=config.mesh.tensor, slices=config.mesh.slices)
    sharding.check_batch_multiple(mesh, config.batch.multiple)
    _check_rows(config, sharding.batch_shards(mesh))
    if config.data.synthetic:
        if not config.data.dir:
            raise UserError(f"data.synthetic = {config.data.synthetic!r} needs data.dir, the folder to render into")
        synthesize.render(config.data.synthetic, config.data.dir)
    sources = _sources(config, report)
    base = build.foundation(config, _texts(config, sources) if config.method == "pretrain" else ())
    table = UtteranceTable(
        sources,
        vocabulary=base.vocabulary,
        normalizer=config.data.normalizer,
        task_tag=config.data.task_tag if config.method == "adapter" else "",
        tasks=config.data.tasks if config.method == "adapter" else (),
        output_length=base.output_length,
        sample_rate=base.features.sample_rate,
        max_seconds=config.data.max_seconds or config.batch.buckets[-1],
        report=report,
    )
    tasks = table.task_names
    test, select = (
        _suite(config, name, suite_dir, base, table, tasks, mesh, report)
        for name in (config.eval.suite, config.eval.select_suite)
    )
    if test and select:
        suites.check_disjoint(
            test.suite.utterances, select.suite.utterances, suite=test.suite.name, other=select.suite.name
        )
        running.share_shapes(test, select)
    model = build.model(config, base, constrain=_Constraint(mesh))
    state, frozen, accounting = _place(config, base, tasks, mesh)
    train_step = steps.make_train_step(
        model,
        build.optimizer_settings(config),
        blank_id=base.vocabulary.blank_id,
        seed=config.seed,
        max_tasks=min(config.batch.max_tasks, max(len(tasks), 1)),
        accumulate=config.accumulate,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Run(
        config=config,
        workdir=workdir,
        report=report,
        base=base,
        table=table,
        tasks=tasks,
        mesh=mesh,
        state=state,
        frozen=frozen,
        accounting=accounting,
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))),
        evaluation_step=jax.jit(
            steps.make_evaluation_step(model, blank_id=base.vocabulary.blank_id),
            out_shardings=sharding.replicated(mesh),
        ),
        select=select,
        test=test,
    )


def _check_rows(config, shards: int) -> None:
    """Checks that every bucket has rows, in training and in evaluation, and that `accumulate` divides them."""
    batch = config.batch
    rows = batching.bucket_rows(batch.buckets, batch_seconds=batch.seconds, multiple=batch.multiple)
    for seconds, count in zip(batch.buckets, rows, strict=True):
        if count // shards % config.accumulate:
            each = f" on each of {shards} devices" if shards > 1 else ""
            raise UserError(
                f"accumulate = {config.accumulate}: must divide the {count // shards} rows of the {seconds:g} s "
                f"bucket{each}; change batch.seconds or batch.multiple"
            )
    if config.eval.suite or config.eval.select_suite:
        batching.bucket_rows(batch.buckets, batch_seconds=config.eval.batch_seconds, multiple=batch.multiple)


def _sources(config, report) -> list[TableSource]:
    """The training manifests, read."""
    entries = []
    for name, manifest, rate in config.data.sources:
        if "{dir}" in manifest and not config.data.dir:
            raise UserError(f"data.sources: the manifest {manifest!r} needs data.dir, which is ''")
        entries.append((name, manifest.replace("{dir}", config.data.dir), rate))
    if not entries:
        raise UserError("data.sources = (): allowed is at least one (name, manifest, rate)")
    return read_sources(entries, report=report)


def _texts(config, sources) -> list[str]:
    """The normalised training texts."""
    return [normalize_text(row.text, config.data.normalizer) for source in sources for row in source.utterances]


@dataclasses.dataclass(frozen=True)
class _Constraint:
    """Pins `[B, T, D]` activations to the mesh at block boundaries; hashable, so that equal models are one program."""

    mesh: Any

    def __call__(self, x):
        return sharding.constrain(x, self.mesh, ("batch", "time", "embed"))


def _suite(config, name: str, suite_dir, base, table, tasks, mesh, report) -> running.SuiteRunner | None:
    if not name:
        return None
    suite = suites.load_suite(name, data_dir=config.data.dir if suite_dir is None else suite_dir, report=report)
    if tasks:
        suites.check_adapter_tasks(suite, tasks)
    suites.check_disjoint(suite.utterances, table.utterances, suite=suite.name)
    return running.SuiteRunner(suite, base=base, tasks=tasks, config=config, mesh=mesh, report=report)


def _place(config, base, tasks, mesh):
    """The initial state and the frozen weights on the mesh, and the accounting."""
    shardings = placement.backbone_shardings(mesh, base.features, base.encoder)
    if config.method == "adapter":
        trainable = states.init_trainable(
            build.adapter_method(config), jax.random.key(config.seed), base.encoder, len(tasks)
        )
        dtype = build.compute_dtype(config)
        frozen = jax.tree.map(lambda leaf, place: jax.device_put(leaf.astype(dtype), place), base.params, shardings)
        backbone_parameters = states.count(base.params)
    else:
        weights = base.params if config.method == "full" else build.random_backbone(base, config.seed)
        trainable = {"backbone": jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)}
        frozen, backbone_parameters = None, states.count(weights)
    state = states.create(trainable, build.optimizer_settings(config))
    state = jax.device_put(state, placement.state_shardings(mesh, state, base.features, base.encoder))
    return state, frozen, states.accounting(trainable, len(tasks), backbone_parameters)


def base_weights(run: Run):
    """The weights that results are compared with: the frozen backbone, or its folder read again."""
    if run.frozen is not None:
        return run.frozen
    if run.config.method == "pretrain":
        return run.state.trainable["backbone"]
    dtype = build.compute_dtype(run.config)
    shardings = placement.backbone_shardings(run.mesh, run.base.features, run.base.encoder)
    return jax.tree.map(lambda leaf, place: jax.device_put(leaf.astype(dtype), place), run.base.params, shardings)


def accounting(run: Run) -> dict:
    """Parameter counts and the backbone's fingerprint, as results and exports hold them."""
    numbers = {name: value for name, value in run.accounting.items() if name != "tasks"}
    return numbers | {"backbone_fingerprint": run.base.fingerprint}


def score(run: Run, trainable: dict, step: int) -> dict:
    """Scores the test suite, writes W/eval/<suite>/ and prints the table.

    Args:
      run: the run; it must have a test suite.
      trainable: what is scored.
      step: the step that it comes from.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: the adapter of a task does nothing. The report is written before that is raised.
    """
    method, suite = run.config.method, run.test.suite
    base = trainable["backbone"] if method == "pretrain" else base_weights(run)
    rows, _, differences = run.test.run(run.evaluation_step, trainable, base, progress=True)
    if method == "pretrain":
        # There is no base beside it: it is the base.
        rows = [dataclasses.replace(row, base_hypothesis=None) for row in rows]
    # Too long or unreadable ones are in the data report; here is how many the rates leave out.
    unscored = len(suite.utterances) - len(rows)
    facts = {"step": step, "seed": run.config.seed, "method": method, "utterances_not_scored": unscored}
    results = reports.evaluate_results(
        rows, suite, accounting=accounting(run), bootstrap=run.config.eval.bootstrap, run=facts
    )
    if jax.process_index() == 0:
        reports.write_report(run.workdir / "eval" / suite.name, results, rows)
        reports.print_table(results)
        if unscored:
            print(f"{unscored} of {len(suite.utterances)} utterances were not scored; see {DATA_REPORT}", flush=True)
        run.report.write(run.workdir / DATA_REPORT)
    if method != "pretrain":
        running.check_adapter_acts(suite, differences)
    return results
