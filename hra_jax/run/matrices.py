"""Matrices of an evaluation: every task's adapter on every task's data, in R/<suite>_matrix/<system>/.

They are jobs like all others, so that one that was stopped goes on where it was, and what the base recognises is taken
from the suite itself.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from hra_jax.console import say, stdout, table
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation import matrix
from hra_jax.evaluation.suites import Suite
from hra_jax.run import evaluating
from hra_jax.run.evaluating import BaseTexts, Job, Setup
from hra_jax.run.foundation import Foundation
from hra_jax.run.system_decoders import SystemDecoders
from hra_jax.run.systems import System
from hra_jax.run.workdirs import check_links
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text
from hra_jax.training.agreement import first_alone

FILES = ("matrix.json", "matrix.md")
_MOST_PRINTED = 12  # columns


class CrossedJob(NamedTuple):
    """A suite, its crossed one, and the job that runs that on a system."""

    suite: Suite
    crossed: matrix.Crossed
    job: Job


def jobs_of(
    known: Sequence[System],
    suites: Sequence[Suite],
    setup: Setup,
    output: epath.Path,
    base: Foundation,
    report: DataReport,
    decoding: SystemDecoders,
) -> list[CrossedJob]:
    """A matrix for every suite and every adapter.

    Raises:
      UserError: there is no adapter, a suite without a task that has one, or a suite with the name of a matrix.
    """
    adapters = [system for system in known if system.is_adapter]
    if not adapters:
        raise UserError("--matrix has no use without an adapter; needed: --adapter DIR, or a run that trained one")
    found = []
    for suite in suites:
        for system in adapters:
            crossed = matrix.cross(suite, system.tasks)
            if crossed.suite.name in [other.name for other in suites]:
                raise UserError(f"a suite is named {crossed.suite.name!r}, as the matrix of {suite.name!r} is")
            runner = evaluating.make_runner(system, crossed.suite, setup, report)
            job = evaluating.job(system, runner, setup, output, base, decoding.of(system, runner, suite))
            check_links(output, [job.name, *(f"{job.name}/{file}" for file in FILES)])
            found.append(CrossedJob(suite, crossed, job))
    return found


def run(
    found: CrossedJob,
    setup: Setup,
    *,
    frozen: Callable[[], dict[str, Any]],
    texts: BaseTexts,
    report: DataReport,
) -> dict[str, Any]:
    """Runs a matrix, writes it and prints it; a collective.

    Args:
      found: from `jobs_of`.
      setup: where it runs.
      frozen: gives the weights of the base.
      texts: what the base recognises in the suite.
      report: where unusable data goes.

    Returns:
      `matrix.matrix_of`.
    """
    job, of_task = found.job, {name: task for name, (task, _) in found.crossed.pairs.items()}
    kept = texts._replace(texts=_crossed(texts.texts, of_task), greedy=_crossed(texts.greedy, of_task))
    weights = functools.partial(job.system.weights, setup.mesh)
    results = evaluating.run_job(job, setup, weights=weights, frozen=frozen, kept=kept, report=report, printed=False)
    own = {task.name: task.adapter_task for task in found.suite.tasks}
    content = matrix.matrix_of(found.crossed, results, own)
    first_alone(lambda: _report(found, content))
    return content


def _crossed(texts: Mapping[tuple[str, str], str], of_task: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """The texts of tasks, by the tasks of a matrix that have their data."""
    by_task: dict[str, list[tuple[str, str]]] = {}
    for (task, key), text in texts.items():
        by_task.setdefault(task, []).append((key, text))
    return {(name, key): text for name, task in of_task.items() for key, text in by_task.get(task, ())}


def _report(found: CrossedJob, content: Mapping[str, Any]) -> None:
    title = f"Suite {found.suite.name}, system {found.job.system.name}: every adapter on the data of every task"
    write_file(found.job.folder / FILES[0], json_text(content))
    write_file(found.job.folder / FILES[1], matrix.markdown(title, content))
    console = stdout()
    header, rows = matrix.rows_of(content)
    if len(content["adapters"]) <= _MOST_PRINTED:
        console.print(table(header, rows, title=title))
    else:
        say(console, f"{title}: {found.job.folder / FILES[1]}")
    for line in matrix.remarks(content):
        say(console, line)
