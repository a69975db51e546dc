"""Corpora made of LibriVox recordings: LibriSpeech, LibriTTS and UserLibri, as their archives unpack.

LibriSpeech (OpenSLR 12) and LibriTTS (OpenSLR 60) have SUBSET/SPEAKER/CHAPTER/ with the audio of a chapter and its
transcripts; UserLibri (Kaggle, google/userlibri) has audio_data/SUBSET/speaker-N-book-M/.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from etils import epath

from hra_jax.data import recordings
from hra_jax.data.importers.corpus import Entry, Format, Split, entries, folders, lines, pairs, tags, words
from hra_jax.data.report import DataReport

_SUBSET: Final = re.compile(r"(train|dev|test)-\w[\w-]*")
_GENDERS: Final = {"F": "female", "M": "male"}
_USER: Final = re.compile(r"speaker-(\w+)-book-(\w+)")
# Reads a chapter, with the tags of its utterances and what the report calls it.
_Chapter = Callable[[epath.Path, Mapping[str, str], str, DataReport], Iterator[Entry]]


def _subsets(folder: epath.Path) -> list[epath.Path]:
    return [path for path in folders(folder) if _SUBSET.fullmatch(path.name)]


def _name(subset: str) -> str:
    """As the corpora of TFDS call the subsets: train_clean100 for train-clean-100."""
    return re.sub(r"-(\d+)$", r"\1", subset).replace("-", "_")


def _chapters(subset: epath.Path, report: DataReport | None = None) -> Iterator[tuple[str, epath.Path]]:
    """Speaker and folder of each chapter."""
    for speaker in folders(subset, report):
        for chapter in folders(speaker, report):
            yield speaker.name, chapter


def _holds(subsets: list[epath.Path], *suffixes: str) -> bool:
    """Whether the first chapter that has any file with one of the suffixes is found."""
    return any(
        path.name.endswith(suffixes)
        for subset in subsets
        for _, chapter in _chapters(subset)
        for path in entries(chapter)
    )


# --- Speakers ---------------------------------------------------------------------------------------------------------


def _genders(folder: epath.Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The gender of speakers, female or male, from SPEAKERS.TXT; and a note where there is none."""
    found = [path for path in entries(folder) if path.name.lower() == "speakers.txt"]
    if not found:
        return {}, (f"no SPEAKERS.TXT in {folder}: utterances have no gender",)
    genders = {}
    for _, line in lines(found[0], DataReport()):
        cells = [cell.strip() for cell in line.split("|")]  # of the name too, which may hold such a stroke
        if not line.startswith(";") and len(cells) >= 5:
            genders[cells[0]] = _GENDERS.get(cells[1], cells[1])
    return genders, ()


def _by_chapters(folder: epath.Path, subsets: list[epath.Path], read_chapter: _Chapter) -> list[Split]:
    genders, notes = _genders(folder)

    def reader(subset: epath.Path) -> Callable[[DataReport], Iterator[Entry]]:
        def read(report: DataReport) -> Iterator[Entry]:
            for speaker, chapter in _chapters(subset, report):
                known = tags(speaker=speaker, chapter=chapter.name, gender=genders.get(speaker))
                yield from read_chapter(chapter, known, f"{subset.name}/{speaker}/{chapter.name}", report)

        return read

    return [Split(_name(path.name), path.name, reader(path), notes=notes) for path in subsets]


# --- Chapters ---------------------------------------------------------------------------------------------------------


def _with_transcripts(
    chapter: epath.Path, known: Mapping[str, str], name: str, report: DataReport, *, suffix: str = ".trans.txt"
) -> Iterator[Entry]:
    """A folder of FLAC files and a file of lines `ID TEXT`, all in capitals, which say nothing of how it is written."""
    inside = entries(chapter, report)
    left = {path.name.removesuffix(".flac") for path in inside if path.name.endswith(".flac")}
    for path in inside:
        if path.name.endswith(suffix):
            for _, utterance, text in pairs(path, report, name=f"{name}/{path.name}"):
                left.discard(utterance)
                if text:
                    audio = str(chapter / f"{utterance}.flac")
                    yield Entry(f"{name}/{utterance}", audio, words(text).lower(), known)
                else:
                    report.add("no_text", f"{name}/{utterance}", "its line has no words")
    for utterance in sorted(left):
        report.add("no_text", f"{name}/{utterance}", f"no file *{suffix} beside it has its transcript")


def _with_tables(chapter: epath.Path, known: Mapping[str, str], name: str, report: DataReport) -> Iterator[Entry]:
    """A folder of WAV files, and their texts in a table `ID, original, normalised` or in a file beside each."""
    inside = entries(chapter, report)
    texts: dict[str, str] = {}
    for path in inside:
        if path.name.endswith(".trans.tsv"):
            for where, line in lines(path, report, name=f"{name}/{path.name}"):
                cells = line.split("\t")
                if len(cells) == 3:
                    texts[cells[0].strip()] = words(cells[2])
                else:
                    report.add("missing_field", where, f"{len(cells)} cells; needed: ID, original and normalised text")
    there = {path.name for path in inside}
    audio = [path.name.removesuffix(".wav") for path in inside if path.name.endswith(".wav")]
    for utterance in dict.fromkeys([*audio, *texts]):
        text, beside = texts.get(utterance, ""), f"{utterance}.normalized.txt"
        try:
            if not text and beside in there:
                text = recordings.transcript(chapter / beside)
        except ValueError as error:
            report.add("unreadable_text", f"{name}/{utterance}", f"the transcript: {error}")
            continue
        if text:
            yield Entry(f"{name}/{utterance}", str(chapter / f"{utterance}.wav"), text, known)
        else:
            report.add("no_text", f"{name}/{utterance}", "neither *.trans.tsv nor *.normalized.txt has its transcript")


# --- Formats ----------------------------------------------------------------------------------------------------------


def _librispeech(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    subsets = _subsets(folder)
    return _by_chapters(folder, subsets, _with_transcripts) if _holds(subsets, ".trans.txt") else []


def _libritts(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    subsets = _subsets(folder)
    own = _holds(subsets, ".trans.tsv", ".normalized.txt")
    return _by_chapters(folder, subsets, _with_tables) if own else []


def _user_libri(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    audio = folder / "audio_data" if (folder / "audio_data").is_dir() else folder
    subsets = [path for path in _subsets(audio) if any(_USER.fullmatch(user.name) for user in folders(path))]
    return [Split(_name(path.name), path.name, _users(path)) for path in subsets]


def _users(subset: epath.Path) -> Callable[[DataReport], Iterator[Entry]]:
    def read(report: DataReport) -> Iterator[Entry]:
        for user in folders(subset, report):
            match = _USER.fullmatch(user.name)
            if match:
                known = {"user": user.name, "speaker": match[1], "book": match[2]}
                yield from _with_transcripts(user, known, f"{subset.name}/{user.name}", report, suffix=".txt")

    return read


FORMATS = (
    Format("librispeech", "the folder LibriSpeech, with train-clean-100 and the like in it", _librispeech),
    Format("libritts", "the folder LibriTTS, with train-clean-100 and the like in it", _libritts),
    Format("user_libri", "the folder UserLibri, with audio_data in it", _user_libri),
)
