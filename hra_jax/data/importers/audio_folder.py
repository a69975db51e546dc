"""Audio folders of Hugging Face: recordings, and a metadata.csv or metadata.jsonl with a row for each.

Source: "Create an audio dataset" in the documentation of datasets. `file_name` is relative to the metadata. A split is
a folder with metadata of its own; in the metadata of the whole, the folder that a file lies in.
"""

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

from etils import epath

from hra_jax.console import listed
from hra_jax.data import recordings
from hra_jax.data.importers.corpus import Entry, Format, Split, canonical, content, first_line, folders, lines, words
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.storage.json_files import parse_json

_TABLES: Final = ("metadata.csv", "metadata.jsonl")
_FILES: Final = ("file_name", "audio_file_name")
_SPEAKERS: Final = ("speaker", "speaker_id", "client_id")
_KNOWN: Final = ("train", "validation", "test")
_NO_TAGS: Final = {"audio_filepath", "duration", "text", "offset", *_FILES, *recordings.TEXT_CELLS}
_MOST_LINE: Final = 2**20  # bytes


def _splits(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    table = _table(folder)
    if table is not None:
        return _of_whole(table)
    data = folder / "data" if (folder / "data").is_dir() else folder
    found = [(path, _table(path)) for path in folders(data)]
    return [Split(canonical(path.name), path.name, _reader(own)) for path, own in found if own is not None]


def _table(folder: epath.Path) -> epath.Path | None:
    """The metadata in a folder, where its first row is that of an audio folder."""
    for name in _TABLES:
        path = folder / name
        if any(field.encode() in first_line(path) for field in _FILES):
            return path
    return None


def _of_whole(table: epath.Path) -> list[Split]:
    """The splits of one table: the first folders of its files, where they are called like splits."""
    names = {_part(file) for _, file, _ in _rows(table, DataReport())}
    if not names:
        return [Split("train", table.name, _reader(table))]
    order = [name for name in _KNOWN if name in names]
    return [Split(name, f"{table.name}: {name}", _reader(table, name)) for name in order]


def _part(file: str) -> str:
    """The split of a file of a table that has several; what lies elsewhere is in the first, as Hugging Face has it."""
    parts = [canonical(part) for part in file.removeprefix("./").split("/")[:-1]]
    return next((part for part in parts if part in _KNOWN), "train")


def _reader(table: epath.Path, part: str | None = None) -> Callable[[DataReport], Iterator[Entry]]:
    def read(report: DataReport) -> Iterator[Entry]:
        for where, file, row in _rows(table, report):
            if part is not None and _part(file) != part:
                continue
            texts = [str(row[name]) for name in recordings.TEXT_CELLS if row.get(name) is not None]
            text = words(texts[0]) if texts else ""
            if not text:
                report.add("no_text", where, "its row has no transcript")
                continue
            tags = {
                name: value
                for name, value in row.items()
                if name not in _NO_TAGS and isinstance(value, str | int | float) and value != ""
            }
            speaker = next((tags[name] for name in _SPEAKERS if name in tags), None)
            if speaker is not None:
                tags["speaker"] = str(speaker)
            audio = file if "://" in file or file.startswith("/") else str(table.parent / file)
            yield Entry(where, audio, text, tags)

    return read


def _rows(table: epath.Path, report: DataReport) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What the report calls it, file and fields of each row; UserError where no column can be the transcript."""
    name = f"{table.parent.name}/{table.name}"
    known = False
    for where, row in _of_csv(table, name, report) if table.suffix == ".csv" else _of_json(table, name, report):
        if not known and not any(cell in row for cell in recordings.TEXT_CELLS):
            raise UserError(
                f"{table}: none of {listed(row, most=5)} is known to be the transcript; allowed: one named "
                f"{', '.join(recordings.TEXT_CELLS)}"
            )
        known = True
        file = next((row[field] for field in _FILES if row.get(field)), None)
        if isinstance(file, str):
            yield where, file.replace("\\", "/"), row
        else:
            report.add("missing_field", where, f"the row has no {_FILES[0]}")


def _of_csv(table: epath.Path, name: str, report: DataReport) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Cells may hold line breaks between their quotes, so this is no table of lines.
        reader = csv.reader(io.StringIO(recordings.decoded(content(table)), newline=""), strict=True)
        header = next(reader, [])
        for cells in reader:
            where = f"{name}:{reader.line_num}"
            if len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            elif cells:
                report.add("missing_field", where, f"the row has {len(cells)} cells; the header has {len(header)}")
    except csv.Error as error:
        raise UserError(f"{table}:{reader.line_num}: {error}; a quote inside of quotes is written twice") from error
    except ValueError as error:
        raise UserError(f"{table}: {error}") from error


def _of_json(table: epath.Path, name: str, report: DataReport) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines(table, report, name=name):
        try:
            row = parse_json(line, where="the line", most_bytes=_MOST_LINE)
        except UserError as error:
            report.add("bad_json", where, str(error))
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            report.add("bad_json", where, f"the line is a {type(row).__name__}, not an object")


FORMAT = Format("audio_folder", "an audio folder of Hugging Face, with metadata.csv or metadata.jsonl in it", _splits)
