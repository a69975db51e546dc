"""A run laid out from its configuration: data, backbone, state on the mesh, compiled steps, suites.

Training and evaluation start from the same layout. Whatever is wrong with a configuration or its data fails here,
before anything is compiled.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.config.files import config_to_json
from hra_jax.config.keys import OWN_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.data import synthesize
from hra_jax.data.report import DataReport
from hra_jax.data.table import TableSource, UtteranceTable, own_vocabularies, read_sources
from hra_jax.errors import UserError
from hra_jax.evaluation import suites
from hra_jax.evaluation.report import evaluate_results, print_table, write_report
from hra_jax.evaluation.runner import SuiteRunner, check_adapter_acts, share_shapes
from hra_jax.models import backbone_folder
from hra_jax.run import build, processes, programs
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK
from hra_jax.text.normalization import normalize_text
from hra_jax.text.task_vocabularies import OwnVocabularies, stored_vocabularies
from hra_jax.text.vocabularies import BlankVocabulary
from hra_jax.training import flops, placement, sharding, task_bank, train_state
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
    state: train_state.TrainState
    bank: task_bank.NoBank
    frozen: Any  # backbone weights on the device; None where the backbone itself is trained
    accounting: dict
    start: adapter_folder.ExportedAdapter | None  # what the adapter starts from
    own: OwnVocabularies | None  # of tasks that do not write in the backbone's vocabulary
    method: Adapter
    evaluation_step: Any
    counted: flops.CountedStep
    select: SuiteRunner | None
    test: SuiteRunner | None
    best: dict = dataclasses.field(default_factory=dict)  # best so far on `select`: macro, by task, by row
    best_rows: task_bank.BestRows = dataclasses.field(default_factory=task_bank.BestRows)

    @property
    def fingerprint(self) -> dict:
        """What a checkpoint and this run must agree on."""
        facts = {"method": self.config.method, "backbone": self.base.fingerprint, "tasks": list(self.tasks)}
        if self.start is not None:
            facts["start"] = initial.content_hash(self.config.adapter.start)
        if self.own is not None:
            # They are made from texts, and an edited text would give the outputs other meanings.
            facts["vocabularies"] = self.own.facts(self.tasks)
        return facts

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


def write_data_report(run: Run) -> None:
    """Writes W/data_report.json with what all processes have found; all of them must call it, and process 0 writes."""
    for content in processes.gather(run.report.news()):
        run.report.merge(content)
    if jax.process_index() == 0:
        run.report.write(run.workdir / DATA_REPORT)


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
    processes.check_agreement(
        {
            "version of jax": jax.__version__,
            "work directory": str(workdir),
            "configuration": hashlib.sha256(config_to_json(config).encode()).hexdigest(),
        }
    )
    build.check_has_weights(config)
    mesh = programs.mesh_of(config)
    sharding.connect(mesh)
    programs.check_rows(config, sharding.batch_shards(mesh))
    if config.data.synthetic:
        if not config.data.dir:
            raise UserError(f"data.synthetic = {config.data.synthetic!r} needs data.dir, the folder to render into")
        _render(config)
    sources = _sources(config, report)
    base = build.foundation(config, _texts(config, sources) if config.method == "pretrain" else ())
    start = _start(config, base)
    build.check_has_outputs(config, base)
    build.check_augmentation(config, base)
    own = _own_vocabularies(config, base, sources, start)
    method = build.adapter_method(config, output_size=own.size if own else 0)
    if config.method == "adapter":
        methods.check(method, base.encoder)
    if start is not None:
        initial.check_start(start, method, folder=config.adapter.start)
    table = UtteranceTable(
        sources,
        vocabulary=base.vocabulary,
        normalizer=config.data.normalizer,
        task_tag=config.data.task_tag if config.method == "adapter" else "",
        tasks=config.data.tasks if config.method == "adapter" else (),
        first_tasks=() if start is None else tuple(start.tasks),
        output_length=base.output_length,
        sample_rate=base.features.sample_rate,
        max_seconds=config.data.max_seconds or config.batch.buckets[-1],
        report=report,
        own=own,
    )
    tasks = table.task_names
    test, select = (
        _suite(config, name, suite_dir, base, table, tasks, own, mesh, report)
        for name in (config.eval.suite, config.eval.select_suite)
    )
    if test and select:
        suites.check_disjoint(
            test.suite.utterances, select.suite.utterances, suite=test.suite.name, other=select.suite.name
        )
        share_shapes(test, select)
    scored = {f"suite {runner.suite.name!r}": runner.digest for runner in (test, select) if runner}
    processes.check_agreement({"backbone": base.fingerprint, "training data": table.digest()} | scored)
    weights, given = _initial_weights(config, base, method, tasks, start, mesh)
    laid_out = programs.lay_out(config, base, method, mesh, weights)
    state, bank = _placed(config, base, method, laid_out, tasks, mesh, weights)
    bank.touch(given)
    backbone_parameters = train_state.count(weights["backbone"] if base.files is None else base.files.abstract)
    return Run(
        config=config,
        workdir=workdir,
        report=report,
        base=base,
        table=table,
        tasks=tasks,
        mesh=mesh,
        state=state,
        bank=bank,
        frozen=_frozen(config, base, mesh) if config.method == "adapter" else None,
        accounting=train_state.accounting(
            weights, len(tasks), backbone_parameters, train=programs.trained_part(config), learning=len(table.learning)
        ),
        start=start,
        own=own,
        method=method,
        evaluation_step=laid_out.evaluation,
        counted=flops.CountedStep(laid_out.counted),
        select=select,
        test=test,
    )


def _render(config) -> None:
    """Renders the synthetic set, once: process 0 does, and the others wait. Where they see other disks, each does."""
    if jax.process_index() == 0:
        synthesize.render(config.data.synthetic, config.data.dir)
    processes.barrier("synthetic data")
    synthesize.render(config.data.synthetic, config.data.dir, progress=False)


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


def _suite(config, name: str, suite_dir, base, table, tasks, own, mesh, report) -> SuiteRunner | None:
    if not name:
        return None
    suite = suites.load_suite(name, data_dir=config.data.dir if suite_dir is None else suite_dir, report=report)
    if tasks:
        suites.check_adapter_tasks(suite, tasks)
    if own and own.shared is None and any(task.adapter_task == MEAN_TASK for task in suite.tasks):
        raise UserError(
            f"suite {name!r}: tasks with vocabularies of their own have no mean; allowed: a task or __base__"
        )
    if isinstance(base.vocabulary, BlankVocabulary) and any(t.adapter_task == BASE_TASK for t in suite.tasks):
        raise UserError(
            f"suite {name!r} has a task {BASE_TASK!r}, but the backbone {base.name!r} has no output layer of its own; "
            "allowed: tasks of the adapter"
        )
    suites.check_disjoint(suite.utterances, table.utterances, suite=suite.name)
    return SuiteRunner(suite, base=base, tasks=tasks, config=config, mesh=mesh, report=report, own=own)


def _frozen(config, base, mesh):
    """The frozen weights on the mesh."""
    return _read(base, mesh, build.compute_dtype(config))


def _read(base, mesh, dtype) -> dict:
    """The backbone's weights on the mesh, of which every process reads its part."""
    shardings = placement.backbone_shardings(mesh, base.features, base.encoder)
    return backbone_folder.load_params(base.files, shardings, dtype=dtype)


def _start(config, base) -> adapter_folder.ExportedAdapter | None:
    if config.method != "adapter" or not config.adapter.start:
        return None
    return initial.read_start(config.adapter.start, fingerprint=base.fingerprint)


def _own_vocabularies(config, base, sources, start) -> OwnVocabularies | None:
    if config.method != "adapter" or config.adapter.output not in OWN_VOCABULARIES:
        return None
    given, shared = {}, None
    size, pieces = config.adapter.output_size, config.adapter.output_pieces
    # A start with another kind of output layer is refused with all else that differs, see `initial.check_start`.
    if start is not None and methods.from_folder(start.config).output == config.adapter.output:
        if config.adapter.new_task != "zero" and config.adapter.output not in SHARED_VOCABULARIES:
            value = config.adapter.new_task
            raise UserError(f"adapter.new_task = {value!r}: allowed is 'zero' where tasks have their own vocabulary")
        given, shared = stored_vocabularies(start.config, start.tasks_json)
        size = size or start.config["method"]["output_size"]
        # As many as the tasks there have; `adapter.output_pieces` is refused beside a start.
        pieces = max((vocabulary.size for vocabulary in given.values()), default=size)
    return own_vocabularies(
        sources,
        base=base.vocabulary,
        task_tag=config.data.task_tag,
        normalizer=config.data.normalizer,
        tasks=config.data.tasks,
        size=size,
        given=given,
        shared=shared,
        kind=config.adapter.output,
        pieces=pieces,
    )


def _initial_weights(config, base, method, tasks, start, mesh) -> tuple[dict, list[int]]:
    """What a run starts from, and the rows of the bank that the seed alone would not give again.

    Numpy, but for a backbone that is trained further: that lies on the mesh.
    """
    if config.method == "full":
        return {"backbone": _read(base, mesh, np.float32)}, []
    if config.method == "pretrain":
        return {"backbone": jax.tree.map(np.asarray, build.random_backbone(base, config.seed))}, []
    key = jax.random.key(config.seed)
    weights, given = initial.new_weights_on_host(method, key, base.encoder, programs.slots(config, len(tasks))), []
    if start is not None:
        weights["shared"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), no_parameters() | start.shared)
        given = initial.started_rows(weights["tasks"], tasks, start, new_task=config.adapter.new_task)
    elif config.adapter.new_task != "zero":
        raise UserError(f"adapter.new_task = {config.adapter.new_task!r}: needs adapter.start, which is ''")
    return weights, given


def _placed(config, base, method, laid_out: programs.Programs, tasks, mesh, weights):
    """The initial state on the mesh, and the bank that knows how to advance it."""
    everywhere = sharding.replicated(mesh)
    knobs = {"seed": np.uint32(config.seed), "learning_rate": np.float32(laid_out.settings.learning_rate)}
    knobs = sharding.place(knobs, everywhere)
    state = sharding.place(laid_out.state, laid_out.shardings)

    def draw() -> dict:
        key = jax.random.key(config.seed)
        return initial.new_weights_on_host(method, key, base.encoder, programs.slots(config, len(tasks)))["tasks"]

    if laid_out.host_bank:
        return state, task_bank.HostBank(
            laid_out.train,
            weights["tasks"],
            knobs=knobs,
            size=laid_out.places,
            place=functools.partial(sharding.place, shardings=everywhere),
            draw=draw,
        )
    if config.method == "adapter":
        return state, task_bank.DeviceBank(
            laid_out.train,
            knobs=knobs,
            draw=draw,
            everywhere=everywhere,
            places=train_state.bank_of(laid_out.shardings),
        )
    return state, task_bank.NoBank(laid_out.train, knobs=knobs)


def base_weights(run: Run):
    """The weights that results are compared with: the frozen backbone, or its folder read again."""
    if run.frozen is not None:
        return run.frozen
    if run.config.method == "pretrain":
        return run.state.trainable["backbone"]
    return _frozen(run.config, run.base, run.mesh)


def suite_weights(run: Run, runner: SuiteRunner) -> dict:
    """The weights that a suite is run with: those of the state, of the bank only the rows that the suite uses."""
    if "backbone" in run.state.trainable:
        return run.state.weights
    tasks = run.bank.weights(run.state, runner.rows)
    if runner.needs_mean:
        mean = run.bank.mean(run.state, len(run.tasks))
        tasks = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), tasks, mean)
    return {"shared": run.state.weights["shared"], "tasks": tasks}


def accounting(run: Run) -> dict:
    """Parameter counts and the backbone's fingerprint, as results and exports hold them."""
    numbers = {name: value for name, value in run.accounting.items() if name != "tasks"}
    return numbers | {"backbone_fingerprint": run.base.fingerprint}


def score(run: Run, weights: dict, step: int) -> dict:
    """Scores the test suite, writes W/eval/<suite>/ and prints the table.

    Args:
      run: the run; it must have a test suite.
      weights: what is scored, as `suite_weights` gives it.
      step: the step that it comes from.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: the adapter of a task does nothing. The report is written before that is raised.
    """
    method, suite = run.config.method, run.test.suite
    base = weights["backbone"] if method == "pretrain" else base_weights(run)
    rows, _, differences = run.test.run(run.evaluation_step, weights, base, progress=True)
    if method == "pretrain":
        # There is no base beside it: it is the base.
        rows = [dataclasses.replace(row, base_hypothesis=None) for row in rows]
    # Too long or unreadable ones are in the data report; here is how many the rates leave out.
    unscored = len(suite.utterances) - len(rows)
    facts = {"step": step, "seed": run.config.seed, "method": method, "utterances_not_scored": unscored}
    results = evaluate_results(rows, suite, accounting=accounting(run), bootstrap=run.config.eval.bootstrap, run=facts)
    write_data_report(run)
    if jax.process_index() == 0:
        write_report(run.workdir / "eval" / suite.name, results, rows)
        print_table(results)
        if unscored:
            print(f"{unscored} of {len(suite.utterances)} utterances were not scored; see {DATA_REPORT}", flush=True)
    # A process that ends for what is checked next would leave process 0 alone in the middle of the report.
    processes.barrier("scored")
    if method != "pretrain":
        check_adapter_acts(suite, differences)
    return results
