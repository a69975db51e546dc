"""Lines of JSON objects as columns: plain lines are read many at a time, and never become Python objects."""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.json

from hra_jax.storage.json_files import MOST_DEPTH, parse_json

_NULL = re.compile(rb":\s*null")
_ODD = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")  # escapes of surrogates, of which one may be alone, and of NUL
_PLAIN = (pa.string(), pa.int64(), pa.float64(), pa.bool_())


def plain_objects(content: bytes, fields: Mapping[str, pa.DataType]) -> pa.Table | None:
    """The objects of some lines as columns, where each line is an object of texts, numbers and booleans.

    Args:
      content: whole lines that end with a line feed.
      fields: the types of some fields, text or float64; integers become floats there.

    Returns:
      A table with a row for each line: the columns `fields`, and one for each other field, of texts, int64, float64 or
      booleans; null where a line has no such field. The values are those that `parse_json` gives. None where a line is
      anything else, or values of a field are of several kinds: then the lines have to be read one by one.
    """
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    # Line feeds between a bracket that closes and one that opens are never inside an object, so no line has a part of
    # one; and where there are as many objects as lines, none has two.
    if not content.startswith(b"{") or content.count(b"}\n{") != lines - 1 or not content.rstrip(b"\n").endswith(b"}"):
        return None
    if (b"null" in content and _NULL.search(content)) or (b"\\u" in content and _ODD.search(content)):
        return None
    if not _is_utf8(content) or _most_brackets(content, lines) > MOST_DEPTH:
        return None
    table = _read(content, fields)
    if table is not None:
        # What looks like a time is a text like any other.
        times = [field.name for field in table.schema if pa.types.is_temporal(field.type)]
        table = _read(content, {**fields, **dict.fromkeys(times, pa.string())}) if times else table
    if table is None or table.num_rows != lines or any(field.type not in _PLAIN for field in table.schema):
        return None
    return table if all(_is_as_written(table, name, content, fields) for name in table.column_names) else None


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _most_brackets(content: bytes, lines: int) -> int:
    """The most that a line opens."""
    if content.count(b"{") + content.count(b"[") == lines:
        return 1
    letters = np.frombuffer(content, np.uint8)
    opened = np.cumsum((letters == ord("{")) | (letters == ord("[")))
    ends = np.flatnonzero(letters == ord("\n"))
    return int(np.diff(np.concatenate([[0], opened[ends], opened[-1:]])).max())


def _read(content: bytes, fields: Mapping[str, pa.DataType]) -> pa.Table | None:
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(content),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(content)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=pa.schema(list(fields.items()))),
        )
    except pa.ArrowException:
        return None


def _is_as_written(table: pa.Table, name: str, content: bytes, fields: Mapping[str, pa.DataType]) -> bool:
    """Whether the numbers of a column are those of the lines: finite, and no integer that became a float."""
    if table.schema.field(name).type != pa.float64():
        return True
    values = table[name].to_numpy()
    there = values[~table[name].is_null().to_numpy()]
    if not np.isfinite(there).all():
        return False
    if name in fields:
        return True
    whole = np.flatnonzero(values == np.trunc(values))
    lines = content.split(b"\n") if len(whole) else []
    return all(isinstance(parse_json(lines[row], where="a line")[name], float) for row in whole.tolist())
