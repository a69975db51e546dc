"""The lines of a manifest as columns. Plain ones are read many at a time, all others one by one."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from hra_jax.console import printable
from hra_jax.data.columns import TagColumns, UtteranceColumns
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.decoding import phrases
from hra_jax.errors import UserError
from hra_jax.storage.json_columns import plain_objects
from hra_jax.storage.json_files import parse_json
from hra_jax.storage.remote import SCHEMES, why_unreachable

_REQUIRED: Final = ("audio_filepath", "duration", "text")
_MOST_LINE: Final = 2**20  # bytes
_MOST_SECONDS: Final = 10**8  # of an offset or a duration: three years
# Characters of a text. Nobody says a tenth of it, and normalising far more takes time.
_MOST_TEXT: Final = 1000
_MOST_TEXT_PER_SECOND: Final = 200
_UNTIDY: Final = re.compile(r"(?:^|/)\.?(?:/|$)")  # a path with a part that a path has not: "a//b", "./a", "a/"
_MOST_KEY: Final = 200  # characters of a path that is told
_FIELDS: Final = {
    "audio_filepath": pa.string(),
    "duration": pa.float64(),
    "text": pa.string(),
    "offset": pa.float64(),
}
_BLOCK: Final = _MOST_LINE  # bytes of lines that are read at a time, so no line of several is too long
_FEW: Final = 16  # lines that are read one by one where one of them is not plain


class _LineError(ValueError):
    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def _seconds(row: dict[str, Any], field: str) -> float:
    value = row[field]
    if type(value) not in (int, float) or not 0 <= value <= _MOST_SECONDS:
        allowed = f"seconds from 0 to {_MOST_SECONDS:,}"
        raise _LineError("missing_field", f"{field} is {value!r:.80}; needed: a number of {allowed}")
    return float(value)


def _object(line: bytes) -> dict[str, Any]:
    """The object in a line."""
    try:
        row = parse_json(line, where="the line", most_bytes=_MOST_LINE)
    except UserError as error:
        raise _LineError("bad_json", str(error)) from error
    if not isinstance(row, dict):
        raise _LineError("bad_json", f"the line is a {type(row).__name__}, not an object")
    return row


class _Line(NamedTuple):
    """A good line: its path as written, duration, text and offset, which is None where the line has none."""

    path: str
    duration: float
    text: str
    offset: float | None


def _parse(row: dict[str, Any], *, texts: bool = True) -> _Line:
    row = row if texts else {**row, "text": ""}
    missing = [field for field in _REQUIRED if field not in row]
    if missing:
        raise _LineError("missing_field", f"there is no {' and no '.join(missing)}")
    for field in ("audio_filepath", "text"):
        if not isinstance(row[field], str):
            raise _LineError("missing_field", f"{field} is {row[field]!r:.80}; needed: a text")
    path, text, duration = row["audio_filepath"], row["text"], _seconds(row, "duration")
    if not path or "\0" in path:
        raise _LineError("missing_field", f"audio_filepath is {path!r:.80}; needed: the path of a file")
    reason = why_unreachable(path)
    if reason is not None:
        raise _LineError("unreachable_audio", f"{path[:80]}: {reason}")
    if duration == 0.0:
        raise _LineError("empty_audio", "duration is 0")
    most = int(_MOST_TEXT + _MOST_TEXT_PER_SECOND * duration)
    if len(text) > most:
        raise _LineError("too_short", f"{duration:g} s cannot hold {len(text):,} characters; allowed: {most:,}")
    wrong = phrases.why_no_phrases(row.get(phrases.FIELD))
    if wrong is not None:
        raise _LineError("missing_field", wrong)
    offset = None if row.get("offset") is None else _seconds(row, "offset")  # NeMo writes null for the whole file
    return _Line(path, duration, text, offset)


def _tags(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _FIELDS}


def why_refused(row: dict[str, Any]) -> tuple[str, str] | None:
    """Why a row that is about to be written would be no usable line: kind and detail; None where it is one."""
    try:
        line = json.dumps(row, ensure_ascii=False).encode()
        _parse(_object(line))
    except UnicodeEncodeError:
        return "undecodable_audio", "its name is not UTF-8, and a manifest cannot hold it; rename it"
    except _LineError as error:
        return error.kind, error.detail
    return None


def read(
    content: bytes, *, folder: epath.Path, source: str, report: DataReport, texts: bool = True
) -> tuple[UtteranceColumns, list[Refused]]:
    """The utterances of the content of a manifest, and its other lines.

    Args:
      content: UTF-8; lines end as they do anywhere.
      folder: what paths of audio are relative to.
      source: the manifest, for `Utterance.source` and the report.
      report: gets every bad line.
      texts: whether lines need a text; without, nothing is asked of it, and every text is ''.

    Raises:
      UserError: a line is bad and the report strict.
    """
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines, start = _Lines(source, report, texts=texts), 0
    while start < len(content):
        end = content.rfind(b"\n", start, start + _BLOCK) + 1 or content.find(b"\n", start) + 1 or len(content)
        if start + _BLOCK >= len(content):
            end = len(content)
        lines.add(content[start:end])
        start = end

    above = os.fspath(folder / "x")[:-1]

    def made(row: Mapping[str, Any], tags: dict[str, Any]) -> Utterance:
        path, offset, duration = row["path"], row["offset"], row["duration"]
        key = path if offset is None else f"{path}@{offset:.15g}+{duration:.15g}"
        if "://" not in path and not os.path.isabs(path):  # an address of a file stays one
            path = os.fspath(folder / path) if _UNTIDY.search(path) else above + path
        return Utterance(path, duration, row["text"], offset or 0.0, tags, key, source, row["line"])

    def paths(rows: pa.Table) -> pa.ChunkedArray:
        path = rows["path"]
        whole = pc.or_(pc.match_substring(path, "://"), pc.starts_with(path, os.sep))
        before, nothing = (pa.scalar(text, pa.large_string()) for text in (above, ""))
        return pc.if_else(whole, path, pc.binary_join_element_wise(before, path, nothing))

    return UtteranceColumns(*lines.tags.tables(lines.table()), made, paths), lines.refused


class _Lines:
    """Collects the lines of a manifest, in their order."""

    def __init__(self, source: str, report: DataReport, *, texts: bool):
        self._source, self._report, self._texts = source, report, texts
        self._number = 1  # of the next line
        self._tables: list[pa.Table] = []
        self.tags = TagColumns()
        self.refused: list[Refused] = []

    def table(self) -> pa.Table:
        """The columns path, duration, text, offset and line of the good lines."""
        return pa.concat_tables(self._tables) if self._tables else _SCHEMA.empty_table()

    def add(self, block: bytes) -> None:
        """Takes whole lines."""
        found = plain_objects(block, _FIELDS) if block.count(b"\n") >= _FEW else None
        if found is not None and not self._texts:
            nothing = pa.array([""] * found.num_rows, pa.string())
            found = found.set_column(found.column_names.index("text"), "text", nothing)
        if found is not None and _is_good(found):
            self._add_plain(found)
            return
        middle = block.find(b"\n", len(block) // 2) + 1
        if block.count(b"\n") >= _FEW and 0 < middle < len(block):
            self.add(block[:middle])
            self.add(block[middle:])
        else:
            self._add_each(block)

    def _add_plain(self, found: pa.Table) -> None:
        numbers = pa.array(np.arange(self._number, self._number + found.num_rows))
        self._number += found.num_rows
        columns = [*(found[name] for name in _FIELDS), numbers]
        self._tables.append(pa.table(columns, schema=_SCHEMA))
        self.tags.add(found.drop_columns(list(_FIELDS)))

    def _add_each(self, block: bytes) -> None:
        rows, tags = [], []
        for line in block.split(b"\n")[: -1 if block.endswith(b"\n") else None]:
            number, self._number = self._number, self._number + 1
            if not line.strip():
                continue
            row: dict[str, Any] = {}
            try:
                row = _object(line)
                rows.append((*_parse(row, texts=self._texts), number))
                tags.append(_tags(row))
            except _LineError as error:
                where, named = f"{self._source}:{number}", row.get("audio_filepath")
                self._report.add(error.kind, where, error.detail)
                key = printable(named, most=_MOST_KEY) if named and isinstance(named, str) else where
                self.refused.append(Refused(key, f"{error.kind}: {error.detail}", _tags(row)))
        if rows:
            self._tables.append(pa.table(list(map(pa.array, zip(*rows, strict=True), _SCHEMA.types)), schema=_SCHEMA))
            self.tags.add_values(tags)


_SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("duration", pa.float64()),
        ("text", pa.string()),
        ("offset", pa.float64()),
        ("line", pa.int64()),
    ]
)


def _is_good(found: pa.Table) -> bool:
    """Whether each row is what `_parse` takes, so that nobody has to be told what is wrong with it."""
    # A list of phrases is not plain, so where there is such a column it is something else.
    if any(found[name].null_count for name in _REQUIRED) or phrases.FIELD in found.column_names:
        return False
    paths, durations, offsets = found["audio_filepath"], found["duration"].to_numpy(), found["offset"].drop_null()
    addresses = pc.filter(paths, pc.match_substring(paths, "://"))
    known = [pc.starts_with(addresses, f"{scheme}://") for scheme in SCHEMES]
    return bool(
        ((durations > 0) & (durations <= _MOST_SECONDS)).all()
        and ((offsets.to_numpy() >= 0) & (offsets.to_numpy() <= _MOST_SECONDS)).all()
        and (pc.utf8_length(found["text"]).to_numpy() <= np.floor(_MOST_TEXT + _MOST_TEXT_PER_SECOND * durations)).all()
        and pc.all(pc.greater(pc.binary_length(paths), 0)).as_py()
        and np.logical_or.reduce([one.to_numpy() for one in known]).all()
    )
