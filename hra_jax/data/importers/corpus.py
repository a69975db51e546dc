"""What every importer is made of: utterances as a corpus has them, its splits, and lines of its text files."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from etils import epath

from hra_jax.data.recordings import MOST_TABLE_BYTES
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.storage.files import check_regular
from hra_jax.storage.remote import StorageUnavailable

_CANONICAL: Final = {"dev": "validation", "val": "validation", "valid": "validation"}
_MOST_FIRST_LINE: Final = 2**20  # bytes
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An utterance as its corpus has it; its audio is not looked at yet.

    Attributes:
      name: what the report calls it; unique in its corpus.
      audio: a path or URI.
      text: the transcript; one space between words.
      tags: further fields for its line in the manifest.
      offset: where it begins in its file, seconds; None for a file that is one utterance.
      duration: seconds; None for all that follows.
    """

    name: str
    audio: str
    text: str
    tags: Mapping[str, Any]
    offset: float | None = None
    duration: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A part of a corpus that becomes one manifest.

    Attributes:
      name: of the manifest: train, validation, test, or what the corpus calls it.
      place: what it is in the corpus: a folder or a table.
      read: gives its utterances; what cannot be used goes to the report.
      named_only: whether it is left alone unless it is asked for.
      notes: lines to tell the user.
    """

    name: str
    place: str
    read: Callable[[DataReport], Iterator[Entry]]
    named_only: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """A layout in which corpora are published.

    Attributes:
      kind: its name on the command line.
      needs: what is found in a folder of this kind, for errors.
      splits: of a folder; none where it is of another kind. The second argument is the folder at which relative paths
        of recordings begin, or None; formats whose layout says that already pay no attention to it.
    """

    kind: str
    needs: str
    splits: Callable[[epath.Path, epath.Path | None], list[Split]]


def canonical(name: str) -> str:
    """The name of a split in manifests, from that in a corpus."""
    return _CANONICAL.get(name.lower(), name)


def folders(path: epath.Path, report: DataReport | None = None) -> list[epath.Path]:
    """The folders in a folder, as `entries` lists them."""
    return [entry for entry in entries(path, report) if entry.is_dir()]


def entries(path: epath.Path, report: DataReport | None = None) -> list[epath.Path]:
    """What lies in a folder, sorted, but what macOS leaves there.

    Args:
      path: the folder.
      report: is told where the folder cannot be listed, which then has nothing.
    """
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("._"))
    except StorageUnavailable:
        raise
    except OSError as error:
        if report is not None:
            report.add("unreachable_audio", f"{path.parent.name}/{path.name}", f"{error.strerror or error}: the folder")
        return []


def words(text: str) -> str:
    """A transcript with one space between its words, and none around it."""
    return " ".join(text.split())


def content(path: epath.Path) -> bytes:
    """The content of a text file of a corpus, without a byte order mark.

    Raises:
      UserError: no such file, no regular file, too large, or UTF-16.
    """
    try:
        check_regular(path)
        if path.stat().length > MOST_TABLE_BYTES:
            raise UserError(f"{path} has more than {MOST_TABLE_BYTES:,} bytes")
        found: bytes = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}") from error
    except StorageUnavailable:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if found[:8].count(0) > 2:  # each of its letters is two bytes, or four
        raise UserError(f"{path} is UTF-16 or UTF-32; needed: UTF-8")
    return found.removeprefix(_BYTE_ORDER_MARK)


def first_line(path: epath.Path) -> bytes:
    """The first line of a file, which may not be one of text; b"" where nothing can be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            found: bytes = file.readline(_MOST_FIRST_LINE)
    except StorageUnavailable:
        raise
    except OSError:
        return b""
    return found


def lines(path: epath.Path, report: DataReport, *, name: str = "") -> Iterator[tuple[str, str]]:
    """The lines of a text file, with what the report calls each; empty ones are passed over.

    Args:
      path: the file.
      report: gets the lines that are not UTF-8.
      name: what the report calls the file; "" for its name.

    Returns:
      Iterator of (`name:line`, text of the line without its end).

    Raises:
      UserError: as `content`.
    """
    # As bytes: text also ends a line at characters that may stand in a transcript.
    for number, line in enumerate(content(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{name or path.name}:{number}"
        try:
            yield where, line.decode("utf-8")
        except UnicodeDecodeError as error:
            report.add("unreadable_text", where, f"byte {line[error.start]:#04x} is not UTF-8; save the file as UTF-8")


def pairs(path: epath.Path, report: DataReport, *, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Lines that are a key and a value, with spaces or tabs between: (`name:line`, key, value or "")."""
    for where, line in lines(path, report, name=name):
        key, *value = re.split(r"[ \t]+", line.strip(), maxsplit=1)
        yield where, key, value[0] if value else ""


def tabbed(path: epath.Path, report: DataReport, *, name: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with a header and tabs between its cells, as they are published: quotes are characters.

    Args:
      path: the table.
      report: gets the rows with more or fewer cells than the header (missing_field).
      name: what the report calls the file; "" for its name.

    Returns:
      Iterator of (`name:line`, {column: cell}).
    """
    header: list[str] = []
    for where, line in lines(path, report, name=name):
        cells = [unquoted(cell.strip()) for cell in line.split("\t")]
        if not header:
            header = cells
        elif len(cells) != len(header):
            report.add("missing_field", where, f"the row has {len(cells)} cells; the header has {len(header)}")
        else:
            yield where, dict(zip(header, cells, strict=True))


def unquoted(cell: str) -> str:
    """A cell without the quotes that some writers of tables put around a cell that holds quotes, which are then double.

    Other quotes are a part of the text: a sentence that somebody has quoted.
    """
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '""' not in inner or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def tags(**values: str | None) -> dict[str, str]:
    """Those of the tags that have a value."""
    return {name: value for name, value in values.items() if value}
