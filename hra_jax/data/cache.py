"""Writes shards: the utterances of a source, decoded and checked once, as files that training reads fast.

    python -m hra_jax.data.cache --source M.jsonl --output SHARDS
    python -m hra_jax.data.cache --source seqio:hra/ljspeech/train,validation --data_dir DATA

The source is a manifest, other shards, or a split of a corpus or of a seqio Task. SHARDS then stands wherever a
manifest may: in data.sources, in suites, in commands. It is a data set of TFDS too (data/shards.py).

A process of a pool makes a shard at a time. A shard has its name when it is complete, and which utterances are in it
depends on the source alone: the same command goes on where it was stopped, with any number of processes, and gives the
same bytes. What cannot be used is left out and named in SHARDS/report.json.
"""

import concurrent.futures
import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
import tqdm
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.console import tell
from hra_jax.data import audio, shard_files, shard_parts, shards, sound_files, sources
from hra_jax.data.corpora import imported, registry
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.shard_parts import Part, ShardSettings
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.run import children
from hra_jax.storage import checksums, files, locks
from hra_jax.storage.json_files import json_text, parse_json

_BYTES_PER_SECOND: Final = 16_000  # of sound whose header says nothing of its length


class Items(NamedTuple):
    """What is to be put into shards.

    Attributes:
      name: of the source.
      version: another one where the source has other content, as a JSON value.
      items: the utterances, in the order of the source.
      total: how many; None where that is not known before they are read.
      refused: lines of the source that cannot be used.
    """

    name: str
    version: Any
    items: Iterable[Utterance | Example]
    total: int | None
    refused: Sequence[Refused] = ()


class Made(NamedTuple):
    """What `cache` did.

    Attributes:
      utterances: in the shards.
      seconds: of audio.
      shards: how many.
      size: bytes of the shards.
      new: how many shards were written now.
      report: what could not be used.
    """

    utterances: int
    seconds: float
    shards: int
    size: int
    new: int
    report: DataReport


class _Job(NamedTuple):
    """One shard in the making."""

    folder: str
    number: int
    items: list[Utterance | Example]
    settings: ShardSettings


def cache(
    items: Items,
    output: epath.PathLike,
    *,
    settings: ShardSettings,
    workers: int = 1,
    report: DataReport,
    told: Callable[[int], object] = lambda count: None,
) -> Made:
    """Writes a folder of shards, or what it lacks.

    Args:
      items: what is put there.
      output: the folder; it is made.
      settings: how.
      workers: processes; of one alone none is started.
      report: gets what cannot be used.
      told: called with the number of utterances of each shard that is complete.

    Raises:
      UserError: the folder holds shards of something else, or no utterance can be used.
      OSError: it cannot be written; StorageUnavailable where a bucket does not answer. The same call goes on.
    """
    folder = epath.Path(output)
    made_from = {"version": items.version, **dataclasses.asdict(settings)}
    with locks.hold(folder, "cache"):
        parts, whole = shard_parts.begin(folder, made_from)
        if whole and (folder / checksums.LISTING).exists():
            new = 0
            report.read(folder / shards.REPORT)
        else:
            parts, new = _complete(folder, parts, items, settings=settings, workers=workers, told=told)
            _finish(folder, parts, items, made_from, report=report)
    found = [part.shard for part in parts.values()]
    seconds = sum(_seconds_of(part.rows) for part in parts.values())
    return Made(sum(one.records for one in found), seconds, len(found), sum(one.size for one in found), new, report)


def _complete(
    folder: epath.Path,
    parts: Mapping[int, Part],
    items: Items,
    *,
    settings: ShardSettings,
    workers: int,
    told: Callable[[int], object],
) -> tuple[dict[int, Part], int]:
    """Writes the shards that are not among the parts; all parts, by number, and how many are new."""
    count, found = 0, dict(parts)

    def wanted() -> Iterator[_Job]:
        nonlocal count
        for number, part in enumerate(_cut(items.items, settings.shard_seconds)):
            count = number + 1
            if number in parts:
                told(len(part))
            else:
                yield _Job(os.fspath(folder), number, part, settings)

    new = 0
    for number, size in _run(wanted(), workers):
        found[number] = shard_parts.read_part(folder, number, settings)
        new += 1
        told(size)
    return {number: found[number] for number in range(count)}, new


def _seconds_of(rows: pa.Table) -> float:
    good = np.asarray(rows.column("record").combine_chunks()) >= 0
    return float(np.asarray(rows.column("duration").combine_chunks())[good].sum())


# --- One shard --------------------------------------------------------------------------------------------------------


def _cut(items: Iterable[Utterance | Example], most: float) -> Iterator[list[Utterance | Example]]:
    """The utterances by shard: as many in a row as have at most so many seconds together."""
    part: list[Utterance | Example] = []
    total = 0.0
    for item in items:
        seconds = item.duration if isinstance(item, Utterance) else _seconds(item)
        if part and total + seconds > most:
            yield part
            part, total = [], 0.0
        part.append(item)
        total += seconds
    if part:
        yield part


def _seconds(example: Example) -> float:
    """Of an example, as its header or its size says."""
    if not isinstance(example.audio, bytes):
        return len(example.audio) / max(1, example.sample_rate)
    try:
        return float(soundfile.info(io.BytesIO(example.audio)).duration)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError):
        return len(example.audio) / _BYTES_PER_SECOND


def _make(job: _Job) -> tuple[int, int]:
    """Writes a shard, and then what is known of it; its number and how many utterances it was made of."""
    rows: list[dict[str, Any]] = []
    path = epath.Path(job.folder) / shards.shard_name(job.number)
    counted = shard_files.write_shard(path, _records(job, rows))
    shard_parts.write_part(epath.Path(job.folder), job.number, rows, counted)
    return job.number, len(job.items)


def _records(job: _Job, rows: list[dict[str, Any]]) -> Iterator[bytes]:
    """The records of a shard; `rows` gets a row for each of its utterances, those that cannot be used among them."""
    rate, encoding = job.settings.sample_rate, job.settings.encoding
    good = 0
    for item in job.items:
        row = _row(item, job) | {"record": -1}
        rows.append(row)
        try:
            samples, row["hash"] = (
                audio.decode_hashed(item, rate) if isinstance(item, Utterance) else audio.decode_example(item, rate)
            )
        except audio.AudioError as error:
            row["why"] = f"{error.kind}: {error.detail}"
            continue
        row["record"] = good
        if isinstance(item, Example):
            row["duration"] = samples.size / rate
        sound = shard_files.encode_samples(samples, sample_rate=rate, encoding=encoding)
        good += 1
        yield shards.record_of(row, sound, sample_rate=rate)


def _row(item: Utterance | Example, job: _Job) -> dict[str, Any]:
    """The row of `shard_parts.SCHEMA` of an utterance, as far as it is known before it is decoded."""
    row: dict[str, Any] = {"text": item.text, "shard": job.number, "hash": 0, "why": None}
    # Corpora have NaN where they know no number, and JSON has no NaN.
    tags = {name: value for name, value in item.tags.items() if not isinstance(value, float) or math.isfinite(value)}
    row["tags"] = json.dumps(tags, sort_keys=True, ensure_ascii=False)
    if isinstance(item, Utterance):
        file = {"id": item.key, "file": item.audio_filepath, "offset": item.offset, "line": item.line}
        return row | file | {"duration": item.duration}
    return row | {"id": item.id, "file": "", "offset": 0.0, "line": 0, "duration": 0.0}


def _run(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[int, int]]:
    """Makes shards; gives what `_make` gives, in the order in which they are complete."""
    if workers == 1:
        yield from map(_make, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would take locks of threads along
    _start_tracker()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start, (os.getpid(),)) as pool:
        waiting: set[concurrent.futures.Future[tuple[int, int]]] = set()
        try:
            for job in jobs:
                waiting.add(pool.submit(_make, job))
                while len(waiting) > workers:  # what is read ahead lies in memory
                    done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in concurrent.futures.as_completed(waiting))
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} processes was killed, as the system does where memory is short; the same command "
                f"goes on: with fewer --workers, or less --shard_seconds"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_tracker() -> None:
    """Starts the process that clears away what a pool leaves, which else warns of that after Ctrl-C."""
    name, before = "PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS")
    os.environ[name] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _start(parent: int) -> None:
    """The first act of a process of the pool: Ctrl-C is for the command, and takes its processes with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children.die_with(parent)


# --- The end ----------------------------------------------------------------------------------------------------------


def _finish(
    folder: epath.Path, parts: Mapping[int, Part], items: Items, made_from: Mapping[str, Any], *, report: DataReport
) -> None:
    """Writes everything beside the shards, the index last but one, and the checksums of all last."""
    found = [part.shard for part in parts.values()]
    rows = pa.concat_tables([part.rows for part in parts.values()] or [shard_parts.SCHEMA.empty_table()])
    tags = [parse_json(text, where="tags") for text in rows.column("tags").to_pylist()]
    for row in rows.select(["id", "why"]).filter(pa.compute.is_valid(rows.column("why"))).to_pylist():
        report.add_why(row["id"], row["why"])
    if not sum(shard.records for shard in found):
        files.remove_folder(folder / shard_parts.FOLDER)
        for shard in found:
            files.remove_file(shard.path)
        raise UserError(f"{items.name}: none of its utterances can be used ({report.summary()})")
    lost = {"text": "", "duration": 0.0, "file": "", "offset": 0.0, "line": 0, "shard": -1, "record": -1, "hash": 0}
    others = [lost | {"id": row.key, "why": row.why} for row in items.refused]
    table = pa.concat_tables([rows.select(shards.ROWS.names), pa.Table.from_pylist(others, schema=shards.ROWS)])
    tags += [row.tags for row in items.refused]
    first = found[0]
    index = shards.index_bytes(table, tags, found, made_from=made_from)
    content = {
        shards.FEATURES: shards.features_text(sample_rate=first.sample_rate, encoding=first.encoding).encode(),
        shards.INFO: shards.info_text(found).encode(),
        shards.REPORT: json_text(report.to_json()).encode(),
        shards.INDEX: index,
    }
    for name, text in content.items():
        files.write_file(folder / name, text)
    listed = {os.path.basename(one.path): (one.size, one.xxh3) for one in found}
    listed |= {name: checksums.of_bytes(text) for name, text in content.items()}
    files.write_file(folder / checksums.LISTING, checksums.listing_text(listed))
    files.remove_folder(folder / shard_parts.FOLDER)


# --- The command ------------------------------------------------------------------------------------------------------


def items_of(source: str, *, data_dir: str, modules: Sequence[str], report: DataReport) -> Items:
    """What a source holds.

    Args:
      source: a manifest, a folder of shards, or seqio:NAME/SPLIT.
      data_dir: where corpora lie.
      modules: those that register Tasks of the user's.
      report: gets lines that cannot be used.

    Raises:
      UserError: there is no such source, or it cannot be read.
    """
    paths = [epath.Path(source)]
    if registry.is_named(source):
        name, split = registry.name_and_split(source)
        if not data_dir:
            raise UserError(f"--source={source} needs --data_dir, the folder of all corpora")
        if not registry.is_imported(name):
            version, total = registry.origin(name, split, data_dir=data_dir, modules=modules)
            found = registry.examples(name, split, data_dir=data_dir, modules=modules, report=report)
            return Items(source, version, found, total)
        paths = imported.manifests(name, split, data_dir)
    read, version = [], []
    for path in paths:
        read.append(sources.read_source(path, report=report))
        version += checksums.of_file(path / shards.INDEX if shards.is_shards(path) else path)
    utterances = itertools.chain.from_iterable(good for good, _ in read)
    refused = [line for _, bad in read for line in bad]
    return Items(source, version, utterances, sum(len(good) for good, _ in read), refused)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("source", None, "A manifest, a folder of shards, or seqio:NAME/SPLIT[,SPLIT].", required=True)
    flags.DEFINE_string(
        "output", None, "The folder of shards; of seqio:NAME/SPLIT by default DATA_DIR/shards/NAME/SPLIT."
    )
    flags.DEFINE_string("data_dir", None, "Where corpora lie, as data.dir.")
    flags.DEFINE_string(
        "shards_dir",
        None,
        "Of seqio:NAME/SPLIT: the folder, such as one in a bucket, that gets shards in DATA_DIR's place.",
    )
    flags.DEFINE_list("modules", [], "Modules that register seqio Tasks, as data.modules.")
    flags.DEFINE_integer(
        "sample_rate",
        ShardSettings.sample_rate,
        "Hz.",
        lower_bound=sound_files.LEAST_RATE,
        upper_bound=sound_files.MOST_RATE,
    )
    flags.DEFINE_enum("encoding", ShardSettings.encoding, shard_files.ENCODINGS, "int16: fastest; flac: half the size.")
    flags.DEFINE_float("shard_seconds", ShardSettings.shard_seconds, "Audio of a shard, seconds.", lower_bound=1.0)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Writes the shards that the command line asks for."""
    del argv
    values = flags.FLAGS
    settings = ShardSettings(values.sample_rate, values.encoding, values.shard_seconds)
    jobs = []
    # All of them are looked for before the first is begun, which may take hours.
    for source in one_by_one(values.source, output=values.output):
        output, report = _output(source, values.output, values.shards_dir or values.data_dir), DataReport()
        items = items_of(source, data_dir=values.data_dir or "", modules=values.modules, report=report)
        jobs.append((items, output, report))
    for items, output, report in jobs:
        with tqdm.tqdm(total=items.total, desc="caching", unit="utterance", disable=None) as bar:
            made = cache(items, output, settings=settings, workers=values.workers, report=report, told=bar.update)
        _tell(made, output)
    return 0


def one_by_one(source: str, *, output: str | None) -> list[str]:
    """The sources that `seqio:NAME/SPLIT,SPLIT` stands for; of all others, themselves.

    Raises:
      UserError: several splits with one `output`.
    """
    if not registry.is_named(source):
        return [source]
    name, splits = registry.name_and_split(source)
    found = [f"{registry.SCHEME}{name}/{split}" for split in splits.split(",") if split]
    if output is not None and len(found) > 1:
        raise UserError(f"--source={source} are {len(found)} folders of shards; allowed: --data_dir, and no --output")
    return found


def _tell(made: Made, output: str) -> None:
    if any(made.report.counts().values()):
        tell(f"left out: {made.report.summary()}; all of them are in {os.path.join(output, shards.REPORT)}")
    size = (
        f"{made.shards:,} shards, {made.size / 1e6:,.1f} MB"
        if made.shards > 1
        else f"1 shard, {made.size / 1e6:,.1f} MB"
    )
    written = (
        "" if made.new == made.shards else f"; {made.new:,} of them written now" if made.new else ", complete before"
    )
    tell(f"{made.utterances:,} utterances, {made.seconds / 3600:,.3f} h, in {output}: {size}{written}")


def _output(source: str, output: str | None, shards_dir: str | None) -> str:
    if output is None and shards_dir and registry.is_named(source):
        return registry.shards_folder(*registry.name_and_split(source), shards_dir)
    if output is None:
        raise UserError("--output is needed: the folder of shards to write; of seqio:NAME/SPLIT --data_dir will do")
    return output


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
