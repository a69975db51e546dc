"""Tensors of a folder, read by slices: one safetensors file, or an index and several.

    model.safetensors                   all tensors in one file, or
    model.safetensors.index.json        {"weight_map": {tensor: file}}, beside
    model-00001-of-0000N.safetensors    the files that it names

A safetensors file is 8 bytes with the length of its header, the header (JSON: dtype, shape and place of every tensor),
and the tensors in C order without a gap between them. Headers are read and checked when a folder is opened; of the
tensors only the bytes that a slice asks for are read, from local and remote (`gs://`) paths alike.
"""

import dataclasses
import itertools
import json
import math

import ml_dtypes
import numpy as np
from etils import epath

from hra_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What else a header may hold, and how many bytes one value takes; such tensors are checked but not read.
_OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2}
_OTHER_BYTES |= {"I32": 4, "U32": 4, "I64": 8, "U64": 8, "C64": 8}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_CHUNK = 16 << 20  # bytes read at a time
# A remote read costs a round trip: there it is cheaper to read on over a gap than to ask twice.
_REMOTE_GAP = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lies: the bytes [start, stop) of a file."""

    path: epath.Path
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFiles:
    """The floating-point tensors of a folder; tensors of other kinds (counters) are passed over.

    Attributes:
      folder: the folder.
      listing: the file that says which tensors there are: the one file, or the index.
      paths: the files that hold tensors, in the order of their names.
      ignored: {name: dtype} of the tensors that do not hold floating-point numbers.
      bytes_read: bytes of tensors read so far, headers not counted.
    """

    def __init__(self, folder, weights: str = WEIGHTS):
        """Opens a folder: reads and checks every header, and no tensor.

        Args:
          folder: a local or remote path.
          weights: name of the file; where it is absent, `<weights>.index.json` names the files.

        Raises:
          UserError: neither is there, a file is damaged or truncated, or the index contradicts the files; one line that
            names the file and the tensor.
        """
        self.folder, self.bytes_read = epath.Path(folder), 0
        single, index = self.folder / weights, self.folder / f"{weights}{INDEX_SUFFIX}"
        if not single.exists() and not index.exists():
            raise UserError(f"{self.folder}: holds neither {weights} nor {weights}{INDEX_SUFFIX}")
        self.listing = single if single.exists() else index
        places = read_header(single) if self.listing == single else _read_shards(self.folder, index)
        self.paths = sorted({place.path for place in places.values()})
        self._places = {name: place for name, place in sorted(places.items()) if place.dtype in DTYPES}
        self.ignored = {name: place.dtype for name, place in sorted(places.items()) if place.dtype not in DTYPES}

    def names(self) -> tuple[str, ...]:
        """The floating-point tensors, sorted."""
        return tuple(self._places)

    def path(self, name: str) -> epath.Path:
        """The file that holds a tensor; errors are those of `read`."""
        return self._place(name).path

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; errors are those of `read`."""
        return self._place(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor: float64, float32, float16 or `ml_dtypes.bfloat16`; errors are those of `read`."""
        return DTYPES[self._place(name).dtype]

    def read(self, name: str) -> np.ndarray:
        """A whole tensor, in its dtype.

        Raises:
          UserError: no floating-point tensor of this name, or a file that has changed or cannot be read.
        """
        return self.read_slice(name, ())

    def read_slice(self, name: str, index) -> np.ndarray:
        """A part of a tensor, in its dtype. Nothing else of it is held, and on local paths nothing else is read.

        Args:
          name: the tensor.
          index: an int, a slice without a step, or a tuple of them with one for each of the first dimensions, with the
            meaning that they have for numpy; () is all of it.

        Raises:
          UserError: as `read`.
          IndexError, ValueError: an index that does not fit the shape; a slice with a step.
        """
        place = self._place(name)
        bounds, shape = _bounds(place.shape, index if isinstance(index, tuple) else (index,))
        dtype = DTYPES[place.dtype]
        found = np.empty([stop - start for start, stop in bounds], dtype)
        if found.size:
            offsets, length = _runs(place.shape, bounds, dtype.itemsize)
            # A view of the bytes: memoryview does not know bfloat16.
            self._read_runs(place, offsets + place.start, length, memoryview(found.reshape(-1).view(np.uint8)))
        return found.reshape(shape)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            kind = f"; it has one of dtype {self.ignored[name]}" if name in self.ignored else ""
            raise UserError(f"{self.listing}: lacks a floating-point tensor {name!r}{kind}")
        return self._places[name]

    def _read_runs(self, place: _Place, offsets: np.ndarray, length: int, into: memoryview) -> None:
        """Reads runs of `length` bytes at ascending `offsets` of a file, one behind the other into `into`."""
        gap = _REMOTE_GAP if "://" in str(place.path) else 0
        done = 0
        try:
            with place.path.open("rb") as file:
                for first, count in _groups(offsets, length, gap):
                    span = int(offsets[first + count - 1]) + length - int(offsets[first])
                    file.seek(int(offsets[first]))
                    if span == count * length:
                        for start in range(0, span, _CHUNK):
                            part = self._take(place.path, file, min(_CHUNK, span - start))
                            into[done : done + len(part)] = part
                            done += len(part)
                        continue
                    part = memoryview(self._take(place.path, file, span))
                    for offset in (offsets[first : first + count] - offsets[first]).tolist():
                        into[done : done + length] = part[offset : offset + length]
                        done += length
        except OSError as error:
            raise UserError(f"{place.path}: cannot be read ({error.strerror or error})") from error

    def _take(self, path, file, count: int) -> bytes:
        part = file.read(count)
        if len(part) != count:
            raise UserError(f"{path}: ends within a tensor; it has changed since it was opened")
        self.bytes_read += count
        return part


def read_header(path: epath.Path) -> dict[str, _Place]:
    """Where the tensors of a safetensors file lie.

    Raises:
      UserError: not a safetensors file, or one whose header does not fit its length: truncated, overlapping tensors.
    """
    try:
        size = path.stat().length
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise UserError(f"{path}: a Git LFS pointer, not the file that it stands for")
            if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise UserError(f"{path}: not a whole safetensors file: a header of {length} bytes in a file of {size}")
            content = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    header = _json(path, content)
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    places = {name: _place_of(path, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            what = "overlaps the tensor before it" if place.start < end else "lies behind a gap"
            raise UserError(f"{path}: {name!r} {what}: it starts at byte {place.start}, which must be {end}")
        if place.stop > size:
            raise UserError(f"{path}: truncated: {name!r} ends at byte {place.stop}, the file has {size}")
        end = place.stop
    if end != size:
        raise UserError(f"{path}: {size - end} bytes lie behind the last tensor")
    return places


def _json(path, content: bytes):
    """JSON without repeated keys."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    try:
        return json.loads(content.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON where JSON must be ({error})") from error


def _place_of(path, name: str, entry, data: int) -> _Place:
    """An entry of a header, checked; `data` is the byte at which the tensors start."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise UserError(f"{path}: the header's entry of {name!r} needs a dtype, a shape and data_offsets [start, stop]")
    if not isinstance(dtype, str) or dtype not in DTYPES | _OTHER_BYTES:
        raise UserError(f"{path}: {name!r} has the unknown dtype {dtype!r}")
    width = DTYPES[dtype].itemsize if dtype in DTYPES else _OTHER_BYTES[dtype]
    if offsets[1] - offsets[0] != math.prod(shape) * width:
        found = offsets[1] - offsets[0]
        raise UserError(f"{path}: {name!r} of shape {tuple(shape)} and dtype {dtype} cannot take {found} bytes")
    return _Place(path, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _counts(values) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _read_shards(folder: epath.Path, index: epath.Path) -> dict[str, _Place]:
    """The tensors of the files that an index names; what is in the files and what the index says must be the same."""
    try:
        content = _json(index, index.read_bytes())
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror or error})") from error
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise UserError(f"{index}: must be a JSON object with an object 'weight_map' of file names")
    places = {}
    for file in sorted(set(named.values())):
        if file in ("", ".", "..") or set(file) & set("/\\:"):
            raise UserError(f"{index}: names the file {file!r}; allowed: names of files in the same folder")
        if not (folder / file).exists():
            raise UserError(f"{index}: names the file {file!r}, which is not there")
        for name, place in read_header(folder / file).items():
            if named.get(name) != file:
                told = f"says that {name!r} is in {named[name]!r}" if name in named else f"does not name {name!r}"
                raise UserError(f"{index}: {told}, which {file!r} holds")
            places[name] = place
    for name, file in named.items():
        if name not in places:
            raise UserError(f"{index}: says that {name!r} is in {file!r}, which does not hold it")
    return places


def _bounds(shape: tuple[int, ...], index: tuple) -> tuple[list[tuple[int, int]], list[int]]:
    """[start, stop) of every dimension, and the shape that remains: an int takes its dimension away."""
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} indices for the shape {shape}")
    bounds, remaining = [], []
    for size, entry in itertools.zip_longest(shape, index, fillvalue=slice(None)):
        if isinstance(entry, slice):
            start, stop, step = entry.indices(size)
            if step != 1:
                raise ValueError(f"a slice with the step {step}; allowed is 1")
            bounds.append((start, max(start, stop)))
            remaining.append(max(stop - start, 0))
        else:
            number = range(size)[entry]
            bounds.append((number, number + 1))
    return bounds, remaining


def _runs(shape: tuple[int, ...], bounds: list[tuple[int, int]], itemsize: int) -> tuple[np.ndarray, int]:
    """A part of a C-order array as runs of equally many bytes: their ascending offsets, and the bytes of each."""
    # From the last dimension that is not whole on, everything lies in one piece.
    last = max((i for i, (start, stop) in enumerate(bounds) if stop - start != shape[i]), default=0)
    strides = [math.prod(shape[i + 1 :]) * itemsize for i in range(len(shape))]
    offsets = np.zeros(1, np.int64)
    for (start, stop), stride in zip(bounds[:last], strides[:last], strict=True):
        offsets = (offsets[:, None] + np.arange(start, stop, dtype=np.int64) * stride).reshape(-1)
    if not bounds:
        return offsets, itemsize
    start, stop = bounds[last]
    return offsets + start * strides[last], (stop - start) * strides[last]


def _groups(offsets: np.ndarray, length: int, gap: int):
    """Runs that are read together, as (first, count): those no more than `gap` apart, up to `_CHUNK` bytes."""
    first = 0
    for i in range(1, len(offsets) + 1):
        ended = i == len(offsets) or offsets[i] - offsets[i - 1] - length > gap
        if ended or offsets[i] + length - offsets[first] > _CHUNK:
            yield first, i - first
            first = i
