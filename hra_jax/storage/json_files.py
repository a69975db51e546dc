"""JSON files: how they are read and checked, and how they are written.

This is the one reader of JSON: every file that may come from elsewhere is read here, where its size, its depth, the
number of its values and its numbers have limits, and text that cannot be written is refused.
"""

import collections
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage.files import read_bytes

MOST_BYTES = 2**26  # of a file, unless the reader allows another size
MOST_DEPTH = 64  # objects and lists inside each other
MOST_VALUES = 2**23  # commas and brackets: each value takes up to some hundred bytes of memory
MOST_DIGITS = 64  # of an integer
_MOST_BYTES_OF_LINES = 2**30  # of a file that holds one value in each line
_LARGEST_COUNT = 2**53  # the largest integer up to which every one is a float, so that rates can be computed
_LONGEST_NAME = 1000  # characters
_LONG_INTEGER = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it: one of a pair, or alone


class AtLeast(NamedTuple):
    """The kind of a field that holds an integer of at least `least`, and at most 2**53."""

    least: int


Kind = type | AtLeast
COUNT = AtLeast(0)
_KINDS: dict[Kind, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def json_text(content: object) -> str:
    """JSON with sorted keys, for people and for byte comparison; a NaN or infinity is a ValueError."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def count_values(text: str) -> int:
    """How many values a JSON text has at most, which is what `parse_json` has a limit for."""
    return sum(map(text.count, ",[{"))


def parse_json(
    content: bytes | str, *, where: str, most_bytes: int | None = None, most_values: int | None = None
) -> Any:
    """The value in a JSON text.

    Args:
      content: the text; bytes are UTF-8.
      where: the name of the file, and the line if it has several, for errors.
      most_bytes: what is allowed; None for `MOST_BYTES`.
      most_values: what is allowed; None for `MOST_VALUES`.

    Raises:
      UserError: not JSON, not UTF-8, a key that is given twice, a number that is not finite, an integer of too many
        digits, half of a surrogate pair, or too many bytes, levels (`MOST_DEPTH`) or values.
    """
    _check_size(len(content), where=where, most_bytes=most_bytes)
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        most = MOST_VALUES if most_values is None else most_values
        if count_values(text) > most:
            raise ValueError(f"more than {most:,} values")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            # Slower than the own way of the library, so only where it is needed.
            parse_int=_integer if _LONG_INTEGER.search(text) else None,
        )
        _check_depth(value)
        if _SURROGATE.search(text):
            _check_texts(value)
    except RecursionError as error:
        raise UserError(f"{where}: not JSON ({_TOO_DEEP})") from error
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    return value


def _check_size(size: int, *, where: str, most_bytes: int | None) -> None:
    most = MOST_BYTES if most_bytes is None else most_bytes
    if size > most:
        raise UserError(f"{where}: {size:,} bytes of JSON; allowed: at most {most:,}")


_TOO_DEEP = f"more than {MOST_DEPTH} objects and lists inside each other"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((repeated, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r:.80} is given twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.40} is out of range")
    return number


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits; allowed: at most {MOST_DIGITS}")
    return int(text)


def _check_texts(value: object) -> None:
    """Refuses, with a ValueError, a text that UTF-8 cannot write: half of a surrogate pair."""
    nodes = [value]
    while nodes:
        node = nodes.pop()
        if isinstance(node, str):
            try:
                node.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the text {node!r:.80} holds half of a surrogate pair") from error
        elif isinstance(node, dict | list):
            nodes += [*node, *node.values()] if isinstance(node, dict) else node


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(_TOO_DEEP)
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]


def read_json(
    path: epath.PathLike, *, what: str = "", most_bytes: int | None = None, most_values: int | None = None
) -> Any:
    """The value in a JSON file.

    Args:
      path: the file.
      what: what is needed there, for the error where there is no such file.
      most_bytes: of the file; None for `MOST_BYTES`.
      most_values: in the file; None for `MOST_VALUES`.

    Raises:
      UserError: there is no such file, it cannot be read, or as `parse_json`.
      StorageUnavailable: its bucket does not answer.
    """
    content = read_bytes(path, what=what, most_bytes=most_bytes or MOST_BYTES)
    return parse_json(content, where=str(path), most_bytes=most_bytes, most_values=most_values)


def read_text(path: epath.PathLike, *, what: str = "", most_bytes: int | None = None) -> str:
    """The text of a file that `parse_json` takes; arguments and errors as `read_json`."""
    try:
        return read_bytes(path, what=what, most_bytes=most_bytes or MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def read_object(
    path: epath.PathLike,
    fields: Mapping[str, Kind] | None = None,
    *,
    what: str = "",
    most_bytes: int | None = None,
    most_values: int | None = None,
) -> dict[str, Any]:
    """The object in a JSON file, with fields as `check_fields` asks for; arguments and errors as `read_json`."""
    content = read_json(path, what=what, most_bytes=most_bytes, most_values=most_values)
    return check_fields(content, fields or {}, where=str(path))


def read_lines(path: epath.PathLike, fields: Mapping[str, Kind], *, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that holds one in each line, checked as `check_fields` does.

    Args:
      path: the file.
      fields: the kind of each field.
      what: what is needed there, for the error where there is no such file.

    Returns:
      Iterator of (file and number of the line, for errors; object).

    Raises:
      UserError: as `read_json` and `check_fields`.
    """
    content = read_bytes(path, what=what, most_bytes=_MOST_BYTES_OF_LINES)
    # As bytes: text also ends a line at characters that JSON leaves as they are in a string.
    for number, line in enumerate(content.splitlines(), start=1):
        where = f"{path}:{number}"
        yield where, check_fields(parse_json(line, where=where), fields, where=where)


def check_fields(content: object, fields: Mapping[str, Kind], *, where: str) -> dict[str, Any]:
    """Checks that a value is a JSON object with certain fields; it may have others.

    Args:
      content: the value.
      fields: the kind of each field: str, int, float (an integer will do), bool, dict, list, or `AtLeast`.
      where: the file and the place in it, for errors.

    Returns:
      The value.

    Raises:
      UserError: another value, or a field is missing or of another kind; names the field, what was found and what is
        needed.
    """
    if not isinstance(content, dict):
        names = ", ".join(map(repr, fields))
        raise UserError(f"{where}: must be a JSON object{names and ' with '}{names}; got {content!r:.80}")
    for name, kind in fields.items():
        if name not in content or not _is_of(content[name], kind):
            found = f"{content[name]!r:.80}" if name in content else "nothing"
            allowed = f"an integer of at least {kind.least}" if isinstance(kind, AtLeast) else _KINDS[kind]
            raise UserError(f"{where}: needs {name!r} ({allowed}); got {found}")
    return content


def check_shown(text: str, *, where: str) -> None:
    """Refuses, with a UserError, a name that could not be shown in one line."""
    if not text.isprintable() or len(text) > _LONGEST_NAME:
        raise UserError(f"{where} is {text!r:.80}; allowed: at most {_LONGEST_NAME} printable characters")


def _is_of(value: object, kind: Kind) -> bool:
    # True is an int in Python, not in JSON.
    if isinstance(kind, AtLeast):
        return type(value) is int and kind.least <= value <= _LARGEST_COUNT
    return type(value) in ((int, float) if kind is float else (kind,))
