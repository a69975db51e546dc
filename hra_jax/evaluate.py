"""Scores adapters, checkpoints, backbones and predictions on task suites, side by side.

python -m hra_jax.evaluate --workdir runs/quickstart --suite hard --step best
python -m hra_jax.evaluate --adapter DIR --suite A,B --output R
python -m hra_jax.evaluate --predictions P.jsonl --suite A --normalizer english
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from hra_jax import cli
from hra_jax.adapters import adapter_folder
from hra_jax.config.files import config_to_json
from hra_jax.config.keys import default_config
from hra_jax.console import listed, tell
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.decoding import flags as decode_flags
from hra_jax.errors import UserError
from hra_jax.evaluation.outsiders import matched_rows
from hra_jax.evaluation.report import evaluation_command
from hra_jax.evaluation.rescoring import PREDICTIONS, rescore
from hra_jax.evaluation.runner import share_shapes
from hra_jax.evaluation.suites import Suite, load_suite, trains_heads
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import decoders, evaluating, foundation, matrices, processes, systems
from hra_jax.run import held_out as held_outs
from hra_jax.run.evaluating import NO_TEXTS, Job, Setup, setup_of
from hra_jax.run.foundation import Foundation
from hra_jax.run.held_out import HeldOut
from hra_jax.run.jax_setup import setup_jax
from hra_jax.run.place import backbone_weights
from hra_jax.run.reporting import report_all
from hra_jax.run.scoring import check_apart, check_not_trained_on, check_scored, data_report, write_scores
from hra_jax.run.system_decoders import SystemDecoders, for_systems
from hra_jax.run.systems import BASE, System
from hra_jax.run.workdirs import (
    CHECKPOINTS,
    CONFIG,
    DATA_REPORT,
    EVALUATIONS,
    changing_files,
    check_links,
    named,
    stored_config,
)
from hra_jax.storage import locks
from hra_jax.storage.files import make_folder
from hra_jax.tasks.backbone import resolve_backbone
from hra_jax.text.vocabularies import BlankVocabulary
from hra_jax.training.agreement import agreed, check_agreement, first_alone
from hra_jax.training.checkpoints import Checkpoints

FLAGS = flags.FLAGS
_COUNTS = ("trainable_parameters", "shared_parameters", "parameters_per_task")
_NAME = re.compile(r"(?!__)[\w][\w.@+-]*")


def evaluate(
    workdir: epath.PathLike,
    suite: str,
    *,
    step: str | int = "last",
    data_dir: str | None = None,
    backbone: str | None = None,
    decode: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores a checkpoint; writes W/eval/<suite>/ and prints the table.

    Args:
      workdir: the work directory of a run.
      suite: name or path of a suite; it must share no utterance with the training data, where these are at hand.
      step: 'last', 'best', or the number of a checkpoint.
      data_dir: what `{dir}` in the suite's manifests stands for; None means the run's own `data.dir`.
      backbone: folder of the backbone of the run, or builtin:NAME; None means what the run names.
      decode: keys `decode.*` with their values, which go before those of the suite and of the run.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: no run there, an unknown suite or step, or an adapter that does nothing.
    """
    workdir, config = named(workdir), stored_config(workdir)
    check_links(workdir, [EVALUATIONS, DATA_REPORT])
    processes.check_same_command(workdir, config_to_json(config))
    if jax.process_index() == 0:
        _tell_what_is_read(workdir, config)
    with (
        changing_files(workdir),
        data_report(workdir, strict=config.data.strict, keep=True) as report,
        _checkpoints(workdir) as checkpoints,
    ):
        # ------------------------------------------------------------------------------------------------------- read
        setup = setup_of(config, free=False)
        place = config.data.dir if data_dir is None else data_dir
        found = agreed(lambda: load_suite(suite, data_dir=place, report=report))
        trained = agreed(lambda: check_apart([found], config))
        base = agreed(lambda: systems.base_of_run(config, workdir, backbone))
        system = systems.of_checkpoint("", checkpoints, _step(step), config, base, setup.mesh)
        runner = agreed(lambda: evaluating.make_runner(system, found, setup, report))
        check_agreement({"backbone": base.fingerprint, "checkpoint": system.digest, "suite": runner.digest})
        check_not_trained_on(found, system.trained_on)
        decoding = for_systems([system], [found], config, decode, workdir=workdir, trained=trained)
        decoder = agreed(lambda: decoding.of(system, runner, found))

        # -------------------------------------------------------------------------------------------------- recognise
        frozen = _frozen(base, setup)() if system.beside else {}
        rows, differences = evaluating.recognise(
            system, runner, system.weights(setup.mesh), frozen, setup, decoder=decoder
        )
        results = write_scores(
            rows,
            found,
            report,
            root=workdir,
            name=f"{EVALUATIONS}/{found.name}",
            accounting=system.accounting,
            facts=system.facts,
            bootstrap=config.eval.bootstrap,
            untrained=system.untrained,
            decoding=decoders.facts_of(decoder, runner),
            command=evaluation_command(
                workdir=str(workdir), suite=suite, step=str(step), data_dir=data_dir, **_decode_flags(decode)
            ),
            training=trained,
        )
        if system.beside:
            check_scored(found, results, differences, idle=evaluating.idle_of(system, runner))
        return results


def evaluate_systems(
    suites: Sequence[str],
    output: epath.PathLike,
    *,
    adapters: Sequence[str] = (),
    workdir: epath.PathLike | None = None,
    steps: Sequence[str] = (),
    backbones: Sequence[str] = (),
    predictions: Sequence[str] = (),
    data_dir: str | None = None,
    matrix: bool = False,
    keep: epath.PathLike | None = None,
    decode: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores any number of systems on any number of suites, side by side; what is finished is not run again.

    Writes R/<suite>/<system>/ and, for all systems of a suite, R/<suite>/report.md, report.html and compared.json.

    Args:
      suites: names or paths of suites.
      output: R, the folder of the results.
      adapters: folders of exported adapters, or NAME=FOLDER.
      workdir: the work directory of a run, if any.
      steps: which of its checkpoints: 'last', 'best', or numbers.
      backbones: folders or builtin:NAME. The first is the one that adapters were trained on, and what all systems are
        compared with; without any it is what the run or the first adapter names. Others are systems by themselves.
      predictions: NAME=FILE, the predictions of any other system as JSON Lines.
      data_dir: what `{dir}` in the manifests of the suites stands for; None means that of the run, if any.
      matrix: whether every adapter is run with every task's row on every task's data as well, which goes to
        R/<suite>_matrix/<system>/.
      keep: where the heads of held-out tasks are kept as an adapter, in a folder for each system where there are
        several; None keeps them in the folder of the results alone.
      decode: keys `decode.*` with their values, which go before those of the suites and of the run.

    Returns:
      {suite: {system: results, as in results.json}}.

    Raises:
      UserError: something is not there, does not go together, or is in use by another process; or an adapter does
        nothing, which is told after everything is written.
    """
    output = epath.Path(output)
    config = default_config() if workdir is None else stored_config(workdir)
    asked = {name: path for name, path in map(_named, adapters)}
    outsiders = {name: path for name, path in (_named(text, needs_name=True) for text in predictions)}
    others = {name: path for name, path in map(_named, backbones[1:])}
    _check_names([*map(_name_of, adapters), *outsiders, *others])
    command = _command(suites, output, adapters, workdir, steps, backbones, predictions, data_dir, keep, matrix, decode)
    processes.check_same_command(output, config_to_json(config))
    with contextlib.ExitStack() as stack:
        first_alone(lambda: _take(stack, output))
        report = stack.enter_context(data_report(output, strict=False, keep=False))

        # ------------------------------------------------------------------------------------------------------- read
        place = (config.data.dir if workdir is not None else "") if data_dir is None else data_dir
        found = agreed(lambda: _load_suites(suites, place, report))
        agreed(lambda: [matched_rows(path, suite) for path in outsiders.values() for suite in found])
        trained = None if workdir is None else agreed(lambda: check_apart(found, config))
        setup = setup_of(config, free=workdir is None)
        base = agreed(lambda: _base(backbones, asked, config, workdir))
        known = agreed(lambda: [systems.of_adapter(name, path, base) for name, path in asked.items()])
        if workdir is not None:
            known += _of_run(stack, epath.Path(workdir), steps, config, base, setup)
        known += agreed(lambda: _backbones(others, setup))
        if base.files is not None and not isinstance(base.vocabulary, BlankVocabulary):
            known.insert(0, systems.of_backbone(BASE, base, dtype=setup.settings.backbone_dtype))
        if not known:
            raise UserError(f"the backbone {base.name!r} has no output layer of its own; needed: --adapter DIR")
        _tell_set_aside(known)
        decoding = for_systems(known, found, config, decode, workdir=workdir, trained=trained)
        jobs, held_out = agreed(lambda: _jobs(known, found, setup, output, base, report, decoding))
        held_outs.check_keep(keep, held_out)
        read = (setup, output, base, report, decoding)
        crossed = agreed(lambda: matrices.jobs_of(known, found, *read)) if matrix else []
        every = [*jobs, *(other.job for other in crossed)]
        share_shapes(*(job.runner for job in every))
        check_agreement({f"{job.name}": job.digest for job in every})
        _check_samples(found, jobs, held_out)

        # ------------------------------------------------------------------------------------------- recognise, report
        frozen, results = _frozen(base, setup), {}
        more = (setup, frozen, report, output, command, trained)
        for suite in found:
            mine = [job for job in jobs if job.runner.suite.name == suite.name]
            results[suite.name] = _run_suite(suite, mine, outsiders, crossed, *more)
        if keep is not None:
            held_outs.keep(held_out, keep, mesh=setup.mesh)
    for fault in (entry.get("error") for entries in results.values() for entry in entries.values()):
        if fault:
            raise UserError(fault)
    return results


# ======================================================================================================================
# What is read
# ======================================================================================================================


def _command(
    suites: Sequence[str],
    output: epath.PathLike,
    adapters: Sequence[str],
    workdir: epath.PathLike | None,
    steps: Sequence[str],
    backbones: Sequence[str],
    predictions: Sequence[str],
    data_dir: str | None,
    keep: epath.PathLike | None,
    matrix: bool,
    decode: Mapping[str, Any] | None,
) -> str:
    """The command that does the same."""
    return evaluation_command(
        adapter=adapters,
        workdir=None if workdir is None else str(workdir),
        step=None if workdir is None else ",".join(map(str, steps)),
        backbone=backbones,
        system=predictions,
        suite=",".join(suites),
        data_dir=data_dir,
        output=str(output),
        keep=None if keep is None else str(keep),
        matrix=matrix,
        **_decode_flags(decode),
    )


def _decode_flags(decode: Mapping[str, Any] | None) -> dict[str, str]:
    """The flags that say how to decode."""
    return {f"decode.{key}": str(value) for key, value in (decode or {}).items()}


def _take(stack: contextlib.ExitStack, output: epath.Path) -> None:
    """Takes the folder of the results, which one evaluation at a time may write."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={str(output)!r} is no folder; allowed: a folder, or nothing")
    make_folder(output)
    check_links(output, [DATA_REPORT])
    stack.enter_context(locks.hold(output, "evaluation"))


def _named(text: str, *, needs_name: bool = False) -> tuple[str, str]:
    """The name and the path of PATH or NAME=PATH."""
    name, equals, path = text.partition("=")
    if equals and path and _NAME.fullmatch(name):
        return name, path
    if needs_name:
        raise UserError(f"{text!r}; allowed: NAME=FILE, a name of letters, digits, '_', '-', '.' and '@'")
    last = [part for part in text.rstrip("/").split("/") if part not in ("", ".", "..")]
    # Runs export to W/adapter and W/backbone.
    names = [part for part in last if part not in ("adapter", "backbone")] or last or ["adapter"]
    return re.sub(r"[^\w.@+-]|^(?=__)", "-", names[-1]).lstrip("-.@+") or "adapter", text


def _name_of(text: str) -> str:
    return _named(text)[0]


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two systems are named {twice[0]!r}; each needs its own: give NAME=PATH")


def _load_suites(names: Sequence[str], data_dir: str, report: DataReport) -> list[Suite]:
    found = [load_suite(name, data_dir=data_dir, report=report) for name in names]
    for suite in found:
        if [other.name for other in found].count(suite.name) > 1:
            raise UserError(f"two suites are named {suite.name!r}; each needs a name of its own")
    return found


def _base(
    backbones: Sequence[str], adapters: Mapping[str, str], config: ConfigDict, workdir: epath.PathLike | None
) -> Foundation:
    """The backbone that everything is compared with."""
    given = backbones[0] if backbones else None
    if workdir is not None:
        return systems.base_of_run(config, epath.Path(workdir), given)
    if given is not None:
        return foundation.load(given)
    if not adapters:
        raise UserError("nothing to evaluate; needed: --adapter DIR, --workdir W, or --backbone DIR")
    return foundation.load(resolve_backbone(adapter_folder.read_adapter(next(iter(adapters.values()))), None))


def _of_run(
    stack: contextlib.ExitStack,
    workdir: epath.Path,
    steps: Sequence[str],
    config: ConfigDict,
    base: Foundation,
    setup: Setup,
) -> list[System]:
    """The checkpoints of a run that are asked for, each once; a collective."""
    checkpoints = stack.enter_context(_checkpoints(workdir))
    name = f"{_name_of(str(workdir))}@{{step}}"
    taken = [systems.of_checkpoint(name, checkpoints, _step(step), config, base, setup.mesh) for step in steps]
    return list({system.name: system for system in taken}.values())


def _backbones(others: Mapping[str, str], setup: Setup) -> list[System]:
    dtype = setup.settings.backbone_dtype
    return [systems.of_backbone(name, foundation.load(path), dtype=dtype) for name, path in others.items()]


def _check_samples(suites: Sequence[Suite], jobs: Sequence[Job], held_out: Sequence[HeldOut]) -> None:
    """Refuses suites that something was trained on, or is about to be, which is still to be scored; a collective."""
    for suite in suites:
        # Who has been told once is not told again: what is finished was compared.
        new = [job.system for job in jobs if job.runner.suite.name == suite.name and job.finished() is None]
        trained_on = {what: known for system in new for what, known in system.trained_on.items()}
        for one in held_out:
            if any(one.system is system for system in new):
                trained_on |= agreed(functools.partial(held_outs.support_hashes, one))
        check_not_trained_on(suite, trained_on)


def _tell_set_aside(known: Sequence[System]) -> None:
    for system in known if jax.process_index() == 0 else ():
        if system.set_aside:
            aside = listed(sorted(system.set_aside))
            tell(f"system {system.name!r}: set aside, and recognised by the backbone alone: {aside}")


def _jobs(
    known: Sequence[System],
    suites: Sequence[Suite],
    setup: Setup,
    output: epath.Path,
    base: Foundation,
    report: DataReport,
    decoding: SystemDecoders,
) -> tuple[list[Job], list[HeldOut]]:
    """Every suite on every system, and what is to be trained for it."""
    found: list[Job] = []
    held_out: list[HeldOut] = []
    for asked in suites:
        for known_system in known:
            suite, system = asked, known_system
            planned = held_outs.plan(asked, known_system, output=output, report=report)
            if planned is not None:
                held_out.append(planned)
                suite, system = planned.suite, planned.system
            runner = evaluating.make_runner(system, suite, setup, report, finds_tasks=True)
            found.append(evaluating.job(system, runner, setup, output, base, decoding.of(known_system, runner, asked)))
    check_links(output, [job.name for job in found])
    return found, held_out


@contextlib.contextmanager
def _checkpoints(workdir: epath.Path) -> Iterator[Checkpoints]:
    with Checkpoints(
        workdir / CHECKPOINTS, keep_latest=1, keep_best=0, every_steps=1, finite=True, read_only=True
    ) as found:
        yield found


def _step(step: str | int) -> int | str:
    return int(step) if str(step).isdigit() else step


def _frozen(base: Foundation, setup: Setup) -> Callable[[], dict[str, Any]]:
    """Gives the weights of the base, read when they are first needed."""
    dtype = compute_dtype(setup.settings.backbone_dtype)
    return functools.cache(lambda: agreed(lambda: backbone_weights(base, setup.mesh, dtype=dtype)))


def _tell_what_is_read(workdir: epath.Path, config: ConfigDict) -> None:
    """Prints the places that the work directory, which may be a stranger's, names and that are read for it."""
    manifests = [manifest for _, manifest, _ in config.data.sources]
    places = {"backbone": config.backbone, "data.dir": config.data.dir, "adapter.start": config.adapter.start}
    said = [f"{key} {place!r}" for key, place in places.items() if place] + [f"manifests {listed(manifests)}"]
    tell(f"{workdir / CONFIG} names, to be read: {', '.join(said)}")


# ======================================================================================================================
# What is run and written
# ======================================================================================================================


def _run_suite(
    suite: Suite,
    jobs: Sequence[Job],
    outsiders: Mapping[str, str],
    crossed: Sequence[matrices.CrossedJob],
    setup: Setup,
    frozen: Callable[[], dict[str, Any]],
    report: DataReport,
    output: epath.Path,
    command: str,
    trained: Sequence[Sequence[Utterance]] | None,
) -> dict[str, Any]:
    """Runs what is not finished of a suite, and reports on all of its systems together.

    `trained` is what the run was trained on whose checkpoints are among them, by source, where it is at hand.
    """
    results: dict[str, Any] = {}
    texts = NO_TEXTS
    for job in jobs:
        if job.system.name == BASE:
            weights: Callable[[], dict[str, Any]] = lambda: {"backbone": frozen()}  # noqa: E731
        else:
            weights = functools.partial(job.system.weights, setup.mesh)
        kept = held_outs.kept_texts(texts, job.runner.suite) if job.system.beside else NO_TEXTS
        results[job.system.name] = evaluating.run_job(
            job,
            setup,
            weights=weights,
            frozen=frozen,
            kept=kept,
            report=report,
            command=command,
            training=trained if "step" in job.system.facts else None,  # of a checkpoint
        )
        if job.system.name == BASE:
            texts = evaluating.texts_of(job, results[BASE])
    for name, path in outsiders.items():
        results[name] = write_scores(
            agreed(functools.partial(matched_rows, path, suite, only=texts.texts or None, base=texts.texts)),
            suite,
            report,
            root=output,
            name=f"{suite.name}/{name}",
            # What others trained is not known.
            accounting=jobs[0].system.accounting | dict.fromkeys(_COUNTS),
            facts={"method": PREDICTIONS, "error": None},
            bootstrap=setup.evaluation.bootstrap,
            command=command,
        )
    seen = _run_matrices(suite, jobs, crossed, results, setup, frozen, report)
    samples = max(setup.evaluation.bootstrap, 1)
    first_alone(lambda: report_all(suite, results, seen, output, samples=samples, command=command))
    return results


def _run_matrices(
    suite: Suite,
    jobs: Sequence[Job],
    crossed: Sequence[matrices.CrossedJob],
    results: Mapping[str, Any],
    setup: Setup,
    frozen: Callable[[], dict[str, Any]],
    report: DataReport,
) -> dict[str, dict[str, Any]]:
    """The matrices of a suite whose own jobs have these results, by system."""
    mine = [other for other in crossed if other.suite is suite]
    if not mine:
        return {}
    texts = evaluating.texts_of(jobs[0], results[BASE]) if jobs[0].system.name == BASE else NO_TEXTS
    return {
        other.job.system.name: matrices.run(other, setup, frozen=frozen, texts=texts, report=report) for other in mine
    }


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_list("suite", None, "Names or paths of suites, with commas between them.", required=True)
    flags.DEFINE_multi_string("adapter", [], "Folder of an exported adapter, or NAME=FOLDER; may be given repeatedly.")
    flags.DEFINE_string("workdir", None, "Work directory of a run.")
    flags.DEFINE_list("step", ["last"], "Which of its checkpoints: last, best, or numbers, with commas between them.")
    flags.DEFINE_multi_string(
        "backbone",
        [],
        "Folder of a backbone, or builtin:NAME. The first is what adapters were trained on; default: what the run or "
        "the adapter names. Others are systems by themselves.",
    )
    flags.DEFINE_multi_string(
        "system", [], "NAME=FILE: the predictions of any other system as JSON Lines; may be given repeatedly."
    )
    flags.DEFINE_string(
        "predictions", None, "Predictions that are scored again without a model: a file of JSON Lines, or W/eval/SUITE."
    )
    flags.DEFINE_string("normalizer", None, "With --predictions: takes the place of the suite's, such as basic@1.")
    flags.DEFINE_bool("matrix", False, "Every task's adapter on every task's data too; of more than 32 a sample.")
    flags.DEFINE_string("output", None, "Folder of the results; default: W/eval, for one checkpoint of a run.")
    flags.DEFINE_string(
        "data_dir", None, "What {dir} in the suites' manifests stands for; default: the run's data.dir."
    )
    flags.DEFINE_string("keep", None, "Folder of an adapter that keeps the heads of held-out tasks.")
    decode_flags.define_flags(otherwise="the suite or the run says")
    processes.define_flags()


def _rescore() -> None:
    """Scores predictions that are there already; JAX is not started."""
    others = [name for name in ("adapter", "workdir", "backbone", "system", "keep", "matrix") if FLAGS[name].value]
    others += [f"decode.{key}" for key in decode_flags.asked()]
    if others:
        raise UserError(f"--predictions needs no model; allowed: without --{others[0]}")
    for suite in FLAGS.suite:
        rescore(
            FLAGS.predictions,
            suite,
            normalizer=FLAGS.normalizer,
            data_dir=FLAGS.data_dir or "",
            output=FLAGS.output,
        )


def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    if FLAGS.predictions is not None:
        _rescore()
        return
    if FLAGS.normalizer is not None:
        raise UserError("--normalizer needs --predictions: what a model is scored with stands in the suite")
    if FLAGS.output is None and (
        FLAGS.workdir is None
        or max(len(FLAGS.step), len(FLAGS.backbone)) > 1
        or FLAGS.adapter
        or FLAGS.system
        or FLAGS.matrix
    ):
        raise UserError("--output is missing; it may be left out for one checkpoint of a run: --workdir W --step last")
    if not FLAGS.suite or not FLAGS.step:
        raise UserError("--suite and --step take at least one name")
    if FLAGS.workdir is None and FLAGS["step"].present:
        raise UserError(f"--step={','.join(FLAGS.step)} needs --workdir W, the run whose checkpoints these are")
    config = default_config() if FLAGS.workdir is None else stored_config(FLAGS.workdir, notify=False)
    decode = decode_flags.asked()
    # A signal while heads are trained saves them; the rest of an evaluation it ends.
    trains = any(trains_heads(suite) for suite in FLAGS.suite)
    processes.initialize(heartbeat_seconds=config.distributed.heartbeat_seconds, resumable=trains)
    setup_jax()
    if FLAGS.output is None:
        for suite in FLAGS.suite:
            backbone = FLAGS.backbone[0] if FLAGS.backbone else None
            settings = {"data_dir": FLAGS.data_dir, "backbone": backbone, "decode": decode}
            evaluate(FLAGS.workdir, suite, step=FLAGS.step[0], **settings)
        return
    evaluate_systems(
        FLAGS.suite,
        FLAGS.output,
        adapters=FLAGS.adapter,
        workdir=FLAGS.workdir,
        steps=FLAGS.step,
        backbones=FLAGS.backbone,
        predictions=FLAGS.system,
        data_dir=FLAGS.data_dir,
        matrix=FLAGS.matrix,
        keep=FLAGS.keep,
        decode=decode,
    )


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
