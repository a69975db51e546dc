"""Manifests: JSON Lines that name audio and its transcripts.

    python -m hra_jax.data.manifest make FOLDER --output M.jsonl
    python -m hra_jax.data.manifest import CORPUS --output FOLDER
    python -m hra_jax.data.manifest check M.jsonl

A line is an object with `audio_filepath` (relative to the manifest, absolute, or a URI), `duration` (s), `text`, and
optionally `offset` (s); every other field (`speaker`, `lang`, ...) is kept as a tag.
"""

import concurrent.futures
import hashlib
import json
import os
from typing import Any, Final, NamedTuple

import tqdm
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.console import listed, tell
from hra_jax.data import audio, manifest_lines, recordings, shards, sound_files
from hra_jax.data.columns import UtteranceColumns
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.storage.files import check_regular, write_file
from hra_jax.storage.remote import is_remote

_SPEAKER_FROM: Final = ("parent", "none")
_FEWEST: Final = 3  # recordings of a speaker that can be split


def load_manifest(path: epath.PathLike, *, report: DataReport) -> UtteranceColumns:
    """The usable utterances of a manifest, as `read_manifest` reads it."""
    return read_manifest(path, report=report)[0]


def read_manifest(
    path: epath.PathLike, *, report: DataReport, texts: bool = True
) -> tuple[UtteranceColumns, list[Refused]]:
    """Reads a manifest; the audio itself is not looked at.

    Args:
      path: the manifest.
      report: gets every bad line (bad_json, missing_field, empty_audio, unreachable_audio, too_short: more text than
        any speech of that length), named `manifest:line`.
      texts: whether lines need a text; without, nothing is asked of it, and every text is ''.

    Returns:
      The usable utterances, and the other lines, both in the order of the lines. Empty lines are passed over.

    Raises:
      UserError: the manifest does not exist, cannot be read or is UTF-16; a line is bad and the report strict.
    """
    file = epath.Path(path)
    try:
        check_regular(file)
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no manifest at {path}") from error
    except OSError as error:
        raise UserError(f"the manifest {path} cannot be read: {error.strerror or error}") from error
    if content[:8].count(0) > 2:  # each of its letters is two bytes, or four
        raise UserError(f"the manifest {path} is UTF-16 or UTF-32; needed: UTF-8")
    folder, source = file.parent if is_remote(file) else file.absolute().parent, os.fspath(path)
    return manifest_lines.read(content, folder=folder, source=source, report=report, texts=texts)


# --- Make -------------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """What `make` did.

    Attributes:
      lines: how many were written.
      silent: files without a transcript.
      report: what could not be used.
      unsplit: with `split`, the speakers with too few recordings for three parts, all of which are in train.jsonl.
    """

    lines: int
    silent: list[str]
    report: DataReport
    unsplit: list[str]


def make(
    folder: epath.PathLike,
    output: epath.PathLike,
    *,
    speaker_from: str = "parent",
    split: bool = False,
    transcripts: bool = True,
) -> Made:
    """Writes a manifest of a folder of recordings, or three: train, validation and test.

    Args:
      folder: searched as `recordings.find` says.
      output: the manifest to write; with `split` the folder for train.jsonl, validation.jsonl and test.jsonl. Paths in
        a manifest are relative to it.
      speaker_from: "parent" (the tag `speaker` is the name of the folder that the file is in) or "none" (no such tag).
      transcripts: whether recordings need a transcript. Without them every text is empty, as it is of noise.

    Raises:
      UserError: no such folder, no audio or no transcript in it, a table of transcripts that is wrong, a value that is
        not allowed, or no speaker with enough recordings for a split.
    """
    if not epath.Path(folder).is_dir():
        raise UserError(f"no folder at {folder}")
    if speaker_from not in _SPEAKER_FROM:
        raise UserError(f"speaker_from {speaker_from!r}; allowed: {', '.join(_SPEAKER_FROM)}")
    report = DataReport()
    found, silent = recordings.find(folder, report=report, transcripts=transcripts)
    manifest = epath.Path(output) / "train.jsonl" if split else epath.Path(output)
    rows = []
    for recording in tqdm.tqdm(found, desc="reading", unit="file", disable=None):
        try:
            with sound_files.Sound(os.fspath(recording.path)) as sound:
                duration = round(sound.seconds, 6)
            if not duration:
                raise audio.AudioError("empty_audio", "the file has no samples")
        except audio.AudioError as error:
            report.add(error.kind, recording.name, error.detail)
            continue
        row: dict[str, Any] = {
            "audio_filepath": relative_to(recording.path, manifest),
            "duration": duration,
            "text": recording.text,
        }
        if speaker_from == "parent":
            row["speaker"] = recording.path.parent.name
        # Names below the folder are text, but the way to it, or its own name, may not be.
        if not all(map(recordings.is_utf8, (row["audio_filepath"], row.get("speaker", "")))):
            report.add("undecodable_audio", recording.name, "the name of its folder is not UTF-8; rename the folder")
            continue
        rows.append(row)
    if not rows:
        raise UserError(
            f"no usable audio with a transcript in {folder}: {len(silent)} without text; {report.summary()}"
        )
    parts, unsplit = split_rows(rows, "speaker") if split else ({manifest.name: rows}, [])
    for name, part in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        write_file(manifest.parent / name, "".join(lines))
    return Made(len(rows), silent, report, unsplit)


def split_rows(rows: list[dict[str, Any]], tag: str) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows by manifest name, and the values of the tag with too few of them, whose rows are all in the first.

    Args:
      rows: lines of a manifest.
      tag: whose values (speakers) are split, each for itself.

    Raises:
      UserError: all have too few.
    """
    speakers: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        speakers.setdefault(row.get(tag, ""), []).append(row)
    few = [speaker for speaker, own in speakers.items() if len(own) < _FEWEST]
    if len(few) == len(speakers):
        raise UserError(f"no {tag} has {_FEWEST} recordings, the fewest to split; {listed(few, most=3)} has fewer")
    parts: dict[str, list[dict[str, Any]]] = {"train.jsonl": [], "validation.jsonl": [], "test.jsonl": []}
    for speaker, own in speakers.items():
        own = sorted(own, key=_drawn)
        tenth = 0 if speaker in few else max(1, len(own) // 10)
        for name, part in zip(parts, (own[2 * tenth :], own[:tenth], own[tenth : 2 * tenth]), strict=True):
            parts[name] += sorted(part, key=lambda row: (row["audio_filepath"], row.get("offset", 0.0)))
    return parts, few


def _drawn(row: dict[str, Any]) -> tuple[str, float]:
    """What puts rows into an order that has nothing to do with their names, the same at every time."""
    return hashlib.sha256(row["audio_filepath"].encode()).hexdigest(), row.get("offset", 0.0)


def relative_to(path: epath.Path, manifest: epath.Path) -> str:
    """The path as a manifest should have it: relative where both lie on the same storage."""
    if is_remote(path) or is_remote(manifest):
        inside = path.is_relative_to(manifest.parent)
        return os.fspath(path.relative_to(manifest.parent) if inside else path)
    plain = os.path.relpath(path, manifest.parent)
    # The way up from a folder that a link leads to is not the way back.
    return os.path.relpath(path, os.path.realpath(manifest.parent)) if plain.startswith(os.pardir) else plain


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
      UserError: the manifest cannot be read, or has no line, or these are shards.
    """
    report = DataReport()

    def good(utterance: Utterance) -> bool:
        try:
            audio.decode(utterance, sample_rate)
        except audio.AudioError as error:
            report.add(error.kind, utterance.key, error.detail)
            return False
        return True

    if shards.is_shards(path):
        raise UserError(f"{os.fspath(path)} holds shards; python -m hra_jax.verify {os.fspath(path)} checks them")
    utterances = load_manifest(path, report=report)
    if not utterances and not sum(report.counts().values()):
        raise UserError(f"the manifest {path} is empty; needed: a line for each utterance")
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        decoded = pool.map(good, utterances)
        verdicts = list(tqdm.tqdm(decoded, total=len(utterances), desc="decoding", unit="file", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is decoded
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
        name = utterance.tag(tag) or "-"
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
    from hra_jax.data.importers import importing  # it imports this module

    flags.DEFINE_string("output", None, "make: the manifest to write; with --split a folder. import: the folder.")
    flags.DEFINE_bool("split", False, "make, import: write train.jsonl, validation.jsonl and test.jsonl.")
    flags.DEFINE_enum("kind", None, list(importing.FORMATS), "import: the format; by default what it looks like.")
    flags.DEFINE_list("splits", [], "import: the splits that are wanted, by default all that share nothing.")
    flags.DEFINE_string("audio_dir", None, "import kaldi, nemo: the folder at which relative paths begin.")
    flags.DEFINE_bool(
        "transcripts", True, "make: take recordings with a transcript alone; off for noise, which has none."
    )
    flags.DEFINE_enum("speaker_from", "parent", _SPEAKER_FROM, "make: where the tag `speaker` comes from.")
    flags.DEFINE_integer(
        "sample_rate",
        16000,
        "check: the rate to decode to, Hz.",
        lower_bound=sound_files.LEAST_RATE,
        upper_bound=sound_files.MOST_RATE,
    )
    flags.DEFINE_string("tag", "speaker", "check, import: the tag to count by, and to split by.")
    flags.DEFINE_string("report", None, "check, import: a file for the full report, as JSON.")
    flags.DEFINE_bool("strict", False, "check, import: exit with status 2 if anything is bad.")


def main(argv: list[str]) -> int:
    """Runs `make`, `import` or `check`; returns the exit status."""
    if len(argv) != 3 or argv[1] not in ("make", "import", "check"):
        raise UserError(
            f"unknown command {' '.join(argv[1:])!r}; allowed: make FOLDER --output MANIFEST, "
            "import CORPUS --output FOLDER, check MANIFEST"
        )
    command, place = argv[1:]
    if command != "check" and not flags.FLAGS.output:
        raise UserError(f"{command} needs --output {'MANIFEST' if command == 'make' else 'FOLDER'}")
    return {"make": _make, "import": _import, "check": _check}[command](place)


def _make(folder: str) -> int:
    values = flags.FLAGS
    if not values.split:
        cli.check_output("output", values.output)
    made = make(
        folder,
        values.output,
        speaker_from=values.speaker_from,
        split=values.split,
        transcripts=values.transcripts,
    )
    _print_bad(made.report)
    if made.silent:
        tell(f"{len(made.silent)} files without a transcript were left out: {listed(made.silent)}")
    if made.unsplit:
        tell(f"in train.jsonl only, with fewer than {_FEWEST} recordings: speaker {listed(made.unsplit)}")
    tell(f"{made.lines} utterances in {values.output}")
    return 0


def _import(folder: str) -> int:
    from hra_jax.data.importers import importing  # it imports this module

    values = flags.FLAGS
    if values.output.endswith(".jsonl"):
        cli.check_output("output", values.output)
    cli.check_output("report", values.report)
    parts = importing.import_corpus(
        folder,
        values.output,
        kind=values.kind,
        splits=values.splits,
        audio_dir=values.audio_dir,
        split_by=values.tag if values.split else None,
    )
    report = DataReport()
    for part in parts.values():
        report.merge(part.report.to_json())
    _print_bad(report)
    importing.print_table(parts, tag=values.tag)
    if values.report:
        report.write(values.report)
    return 2 if values.strict and sum(report.counts().values()) else 0


def _check(manifest: str) -> int:
    values = flags.FLAGS
    cli.check_output("report", values.report)
    utterances, report = check(manifest, sample_rate=values.sample_rate)
    _print_bad(report)
    _print_speakers(utterances, values.tag)
    bad = sum(report.counts().values())
    tell(f"{len(utterances)} good, {bad} bad")
    if values.report:
        report.write(values.report)
    return 2 if bad and values.strict else 0


if __name__ == "__main__":
    cli.run(main, define_flags=_define_flags, takes_words=True)
