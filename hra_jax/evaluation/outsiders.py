"""Predictions of anybody's system, matched with the utterances of a suite."""

from collections.abc import Collection, Mapping

from etils import epath

from hra_jax.console import listed
from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import UtteranceResult, read_predictions
from hra_jax.evaluation.suites import Suite


def matched_rows(
    path: epath.PathLike,
    suite: Suite,
    *,
    only: Collection[tuple[str, str]] | None = None,
    base: Mapping[tuple[str, str], str] | None = None,
) -> list[UtteranceResult]:
    """What a file of predictions says of the utterances of a suite.

    A line belongs to an utterance that has its key or its audio file and offset; where it names a task, to one of that
    task. References are those of the suite.

    Args:
      path: JSON Lines, see `evaluation.predictions`.
      suite: what was recognised.
      only: the utterances that are wanted, by task and key; None for all.
      base: what the base recognised, by task and key; {} for nothing.

    Raises:
      UserError: no such file, a damaged one, or one that lacks utterances.
    """
    found: dict[tuple[str, str], UtteranceResult] = {}
    for line in read_predictions(path):
        row = line.row
        for name in (row.key, f"{row.audio_filepath}@{row.offset:g}"):
            found[row.task, name] = row
    rows: list[UtteranceResult] = []
    lacking: list[str] = []
    for task in suite.tasks:
        for utterance in task.utterances:
            if only is not None and (task.name, utterance.key) not in only:
                continue
            names = (utterance.key, f"{utterance.audio_filepath}@{utterance.offset:g}")
            places = [(who, name) for who in (task.name, "") for name in names if (who, name) in found]
            if not places:
                lacking.append(utterance.key)
                continue
            row = found[places[0]]
            rows.append(
                UtteranceResult(
                    task=task.name,
                    key=utterance.key,
                    text=utterance.text,
                    pred_text=row.pred_text,
                    base_pred_text=(base or {}).get((task.name, utterance.key)),
                    duration=utterance.duration,
                    audio_filepath=utterance.audio_filepath,
                    offset=utterance.offset,
                    time=row.time,
                    tags=utterance.tags,
                )
            )
    if lacking:
        raise UserError(
            f"{path}: lacks {len(lacking)} of the utterances of suite {suite.name!r}, such as "
            f"{listed(lacking, most=3)}; needed is a line for each"
        )
    return rows
