"""What a system recognised, utterance by utterance, and the files that hold it: predictions as JSON Lines.

A line has the names of the Open ASR leaderboard (`audio_filepath`, `duration`, `time`, `text`, `pred_text`), so that
its tools read our files and `evaluate` reads theirs. Beside them stand the task, the key of the utterance, its tags,
and what was counted. Lines of hra_jax before 0.2 (`reference`, `hypothesis`, `base_hypothesis`) are read as well.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage.json_files import Kind, check_fields, read_lines

_FORMER_NAMES = {"reference": "text", "hypothesis": "pred_text", "base_hypothesis": "base_pred_text"}
_COUNTS = (
    *("words", "errors", "base_errors", "greedy_errors", "base_greedy_errors"),
    *("characters", "character_errors", "base_character_errors"),
)
_GREEDY = ("greedy_text", "base_greedy_text")
_TEXTS = ("audio_filepath", "key", "task", "text", "base_pred_text", *_GREEDY)
_NUMBERS = ("duration", "time", "offset")


@dataclasses.dataclass(frozen=True)
class UtteranceResult:
    """What was recognised in one utterance of one evaluation task.

    Attributes:
      task: the evaluation task; '' in the file of a system that knows none.
      key: the key of the utterance, `Utterance.key`.
      text: its transcript, not normalised.
      pred_text: what the system recognised.
      base_pred_text: what the backbone recognised without an adapter; None where it was not run.
      duration: seconds of audio; 0 where nothing says it.
      audio_filepath: where the audio lies; '' where nothing says it.
      offset: where the utterance begins in that file, seconds.
      time: seconds that recognising it took, its share of its batch; None where it was not measured.
      tags: every other field of its line in the manifest.
      greedy_text: what greedy decoding of the same outputs says; None where `pred_text` is that.
      base_greedy_text: the same of the backbone.
    """

    task: str
    key: str
    text: str
    pred_text: str
    base_pred_text: str | None
    duration: float
    audio_filepath: str = ""
    offset: float = 0.0
    time: float | None = dataclasses.field(default=None, compare=False)
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    greedy_text: str | None = None
    base_greedy_text: str | None = None


@dataclasses.dataclass(frozen=True)
class Unscored:
    """An utterance of a suite that was not scored.

    Attributes:
      task: the evaluation task.
      key: the key of the utterance.
      reason: why, in one line.
    """

    task: str
    key: str
    reason: str


class Line(NamedTuple):
    """One line of a file of predictions.

    Attributes:
      where: the file and the number of the line, for errors.
      row: the utterance.
      counts: those of "words", "errors", "base_errors", "greedy_errors", "base_greedy_errors", "characters",
        "character_errors" and "base_character_errors" that the line has.
    """

    where: str
    row: UtteranceResult
    counts: dict[str, int]


def prediction_line(row: UtteranceResult, counts: Mapping[str, int | None]) -> str:
    """An utterance as a line of JSON, with what was counted in it; `read_predictions` reads it back."""
    content: dict[str, Any] = {
        "audio_filepath": row.audio_filepath or row.key,
        **({"offset": row.offset} if row.offset else {}),
        "duration": row.duration,
        "time": row.time,
        "text": row.text,
        "pred_text": row.pred_text,
        "base_pred_text": row.base_pred_text,
        **{name: text for name in _GREEDY if (text := getattr(row, name)) is not None},
        "task": row.task,
        "key": row.key,
        "tags": dict(row.tags),
        **counts,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def read_predictions(path: epath.PathLike, *, what: str = "predictions as JSON Lines") -> Iterator[Line]:
    """The lines of a file of predictions, of this or of any other program.

    `pred_text` and either `key` or `audio_filepath` are needed. Fields that have no meaning here are tags; what stands
    in the object `tags` goes before them.

    Args:
      path: the file.
      what: what is needed there, for the error where there is no such file.

    Raises:
      UserError: no such file, a line that is not JSON, or one that lacks a field or has one of another kind. Names the
        line.
    """
    for where, content in read_lines(path, {}, what=what):
        yield _line(where, {_FORMER_NAMES.get(name, name): value for name, value in content.items()})


def _line(where: str, content: dict[str, Any]) -> Line:
    known = {name: content.pop(name) for name in (*_TEXTS, *_NUMBERS, "pred_text") if name in content}
    known = {name: value for name, value in known.items() if value is not None}
    # Others have lists of words under such a name.
    counts = {
        name: content.pop(name) for name in _COUNTS if name in content and type(content[name]) in (int, type(None))
    }
    kinds: dict[str, Kind] = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_NUMBERS, float)}
    check_fields(known, {"pred_text": str} | {name: kind for name, kind in kinds.items() if name in known}, where=where)
    for name in _NUMBERS:
        if known.get(name, 0) < 0:
            raise UserError(f"{where}: {name} is {known[name]!r}; allowed: 0 or more, in seconds")
    if "key" not in known and "audio_filepath" not in known:
        raise UserError(f"{where}: needs 'audio_filepath' (a string), or 'key'; got neither")
    inner = content.pop("tags", {})
    check_fields(inner, {}, where=f"{where}: tags")
    row = UtteranceResult(
        task=known.get("task", ""),
        key=known.get("key", known.get("audio_filepath", "")),
        text=known.get("text", ""),
        pred_text=known["pred_text"],
        base_pred_text=known.get("base_pred_text"),
        duration=float(known.get("duration", 0)),
        audio_filepath=known.get("audio_filepath", ""),
        offset=float(known.get("offset", 0)),
        time=float(known["time"]) if "time" in known else None,
        tags=content | inner,
        greedy_text=known.get("greedy_text"),
        base_greedy_text=known.get("base_greedy_text"),
    )
    return Line(where, row, {name: count for name, count in counts.items() if count is not None})
