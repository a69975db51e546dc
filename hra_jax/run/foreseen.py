"""What can be foreseen before the first step: tasks that cannot be exported, cannot train, or cannot be scored.

Whatever is found out after the last step only has cost a run; so what the tables and the storage know is asked first.
"""

import concurrent.futures
import os
import time
from collections.abc import Iterable, Mapping, Sequence

import jax
from etils import epath

from hra_jax.console import listed
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.run.layout import Layout
from hra_jax.storage.remote import is_remote, local_path
from hra_jax.tasks.names import check_name
from hra_jax.training import agreement

_THREADS = 16  # storage answers many questions at a time
_REMOTE_SECONDS = 20.0  # after which remote files are no longer asked for


def check(layout: Layout, report: DataReport) -> None:
    """Refuses what is known to go wrong later, naming suite and task; a collective.

    Args:
      layout: of a run that has no step yet. A run that is continued, or evaluated, is not held up: what has no score
        is named in its results.
      report: has what is unusable; gets the audio files of suites that are not there.

    Raises:
      UserError: a task whose name cannot be exported, that has no usable training utterance, or that a suite could not
        score; one line, which tells the way out.
    """
    for name in layout.tasks:
        check_name(name, where="the training data")
    _check_trains(layout.table, report)
    for runner, key in ((layout.test, "eval.suite"), (layout.select, "eval.select_suite")):
        if runner is not None:
            _check_scores(runner, report, key=key)


def _check_trains(table: UtteranceTable, report: DataReport) -> None:
    idle = (*table.idle, *sorted(table.lost))
    if not idle:
        return
    reasons, name = report.reasons(), idle[0]
    rows = [
        (f"{source.name}: {row.key}", row)
        for source in table.sources
        for row in source.lines
        if (source.task or row.tag(table.task_tag)) == name
    ]
    why = _example(rows, reasons)
    others = f"; nor has any of {listed(idle[1:], most=5)}" if len(idle) > 1 else ""
    raise UserError(
        f"task {name!r}: none of its {len(rows)} training utterances is usable{why}{others}; mend the manifest, or "
        "name the tasks to train in data.tasks"
    )


def _example(rows: Iterable[tuple[str, Utterance | Refused]], reasons: Mapping[str, str]) -> str:
    """One of some rows, given with their names, and why it cannot be used; '' where no reason is known."""
    told = ((name, row.why if isinstance(row, Refused) else reasons.get(name)) for name, row in rows)
    return next((f", such as {name} ({why})" for name, why in told if why), "")


# --- Suites -----------------------------------------------------------------------------------------------------------


def _check_scores(runner: SuiteRunner, report: DataReport, *, key: str) -> None:
    """Checks that each task of a suite has an utterance that can be scored, as far as tables and storage know."""
    suite, table = runner.suite, runner.table
    for number, utterance in _gone(table.utterances):
        report.add("missing_file", table.name(number), f"no file at {utterance.sound_file}")
    reasons = report.reasons()
    usable: dict[str, list[Utterance]] = {task.name: [] for task in suite.tasks}
    for number, utterance in enumerate(table.utterances):
        # Of what the table holds only a missing file has a reason here that leaves it without a score.
        if not reasons.get(table.name(number), "").startswith("missing_file"):
            usable[suite.tasks[table.source[number]].name].append(utterance)
    found: list[str] = []
    for task in (*suite.tasks, *suite.lost):
        if not usable.get(task.name):
            why = _example([(f"{task.name}: {row.key}", row) for row in task.lines], reasons)
            found.append(f"task {task.name!r}: none of its {task.size} utterances is usable{why}")
        elif not any(error_rates.words(row.text, suite.normalizer) for row in usable[task.name]):
            texts = listed([row.text for row in usable[task.name]], most=2)
            found.append(
                f"task {task.name!r}: the references of its {len(usable[task.name])} utterances hold 0 words after the "
                f"normalizer {suite.normalizer!r}: {texts}"
            )
    if found:
        more = f" ({len(found) - 1} more tasks likewise)" if len(found) > 1 else ""
        raise UserError(
            f"suite {suite.name!r}, {found[0]}{more}; mend the manifest, or train without the suite: --config.{key}="
        )


def _gone(utterances: Sequence[Utterance]) -> Iterable[tuple[int, Utterance]]:
    """The utterances whose audio file is not there, with their numbers; a collective, in which each asks for a part."""
    paths = sorted({row.sound_file for row in utterances})
    mine = paths[jax.process_index() :: jax.process_count()]
    missing = {path for part in agreement.gather(missing_files(mine)) for path in part}
    return [(number, row) for number, row in enumerate(utterances) if row.sound_file in missing]


def missing_files(paths: Sequence[str], *, remote_seconds: float = _REMOTE_SECONDS) -> list[str]:
    """Those of some files that are not there.

    Args:
      paths: local (`file://` too) or remote ones, each once.
      remote_seconds: how long remote ones are asked for; what was not answered by then counts as there.
    """
    deadline = time.monotonic() + remote_seconds
    local = {path for path in paths if not is_remote(local_path(path))}

    def missing(path: str) -> bool:
        if path in local:
            return not os.path.exists(local_path(path))
        return time.monotonic() < deadline and not epath.Path(path).exists()

    def told(answer: concurrent.futures.Future[bool]) -> bool:
        # What a client of remote storage raises is no answer; decoding will name it.
        return answer.done() and not answer.cancelled() and answer.exception() is None and answer.result()

    remote = [path for path in paths if path not in local]
    # Not as a context, which would wait for storage that does not answer.
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="exists")
    asked = {path: pool.submit(missing, path) for path in [*local, *remote]}
    concurrent.futures.wait([asked[path] for path in local])
    concurrent.futures.wait([asked[path] for path in remote], timeout=max(0.0, deadline - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    return [path for path in paths if told(asked[path])]
