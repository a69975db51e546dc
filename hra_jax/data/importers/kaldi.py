"""Kaldi data directories: wav.scp, text, segments, utt2spk, and any other file of tags, such as spk2gender.

Source: "Data preparation" in the documentation of Kaldi. Relative paths begin where the recipe was run, which is not
said in the directory: the nearest folder above it from which recordings are found is taken.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from etils import epath

from hra_jax.data.importers.corpus import Entry, Format, Split, canonical, entries, folders, pairs, words
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.storage.remote import is_remote

_TAG_FILE: Final = re.compile(r"(spk|utt)2([A-Za-z]\w*)")
_NO_TAGS: Final = {"utt2spk", "spk2utt", "utt2dur", "utt2num_frames", "utt2uniq", "utt2feats"}
_FIELDS: Final = {"audio_filepath", "duration", "text", "offset", "speaker"}
_IN_AN_ARCHIVE: Final = re.compile(r".*:\d+")
_LEVELS: Final = 3  # folders that relative paths may begin at: the directory itself, and those above
_TRIED: Final = 20  # recordings that are looked for in each of them


def _splits(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    if (folder / "wav.scp").exists():
        return [_split(folder, audio_dir)]
    found = [path for path in folders(folder) if (path / "wav.scp").exists()]
    return [_split(path, audio_dir) for path in found]


def _split(folder: epath.Path, audio_dir: epath.Path | None) -> Split:
    begin = _begin(folder) if audio_dir is None else audio_dir

    def read(report: DataReport) -> Iterator[Entry]:
        return _read(folder, begin, report)

    notes = () if begin == folder else (f"{folder.name}: relative paths of recordings begin at {begin}",)
    return Split(canonical(folder.name), folder.name, read, notes=notes)


def _begin(folder: epath.Path) -> epath.Path:
    """The folder at which the relative paths of wav.scp begin."""
    paths = [path for _, _, path in pairs(folder / "wav.scp", DataReport()) if path and not _is_command(path)]
    relative = [path for path in paths if not _is_absolute(path)][:_TRIED]
    places = [folder, *list(folder.parents)[: _LEVELS - 1]]
    if not is_remote(folder):
        places.append(epath.Path(os.getcwd()))
    return next((place for place in places for path in relative if (place / path).exists()), folder)


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")


def _is_command(path: str) -> bool:
    """Whether an entry is a command whose output is the audio, as in `sph2pipe -f wav -p a.sph |`."""
    return path.endswith("|") or path.startswith("|")


def _read(folder: epath.Path, begin: epath.Path, report: DataReport) -> Iterator[Entry]:
    split = folder.name
    if not (folder / "text").exists():
        raise UserError(f"{folder} has a wav.scp and no text, which holds the transcripts; allowed: other --splits")
    texts = {key: words(text) for key, text in _table(folder / "text", report).items()}
    recordings = _table(folder / "wav.scp", report)
    tags_of = _tags(folder, report)
    left = dict(texts)  # without a recording
    for utterance, recording, offset, duration in _segments(folder, recordings, report):
        left.pop(utterance, None)
        name, path = f"{split}/{utterance}", recordings.get(recording)
        if not path:
            report.add("missing_file", name, f"wav.scp has no path of the recording {recording}")
        elif _is_command(path):
            report.add("command", name, f"its audio is the output of a command, which is not run: {path}")
        elif not texts.get(utterance):
            report.add("no_text", name, "text has no words for it")
        elif _IN_AN_ARCHIVE.fullmatch(path):
            report.add("undecodable_audio", name, f"{path} is a place in an archive of Kaldi; write it to a file")
        else:
            audio = path if _is_absolute(path) else os.fspath(begin / path)
            yield Entry(name, audio, texts[utterance], tags_of(utterance), offset, duration)
    where = "segments" if (folder / "segments").exists() else "wav.scp"
    for utterance in left:
        report.add("missing_file", f"{split}/{utterance}", f"{where} has no such utterance")


def _table(path: epath.Path, report: DataReport) -> dict[str, str]:
    """The values of a file by their keys; of a key that is given twice the first one counts."""
    found: dict[str, str] = {}
    for where, key, value in pairs(path, report, name=f"{path.parent.name}/{path.name}"):
        if key in found:
            report.add("missing_field", where, f"{key} is in an earlier line too, which counts")
        found.setdefault(key, value)
    return found


def _segments(
    folder: epath.Path, recordings: Mapping[str, str], report: DataReport
) -> Iterator[tuple[str, str, float | None, float | None]]:
    """Utterance, recording, offset and duration (s) of every segment; without segments, a recording is an utterance."""
    if not (folder / "segments").exists():
        for recording in recordings:
            yield recording, recording, None, None
        return
    for utterance, segment in _table(folder / "segments", report).items():
        try:
            recording, begin, end = segment.split()
            start, stop = float(begin), float(end)
        except ValueError:
            needed = "a recording, and its first and last second"
            report.add(
                "missing_field", f"{folder.name}/{utterance}", f"its segment is {segment!r:.80}; needed: {needed}"
            )
            continue
        # Kaldi has -1 for the end of the recording.
        yield utterance, recording, start, None if stop == -1 else stop - start


def _tags(folder: epath.Path, report: DataReport) -> Callable[[str], dict[str, str]]:
    """The tags of an utterance: its speaker, what is known of the speaker, and what is known of itself."""
    speakers = _table(folder / "utt2spk", report) if (folder / "utt2spk").exists() else {}
    tables: dict[str, list[tuple[str, dict[str, str]]]] = {"spk": [], "utt": []}
    for path in entries(folder):
        match = _TAG_FILE.fullmatch(path.name)
        if match and path.name not in _NO_TAGS and match[2] not in _FIELDS and not path.is_dir():
            tables[match[1]].append((match[2], _table(path, report)))

    def of(utterance: str) -> dict[str, str]:
        speaker = speakers.get(utterance, "")
        found = {"speaker": speaker}
        found |= {tag: table.get(speaker, "") for tag, table in tables["spk"]}
        found |= {tag: table[utterance] for tag, table in tables["utt"] if utterance in table}
        return {tag: value for tag, value in found.items() if value}

    return of


FORMAT = Format("kaldi", "a Kaldi directory with wav.scp and text, or folders of these", _splits)
