"""Scoring predictions that are there already: no model, no audio and no JAX is needed, but the manifests of a suite."""

import dataclasses
from typing import Any

from etils import epath

from hra_jax.console import tell
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation.outsiders import match_predictions
from hra_jax.evaluation.predictions import Unscored
from hra_jax.evaluation.report import evaluation_command, is_report_file, print_table, write_report
from hra_jax.evaluation.results import ACCOUNTING, evaluate_results
from hra_jax.evaluation.suites import load_suite
from hra_jax.storage import folders, locks
from hra_jax.text.normalization import versioned

PREDICTIONS = "predictions"  # the method of results that no model of ours was run for


def rescore(
    predictions: epath.PathLike,
    suite: str,
    *,
    normalizer: str | None = None,
    data_dir: str = "",
    output: epath.PathLike | None = None,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Scores predictions on a suite, and prints the table.

    Args:
      predictions: JSON Lines of this or of any other program, or a folder with predictions_*.jsonl, such as W/eval/S.
      suite: name or path of a suite.
      normalizer: takes the place of the suite's, with a version or without.
      data_dir: what `{dir}` in the suite's manifests stands for.
      output: R; results and reports are written to R/<suite>, None for nowhere.
      bootstrap: resamples of the 95% intervals; 0 for none.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: an unknown suite or normalizer, damaged predictions, or none of an utterance of the suite.
    """
    if normalizer is not None:
        versioned(normalizer)
    report = DataReport()
    found = load_suite(suite, data_dir=data_dir, report=report)
    found = found if normalizer is None else dataclasses.replace(found, normalizer=versioned(normalizer))
    rows = match_predictions(predictions, found)
    if not rows:
        raise UserError(
            f"{predictions}: holds no utterance of the suite {found.name!r}; compared are key and audio path"
        )
    unscored = [
        Unscored(task.name, row.key, "no prediction")
        for task in found.tasks
        for row in task.utterances
        if (task.name, row.key) not in rows
    ]
    unscored += [Unscored(task.name, row.key, row.why) for task in (*found.tasks, *found.lost) for row in task.refused]
    facts = {"method": PREDICTIONS, "utterances_not_scored": len(unscored)}
    results = evaluate_results(
        list(rows.values()), found, accounting=dict.fromkeys(ACCOUNTING), bootstrap=bootstrap, run=facts
    )
    if output is not None:
        command = evaluation_command(
            predictions=str(predictions), suite=suite, normalizer=normalizer, data_dir=data_dir, output=str(output)
        )
        folder = epath.Path(output) / found.name
        with locks.hold_beside(folder, "report", patient=True):
            folders.replace_folder(
                folder,
                lambda fresh: write_report(
                    fresh, results, list(rows.values()), unscored, command=command, durable=False
                ),
                rewritten=is_report_file,
            )
    print_table(results)
    if unscored:
        of = sum(task.size for task in (*found.tasks, *found.lost))
        tell(f"{len(unscored)} of {of} utterances were not scored, such as {unscored[0].key}: {unscored[0].reason}")
    return results
