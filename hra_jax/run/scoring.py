"""Scores of a run: the test suite, the weights that it is run with, and the report of unusable data."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import task_records
from hra_jax.console import error_line, listed, tell
from hra_jax.data.columns import joined
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_sources
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.words import calibration_errors
from hra_jax.errors import FAILURES, UserError
from hra_jax.evaluation import leaks
from hra_jax.evaluation.known_texts import known_texts
from hra_jax.evaluation.predictions import Unscored, UtteranceResult
from hra_jax.evaluation.report import is_report_file, print_table, write_report
from hra_jax.evaluation.rescoring import PREDICTIONS
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.runner import SuiteRunner, check_adapter_acts
from hra_jax.evaluation.suites import Suite, check_disjoint
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import decoders, saving, workdirs
from hra_jax.run.jax_setup import hardware
from hra_jax.run.place import Run, backbone_weights
from hra_jax.run.workdirs import DATA_REPORT
from hra_jax.storage import folders, locks, remote
from hra_jax.tasks.names import MEAN_TASK
from hra_jax.training import agreement

Result = TypeVar("Result")


@contextlib.contextmanager
def data_report(workdir: epath.PathLike, *, strict: bool, keep: bool) -> Iterator[DataReport]:
    """The report of unusable data, in W/data_report.json also when a user's error ends the run.

    Args:
      workdir: the work directory, which must be there.
      strict: whether unusable data is an error.
      keep: whether what the file names already stays in it; one that is damaged is told of, and begun again.
    """
    path = epath.Path(workdir) / DATA_REPORT
    report = DataReport(strict=strict)
    if keep and path.exists():
        try:
            report.read(path)
        except UserError as error:
            # What is trained is worth more than this.
            if jax.process_index() == 0:
                tell(f"{error}; what it named is not counted")
    try:
        yield report
    except UserError:
        # The full disk that may be the error is not worth a second one.
        with contextlib.suppress(OSError):
            if jax.process_index() == 0:
                report.write(path)
        raise


def gather_data_report(report: DataReport) -> None:
    """Brings what all processes have found into the report of each; a collective."""
    for content in agreement.gather(report.news()):
        report.merge(content)


def write_data_report(run: Run) -> None:
    """Writes W/data_report.json with what all processes have found; all of them must call it, and process 0 writes."""
    gather_data_report(run.report)
    if jax.process_index() == 0:
        run.report.write(run.workdir / DATA_REPORT)


def attempt(run: Run, what: str, action: Callable[[], Result], *, comes_again: bool = False) -> Result | None:
    """What an action returns; None where it fails, which costs neither a checkpoint nor an export.

    A failure is a line on stderr, and is kept in `run.failures`.

    Args:
      run: the run.
      what: the action in words, for the line.
      action: a validation or an evaluation; what may fail in one process alone is in `agreement.agreed`.
      comes_again: whether the same command does it again, as it does the evaluation after the last step.

    Raises:
      StorageUnavailable: that was why, and `comes_again`: the status of the command says that it is to be given again.
      Exception: what `action` raised, where there are several processes and the others may not know of it: they wait
        in a collective that this one would never join.
    """
    try:
        return action()
    except FAILURES as error:
        told_to_all = agreement.is_agreed(error) or (isinstance(error, UserError) and not run.report.strict)
        if jax.process_count() > 1 and not told_to_all:
            raise
        if comes_again and remote.unavailable(error):
            raise
        run.failures.append(f"{what} failed")
        if jax.process_index() == 0:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            error_line(f"{what} failed: {kind}{str(error)[:1000]}; the run goes on")
        return None


def base_weights(run: Run) -> dict[str, Any]:
    """The weights that results are compared with: the frozen backbone, or its folder read again."""
    if run.frozen is not None:
        return run.frozen
    if run.settings.method == "pretrain":
        return dict(run.state.trainable["backbone"])
    return backbone_weights(run.material.base, run.layout.mesh, dtype=compute_dtype(run.settings.backbone_dtype))


def suite_weights(run: Run, runner: SuiteRunner) -> dict[str, Any]:
    """The weights that a suite is run with: those of the state, of the bank only the rows that the suite uses."""
    if "backbone" in run.state.trainable:
        return run.state.weights
    tasks = run.bank.weights(run.state, runner.rows)
    if runner.needs_mean:
        mean = run.bank.mean(run.state, len(run.layout.tasks))
        tasks = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), tasks, mean)
    return {"shared": run.state.weights["shared"], "tasks": tasks}


def recognise(
    run: Run,
    runner: SuiteRunner,
    weights: dict[str, Any],
    base: dict[str, Any],
    *,
    again: bool = False,
    decoder: Decoder | None = None,
) -> tuple[list[UtteranceResult], float, dict[str, float]]:
    """What `SuiteRunner.run` returns for weights of `suite_weights`, with the base from `base_weights` beside them.

    With `again` the suite is recognised time and again, and what the base recognises is kept.
    """
    found = run.layout.programs
    evaluation, recognition = (found.evaluation, found.recognition) if decoder is None else found.decoded
    if run.settings.method == "pretrain":
        # There is no base beside it: it is the base.
        return runner.run(recognition, weights, base, decoder=decoder, progress=not again)
    alone = recognition if again else None
    return runner.run(evaluation, weights, base, alone=alone, decoder=decoder, progress=not again)


def accounting(run: Run) -> dict[str, Any]:
    """Parameter counts and the backbone's fingerprint, as results and exports hold them."""
    numbers = {name: value for name, value in run.layout.accounting.items() if name != "tasks"}
    return {**numbers, "backbone_fingerprint": run.material.base.fingerprint}


def check_leaks(run: Run, suite: Suite) -> None:
    """Refuses a suite of whose utterances some were trained on, by the hashes of their samples; a collective.

    Args:
      run: the run, with the hashes of what it was given.
      suite: the suite, of which each process reads a share.

    Raises:
      UserError: there are such utterances.
    """
    saving.gather_hashes(run)
    check_not_trained_on(suite, _trained_on(run))


def check_apart(suites: Sequence[Suite], config: ConfigDict) -> list[Sequence[Utterance]] | None:
    """Refuses suites that share utterances with the training data of a run, as far as its manifests are at hand.

    Returns:
      The utterances of the training by source, or None where not all of its manifests are.
    """
    trained: list[Sequence[Utterance]] = []
    gone = []
    for entry in config.data.sources:
        try:
            # Not `data.modules`: the work directory may be a stranger's, and none of its modules is run.
            for source in read_sources([entry], report=DataReport(), data_dir=config.data.dir):
                trained.append(source.utterances)
        except UserError:
            gone.append(entry[1].replace("{dir}", config.data.dir))
    for suite in suites:
        check_disjoint(suite.utterances, joined(trained), suite=suite.name)
    if gone and jax.process_index() == 0:
        tell(f"not compared with the training data, as the manifests are not here: {listed(gone)}")
    return None if gone else trained


def check_not_trained_on(suite: Suite, trained_on: Mapping[str, np.ndarray]) -> None:
    """Refuses a suite of whose utterances some were trained on; a collective.

    Args:
      suite: the suite, of which each process reads a share.
      trained_on: hashes of samples, by what was trained on them, in words.

    Raises:
      UserError: there are such utterances.
    """
    if not trained_on:
        return
    once = {(row.audio_filepath, row.offset, row.duration): row for row in suite.utterances}
    mine = list(once.values())[jax.process_index() :: jax.process_count()]

    def found() -> dict[str, list[str]]:
        hashes = leaks.hashes_of(mine)
        return {what: leaks.found_in(mine, hashes, known) for what, known in trained_on.items()}

    told = agreement.gather(agreement.agreed(found))
    for what in trained_on:
        leaks.check((key for part in told for key in part[what]), suite=suite.name, what=what)


def _trained_on(run: Run) -> dict[str, np.ndarray]:
    """The hashes of what the run, the adapter that it started from, and its backbone were trained on."""
    start, files = run.material.start, run.material.base.files
    found = {
        f"the backbone {run.material.base.name!r}": {} if files is None else files.records,
        f"the adapter {run.material.start_folder!r}": {} if start is None else start.records,
    }
    known = {what: task_records.all_hashes(records) for what, records in found.items()}
    if run.hashes is not None:
        known["this run"] = np.unique(run.hashes.values[run.hashes.values != 0])
    return {what: hashes for what, hashes in known.items() if len(hashes)}


def score(
    run: Run,
    runner: SuiteRunner,
    weights: dict[str, Any],
    *,
    step: int,
    bootstrap: int,
    command: str = "",
    decoder: Decoder | None = None,
) -> dict[str, Any]:
    """Scores a suite, writes W/eval/<suite>/ and prints the table.

    Args:
      run: the run.
      runner: of the suite.
      weights: what is scored, as `suite_weights` gives it.
      step: the step that it comes from.
      bootstrap: resamples of the intervals.
      command: what repeats it, for the report.
      decoder: of the suite; None for greedy decoding.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: the suite has utterances that were trained on; no task has a score, or the adapter of a task does
        nothing, which is told after the report is written.
        In every process, and so is what kept process 0 from writing.
    """
    check_leaks(run, runner.suite)
    rows, _, differences = recognise(run, runner, weights, base_weights(run), decoder=decoder)
    results = write_scores(
        rows,
        runner.suite,
        run.report,
        root=run.workdir,
        name=f"{workdirs.EVALUATIONS}/{runner.suite.name}",
        accounting=accounting(run),
        facts={"step": step, "seed": run.settings.seed, "method": run.settings.method}
        | ({"calibration": errors} if (errors := _calibration_errors(run)) else {}),
        bootstrap=bootstrap,
        untrained=untrained(run),
        decoding=decoders.facts_of(decoder, runner),
        command=command,
        training=[source.utterances for source in run.material.sources],
    )
    if run.settings.method != "pretrain":
        check_scored(runner.suite, results, differences, idle=_idle(run, runner))
    return results


def _calibration_errors(run: Run) -> dict[str, dict[str, Any]]:
    """By how much confidences were off, of the tasks that were calibrated after the last step."""
    found = run.fields.get(task_records.CALIBRATION, {})
    return calibration_errors({"name": task, task_records.CALIBRATION: facts} for task, facts in found.items())


def write_scores(
    rows: Sequence[UtteranceResult],
    suite: Suite,
    report: DataReport,
    *,
    root: epath.Path,
    name: str,
    accounting: Mapping[str, Any],
    facts: Mapping[str, Any],
    bootstrap: int,
    untrained: Collection[str] = (),
    decoding: Mapping[str, Any] | None = None,
    rewritten: Callable[[str], bool] = is_report_file,
    command: str = "",
    training: Sequence[Sequence[Utterance]] | None = None,
    printed: bool = True,
) -> dict[str, Any]:
    """Counts the results of a suite, writes its report in process 0, and prints the table; a collective.

    Args:
      rows: the scored utterances.
      suite: what was scored.
      report: has why the others were not.
      root: the folder of data_report.json.
      name: of the folder of the report in it, 'eval/<suite>'.
      accounting, bootstrap: as for `evaluate_results`.
      facts: further top-level fields of the results.
      untrained: tasks of the adapter that no training step has reached: what is recognised with them has no rate.
      decoding: as for `evaluate_results`.
      rewritten: as for `folders.replace_folder`: which files of an earlier report are gone.
      command: what repeats it, for the report.
      training: what was trained on, by source, where it is at hand.
      printed: whether the table is printed.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: no task has a score. In every process, and so is what kept process 0 from writing.
    """
    # Too long or unreadable ones are in the data report; here is which ones the rates leave out.
    gather_data_report(report)
    unscored = _unscored(suite, rows, report)
    never = {
        task.name: f"its adapter {task.adapter_task!r} had no training step"
        for task in suite.tasks
        if task.adapter_task in untrained
    }
    known = None if training is None else known_texts(suite, training)
    more = {**facts, "utterances_not_scored": len(unscored), "texts_in_training": known}
    # The times of predictions of others are those of their machine.
    here = None if facts.get("method") == PREDICTIONS else hardware()

    def reported() -> dict[str, Any]:
        results = evaluate_results(
            rows,
            suite,
            accounting=accounting,
            bootstrap=bootstrap,
            run=more,
            hardware=here,
            not_scored=never,
            decoding=decoding,
        )
        if jax.process_index() == 0:
            report.write(root / DATA_REPORT)
            workdirs.check_links(root, [name])
            # Two that score the same suite are not mixed.
            with locks.hold_beside(root / name, "report", patient=True):
                folders.replace_folder(
                    root / name,
                    lambda fresh: write_report(fresh, results, rows, unscored, command=command, durable=False),
                    rewritten=rewritten,
                )
            if printed:
                print_table(results)
            if unscored:
                of = sum(task.size for task in (*suite.tasks, *suite.lost))
                tell(f"{len(unscored)} of {of} utterances were not scored; see {DATA_REPORT}")
        return results

    return agreement.agreed(reported)


def check_scored(
    suite: Suite, results: Mapping[str, Any], differences: Mapping[str, float], *, idle: Collection[str]
) -> None:
    """`check_adapter_acts` for the tasks that have a score in the results."""
    check_adapter_acts(suite, {name: differences[name] for name in results["tasks"]}, idle=idle)


def _unscored(suite: Suite, rows: Iterable[UtteranceResult], report: DataReport) -> list[Unscored]:
    """The utterances of a suite that have no result, with what the report says of them."""
    scored, reasons = {(row.task, row.key) for row in rows}, report.reasons()
    found = []
    for task in (*suite.tasks, *suite.lost):
        found += [
            Unscored(task.name, row.key, reasons.get(f"{task.name}: {row.key}", "not read"))
            for row in task.utterances
            if (task.name, row.key) not in scored
        ]
        found += [Unscored(task.name, row.key, row.why) for row in task.refused]
    return found


def untrained(run: Run) -> tuple[str, ...]:
    """The tasks that had no step, and that no earlier adapter brought along; all processes must call it."""
    return _tasks_below(run, range(len(run.layout.tasks)), steps=1)


def _tasks_below(run: Run, rows: Iterable[int], *, steps: int) -> tuple[str, ...]:
    start, tasks = run.material.start, run.layout.tasks
    if run.settings.method != "adapter" or not tasks:
        return ()
    earlier, counts = () if start is None else start.tasks, run.bank.counts(run.state)
    return tuple(tasks[row] for row in rows if counts[row] < steps and tasks[row] not in earlier)


def _idle(run: Run, runner: SuiteRunner) -> tuple[str, ...]:
    """The tasks of a suite whose adapter cannot act yet; all processes must call it."""
    material, tasks = run.material, run.layout.tasks
    # A new output layer that all tasks share is zero: no gradient passes it in the first step.
    new_layer = material.own is not None and material.own.shared is not None and material.start is None
    found = _tasks_below(run, range(len(tasks)) if runner.needs_mean else runner.rows, steps=2 if new_layer else 1)
    return (*found, MEAN_TASK) if runner.needs_mean and len(found) == len(tasks) else found
