"""Corpora as they are published to manifests: which format it is, which audio is there, what is left out."""

import concurrent.futures
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import tqdm
from etils import epath

from hra_jax.console import listed, say, stdout, table, tell
from hra_jax.data import audio, manifest, manifest_lines
from hra_jax.data.importers import audio_folder, common_voice, kaldi, libri, nemo, tedlium
from hra_jax.data.importers.corpus import Entry, Format, Split, canonical
from hra_jax.data.report import DataReport
from hra_jax.data.sound_files import AudioError, Sound
from hra_jax.errors import UserError
from hra_jax.storage.files import write_file
from hra_jax.storage.remote import is_remote

FORMATS: Final[dict[str, Format]] = {
    found.kind: found
    for found in (
        kaldi.FORMAT,
        *libri.FORMATS,
        common_voice.FORMAT,
        tedlium.FORMAT,
        audio_folder.FORMAT,
        nemo.FORMAT,
    )
}
_ORDER: Final = {"train": 0, "validation": 1, "test": 2}
_THREADS: Final = 8
_AT_A_TIME: Final = 4096  # recordings that wait for the threads


@dataclasses.dataclass(frozen=True)
class Part:
    """What has become of one split.

    Attributes:
      split: as the corpus has it.
      rows: its lines in the manifest.
      report: what was left out.
    """

    split: Split
    rows: list[dict[str, Any]]
    report: DataReport


def find(
    folder: epath.PathLike, *, kind: str | None = None, audio_dir: epath.PathLike | None = None
) -> tuple[str, list[Split]]:
    """Which format a corpus has, and its splits.

    Args:
      folder: of the corpus; of a manifest of NeMo, the file itself will do.
      kind: one of FORMATS; None finds it out.
      audio_dir: where relative paths of recordings begin, in formats that do not say it (kaldi, nemo).

    Returns:
      The kind and the splits, at least one.

    Raises:
      UserError: no such folder, no corpus of that kind, or one that may be of several kinds.
    """
    place = epath.Path(folder) if is_remote(folder) else epath.Path(os.path.abspath(epath.Path(folder)))
    if not place.exists():
        raise UserError(f"no folder at {folder}")
    begin = None if audio_dir is None else epath.Path(audio_dir)
    if begin is not None and not begin.is_dir():
        raise UserError(f"no folder at {audio_dir}")
    begin = begin if begin is None or is_remote(begin) else begin.absolute()
    wanted = list(FORMATS.values()) if kind is None else [FORMATS[kind]]
    found = {form.kind: splits for form in wanted if (splits := form.splits(place, begin))}
    if not found:
        needed = "; ".join(f"{form.kind}: {form.needs}" for form in wanted)
        raise UserError(f"no corpus of a known kind in {folder}; looked for {needed}")
    if len(found) > 1:
        found.pop(nemo.FORMAT.kind, None)  # they are those that were made of the corpus before
    if len(found) > 1:
        raise UserError(f"{folder} may be of several kinds; allowed: --kind={' or --kind='.join(found)}")
    kind, splits = next(iter(found.items()))
    return kind, sorted(splits, key=lambda split: _ORDER.get(split.name, len(_ORDER)))


def chosen(splits: Sequence[Split], names: Sequence[str]) -> list[Split]:
    """The splits of these names, theirs in manifests or in the corpus; where none is named, those that may be.

    Raises:
      UserError: there is no such split, or two would become one manifest.
    """
    wanted = [split for split in splits if not split.named_only and not names]
    for name in names:
        named = [split for split in splits if split.place == name]
        named = named or [split for split in splits if split.name in (name, canonical(name))]
        if not named:
            raise UserError(f"no split {name!r}; allowed: {', '.join(split.name for split in splits)}")
        wanted += [split for split in named if split not in wanted]
    for first, second in itertools.combinations(wanted, 2):
        if first.name == second.name:
            places = f"{first.place} and {second.place}"
            raise UserError(f"{places} would both be {first.name}.jsonl; allowed: --splits with one of them")
    return wanted


# --- Audio ------------------------------------------------------------------------------------------------------------


def usable(entries: Iterable[Entry], report: DataReport) -> Iterator[tuple[Entry, float]]:
    """The entries whose audio can be opened and is as long as they say, each with its duration (s), in their order.

    Args:
      entries: segments of one recording follow each other where it is to be opened once.
      report: gets the others, as `Sound` and `audio.check_segment` name what is wrong.
    """
    groups = (list(group) for _, group in itertools.groupby(entries, key=lambda entry: entry.audio))
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        while batch := list(itertools.islice(groups, _AT_A_TIME)):
            for entry, found in itertools.chain.from_iterable(pool.map(_durations, batch)):
                if isinstance(found, AudioError):
                    report.add(found.kind, entry.name, found.detail)
                else:
                    yield entry, found
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is opened


def _durations(entries: list[Entry]) -> list[tuple[Entry, float | AudioError]]:
    """The duration of each entry of one recording, or why it cannot be used."""
    found: list[tuple[Entry, float | AudioError]] = []
    try:
        with Sound(entries[0].audio) as sound:
            for entry in entries:
                found.append((entry, _duration(sound, entry)))
    except AudioError as error:
        found += [(entry, error) for entry in entries[len(found) :]]
    return found


def _duration(sound: Sound, entry: Entry) -> float | AudioError:
    offset = entry.offset or 0.0
    duration = round(sound.seconds - offset if entry.duration is None else entry.duration, 6)
    if not sound.seconds:
        return AudioError("empty_audio", "the file has no samples")
    try:
        if offset < 0 or not 0 < duration < float("inf"):
            raise AudioError("empty_audio", f"no samples between {offset:g} and {offset + duration:g} s")
        audio.check_segment(sound, offset=offset, duration=duration)
    except AudioError as error:
        return error
    return duration


# --- Manifests --------------------------------------------------------------------------------------------------------


def read(split: Split, manifest_path: epath.Path) -> Part:
    """Reads a split.

    Args:
      split: one that `find` gave.
      manifest_path: where its manifest is going to lie: paths are relative to it.
    """
    report = DataReport()
    rows = []
    entries = tqdm.tqdm(split.read(report), desc=f"reading {split.name}", unit="utterance", disable=None)
    for entry, duration in usable(entries, report):
        row: dict[str, Any] = {
            "audio_filepath": manifest.relative_to(epath.Path(entry.audio), manifest_path),
            "duration": duration,
            "text": entry.text,
        }
        if entry.offset is not None:
            row["offset"] = entry.offset
        row |= {name: value for name, value in entry.tags.items() if name not in row}
        wrong = manifest_lines.why_refused(row)
        if wrong is None:
            rows.append(row)
        else:
            report.add(wrong[0], entry.name, wrong[1])
    return Part(split, rows, report)


def import_corpus(
    folder: epath.PathLike,
    output: epath.PathLike,
    *,
    kind: str | None = None,
    splits: Sequence[str] = (),
    audio_dir: epath.PathLike | None = None,
    split_by: str | None = None,
) -> dict[str, Part]:
    """Writes a manifest for every split of a corpus.

    Args:
      folder: of the corpus.
      output: the folder for the manifests, called like the splits; or one manifest, `*.jsonl`, of a corpus with one
        split.
      kind: one of FORMATS; None finds it out.
      splits: the names of those that are wanted; () for all but those that hold the others too.
      audio_dir: where relative paths of recordings begin, in formats that do not say it.
      split_by: a tag. All splits are put together, and split into train, validation and test: a tenth of what every
        value of the tag has in each of the last two.

    Returns:
      {path of the manifest: what it was made of}.

    Raises:
      UserError: as `find` and `chosen`; a split without any usable utterance; several splits for one manifest.
    """
    kind, found = find(folder, kind=kind, audio_dir=audio_dir)
    wanted = chosen(found, splits)
    left = [split.name for split in found if split.named_only]
    alone = f"; left alone unless it is named: {', '.join(left)} (--splits)" if left and not splits else ""
    tell(f"{folder} is read as {kind}{alone}")
    single = os.fspath(output).endswith(".jsonl")
    if single and (len(wanted) > 1 or split_by):
        names = listed([split.name for split in wanted], show=str)
        raise UserError(f"{output} is one manifest for the splits {names}; allowed: a folder, or --splits={names}")
    if not wanted:
        raise UserError(f"nothing to import unless it is named; allowed: --splits={','.join(left)}")
    path = epath.Path(output)
    parts = {}
    for split in wanted:
        for note in split.notes:
            tell(note)
        target = path if single else path / f"{split.name}.jsonl"
        parts[os.fspath(target)] = part = read(split, target)
        if not part.rows:
            raise UserError(f"no usable utterance in {split.place} of {folder}: {part.report.summary()}")
    if split_by:
        parts = _resplit(list(parts.values()), path, split_by)
    for name, part in parts.items():
        write_file(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part.rows))
    return parts


def _resplit(parts: Sequence[Part], output: epath.Path, tag: str) -> dict[str, Part]:
    rows = [row for part in parts for row in part.rows]
    report = DataReport()
    for part in parts:
        report.merge(part.report.to_json())
    made, few = manifest.split_rows(rows, tag)
    if few:
        tell(f"in train.jsonl only, with too few utterances to split: {tag} {listed(few)}")
    places = "+".join(part.split.place for part in parts)
    found = {}
    for name, own in made.items():
        split = dataclasses.replace(parts[0].split, name=name.removesuffix(".jsonl"), place=places)
        found[os.fspath(output / name)] = Part(split, own, report if name == "train.jsonl" else DataReport())
    return found


def print_table(parts: dict[str, Part], *, tag: str) -> None:
    """Prints a row for each manifest, and their sum: utterances, hours, words, distinct values of a tag, left out."""
    header = ("manifest", "from", "utterances", "hours", "words", f"{tag}s", "left out")
    rows, everything = [], list[dict[str, Any]]()
    for path, part in parts.items():
        everything += part.rows
        rows.append((os.path.basename(path), part.split.place, *_figures(part.rows, tag), _left_out([part])))
    total = ("total", "", *_figures(everything, tag), _left_out(parts.values()))
    console = stdout()
    console.print(table(header, rows, [total] if len(rows) > 1 else [], left=("from",)))
    say(console, f"{len(everything):,} utterances in {', '.join(parts)}")


def _figures(rows: Sequence[dict[str, Any]], tag: str) -> tuple[str, str, str, str]:
    seconds = sum(row["duration"] for row in rows)
    spoken = sum(len(row["text"].split()) for row in rows)
    values = {row[tag] for row in rows if tag in row}
    return f"{len(rows):,}", f"{seconds / 3600:.2f}", f"{spoken:,}", f"{len(values):,}"


def _left_out(parts: Iterable[Part]) -> str:
    return f"{sum(sum(part.report.counts().values()) for part in parts):,}"
