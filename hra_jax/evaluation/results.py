"""The numbers of an evaluation: counts, rates, intervals, and what results.json says beside them.

Nothing here needs JAX: results can be counted again from predictions alone.
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import hra_jax
from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.bootstrap import CONFIDENCE, bootstrap_interval
from hra_jax.evaluation.error_rates import ErrorCounts
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK

ACCOUNTING = (
    "trainable_parameters",
    "shared_parameters",
    "parameters_per_task",
    "backbone_parameters",
    "backbone_fingerprint",
)


def evaluate_results(
    rows: Sequence[UtteranceResult],
    suite: Suite,
    *,
    accounting: Mapping[str, Any],
    bootstrap: int = 1000,
    seed: int = 0,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
      rows: the scored utterances of all tasks of the suite, in any order.
      suite: its tasks give the order of the results.
      accounting: the fields of `ACCOUNTING`: parameters that are trained, shared by all tasks, of one task, and of the
        whole backbone (integers), and the backbone's fingerprint. More fields are kept.
      bootstrap: resamples of the 95% intervals; 0 for none (the bounds are None then).
      seed: of the resamples.
      run: further top-level fields, such as the step and the seed of the run.

    Returns:
      A dict of JSON values, rates as fractions. What depends on the base is None where a row has no `base_pred_text`.
      "tasks_not_scored" names the tasks that have no rate, and says why: they are in no other number. "versions" has
      what `software_versions` returns. Results of hra_jax before 0.2 lack both.

    Raises:
      UserError: no task has scored utterances with reference words.
      ValueError: a row of a task that the suite does not have, or a missing or clashing field.
    """
    by_task: dict[str, list[UtteranceResult]] = {task.name: [] for task in (*suite.tasks, *suite.lost)}
    for row in rows:
        if row.task not in by_task:
            raise ValueError(f"utterance {row.key!r} belongs to {row.task!r}, no task of the suite {suite.name!r}")
        by_task[row.task].append(row)
    left_out = _without_rate(by_task, suite)
    if len(left_out) == len(by_task):
        name, reason = next(iter(left_out.items()))
        more = f", and {len(left_out) - 1} more tasks" if len(left_out) > 1 else ""
        raise UserError(f"suite {suite.name!r}: no task could be scored; task {name!r}: {reason}{more}")
    rows = [row for row in rows if row.task not in left_out]
    missing = [field for field in ACCOUNTING if field not in accounting]
    if missing:
        raise ValueError(f"the accounting lacks {missing[0]!r}; needed: {', '.join(ACCOUNTING)}")
    tasks = {}
    for task in suite.tasks:
        if task.name in left_out:
            continue
        scores = _scores(by_task[task.name], suite.normalizer, bootstrap=bootstrap, seed=seed)
        no_own_parameters = task.adapter_task in (BASE_TASK, MEAN_TASK)
        tasks[task.name] = {
            "adapter_task": task.adapter_task,
            "parameters": 0 if no_own_parameters else accounting["parameters_per_task"],
            **scores,
        }
    macro = {f"{field}_macro": _mean([task[field] for task in tasks.values()]) for field in ("wer", "base_wer", "cer")}
    results = {
        "suite": suite.name,
        "normalizer": suite.normalizer,
        "tasks": tasks,
        "tasks_not_scored": left_out,
        **_scores(rows, suite.normalizer, bootstrap=bootstrap, seed=seed),
        **macro,
        "bootstrap": {"samples": bootstrap, "confidence": CONFIDENCE, "seed": seed},
        "versions": software_versions(),
    }
    for name, value in {**accounting, **(run or {})}.items():
        if name in results:
            raise ValueError(f"the field {name!r} is already one of the results")
        results[name] = value
    return results


def _without_rate(by_task: Mapping[str, Sequence[UtteranceResult]], suite: Suite) -> dict[str, str]:
    """The tasks that have no error rate, each with the reason."""
    found = {}
    for task in (*suite.tasks, *suite.lost):
        rows = by_task[task.name]
        if not rows:
            found[task.name] = f"none of its {task.size} utterances could be read"
        elif not any(error_rates.words(row.text, suite.normalizer) for row in rows):
            found[task.name] = f"the references of its {len(rows)} utterances hold 0 words"
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _scores(rows: Sequence[UtteranceResult], normalizer: str, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Counts, rates and intervals of some utterances together, of the hypotheses and of the base's."""
    counts = [error_rates.word_errors(row.text, row.pred_text, normalizer=normalizer) for row in rows]
    characters = error_rates.total(
        error_rates.character_errors(row.text, row.pred_text, normalizer=normalizer) for row in rows
    )
    total = error_rates.total(counts)
    scores = {
        "wer": total.rate,
        "cer": characters.rate,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "words": total.words,
        "utterances": total.utterances,
        **_interval("wer", counts, bootstrap=bootstrap, seed=seed),
    }
    base = [found for row in rows if (found := base_errors(row, normalizer)) is not None]
    if len(base) < len(rows):
        return {**scores, "base_wer": None, "base_wer_low": None, "base_wer_high": None}
    base_interval = _interval("base_wer", base, bootstrap=bootstrap, seed=seed)
    return {**scores, "base_wer": error_rates.total(base).rate, **base_interval}


def _interval(field: str, counts: Sequence[ErrorCounts], *, bootstrap: int, seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(counts, samples=bootstrap, seed=seed) if bootstrap else (None, None)
    return {f"{field}_low": low, f"{field}_high": high}


def base_errors(row: UtteranceResult, normalizer: str) -> ErrorCounts | None:
    """The word errors of the base in an utterance; None where it was not run."""
    if row.base_pred_text is None:
        return None
    return error_rates.word_errors(row.text, row.base_pred_text, normalizer=normalizer)


def software_versions() -> dict[str, str]:
    """The versions that results depend on: of Python, of hra_jax, and of the packages that compute."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "kaldialign")}
    return {"python": platform.python_version(), "hra_jax": hra_jax.__version__, **packages}
