"""Manifests: JSON Lines that name audio and its transcripts.

    python -m hra_jax.data.manifest make FOLDER --output M.jsonl
    python -m hra_jax.data.manifest check M.jsonl

A line is an object with `audio_filepath` (relative to the manifest, absolute, or a URI), `duration` (s), `text`, and
optionally `offset` (s); every other field (`speaker`, `lang`, ...) is kept as a tag.
"""

import concurrent.futures
import csv
import hashlib
import json
import math
import os
from collections.abc import Iterator

import tqdm
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.console import tell
from hra_jax.data import audio, sound_files
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError

AUDIO_SUFFIXES = (".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
_REQUIRED = ("audio_filepath", "duration", "text")
_TRANSCRIPTS = ("transcripts.tsv", "transcripts.csv")
_HEADER_CELLS = ("audio_filepath", "audio", "file", "filename", "path")
_SPEAKER_FROM = ("parent", "none")


class _LineError(ValueError):
    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def _seconds(row: dict, field: str, *, least: float) -> float:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise _LineError("missing_field", f"{field} is {value!r}; a number of seconds is needed")
    return float(value)


def _parse(line: bytes, *, folder: epath.Path, source: str, number: int) -> Utterance:
    try:
        row = json.loads(line)
    except ValueError as error:  # bytes that are not UTF-8 included
        raise _LineError("bad_json", " ".join(str(error).split())) from error
    if not isinstance(row, dict):
        raise _LineError("bad_json", f"the line is a {type(row).__name__}, not an object")
    missing = [field for field in _REQUIRED if field not in row]
    if missing:
        raise _LineError("missing_field", f"there is no {' and no '.join(missing)}")
    for field in ("audio_filepath", "text"):
        if not isinstance(row[field], str):
            raise _LineError("missing_field", f"{field} is {row[field]!r}; a text is needed")
    duration = _seconds(row, "duration", least=0.0)
    path, key = row["audio_filepath"], row["audio_filepath"]
    if not path:
        raise _LineError("missing_field", "audio_filepath is empty")
    if duration == 0.0:
        raise _LineError("empty_audio", "duration is 0")
    offset = 0.0
    if "offset" in row:
        offset = _seconds(row, "offset", least=0.0)
        key = f"{path}@{offset:g}+{duration:g}"
    if "://" not in path and not os.path.isabs(path):
        path = os.fspath(folder / path)
    tags = {name: value for name, value in row.items() if name not in (*_REQUIRED, "offset")}
    return Utterance(path, duration, row["text"], offset, tags, key, source, number)


def load_manifest(path: epath.PathLike, *, report: DataReport) -> list[Utterance]:
    """Reads a manifest; the audio itself is not looked at.

    Args:
      path: the manifest.
      report: gets every bad line (bad_json, missing_field, empty_audio), named `manifest:line`.

    Returns:
      The usable utterances in the order of their lines. Empty lines are passed over.

    Raises:
      UserError: the manifest does not exist or cannot be read; a line is bad and the report strict.
    """
    file = epath.Path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no manifest at {path}") from error
    except OSError as error:
        raise UserError(f"the manifest {path} cannot be read: {error.strerror or error}") from error
    folder, source = file.absolute().parent if "://" not in os.fspath(path) else file.parent, os.fspath(path)
    utterances = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                utterances.append(_parse(line, folder=folder, source=source, number=number))
            except _LineError as error:
                report.add(error.kind, f"{source}:{number}", error.detail)
    return utterances


# --- Make -------------------------------------------------------------------------------------------------------------


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _transcript_table(folder: epath.Path) -> dict[str, str] | None:
    """Transcripts by path or stem from `transcripts.tsv` or `.csv` (file, text; with or without a header); or None."""
    for name in _TRANSCRIPTS:
        if (folder / name).exists():
            lines = (folder / name).read_text().splitlines()
            if name.endswith(".tsv"):
                rows = [line.split("\t") for line in lines if line.strip()]
            else:
                rows = [row for row in csv.reader(lines) if row]
            if rows and rows[0][0].strip().lower() in _HEADER_CELLS:
                rows = rows[1:]
            for row in rows:
                if len(row) < 2:
                    raise UserError(
                        f"{folder / name}: the row {row[0]!r} has no text; each row needs a file and a text"
                    )
            return {row[0].strip(): row[1].strip() for row in rows}
    return None


def _transcript(path: epath.Path, *, relative: str, table: dict[str, str] | None) -> str | None:
    if table is not None:
        stem = os.path.splitext(relative)[0]
        names = (relative, stem, path.name, path.stem)
        return next((table[name] for name in names if name in table), None)
    beside = path.with_suffix(".txt")
    return " ".join(beside.read_text().split()) if beside.exists() else None


def make(
    folder: epath.PathLike, output: epath.PathLike, *, speaker_from: str = "parent", split: bool = False
) -> tuple[int, list[str], DataReport]:
    """Writes a manifest of a folder of recordings, or three: train, validation and test.

    Args:
      folder: searched with its sub-folders for audio; transcripts are in `transcripts.tsv` or `transcripts.csv` (file,
        text) in it, or in a `.txt` of the same name beside each file.
      output: the manifest to write; with `split` the folder for train.jsonl, validation.jsonl and test.jsonl. Paths in
        a manifest are relative to it.
      speaker_from: "parent" (the tag `speaker` is the name of the folder that the file is in) or "none" (no such tag).

    Returns:
      Number of lines written, files without a transcript, and a report of the files that are not usable audio.

    Raises:
      UserError: no such folder, no audio or no transcript in it, a value that is not allowed.
    """
    root = epath.Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder at {folder}")
    if speaker_from not in _SPEAKER_FROM:
        raise UserError(f"speaker_from {speaker_from!r}; allowed: {', '.join(_SPEAKER_FROM)}")
    found = sorted(path for path in _files_below(root) if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise UserError(f"no audio in {folder}; looked for {', '.join(AUDIO_SUFFIXES)}")
    manifest = epath.Path(output) / "train.jsonl" if split else epath.Path(output)
    table, report, rows, silent = _transcript_table(root), DataReport(), [], []
    for path in tqdm.tqdm(found, desc="reading", unit="file", disable=None):
        relative = os.path.relpath(path, root)
        text = _transcript(path, relative=relative, table=table)
        if text is None:
            silent.append(relative)
            continue
        try:
            with sound_files.Sound(os.fspath(path)) as sound:
                duration = sound.seconds
        except audio.AudioError as error:
            report.add(error.kind, relative, error.detail)
            continue
        if duration == 0:
            report.add("empty_audio", relative, "the file has no samples")
            continue
        row = {"audio_filepath": _relative_to(path, manifest), "duration": round(duration, 6), "text": text}
        if speaker_from == "parent":
            row["speaker"] = path.parent.name
        rows.append(row)
    if not rows:
        raise UserError(
            f"no usable audio with a transcript in {folder}: {len(silent)} without text; {report.summary()}"
        )
    manifest.parent.mkdir(parents=True, exist_ok=True)
    for name, part in (_split(rows) if split else {manifest.name: rows}).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (manifest.parent / name).write_text("".join(lines))
    return len(rows), silent, report


def _split(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by manifest name; UserError for a speaker with fewer than three recordings."""
    speakers: dict[str, list[dict]] = {}
    for row in rows:
        speakers.setdefault(row.get("speaker", ""), []).append(row)
    parts: dict[str, list[dict]] = {"train.jsonl": [], "validation.jsonl": [], "test.jsonl": []}
    for speaker, own in speakers.items():
        if len(own) < 3:
            raise UserError(f"speaker {speaker!r} has {len(own)} recordings; a split needs at least 3 of each speaker")
        own = sorted(own, key=lambda row: hashlib.sha256(row["audio_filepath"].encode()).hexdigest())
        tenth = max(1, len(own) // 10)
        for name, part in zip(parts, (own[2 * tenth :], own[:tenth], own[tenth : 2 * tenth]), strict=True):
            parts[name] += sorted(part, key=lambda row: row["audio_filepath"])
    return parts


def _relative_to(path: epath.Path, manifest: epath.Path) -> str:
    """The path as a manifest should have it: relative where both lie on the same storage."""
    if "://" in os.fspath(path) or "://" in os.fspath(manifest):
        inside = path.is_relative_to(manifest.parent)
        return os.fspath(path.relative_to(manifest.parent) if inside else path)
    return os.path.relpath(path, manifest.parent)


# --- Check ------------------------------------------------------------------------------------------------------------


def check(path: epath.PathLike, *, sample_rate: int = 16000, threads: int = 4) -> tuple[list[Utterance], DataReport]:
    """Reads a manifest and decodes everything it names.

    Args:
      path: the manifest.
      sample_rate: Hz to decode to.
      threads: how many files are decoded at a time.

    Returns:
      The utterances whose audio is good, and the report of all others.

    Raises:
      UserError: the manifest cannot be read.
    """
    report = DataReport()

    def good(utterance: Utterance) -> bool:
        try:
            audio.decode(utterance, sample_rate)
        except audio.AudioError as error:
            report.add(error.kind, utterance.key, error.detail)
            return False
        return True

    utterances = load_manifest(path, report=report)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        decoded = pool.map(good, utterances)
        verdicts = list(tqdm.tqdm(decoded, total=len(utterances), desc="decoding", unit="file", disable=None))
    return [utterance for utterance, fine in zip(utterances, verdicts, strict=True) if fine], report


def _print_bad(report: DataReport, *, shown: int = 10) -> None:
    for kind, rows in report.to_json()["utterances"].items():
        tell(f"{kind}: {len(rows)}")
        for row in rows[:shown]:
            tell(f"  {row['name']}: {row['detail']}")
        if len(rows) > shown:
            tell(f"  and {len(rows) - shown} more")


def _print_speakers(utterances: list[Utterance], tag: str) -> None:
    totals: dict[str, list[float]] = {}
    for utterance in utterances:
        name = str(utterance.tags[tag]) if tag in utterance.tags else "-"
        row = totals.setdefault(name, [0, 0.0, 0])
        row[0] += 1
        row[1] += utterance.duration
        row[2] += len(utterance.text.split())
    width = max([len(tag), 5, *map(len, totals)])
    tell(f"{tag:<{width}} {'utterances':>10} {'hours':>8} {'words':>9}")
    rows = [
        *sorted(totals.items()),
        ("total", [sum(column) for column in zip(*totals.values(), strict=True)] or [0, 0.0, 0]),
    ]
    for name, (count, seconds, spoken) in rows:
        tell(f"{name:<{width}} {count:>10} {seconds / 3600:>8.3f} {spoken:>9}")


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "make: the manifest to write; with --split a folder.")
    flags.DEFINE_bool("split", False, "make: write train.jsonl, validation.jsonl and test.jsonl.")
    flags.DEFINE_enum("speaker_from", "parent", _SPEAKER_FROM, "make: where the tag `speaker` comes from.")
    flags.DEFINE_integer("sample_rate", 16000, "check: the rate to decode to, Hz.")
    flags.DEFINE_string("tag", "speaker", "check: the tag to count by.")
    flags.DEFINE_string("report", None, "check: a file for the full report, as JSON.")
    flags.DEFINE_bool("strict", False, "check: exit with status 2 if anything is bad.")


def main(argv: list[str]) -> int:
    """Runs `make` or `check`; returns the exit status."""
    values = flags.FLAGS
    if len(argv) != 3 or argv[1] not in ("make", "check"):
        raise UserError(
            f"unknown command {' '.join(argv[1:])!r}; allowed: make FOLDER --output MANIFEST, check MANIFEST"
        )
    if argv[1] == "make":
        if not values.output:
            raise UserError("make needs --output MANIFEST")
        count, silent, report = make(argv[2], values.output, speaker_from=values.speaker_from, split=values.split)
        _print_bad(report)
        if silent:
            tell(f"{len(silent)} files without a transcript were left out, such as {silent[0]}")
        tell(f"{count} utterances in {values.output}")
        return 0
    utterances, report = check(argv[2], sample_rate=values.sample_rate)
    _print_bad(report)
    _print_speakers(utterances, values.tag)
    bad = sum(report.counts().values())
    tell(f"{len(utterances)} good, {bad} bad")
    if values.report:
        report.write(values.report)
    return 2 if bad and values.strict else 0


if __name__ == "__main__":
    cli.run(main, define_flags=_define_flags)
