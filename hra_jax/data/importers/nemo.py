"""Manifests of NeMo: JSON Lines as ours, in a file or in a folder of them.

Paths are relative to the manifest, or to where the user says: manifests are often moved away from their audio.
"""

import os
from collections.abc import Callable, Iterator
from typing import Final

from etils import epath

from hra_jax.data.importers.corpus import Entry, Format, Split, canonical, entries, first_line, words
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.storage.remote import is_remote

_SUFFIXES: Final = (".json", ".jsonl")


def _splits(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    paths = entries(folder) if folder.is_dir() else [folder]
    found = [path for path in paths if path.suffix in _SUFFIXES and b'"audio_filepath"' in first_line(path)]
    return [Split(_name(path), path.name, _reader(path, audio_dir), notes=_notes(path)) for path in found]


def _name(path: epath.Path) -> str:
    """The split of a manifest: `train` of train_manifest.json, `validation` of manifest_dev.jsonl."""
    stem = os.path.splitext(path.name)[0]
    for affix in ("manifest", "tarred_audio"):
        stem = stem.replace(f"_{affix}", "").replace(f"{affix}_", "")
    return canonical(stem)


def _notes(path: epath.Path) -> tuple[str, ...]:
    if b'"shard_id"' not in first_line(path):
        return ()
    return (f"{path.name} is of audio in tar files, which are not read: unpack them, and say where with --audio_dir",)


def _reader(path: epath.Path, audio_dir: epath.Path | None) -> Callable[[DataReport], Iterator[Entry]]:
    folder = path.parent if is_remote(path) else path.absolute().parent

    def read(report: DataReport) -> Iterator[Entry]:
        for utterance in read_manifest(path, report=report)[0]:
            where = f"{path.name}:{utterance.line}"
            if not utterance.text.strip():
                report.add("no_text", where, "its text is empty")
                continue
            # What is relative in the manifest lies below its folder, if need be by way of "..".
            audio = epath.Path(utterance.audio_filepath)
            if audio_dir is not None and audio.is_relative_to(folder):
                audio = audio_dir / audio.relative_to(folder)
            offset = utterance.offset or None
            text = words(utterance.text)
            yield Entry(where, os.fspath(audio), text, utterance.tags, offset, utterance.duration)

    return read


FORMAT = Format("nemo", "a manifest of NeMo, *.json or *.jsonl, or a folder of manifests", _splits)
