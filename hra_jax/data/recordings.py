"""Recordings in a folder, and the transcript of each: beside it, or in a table of all of them."""

import csv
import dataclasses
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from etils import epath

from hra_jax.console import listed
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.storage.files import check_regular
from hra_jax.storage.remote import StorageUnavailable, is_remote

READ_SUFFIXES: Final = (
    ".aif",
    ".aifc",
    ".aiff",
    ".au",
    ".caf",
    ".flac",
    ".mp3",
    ".nist",
    ".oga",
    ".ogg",
    ".opus",
    ".rf64",
    ".snd",
    ".sph",
    ".voc",
    ".w64",
    ".wav",
)
_OTHER_SUFFIXES: Final = (
    ".3gp",
    ".aac",
    ".amr",
    ".ape",
    ".avi",
    ".dff",
    ".dsf",
    ".gsm",
    ".m4a",
    ".m4b",
    ".m4v",
    ".mka",
    ".mkv",
    ".mov",
    ".mp2",
    ".mp4",
    ".mpc",
    ".mpeg",
    ".mpg",
    ".pcm",
    ".ra",
    ".raw",
    ".shn",
    ".spx",
    ".tta",
    ".vox",
    ".webm",
    ".wma",
    ".wv",
)
_TABLES: Final = {"transcripts.tsv": "\t", "transcripts.csv": ","}
_FILE_CELLS: Final = ("audio_filepath", "audio", "file", "filename", "path")
TEXT_CELLS: Final = ("text", "transcript", "transcription", "sentence")
_MOST_TEXT_BYTES: Final = 2**20  # of the transcript of one recording
MOST_TABLE_BYTES: Final = 2**30  # of the table of all of them


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """A recording with its transcript.

    Attributes:
      path: where it lies; absolute.
      name: its path below the folder that was searched.
      text: the transcript; one space between words.
    """

    path: epath.Path
    name: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    path: epath.Path
    name: str  # below the folder, with slashes
    identity: str  # the same for a file and the links to it

    @property
    def base(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name below the folder without its suffix."""
        return os.path.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.base)[1].lower()


def find(folder: epath.PathLike, *, report: DataReport, transcripts: bool = True) -> tuple[list[Recording], list[str]]:
    """Searches a folder and its sub-folders for recordings; links are followed, and nothing is taken twice.

    Transcripts are in a table in the folder, `transcripts.tsv` or `transcripts.csv` (file, text), or else in a `.txt`
    of the same name beside each recording. Names are compared as people read them: however their accents are composed,
    and with either slash.

    Args:
      folder: the folder.
      report: names what cannot be used: audio of a kind that is not read, names and transcripts that are not UTF-8,
        folders that cannot be opened, transcripts and rows of the table without a recording.
      transcripts: whether transcripts are looked for; without them every text is empty, as it is of noise.

    Returns:
      The recordings by name, not opened yet; the names of those without a transcript.

    Raises:
      UserError: no audio there; a table with a row that is not a file and a text, or that names no single recording.
    """
    root = epath.Path(folder) if is_remote(folder) else epath.Path(os.path.abspath(epath.Path(folder)))
    everything = _remote_files(root) if is_remote(root) else _local_files(os.fspath(root), report)
    files = sorted(_of_people(everything, report), key=lambda file: file.name)
    audio = [file for file in files if file.suffix in READ_SUFFIXES + _OTHER_SUFFIXES]
    if not any(file.suffix in READ_SUFFIXES for file in audio):
        others = listed([file.name for file in audio], most=3)
        hint = f"; convert {others} to FLAC or WAV" if audio else ""
        raise UserError(f"no audio in {folder}; looked for {', '.join(READ_SUFFIXES)}{hint}")
    tables = [file for file in files if file.name.lower() in _TABLES] if transcripts else []
    if len(tables) > 1:
        raise UserError(f"{folder} has {' and '.join(file.name for file in tables)}; allowed: one of them")
    texts: Mapping[str, str | None] = {}
    if transcripts:
        texts = _of_table(tables[0], audio, root=root, report=report) if tables else _beside(audio, files, report)
    found, silent, taken = [], [], dict[str, Recording]()
    for file in audio:
        text = texts.get(file.name, "")
        if text is None:
            continue
        if file.identity in taken:
            first = taken[file.identity]
            if text not in ("", first.text):
                report.add("unreadable_text", file.name, f"the transcript: {first.name} is the same file, with another")
            continue
        if not text and transcripts:
            silent.append(file)
        elif file.suffix in READ_SUFFIXES:
            taken[file.identity] = Recording(file.path, file.name, text)
            found.append(taken[file.identity])
        else:
            report.add("undecodable_audio", file.name, f"{file.suffix} is not read; convert it to FLAC or WAV")
    return found, [file.name for file in silent if file.identity not in taken]


# --- Files ------------------------------------------------------------------------------------------------------------


def _local_files(root: str, report: DataReport) -> Iterator[_File]:
    """The files below a folder, each folder once; what links alone lead to comes last."""
    seen: set[str] = set()
    waiting, links, linked = [root], list[str](), list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            report.add("unreachable_audio", os.path.relpath(folder, root), f"{error.strerror}: the folder")
            continue
        for entry in entries:
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif entry.is_symlink():
                linked.append(entry.path)
            else:
                identity = os.path.join(real, entry.name)
                yield _File(epath.Path(entry.path), os.path.relpath(entry.path, root), identity)
        links.sort()
    for path in sorted(linked):
        yield _File(epath.Path(path), os.path.relpath(path, root), os.path.realpath(path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _remote_files(root: epath.Path) -> Iterator[_File]:
    waiting = [root]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir():
                waiting.append(path)
            else:
                yield _File(path, os.fspath(path.relative_to(root)), os.fspath(path))


def _of_people(files: Iterable[_File], report: DataReport) -> Iterator[_File]:
    """Leaves out what macOS puts beside each file, and names that no manifest can hold."""
    for file in files:
        kind = "unreadable_text" if file.suffix == ".txt" else "undecodable_audio"
        wanted = file.suffix in (".txt", *READ_SUFFIXES, *_OTHER_SUFFIXES)
        if file.base.startswith("._"):
            if wanted:
                report.add(kind, file.name, "macOS keeps attributes of another file in it")
        elif not is_utf8(file.name):
            if wanted:
                shown = os.fsencode(file.name).decode("utf-8", "backslashreplace")
                report.add(kind, shown, "the name is not UTF-8, and a manifest cannot hold it; rename it")
        else:
            yield file


def is_utf8(name: str) -> bool:
    """Whether a name is text; Python has surrogates for the bytes of a name that is not."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _plain(name: str) -> str:
    """A name in the form in which names are compared."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


# --- Transcripts ------------------------------------------------------------------------------------------------------


def decoded(content: bytes) -> str:
    """UTF-8, with or without a byte order mark; ValueError says in one line why it is not text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (byte {content[error.start]:#04x}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds NUL characters; save it as UTF-8")
    return text


def _beside(audio: Sequence[_File], files: Sequence[_File], report: DataReport) -> dict[str, str | None]:
    """The texts of the `.txt` files beside recordings, by the name of the recording; None for one that is reported."""
    places: dict[str, list[_File]] = {}
    for file in files:
        if file.suffix == ".txt":
            places.setdefault(_plain(file.stem), []).append(file)
    texts: dict[str, str | None] = {}
    owners: dict[str, _File] = {}
    # Of one recording in several formats, what was not compressed is taken.
    for recording in sorted(audio, key=lambda file: (file.suffix not in (".flac", ".wav"), file.name)):
        stem = _plain(recording.stem)
        beside = places.get(stem, [])
        try:
            if beside and recording.suffix in READ_SUFFIXES:
                owner = owners.setdefault(stem, recording)
                if owner.identity != recording.identity:
                    raise ValueError(f"it is that of {owner.base}, which is taken")
            if len(beside) > 1:
                raise ValueError(f"there are several: {', '.join(file.base for file in beside)}")
            if beside:
                texts[recording.name] = transcript(beside[0].path)
        except ValueError as error:
            texts[recording.name] = None
            report.add("unreadable_text", recording.name, f"the transcript: {error}")
    recorded = {_plain(recording.stem) for recording in audio}
    for stem, beside in places.items():
        for text in beside if stem not in recorded else ():
            report.add("missing_file", text.name, "there is no recording of that name beside it")
    return texts


def transcript(path: epath.Path) -> str:
    """The text of one recording, from a file of its own; ValueError says in one line why there is none."""
    try:
        check_regular(path)
        if path.stat().length > _MOST_TEXT_BYTES:
            raise ValueError(f"{path.name} has more than {_MOST_TEXT_BYTES:,} bytes")
        return " ".join(decoded(path.read_bytes()).split())
    except StorageUnavailable:
        raise  # one that is away has all other texts too
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror or error}") from error


def _of_table(table: _File, audio: Sequence[_File], *, root: epath.Path, report: DataReport) -> dict[str, str | None]:
    """The texts of the table, by the name of the recording; a file and a link to it have one."""
    try:
        check_regular(table.path)
        if table.path.stat().length > MOST_TABLE_BYTES:
            raise ValueError(f"more than {MOST_TABLE_BYTES:,} bytes; allowed: a folder and a table for each part")
        content = decoded(table.path.read_bytes())
    except StorageUnavailable:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{table.path}: {error}") from error
    places = _by_name(audio)
    texts: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    names: dict[str, str] = {}  # by identity
    for number, key, text in _rows(content, table):
        where = f"{table.path}:{number}"
        plain = _plain(os.path.relpath(key, root) if os.path.isabs(key) else key)
        named = next((place[plain] for place in places if plain in place), {})
        if len(named) > 1:  # one recording, and what it was converted from
            named = {key: file for key, file in named.items() if file.suffix in READ_SUFFIXES} or named
        if len(named) > 1:
            several = listed(sorted(file.name for file in named.values()), most=3)
            raise UserError(f"{where}: {key!r} names {len(named)} recordings: {several}; allowed: the path of one")
        if not named:
            report.add("missing_file", f"{table.name}:{number}", f"there is no recording {key!r}")
            continue
        identity, file = next(iter(named.items()))
        name, first = file.name, names.setdefault(identity, file.name)
        if name in lines:
            raise UserError(f"{where}: {name!r} is given twice, in line {lines[name]} too; allowed: one text each")
        if texts.get(first, text) != text:
            raise UserError(
                f"{where}: {name!r} is {first!r} of line {lines[first]}, with another text; allowed: one text"
            )
        texts[name], lines[name] = text, number
    return texts


def _by_name(audio: Sequence[_File]) -> list[Mapping[str, dict[str, _File]]]:
    """Recordings by what a table may call them, the surest first: path, path without suffix, name, name without."""
    places: list[dict[str, dict[str, _File]]] = [{}, {}, {}, {}]
    for file in audio:
        path, stem = _plain(file.name), _plain(file.stem)
        names = (path, stem, path.rsplit("/", 1)[-1], stem.rsplit("/", 1)[-1])
        for place, name in zip(places, names, strict=True):
            place.setdefault(name, {}).setdefault(file.identity, file)
    return list(places)


def _rows(content: str, table: _File) -> Iterator[tuple[int, str, str]]:
    """Number of the line, file and text of each row; the table may have a header, and then other columns too."""
    separator = _TABLES[table.name.lower()]
    # Not `splitlines`: it also ends a line at characters that may stand in a text.
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    file, text, width = 0, 1, 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{table.path}:{number}"
        cells = _cells(line, separator, where=where)
        if not width:
            lower = [cell.strip().lower() for cell in cells]
            if lower[0] in _FILE_CELLS:
                width = len(cells)
                known = [lower.index(name) for name in TEXT_CELLS if name in lower]
                if not known and width != 2:
                    raise UserError(
                        f"{where}: none of the columns {listed(cells, most=5)} is known to be the text; allowed: one "
                        f"named {', '.join(TEXT_CELLS)}, or two columns, a file and a text"
                    )
                text = known[0] if known else 1
                continue
            width = 2
        if len(cells) != width or width < 2:
            hint = "; a text that holds commas goes between quotes" if separator == "," else ""
            raise UserError(
                f"{where}: the row {cells[0]!r} has {len(cells)} cells; needed: a file and a text, {width} cells{hint}"
            )
        yield number, cells[file].strip(), " ".join(cells[text].split())


def _cells(line: str, separator: str, *, where: str) -> list[str]:
    """The cells of a row; one that begins with a quote ends with one, and holds two for each that is in it."""
    try:
        # A line at a time, so that a quote that is left open does not take the lines after it.
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error as error:
        told = str(error).replace("\t", "\\t")
        raise UserError(f"{where}: {told}; a quote inside of quotes is written twice") from error
