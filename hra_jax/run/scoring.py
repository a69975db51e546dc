"""Scores of a run: the test suite, the weights that it is run with, and the report of unusable data."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from hra_jax.console import tell
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation.report import evaluate_results, print_table, write_report
from hra_jax.evaluation.runner import SuiteRunner, check_adapter_acts
from hra_jax.run import processes
from hra_jax.run.place import Run, frozen_weights

DATA_REPORT = "data_report.json"  # in the work directory


@contextlib.contextmanager
def data_report(workdir: epath.PathLike, *, strict: bool, keep: bool) -> Iterator[DataReport]:
    """The report of unusable data, in W/data_report.json also when a user's error ends the run.

    Args:
      workdir: the work directory, which must be there.
      strict: whether unusable data is an error.
      keep: whether what the file names already stays in it.
    """
    path = epath.Path(workdir) / DATA_REPORT
    report = DataReport(strict=strict)
    if keep and path.exists():
        report.read(path)
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


def base_weights(run: Run) -> dict[str, Any]:
    """The weights that results are compared with: the frozen backbone, or its folder read again."""
    if run.frozen is not None:
        return run.frozen
    if run.settings.method == "pretrain":
        return dict(run.state.trainable["backbone"])
    return frozen_weights(run.material.base, run.layout, run.settings.backbone_dtype)


def suite_weights(run: Run, runner: SuiteRunner) -> dict[str, Any]:
    """The weights that a suite is run with: those of the state, of the bank only the rows that the suite uses."""
    if "backbone" in run.state.trainable:
        return run.state.weights
    tasks = run.bank.weights(run.state, runner.rows)
    if runner.needs_mean:
        mean = run.bank.mean(run.state, len(run.layout.tasks))
        tasks = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), tasks, mean)
    return {"shared": run.state.weights["shared"], "tasks": tasks}


def accounting(run: Run) -> dict[str, Any]:
    """Parameter counts and the backbone's fingerprint, as results and exports hold them."""
    numbers = {name: value for name, value in run.layout.accounting.items() if name != "tasks"}
    return {**numbers, "backbone_fingerprint": run.material.base.fingerprint}


def score(run: Run, runner: SuiteRunner, weights: dict[str, Any], *, step: int, bootstrap: int) -> dict[str, Any]:
    """Scores a suite, writes W/eval/<suite>/ and prints the table.

    Args:
      run: the run.
      runner: of the suite.
      weights: what is scored, as `suite_weights` gives it.
      step: the step that it comes from.
      bootstrap: resamples of the intervals.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: the adapter of a task does nothing. The report is written before that is raised.
    """
    method, suite = run.settings.method, runner.suite
    base = weights["backbone"] if method == "pretrain" else base_weights(run)
    rows, _, differences = runner.run(run.layout.programs.evaluation, weights, base, progress=True)
    if method == "pretrain":
        # There is no base beside it: it is the base.
        rows = [dataclasses.replace(row, base_hypothesis=None) for row in rows]
    # Too long or unreadable ones are in the data report; here is how many the rates leave out.
    unscored = len(suite.utterances) - len(rows)
    facts = {"step": step, "seed": run.settings.seed, "method": method, "utterances_not_scored": unscored}
    results = evaluate_results(rows, suite, accounting=accounting(run), bootstrap=bootstrap, run=facts)
    write_data_report(run)
    if jax.process_index() == 0:
        write_report(run.workdir / "eval" / suite.name, results, rows)
        print_table(results)
        if unscored:
            tell(f"{unscored} of {len(suite.utterances)} utterances were not scored; see {DATA_REPORT}")
    # A process that ends for what is checked next would leave process 0 alone in the middle of the report.
    processes.barrier("scored")
    if method != "pretrain":
        check_adapter_acts(suite, differences)
    return results
