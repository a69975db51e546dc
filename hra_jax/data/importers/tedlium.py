"""TED-LIUM, releases 1 to 3, as their archives unpack: talks in sph/, and the segments of each in stm/.

Source: the STM format of NIST's SCTK: `file channel speaker begin end <label> transcript`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Final

from etils import epath

from hra_jax.data.importers.corpus import Entry, Format, Split, canonical, entries, lines, tags, words
from hra_jax.data.report import DataReport

# Of release 3, dev and test are those of the releases before, and the folder of its own train has links to data.
_PLACES: Final = {"train": ("data", "train"), "dev": ("legacy/dev", "dev"), "test": ("legacy/test", "test")}
_IGNORED: Final = "ignore_time_segment_in_scoring"
_LINE: Final = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)(?:\s+(<[^>]*>))?(.*)")
_GENDERS: Final = {"male": "male", "female": "female", "M": "male", "F": "female"}
# Marks that are no words: <s>, <sil>, <unk>, {COUGH}; which way a word is said, "the(2)"; the key after a transcript
# of release 1, "(AlGore-F0_M-S24)".
_MARKS: Final = re.compile(r"<[^<>\s]*>|\{[^{}\s]*\}|\(\d+\)(?=\s|$)|\([^\s()]*\)\s*$")
_SUFFIX: Final = re.compile(r"(?<=\S)\s+(?='(?:s|t|re|ve|d|ll|m)(?:\s|$))")  # it 's


def _splits(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    found = []
    for name, places in _PLACES.items():
        place = next((place for place in places if (folder / place / "stm").is_dir()), None)
        if place is not None:
            found.append(Split(canonical(name), place, _reader(folder / place, place)))
    return found


def is_third(folder: epath.PathLike) -> bool:
    """Whether a folder has the layout of the third release."""
    return any((epath.Path(folder) / place).is_dir() for place in ("data", "legacy"))


def _reader(folder: epath.Path, place: str) -> Callable[[DataReport], Iterator[Entry]]:
    def read(report: DataReport) -> Iterator[Entry]:
        audio = {os.path.splitext(path.name)[0]: str(path) for path in entries(folder / "sph", report)}
        for path in entries(folder / "stm", report):
            if path.name.endswith(".stm"):
                for where, line in lines(path, report, name=f"{place}/{path.name}"):
                    entry = None if line.startswith(";;") else _entry(line, where, report)
                    if entry is not None:
                        talk = entry.audio
                        yield dataclasses.replace(entry, audio=audio.get(talk, str(folder / "sph" / f"{talk}.sph")))

    return read


def _entry(line: str, where: str, report: DataReport) -> Entry | None:
    """The segment in a line, its audio the name of the talk; None where it is none, which the report gets."""
    match = _LINE.fullmatch(line.strip())
    try:
        talk, _, speaker, begin, end, label, text = match.groups() if match else ()
        start, stop = float(begin), float(end)
    except ValueError:
        needed = "file, channel, speaker, first and last second, label and transcript"
        report.add("missing_field", where, f"{line!r:.80}; needed: {needed}")
        return None
    if _IGNORED in text:
        report.add("no_text", where, "the corpus says that it is not to be scored")
        return None
    said = _SUFFIX.sub("", words(_MARKS.sub(" ", text)))
    if not said:
        report.add("no_text", where, "it has no words")
        return None
    kind = re.split(r"[,_]", (label or "")[1:-1])[-1]
    return Entry(where, talk, said, tags(speaker=speaker, talk=talk, gender=_GENDERS.get(kind)), start, stop - start)


FORMAT = Format("tedlium", "a release of TED-LIUM, with the folders stm and sph in train, dev and test", _splits)
