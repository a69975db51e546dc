"""Shards: the utterances of a source in a few large files, decoded and checked once, with columns that describe them.

    FOLDER/columns.parquet                      a row for each utterance of the source, in its order
    FOLDER/shards-train.array_record-00000 ...  the sound, and everything else once more
    FOLDER/features.json, dataset_info.json     with which the folder is a data set of TFDS, and opens without hra_jax
    FOLDER/report.json                          what could not be used of the source
    FOLDER/files.json                           checksums of all files

`python -m hra_jax.data.cache` writes them. Reading them needs no TensorFlow.
"""

import dataclasses
import functools
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
from etils import epath

from hra_jax.data import shard_files
from hra_jax.data.columns import JSON_FIELD, UtteranceColumns
from hra_jax.data.report import DataReport
from hra_jax.data.shard_files import Shard
from hra_jax.data.sound_files import AudioError, one_line
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import remote
from hra_jax.storage.json_files import check_fields, json_text, parse_json

INDEX: Final = "columns.parquet"
FEATURES, INFO, REPORT = "features.json", "dataset_info.json", "report.json"
NAME, SPLIT = "shards", "train"  # by which TFDS knows the data set
_FORMAT: Final = 1
_ADDRESS: Final = re.compile(rf"(.+)/{NAME}-{SPLIT}\.array_record-(\d{{5,9}})#(\d{{1,9}})")
_TAG: Final = "tag."  # how the names of the columns of tags begin
_OWN: Final = b"hra_jax"  # what the index says beside its rows, as JSON
_MOST_BYTES: Final = 2**31  # of an index
ROWS: Final = pa.schema(
    [
        ("id", pa.string()),  # Utterance.key
        ("text", pa.string()),
        ("duration", pa.float64()),  # seconds, as the source has it
        ("file", pa.string()),  # where the sound came from; '' of what came from no file
        ("offset", pa.float64()),
        ("line", pa.int64()),
        ("shard", pa.int32()),
        ("record", pa.int32()),  # -1: it cannot be used
        ("hash", pa.uint64()),  # data/sample_hashes.py, of the sound as it was in its source
        ("why", pa.string()),  # "kind: detail" of what cannot be used, else null
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Sharded(Utterance):
    """An utterance whose sound is in a shard; `audio_filepath` and `offset` say where it came from.

    Of what came from no file, `audio_filepath` is its address.

    Attributes:
      shard: the file that holds it.
      record: its number there.
      sample_hash: 64 bits that name its samples as they were in its source, see `sample_hashes`.
    """

    shard: Shard = dataclasses.field(default_factory=Shard)
    record: int = 0
    sample_hash: int = 0

    @property
    def sound_file(self) -> str:
        """Path or URI of the shard."""
        return self.shard.path

    @property
    def address(self) -> str:
        """What names its record where a manifest names a file; `at_address` finds it."""
        return f"{self.shard.path}#{self.record}"

    def as_line(self) -> dict[str, Any]:
        """As of others, with its record in the place of a file."""
        return {"audio_filepath": self.address, "duration": self.duration, "text": self.text}


class Index(NamedTuple):
    """What `columns.parquet` holds.

    Attributes:
      rows: a table of `ROWS`.
      tags: a table of the tags of the rows, a column each.
      shards: the files.
      made_from: what the shards were made from, and how, as the command that made them says it.
    """

    rows: pa.Table
    tags: pa.Table
    shards: tuple[Shard, ...]
    made_from: dict[str, Any]


def is_shards(path: epath.PathLike) -> bool:
    """Whether a path leads to a complete folder of shards."""
    return (epath.Path(path) / INDEX).exists()


def shard_name(number: int) -> str:
    """The name of a shard in its folder."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}"


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_shards(folder: epath.PathLike, *, report: DataReport) -> tuple[UtteranceColumns, list[Refused]]:
    """Reads a folder of shards; of the shards themselves only the sizes are looked at, and only on this machine.

    Args:
      folder: the folder.
      report: gets what could not be used of the source, and each damaged shard.

    Returns:
      The utterances as columns, and the lines of the source that cannot be used, both in the order of the source.

    Raises:
      UserError: the index is damaged or of a later version, or anything is bad and the report strict.
    """
    return utterances_of(read_index(folder), folder, report=report)


def utterances_of(
    index: Index, folder: epath.PathLike, *, report: DataReport
) -> tuple[UtteranceColumns, list[Refused]]:
    """As `read_shards`, of an index that is read."""
    for shard in index.shards:
        fault = shard.fault()
        if fault:
            kind = "missing_file" if fault == "is missing" else "undecodable_audio"
            report.add(kind, shard.path, f"the shard {fault}: none of its {shard.records:,} utterances can be used")
    record = index.rows.column("record").combine_chunks()
    good = np.flatnonzero(np.asarray(record) >= 0)
    bad = pa.array(np.flatnonzero(np.asarray(record) < 0))
    refused = []
    for row, tags in zip(index.rows.take(bad).to_pylist(), tags_of(index.tags.take(bad), len(bad)), strict=True):
        report.add_why(row["id"], row["why"])
        refused.append(Refused(row["id"], row["why"], tags))
    source, files = os.fspath(folder), index.shards  # the index itself is not kept

    def make(row: Mapping[str, Any], tags: dict[str, Any]) -> Sharded:
        shard = files[row["shard"]]
        return Sharded(
            row["file"] or f"{shard.path}#{row['record']}",
            row["duration"],
            row["text"],
            row["offset"],
            tags,
            row["id"],
            source,
            row["line"],
            shard,
            row["record"],
            row["hash"],
        )

    def paths(rows: pa.Table) -> pa.ChunkedArray:
        kind = pa.large_string()
        shard = pa.array([shard.path for shard in files], kind).take(rows["shard"].combine_chunks())
        address = pc.binary_join_element_wise(shard, rows["record"].cast(kind).combine_chunks(), pa.scalar("#", kind))
        return pc.if_else(pc.equal(rows["file"], pa.scalar("", kind)), address, rows["file"])

    rows, tags = index.rows.drop_columns(["why"]), index.tags
    if refused:  # a copy of all columns, which most indices need not
        rows, tags = rows.take(pa.array(good)), tags.take(pa.array(good))
    return UtteranceColumns(rows, tags, make, paths), refused


def at_address(path: str) -> Sharded | None:
    """The utterance that a path names by its record, such as `F/shards-train.array_record-00000#7`; None of others.

    Raises:
      AudioError: missing_file, where there is no such record.
    """
    found = _ADDRESS.fullmatch(path)
    if found is None:
        return None
    try:
        utterances, numbers = _by_record(found[1])
        utterance = utterances[numbers[int(found[2]), int(found[3])]]
    except (UserError, OSError, KeyError) as error:
        raise AudioError("missing_file", f"no utterance at {path}") from error
    assert isinstance(utterance, Sharded)
    return utterance


@functools.lru_cache(16)
def _by_record(folder: str) -> tuple[UtteranceColumns, dict[tuple[int, int], int]]:
    """The utterances of a folder, and their numbers by shard and record."""
    rows = read_index(folder).rows.select(["shard", "record"]).to_pydict()
    good = [place for place in zip(rows["shard"], rows["record"], strict=True) if place[1] >= 0]
    return read_shards(folder, report=DataReport())[0], {place: at for at, place in enumerate(good)}


def tags_of(table: pa.Table, count: int) -> Iterator[dict[str, Any]]:
    """The tags of each of `count` rows of a table of tags, as the source had them."""
    as_json = {field.name for field in table.schema if (field.metadata or {}).items() >= JSON_FIELD.items()}
    for row in table.to_pylist() if table.num_columns else [{}] * count:  # without columns it has no rows
        yield {
            name: parse_json(value, where="a tag") if name in as_json else value
            for name, value in row.items()
            if value is not None
        }


def read_index(folder: epath.PathLike) -> Index:
    """The index of a folder of shards.

    Raises:
      UserError: there is none, or it is of a later version; DamagedError where it is not what was written.
      OSError: it cannot be read.
    """
    folder = folder if remote.is_remote(folder) else os.path.abspath(remote.local_path(os.fspath(folder)))
    path = epath.Path(folder) / INDEX
    if remote.is_remote(path) and not os.fspath(path).startswith("gs://"):
        raise UserError(f"shards at {os.fspath(folder)} are not read; allowed: a folder of this machine, or gs://")
    try:
        size = path.stat().length
        if size > _MOST_BYTES:
            raise UserError(f"{path} has {size:,} bytes; allowed: at most {_MOST_BYTES:,}")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no shards at {os.fspath(folder)}: it holds no {INDEX}") from error
    try:
        # By whole columns, and none of them by name: what stands there is looked at first.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        rows = table.select(ROWS.names).cast(ROWS)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedError(
            f"{path}: is not what was written, or no index of shards ({one_line(error)[:200]})"
        ) from error
    own = check_fields(
        parse_json((table.schema.metadata or {}).get(_OWN, b"null"), where=f"{path}: metadata"),
        {"format": int, "sample_rate": int, "encoding": str, "shards": list, "made_from": dict},
        where=f"{path}: metadata",
    )
    if own["format"] != _FORMAT:
        raise UserError(f"{path}: format {own['format']}; this version reads {_FORMAT}")
    shards = tuple(_shard(folder, entry, own, where=f"{path}: shards") for entry in own["shards"])
    _check_rows(rows, shards, where=os.fspath(path))
    names = [name for name in table.column_names if name.startswith(_TAG)]
    tags = table.select(names).rename_columns([name.removeprefix(_TAG) for name in names])
    return Index(rows, tags, shards, own["made_from"])


def _shard(folder: epath.PathLike, entry: Any, own: Mapping[str, Any], *, where: str) -> Shard:
    if not (isinstance(entry, list) and len(entry) == 4 and isinstance(entry[0], str)) or any(
        type(number) is not int or number < 0 for number in entry[1:]
    ):
        raise DamagedError(f"{where}: {entry!r:.80}; needed: [name, records, bytes, XXH3]")
    if "/" in entry[0] or entry[0] in ("", ".", ".."):
        raise DamagedError(f"{where}: {entry[0]!r:.80} is no file of the folder")
    if own["encoding"] not in shard_files.ENCODINGS:
        raise UserError(f"{where}: encoding {own['encoding']!r}; allowed: {', '.join(shard_files.ENCODINGS)}")
    name, records, size, digest = entry
    return Shard(os.fspath(epath.Path(folder) / name), records, size, digest, own["sample_rate"], own["encoding"])


def _check_rows(rows: pa.Table, shards: Sequence[Shard], *, where: str) -> None:
    """Refuses rows that lead nowhere, so that reading one later cannot fail for that."""
    record = np.asarray(rows.column("record").combine_chunks())
    shard = np.asarray(rows.column("shard").combine_chunks())[record >= 0]
    nulls = [name for name in ROWS.names if name != "why" and rows.column(name).null_count]
    records = np.asarray([one.records for one in shards], np.int64)
    if nulls or (shard.size and not 0 <= shard.min() <= shard.max() < len(shards)):
        raise DamagedError(f"{where}: is no index of its {len(shards)} shards")
    if not np.array_equal(np.bincount(shard, minlength=len(shards)), records):
        raise DamagedError(f"{where}: its rows are not the records of its shards")


def samples(utterance: Sharded) -> np.ndarray:
    """float32 `[S]` of an utterance, at the rate of its shard, full scale 1.

    Raises:
      AudioError: missing_file, undecodable_audio (the shard is damaged, or not the one that the index describes) or
        unreachable_audio.
    """
    shard = utterance.shard
    record = shard_files.read_record(shard, utterance.record)
    where = f"record {utterance.record} of the shard {shard.path}"
    try:
        sound, found = shard_files.sound_of(record)
        if found != utterance.sample_hash:
            raise AudioError("undecodable_audio", f"{where} is another utterance than its index says")
        if shard.encoding == "int16":
            return np.multiply(np.frombuffer(sound, "<i2"), np.float32(2**-15), dtype=np.float32)
        decoded: np.ndarray = soundfile.read(io.BytesIO(sound), dtype="float32")[0]
    except AudioError:
        raise
    except (ValueError, OSError, soundfile.SoundFileError) as error:
        raise AudioError("undecodable_audio", f"{where}: {one_line(error)}") from error
    return decoded


# --- Writing ----------------------------------------------------------------------------------------------------------


def record_of(row: Mapping[str, Any], sound: bytes, *, sample_rate: int) -> bytes:
    """The record of a row of `ROWS` with its `tags`, a JSON object as text, and its encoded sound."""
    fields = {name: row[name] for name in ("id", "text", "tags")} | {"sample_rate": sample_rate}
    return shard_files.make_record(sound, row["hash"], fields)


def index_bytes(
    rows: pa.Table, tags: Sequence[Mapping[str, Any]], shards: Sequence[Shard], *, made_from: Mapping[str, Any]
) -> bytes:
    """The content of `columns.parquet`.

    Args:
      rows: of `ROWS`.
      tags: of each row.
      shards: all of one rate and encoding, at least one.
      made_from: for whoever asks whether two folders hold the same.
    """
    names = sorted({name for row in tags for name in row})
    columns = [_tag_column(name, tags) for name in names]
    own = {
        "format": _FORMAT,
        "sample_rate": shards[0].sample_rate,
        "encoding": shards[0].encoding,
        "shards": [[os.path.basename(one.path), one.records, one.size, one.xxh3] for one in shards],
        "made_from": made_from,
    }
    schema = pa.schema([*ROWS, *(field for field, _ in columns)], metadata={_OWN: json_text(own)})
    table = pa.Table.from_arrays([*rows.cast(ROWS).columns, *(values for _, values in columns)], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _tag_column(name: str, tags: Sequence[Mapping[str, Any]]) -> tuple[pa.Field, pa.Array]:
    """The column of a tag: texts, whole numbers or truths as such where all values are, else JSON."""
    present = [name in row for row in tags]
    values = [row.get(name) for row in tags]
    kinds = {type(value) for value, there in zip(values, present, strict=True) if there}
    types = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
    if len(kinds) == 1 and kinds <= types.keys():
        try:
            array = pa.array(values, types[next(iter(kinds))])
            return pa.field(_TAG + name, array.type), array
        except (pa.ArrowException, OverflowError):
            pass  # a number of more than 64 bits
    texts = [
        json.dumps(value, ensure_ascii=False) if there else None for value, there in zip(values, present, strict=True)
    ]
    return pa.field(_TAG + name, pa.string(), metadata=JSON_FIELD), pa.array(texts, pa.string())


def features_text(*, sample_rate: int, encoding: str) -> str:
    """`features.json`: TFDS gives samples as int16, or FLAC files as they are."""
    sound: dict[str, Any] = {"sampleRate": str(sample_rate), "shape": {"dimensions": ["-1"]}}
    if encoding == "int16":
        sound |= {"dtype": "int16", "encoding": "BYTES"}
    else:
        sound |= {"dtype": "int32", "encoding": "NONE", "fileFormat": "flac", "lazyDecode": True}
    kinds = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{kinds}.text_feature.Text", "text": {}}
    number = {"dtype": "int64", "encoding": "none", "shape": {}}
    features = {
        "audio": {"pythonClassName": f"{kinds}.audio_feature.Audio", "audio": sound},
        **dict.fromkeys(("hash", "id", "text", "tags"), text),
        "sample_rate": {"pythonClassName": f"{kinds}.scalar.Scalar", "tensor": number},
    }
    return json_text({"pythonClassName": f"{kinds}.features_dict.FeaturesDict", "featuresDict": {"features": features}})


def info_text(shards: Sequence[Shard]) -> str:
    """`dataset_info.json`."""
    split = {
        "name": SPLIT,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        "numBytes": str(sum(one.size for one in shards)),
        "shardLengths": [str(one.records) for one in shards],
    }
    return json_text({"name": NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]})
