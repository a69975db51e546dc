"""A log of changed rows: what a checkpoint stores of a tree that has far more rows than a run touches.

    DIRECTORY/<segment>.safetensors   one segment: 'ids' (int64 [n], ascending) and, for each leaf by its path 'a/b/c',
                                      the rows [n, ...]

The log only ever adds segments. A checkpoint holds a list of segment names, oldest first; of the rows of one id in that
list the newest is live, and the ids in no segment are rows that nobody touched. A segment appears under its name only
when it is whole, and is never changed afterwards, so every list keeps its meaning until `RowLog.collect` is told that
no checkpoint holds it any more.

A list stays short and mostly live because `RowLog.append` writes, beside the new rows, the live rows of some old
segments, which the new list then leaves out: see `_to_merge`.

The header of a segment has a CRC-32 of each tensor. Ids are read alone, by range, without the rows; a second file or a
list of ids in the checkpoint would be one more thing that has to agree, and would grow with the untouched rows.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage.files import check_regular, replaced_name, write_file
from hra_jax.storage.json_files import parse_json
from hra_jax.storage.safetensors import DTYPES, TensorEntry, dtype_name, read_header, to_bytes
from hra_jax.storage.trees import flatten, unflatten

_IDS = "ids"
_CHECKSUMS = "crc32"
_RESERVED = (_IDS, "__metadata__")  # the second one by the safetensors format
_SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SEGMENT = re.compile(rf"{_NAME.pattern}(\.[0-9]+)?")  # the first segment of an append, and the further ones
_FILE = re.compile(rf"({_SEGMENT.pattern}){re.escape(_SUFFIX)}")
_MOST_STORED = 2  # rows stored for each live one, at most
_CROWD = 8  # segments of similar size that are merged into one; a power of two, see _size_class

_Block = tuple[np.ndarray, dict[str, np.ndarray]]  # ids [n], {path: rows [n, ...]}


@dataclasses.dataclass(frozen=True)
class _Index:
    """What is kept in memory of a segment: its ids, int64 [n], and {'a/b': 'float32[4, 3]'} of one row."""

    ids: np.ndarray
    leaves: dict[str, str]


class _Tensor(NamedTuple):
    """Where in a file a tensor lies, and the checksum of what was written."""

    entry: TensorEntry
    crc: int

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = DTYPES[self.entry.dtype]
        return dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape


class RowLog:
    """The segments of changed rows in one directory. One object appends; any number may read.

    It keeps no rows in memory, only the ids of the segments that it has seen: 8 bytes per stored row.
    """

    def __init__(self, directory: epath.PathLike, *, read_only: bool = False, segment_bytes: int = 2**27):
        """Opens a log; nothing is made or read yet, for a log without rows has no directory.

        Args:
          directory: any path that epath takes, `gs://` included; nothing but the log lies in it.
          read_only: for a process that reads while a run may be writing: `append` and `collect` are errors.
          segment_bytes: size of a full segment. Beside the rows given, `append` and `read` take a few times this in
            memory; one `append` moves at most about five times this and as many rows as it is given.

        Raises:
          UserError: the directory is a file.
          ValueError: segment_bytes is not positive.
        """
        if segment_bytes < 1:
            raise ValueError(f"segment_bytes = {segment_bytes}: must be at least 1")
        self.directory = epath.Path(directory)
        self._read_only = read_only
        self._segment_bytes = segment_bytes
        self._known: dict[str, _Index] = {}
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: rows cannot be kept here, it is a file")

    def append(self, name: str, ids: np.ndarray, rows: Mapping[str, Any], *, after: Sequence[str]) -> list[str]:
        """Writes changed rows.

        Bytes and seconds go with the rows given, not with those that the log holds: over a run, a row is moved about
        once for being among superseded ones and log8(rows of a full segment / rows of an append) times for being in a
        small segment.

        Args:
          name: new for each checkpoint, of A-Z, a-z, 0-9, `_` and `-`. Segments of this name that a killed process left
            are overwritten, so no checkpoint that is to be kept may hold them.
          ids: [n], integers of at least 0, no two alike, in any order.
          rows: tree of dicts with at least one leaf; leaves [n, ...], `rows[...][i]` being of `ids[i]`.
          after: the list that the new rows come on top of, [] at first.

        Returns:
          The list of segments that hold the state of `after` with the new rows. It has no superseded segment, at most
          two stored rows for each live one, and 7 segments for each power of 8 up to half a full segment, beside those
          that are at least half full. With n = 0 nothing is written or read and it is `after`.

        Raises:
          UserError: a segment of `after` is missing or damaged; leaves of other names, shapes or dtypes than those of
            `after`; the rows cannot be written.
          ValueError: the log is read-only, or an argument is not as above.
        """
        self._check_writable()
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of a segment is of letters, digits, '_' and '-'; got {name!r}")
        if any(segment.partition(".")[0] == name for segment in after):
            raise ValueError(f"{name!r} is among the segments that it comes after; a name is used once")
        new, flat = _checked(ids, rows)
        if not len(new.ids):
            return list(after)
        found = self._live(after, new=new)
        counts = [int(live.sum()) for _, _, live in found]
        row_bytes = (new.ids.nbytes + sum(leaf.nbytes for leaf in flat.values())) // len(new.ids)
        full = max(1, self._segment_bytes // row_bytes)
        merged = _to_merge([len(index.ids) for _, index, _ in found], counts, new=len(new.ids), full=full)
        total = len(new.ids) + sum(counts[i] for i in merged)
        old = (self._load(*found[i]) for i in sorted(merged))
        # Parts of equal size: a small rest would have to be merged again.
        parts = _regroup(itertools.chain([(new.ids, flat)], old), math.ceil(total / math.ceil(total / full)))
        written = []
        for number, part in enumerate(parts):
            written.append(name if number == 0 else f"{name}.{number}")
            self._write(written[-1], *part)
        # Moved rows are live, so nothing in the list is newer than they are: they may go to its end.
        return [segment for i, (segment, _, _) in enumerate(found) if i not in merged] + written

    def read(self, segments: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """The live rows of a list of segments, each once, one segment at a time.

        The ids of all segments are read and checked at once; the rows as the iterator is advanced.

        Args:
          segments: what `append` returned.

        Returns:
          Iterator of (ids, rows): ids int64 [n], ascending, at least one; rows a tree with leaves [n, ...]. The arrays
          may be read-only.

        Raises:
          UserError: a segment is missing or damaged, or its leaves have other names, shapes or dtypes than those of the
            first one; the message names the file.
        """
        return (_with_tree(*self._load(*found)) for found in self._live(segments))

    def collect(self, kept: Iterable[Sequence[str]]) -> None:
        """Deletes all segments that no list names, and the temporary files of killed processes.

        Args:
          kept: the lists of all checkpoints that there are, one being written included.

        Raises:
          UserError: a file cannot be deleted, or a list holds what is no name of a segment.
          ValueError: the log is read-only.
        """
        self._check_writable()
        names = {self._file(segment).name for segments in kept for segment in segments}
        if not self.directory.exists():
            return
        for file in self.directory.iterdir():
            if _FILE.fullmatch(replaced_name(file.name) or file.name) and file.name not in names:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise UserError(f"{file}: cannot be deleted: {_reason(error)}") from error
                self._known.pop(file.name.removesuffix(_SUFFIX), None)

    def size(self, segments: Sequence[str]) -> int:
        """Bytes on storage of a list of segments. Raises UserError when one is missing."""
        return sum(_length(self._file(segment)) for segment in segments)

    def _check_writable(self) -> None:
        if self._read_only:
            raise ValueError(f"{self.directory}: this log of rows was opened to be read only")

    def _file(self, segment: str) -> epath.Path:
        # The lists come from files: no name may lead out of the directory.
        if not isinstance(segment, str) or not _SEGMENT.fullmatch(segment):
            raise DamagedError(f"{self.directory}: {segment!r:.80} is not the name of a segment")
        return self.directory / f"{segment}{_SUFFIX}"

    def _index(self, segment: str) -> _Index:
        if segment in self._known:
            return self._known[segment]
        file = self._file(segment)
        with _opened(file) as (stream, tensors):
            index = _read_index(stream, tensors, file)
        # A process that only reads cannot know when a run that went back to an older checkpoint uses a name again.
        if not self._read_only:
            self._known[segment] = index
        return index

    def _live(self, segments: Sequence[str], *, new: _Index | None = None) -> list[tuple[str, _Index, np.ndarray]]:
        """Which rows are live, of each segment that has any: [(segment, index, bool [n])] in the order of the list.

        `new` holds rows that come after all segments.
        """
        found = [(segment, self._index(segment)) for segment in segments]
        for segment, index in found:
            first = found[0][1] if new is None else new
            where = f"{self._file(segment)}: this segment is of another tree:"
            for path in sorted(index.leaves.keys() | first.leaves.keys()):
                there, here = (side.leaves.get(path, "absent") for side in (index, first))
                if there != here:
                    other = "the new rows" if new is not None else f"{segments[0]}{_SUFFIX}"
                    raise UserError(f"{where} {path} is {there} there, but {here} in {other}")
        masks = _newest([index.ids for _, index in found] + ([new.ids] if new is not None else []))
        with_masks = [(*pair, mask) for pair, mask in zip(found, masks, strict=False)]
        return [entry for entry in with_masks if entry[2].any()]

    def _load(self, segment: str, index: _Index, live: np.ndarray) -> _Block:
        """The live rows of a segment."""
        file = self._file(segment)
        with _opened(file) as (stream, tensors):
            now = _read_index(stream, tensors, file)
            if now.leaves != index.leaves or not np.array_equal(now.ids, index.ids):
                raise UserError(f"{file}: the segment was replaced by another one while it was read")
            rows = {}
            for path in index.leaves:
                rows[path] = _read_tensor(stream, path, tensors[path], file)
                if not live.all():
                    rows[path] = rows[path][live]
        return index.ids[live], rows

    def _write(self, segment: str, ids: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        order = np.argsort(ids)
        arrays = {path: np.ascontiguousarray(array[order]) for path, array in ({_IDS: ids} | rows).items()}
        checksums = {path: _crc(path, array, array.reshape(-1).view(np.uint8).data) for path, array in arrays.items()}
        content = to_bytes(arrays, {_CHECKSUMS: json.dumps(checksums, sort_keys=True)})
        file = self._file(segment)
        # Not known until it is written: a leftover of this name may be known with other ids.
        self._known.pop(segment, None)
        try:
            write_file(file, content)
        except OSError as error:
            raise UserError(f"{file}: changed rows cannot be written: {_reason(error)}") from error
        self._known[segment] = _Index(arrays.pop(_IDS), {path: _row_text(leaf) for path, leaf in arrays.items()})


def _checked(ids: np.ndarray, rows: Mapping[str, Any]) -> tuple[_Index, dict[str, np.ndarray]]:
    """The rows as contiguous arrays by path, with their index. Raises ValueError for what cannot be stored."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise ValueError(f"ids must be integers [n]; got {ids.dtype.name}{list(ids.shape)}")
    ids = np.ascontiguousarray(ids, np.int64)
    if (ids < 0).any() or len(np.unique(ids)) < len(ids):
        raise ValueError("ids must be at least 0, no two alike")
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(rows).items()}
    if not leaves or not leaves.keys().isdisjoint(_RESERVED):
        raise ValueError(f"rows must have at least one leaf, and none named {' or '.join(_RESERVED)}: {list(leaves)}")
    for path, leaf in leaves.items():
        if leaf.shape[:1] != ids.shape:
            raise ValueError(f"{path} must have {len(ids)} rows, one for each id; got shape {list(leaf.shape)}")
        try:
            dtype_name(leaf.dtype)
        except ValueError as error:
            raise ValueError(f"{path} is {error}") from error
    leaves = {path: np.ascontiguousarray(leaf) for path, leaf in leaves.items()}
    return _Index(ids, {path: _row_text(leaf) for path, leaf in leaves.items()}), leaves


def _row_text(leaf: np.ndarray | _Tensor) -> str:
    return f"{leaf.dtype.name}{list(leaf.shape[1:])}"


def _crc(path: str, tensor: np.ndarray | _Tensor, content: bytes | memoryview) -> int:
    """The checksum of a tensor: of its name, dtype and shape, which only the header has, and its bytes."""
    return zlib.crc32(content, zlib.crc32(f"{path} {tensor.dtype.name}{list(tensor.shape)}".encode()))


def _with_tree(ids: np.ndarray, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    return ids, unflatten(rows)


def _newest(ids: list[np.ndarray]) -> list[np.ndarray]:
    """Marks, for each of several lists of ids [n], oldest first, those that are in no later list: bool [n]."""
    if not ids:
        return []
    backwards = np.concatenate(ids[::-1])
    newest = np.zeros(len(backwards), bool)
    newest[np.unique(backwards, return_index=True)[1]] = True  # the first occurrence of each
    return np.split(newest, np.cumsum([len(part) for part in ids[:0:-1]]))[::-1]


def _to_merge(stored: Sequence[int], live: Sequence[int], *, new: int, full: int) -> set[int]:
    """The indices of the old segments to rewrite together with the new rows.

    Two rules. (1) While more than two rows are stored for each live one, the segment with the smallest live fraction
    goes: at most half of it is live, so fewer rows are moved than were superseded before, each of which was an appended
    row once. (2) Where eight segments, none of them as much as half full, have live rows of one size class (1 to 7, 8
    to 63, ...), they become one: the segment of each moved row grows to nearly twice its size or more, so a row moves a
    logarithmic number of times. Neither moves much at once: (1) the number of new rows and a segment, as there was a
    balance before; (2) what such small segments hold, four full ones.

    Args:
      stored: rows of each segment.
      live: those that no later segment and no new row supersedes; at least 1.
      new: number of new rows.
      full: rows of a full segment.
    """
    merged: set[int] = set()
    held, wanted = sum(stored) + new, sum(live) + new
    for i in sorted(range(len(live)), key=lambda i: live[i] / stored[i]):
        if held <= _MOST_STORED * wanted:
            break
        merged.add(i)
        held -= stored[i] - live[i]
    while True:
        classes: dict[int, set[int | None]] = {}
        written = new + sum(live[i] for i in merged)
        if 2 * written < full:
            classes[_size_class(written)] = {None}
        for i, rows in enumerate(live):
            if 2 * stored[i] < full and i not in merged:
                classes.setdefault(_size_class(rows), set()).add(i)
        crowded = [key for key, members in classes.items() if len(members) >= _CROWD]
        if not crowded:
            return merged
        merged |= {i for i in classes[min(crowded)] if i is not None}


def _size_class(rows: int) -> int:
    """0 for 1 to 7 rows, 1 for 8 to 63, ..."""
    return (rows.bit_length() - 1) // (_CROWD.bit_length() - 1)


def _regroup(blocks: Iterable[_Block], size: int) -> Iterator[_Block]:
    """The same rows in blocks of `size` rows; the last one may have fewer."""
    waiting: list[_Block] = []
    room = size
    for ids, rows in blocks:
        start = 0
        while start < len(ids):
            part = slice(start, min(start + room, len(ids)))
            waiting.append((ids[part], {path: leaf[part] for path, leaf in rows.items()}))
            room -= part.stop - part.start
            start = part.stop
            if room == 0:
                yield _joined(waiting)
                waiting, room = [], size
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[_Block]) -> _Block:
    if len(blocks) == 1:
        return blocks[0]
    ids = np.concatenate([ids for ids, _ in blocks])
    return ids, {path: np.concatenate([rows[path] for _, rows in blocks]) for path in blocks[0][1]}


@contextlib.contextmanager
def _opened(file: epath.Path) -> Iterator[tuple[IO[bytes], dict[str, _Tensor]]]:
    """Opens a segment and reads its header. Raises UserError for a file that is missing, damaged or not readable."""
    try:
        length = _length(file)
        check_regular(file)
        with file.open("rb") as stream:
            yield stream, _read_header(stream, length, file)
    except OSError as error:
        raise UserError(f"{file}: the segment cannot be read: {_reason(error)}") from error


def _length(file: epath.Path) -> int:
    """Bytes of a file."""
    try:
        return int(file.stat().length)
    except FileNotFoundError as error:
        raise DamagedError(f"{file}: the segment is missing: {_reason(error)}") from error
    except OSError as error:
        raise UserError(f"{file}: the segment is missing: {_reason(error)}") from error


def _read_header(stream: IO[bytes], length: int, file: epath.Path) -> dict[str, _Tensor]:
    """Where the tensors lie in a file of `length` bytes; checks that they are the whole file, and rows."""
    try:
        header = read_header(stream, length)
        checksums = parse_json(header.metadata[_CHECKSUMS], where="the checksums in the header")
        tensors = {path: _Tensor(entry, checksums[path]) for path, entry in sorted(header.tensors.items())}
        rows = tensors[_IDS].shape
        if len(rows) != 1:
            raise ValueError(f"its ids have the shape {list(rows)}")
        unflatten(dict.fromkeys(tensors))
        if tensors[_IDS].dtype != np.int64 or any(tensor.shape[:1] != rows for tensor in tensors.values()):
            raise ValueError(f"not all tensors have {list(rows)} rows")
    except KeyError as error:
        raise DamagedError(f"{file}: the segment is damaged: its header lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{file}: the segment is damaged: {' '.join(str(error).split())}") from error
    return tensors


def _read_tensor(stream: IO[bytes], path: str, tensor: _Tensor, file: epath.Path) -> np.ndarray:
    size = tensor.entry.stop - tensor.entry.start
    stream.seek(tensor.entry.start, os.SEEK_SET)
    content = stream.read(size)
    if len(content) != size or _crc(path, tensor, content) != tensor.crc:
        raise DamagedError(f"{file}: the segment is damaged: {path} is not what was written")
    return np.frombuffer(content, tensor.dtype).reshape(tensor.shape)


def _read_index(stream: IO[bytes], tensors: dict[str, _Tensor], file: epath.Path) -> _Index:
    ids = _read_tensor(stream, _IDS, tensors[_IDS], file)
    if (ids[:1] < 0).any() or (ids[1:] <= ids[:-1]).any():
        raise DamagedError(f"{file}: the segment is damaged: its ids are not ascending from 0 or more")
    return _Index(ids, {path: _row_text(tensor) for path, tensor in tensors.items() if path != _IDS})


def _reason(error: OSError) -> str:
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
