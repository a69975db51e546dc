"""Predictions of anybody's system, matched with the utterances of a suite."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from etils import epath

from hra_jax.console import listed
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.predictions import Line, UtteranceResult, read_predictions
from hra_jax.evaluation.suites import Suite

_SAME_SECONDS = 0.01  # of two offsets that may have been rounded


def matched_rows(
    path: epath.PathLike,
    suite: Suite,
    *,
    only: Collection[tuple[str, str]] | None = None,
    base: Mapping[tuple[str, str], str] | None = None,
) -> list[UtteranceResult]:
    """What a file of predictions says of every utterance of a suite, see `match_predictions`.

    Args:
      path: JSON Lines, see `evaluation.predictions`.
      suite: what was recognised.
      only: the utterances that are wanted, by task and key; None for all.
      base: what the base recognised, by task and key; None for what the file says of it.

    Raises:
      UserError: no such file, a damaged one, or one that lacks utterances.
    """
    rows = match_predictions(path, suite, base=base)
    wanted = [(task.name, row.key) for task in suite.tasks for row in task.utterances]
    wanted = [name for name in wanted if only is None or name in only]
    lacking = [key for task, key in wanted if (task, key) not in rows]
    if lacking:
        raise UserError(
            f"{path}: lacks {len(lacking)} of the utterances of suite {suite.name!r}, such as "
            f"{listed(lacking, most=3)}; needed is a line for each"
        )
    return [rows[name] for name in wanted]


def match_predictions(
    path: epath.PathLike, suite: Suite, *, base: Mapping[tuple[str, str], str] | None = None
) -> dict[tuple[str, str], UtteranceResult]:
    """What a file of predictions says of the utterances of a suite, by task and key.

    A line belongs to an utterance that has its key, or its audio file and offset, wherever the file lies: one of both
    paths may begin elsewhere. Where it names a task of the suite, it belongs to that one. Texts, durations and tags
    are those of the suite: others write texts that are normalised already.

    Args:
      path: JSON Lines, see `evaluation.predictions`; or a folder, whose files predictions_*.jsonl are read.
      suite: what was recognised.
      base: what the base recognised, by task and key; None for what the file says of it.

    Raises:
      UserError: no such file, a damaged one, or two lines that say different things of one utterance.
    """
    lines = [line for file in _files(path) for line in read_predictions(file)]
    names = {task.name for task in suite.tasks}
    if not any(line.row.task in names for line in lines):
        names = {""}  # others write something else there
    index = _Index(lines, names)
    rows = {}
    for task in suite.tasks:
        for utterance in task.utterances:
            line = index.find(task.name, utterance) or index.find("", utterance)
            if line is not None:
                name = (task.name, utterance.key)
                said = line.row.base_pred_text if base is None else base.get(name)
                rows[name] = _row(task.name, utterance, line.row, said)
    return rows


def _row(task: str, utterance: Utterance, found: UtteranceResult, base: str | None) -> UtteranceResult:
    return UtteranceResult(
        task=task,
        key=utterance.key,
        text=utterance.text,
        pred_text=found.pred_text,
        base_pred_text=base,
        duration=utterance.duration,
        audio_filepath=utterance.audio_filepath,
        offset=utterance.offset,
        time=found.time,
        tags=utterance.tags,
        greedy_text=found.greedy_text,
    )


def _files(path: epath.PathLike) -> list[epath.Path]:
    path = epath.Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("predictions_*.jsonl"))
    if not found:
        raise UserError(f"{path} holds no predictions_*.jsonl; needed is such a folder, or a file of JSON Lines")
    return found


class _Index:
    """Lines of predictions by the names that an utterance may have in them."""

    def __init__(self, lines: Sequence[Line], tasks: Collection[str]):
        self._by_key: dict[tuple[str, str], list[Line]] = {}
        self._by_path: dict[tuple[str, str], list[Line]] = {}  # whole paths
        self._by_end: dict[tuple[str, str], list[Line]] = {}  # ends of paths
        for line in lines:
            task = line.row.task if line.row.task in tasks else ""
            if task != line.row.task and "" not in tasks:
                continue  # of a task that the suite lacks
            path = line.row.audio_filepath or _path_of(line.row.key)
            self._by_key.setdefault((task, line.row.key), []).append(line)
            self._by_path.setdefault((task, path), []).append(line)
            for end in _ends(path):
                self._by_end.setdefault((task, end), []).append(line)

    def find(self, task: str, utterance: Utterance) -> Line | None:
        """The line of an utterance, None where there is none."""
        exact = self._by_key.get((task, utterance.key), [])
        if exact and exact[0].row.key != exact[0].row.audio_filepath:
            return _only(exact, utterance)
        for found in self._candidates(task, utterance):
            same = [line for line in found if abs(line.row.offset - utterance.offset) < _SAME_SECONDS]
            if same:
                return _only(same, utterance)
        return None

    def _candidates(self, task: str, utterance: Utterance) -> Iterator[list[Line]]:
        yield self._by_path.get((task, utterance.audio_filepath), [])
        yield self._by_end.get((task, _path_of(utterance.key)), [])
        for end in _ends(utterance.audio_filepath):
            yield self._by_path.get((task, end), [])


def _only(lines: Sequence[Line], utterance: Utterance) -> Line:
    for line in lines[1:]:
        if line.row.pred_text != lines[0].row.pred_text:
            raise UserError(f"{line.where}: a second line for {utterance.key!r}, with another text; needed is one")
    return lines[0]


def _path_of(key: str) -> str:
    """The path in the key of an utterance."""
    found = re.fullmatch(r"(.*)@[\d.e+-]+\+[\d.e+-]+", key, flags=re.DOTALL)
    return key if found is None else found[1]


def _ends(path: str) -> Iterator[str]:
    """What is left of a path without its first folders, the longest first."""
    parts = path.split("/")
    yield from ("/".join(parts[at:]) for at in range(len(parts)))
