"""What is known of the shards of a folder that are complete, while others are still to be made.

    FOLDER/.parts/job.json       what they are made from, and how
    FOLDER/.parts/00007.parquet  the rows of shard 7, written when it is complete

Of a folder that is finished, the index says the same of all of them.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from hra_jax.data import shards
from hra_jax.data.shard_files import Shard
from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import files, remote
from hra_jax.storage.json_files import json_text, parse_json, read_object

FOLDER: Final = ".parts"
SCHEMA: Final = pa.schema([*shards.ROWS, ("tags", pa.string())])  # tags as a JSON object
_JOB: Final = "job.json"
_OWN: Final = b"shard"


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """How shards are made.

    Attributes:
      sample_rate: Hz.
      encoding: a value of `shard_files.ENCODINGS`.
      shard_seconds: of audio in a shard, at most, unless one utterance is longer.
    """

    sample_rate: int = 16000
    encoding: str = "int16"
    shard_seconds: float = 3600.0


class Part(NamedTuple):
    """What is known of one shard that is complete.

    Attributes:
      rows: a table of `SCHEMA`: its utterances, those that cannot be used among them.
      shard: the file.
    """

    rows: pa.Table
    shard: Shard


def begin(folder: epath.Path, made_from: Mapping[str, Any]) -> tuple[dict[int, Part], bool]:
    """Looks at what there is; what a killed process left half-written is removed.

    Returns:
      The parts that are complete; whether the index is there, and all shards that it names.

    Raises:
      UserError: the folder holds shards that were made from something else, or with other settings.
    """
    parts: dict[int, Part] = {}
    named = None
    if shards.is_shards(folder):
        index = shards.read_index(folder)
        _check_same(folder, index.made_from, made_from)
        parts, named = _parts_of(index), len(index.shards)
    elif (folder / FOLDER / _JOB).exists():
        _check_same(folder, read_object(folder / FOLDER / _JOB), made_from)
    else:
        # A folder of something else would be filled with shards.
        others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        if others:
            other = f"holds other files, such as {sorted(others)[0]!r}"
            raise UserError(f"{os.fspath(folder)!r} {other}; allowed: a folder of shards, or a new one")
        files.write_file(folder / FOLDER / _JOB, json_text(made_from))
    settings = ShardSettings(made_from["sample_rate"], made_from["encoding"], made_from["shard_seconds"])
    if (folder / FOLDER).is_dir():
        for entry in sorted((folder / FOLDER).iterdir()):
            stem = entry.name.removesuffix(".parquet")
            if stem.isdecimal() and stem != entry.name:
                with contextlib.suppress(DamagedError):  # its shard is then made again
                    parts[int(stem)] = read_part(folder, int(stem), settings)
    if not remote.is_remote(folder):
        for place in (folder, folder / FOLDER):
            names = {files.replaced_name(entry.name) for entry in place.iterdir()} if place.is_dir() else set()
            if names - {None}:
                files.remove_leftovers(place, {name for name in names if name is not None})
    found = {number: part for number, part in parts.items() if _size(part.shard.path) == part.shard.size}
    return found, len(found) == named


def _check_same(folder: epath.Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            was = "other content of the source" if name == "version" else f"{name} {before.get(name)!r}, not {value!r}"
            raise UserError(
                f"{os.fspath(folder)!r} holds shards made with {was}; allowed: another --output, or remove it"
            )


def _size(path: str) -> int:
    try:
        return int(epath.Path(path).stat().length)
    except FileNotFoundError:
        return -1


def _parts_of(index: shards.Index) -> dict[int, Part]:
    """The parts that an index was put together from."""
    tags = pa.array(
        [json.dumps(row, ensure_ascii=False) for row in shards.tags_of(index.tags, len(index.rows))], pa.string()
    )
    rows = index.rows.append_column("tags", tags).cast(SCHEMA)
    number = np.asarray(rows.column("shard").combine_chunks())
    return {at: Part(rows.take(np.flatnonzero(number == at)), shard) for at, shard in enumerate(index.shards)}


def read_part(folder: epath.Path, number: int, settings: ShardSettings) -> Part:
    """What `write_part` wrote of a shard. Raises DamagedError, or OSError where it cannot be read."""
    file = folder / FOLDER / _name(number)
    content = file.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(content))
        records, size, digest = parse_json(table.schema.metadata[_OWN], where=os.fspath(file))
        rows = table.cast(SCHEMA)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{file}: is not what was written") from error
    path = os.fspath(folder / shards.shard_name(number))
    return Part(rows, Shard(path, records, size, digest, settings.sample_rate, settings.encoding))


def write_part(folder: epath.Path, number: int, rows: Sequence[Mapping[str, Any]], counted: Sequence[int]) -> None:
    """Writes what is known of a shard: its rows, by `SCHEMA`, and what `shard_files.write_shard` returned."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_OWN: json.dumps(counted).encode()}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    files.write_file(folder / FOLDER / _name(number), sink.getvalue().to_pybytes())


def _name(number: int) -> str:
    return f"{number:05d}.parquet"
