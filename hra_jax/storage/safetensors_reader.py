"""Tensors of a folder, read by slices: one safetensors file, or an index and several.

    model.safetensors                   all tensors in one file, or
    model.safetensors.index.json        {"weight_map": {tensor: file}}, beside
    model-00001-of-0000N.safetensors    the files that it names

The format of the files is that of `storage.safetensors`. Headers are read and checked when a folder is opened; of the
tensors only the bytes that a slice asks for are read, from local and remote (`gs://`) paths alike.
"""

import math
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, SupportsIndex

import numpy as np
from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage.files import check_regular, is_remote
from hra_jax.storage.json_files import read_object
from hra_jax.storage.safetensors import DTYPES, FLOATS, TensorEntry, read_header

WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".index.json"
_CHUNK = 16 << 20  # bytes read at a time
# A remote read costs a round trip: there it is cheaper to read on over a gap than to ask twice.
_REMOTE_GAP = 1 << 20  # bytes

Index = SupportsIndex | slice
Told = Callable[[memoryview], object]


class _Location(NamedTuple):
    """Where a tensor lies: the file, and the bytes in it."""

    path: epath.Path
    entry: TensorEntry


class TensorFiles:
    """The floating-point tensors of a folder; tensors of other kinds (counters) are passed over.

    Attributes:
      folder: the folder.
      listing: the file that says which tensors there are: the one file, or the index.
      paths: the files that hold tensors, in the order of their names.
      ignored: {name: dtype} of the tensors that do not hold floating-point numbers.
      bytes_read: bytes of tensors read so far, headers not counted.
    """

    def __init__(self, folder: epath.PathLike, weights: str = WEIGHTS):
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
        locations = _read_locations(single) if self.listing == single else _read_shards(self.folder, index)
        self.paths = sorted({location.path for location in locations.values()})
        dtypes = {name: location.entry.dtype for name, location in sorted(locations.items())}
        self._locations = {name: locations[name] for name, dtype in dtypes.items() if dtype in FLOATS}
        self.ignored = {name: dtype for name, dtype in dtypes.items() if dtype not in FLOATS}

    def names(self) -> tuple[str, ...]:
        """The floating-point tensors, sorted."""
        return tuple(self._locations)

    def path(self, name: str) -> epath.Path:
        """The file that holds a tensor; errors are those of `read`."""
        return self._location(name).path

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; errors are those of `read`."""
        return self._location(name).entry.shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor: float64, float32, float16 or `ml_dtypes.bfloat16`; errors are those of `read`."""
        dtype: np.dtype = DTYPES[self._location(name).entry.dtype]
        return dtype

    def read(self, name: str) -> np.ndarray:
        """A whole tensor, in its dtype.

        Raises:
          UserError: no floating-point tensor of this name, or a file that has changed or cannot be read.
        """
        return self.read_slice(name, ())

    def read_slice(self, name: str, index: Index | tuple[Index, ...], *, told: Told = lambda piece: None) -> np.ndarray:
        """A part of a tensor, in its dtype. Nothing else of it is held, and on local paths nothing else is read.

        Args:
          name: the tensor.
          index: an int, a slice without a step, or a tuple of them with one for each of the first dimensions, with the
            meaning that they have for numpy; () is all of it.
          told: called with the bytes of each piece, in order, as soon as they are in the array that is returned.

        Raises:
          UserError: as `read`.
          IndexError, ValueError: an index that does not fit the shape; a slice with a step.
        """
        location = self._location(name)
        bounds, shape = _bounds(location.entry.shape, index if isinstance(index, tuple) else (index,))
        dtype = DTYPES[location.entry.dtype]
        found = np.empty([stop - start for start, stop in bounds], dtype)
        if found.size:
            offsets, length = _runs(location.entry.shape, bounds, dtype.itemsize)
            # A view of the bytes: a memoryview does not know bfloat16.
            into = found.reshape(-1).view(np.uint8).data
            for start, stop in self._read_runs(location, offsets + location.entry.start, length, into):
                told(into[start:stop])
        return found.reshape(shape)

    def _location(self, name: str) -> _Location:
        if name not in self._locations:
            kind = f"; it has one of dtype {self.ignored[name]}" if name in self.ignored else ""
            raise UserError(f"{self.listing}: lacks a floating-point tensor {name!r}{kind}")
        return self._locations[name]

    def _read_runs(
        self, location: _Location, offsets: np.ndarray, length: int, into: memoryview
    ) -> Iterator[tuple[int, int]]:
        """Reads runs of `length` bytes at ascending `offsets` of a file; yields where in `into` each piece lies."""
        gap = _REMOTE_GAP if is_remote(location.path) else 0
        done = 0
        try:
            with location.path.open("rb") as file:
                for first, count in _groups(offsets, length, gap):
                    span = int(offsets[first + count - 1]) + length - int(offsets[first])
                    file.seek(int(offsets[first]))
                    if span == count * length:
                        for start in range(0, span, _CHUNK):
                            part = self._take(location.path, file, min(_CHUNK, span - start))
                            into[done : done + len(part)] = part
                            yield done, done + len(part)
                            done += len(part)
                        continue
                    with_gaps, begun = memoryview(self._take(location.path, file, span)), done
                    for offset in (offsets[first : first + count] - offsets[first]).tolist():
                        into[done : done + length] = with_gaps[offset : offset + length]
                        done += length
                    yield begun, done
        except OSError as error:
            raise UserError(f"{location.path}: cannot be read ({error.strerror or error})") from error

    def _take(self, path: epath.Path, file: IO[bytes], count: int) -> bytes:
        part = file.read(count)
        if len(part) != count:
            raise UserError(f"{path}: ends within a tensor; it has changed since it was opened")
        self.bytes_read += count
        return part


def _read_locations(path: epath.Path) -> dict[str, _Location]:
    """Where the tensors of a file lie. Raises UserError where it cannot be read or is damaged."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            header = read_header(file, path.stat().length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return {name: _Location(path, entry) for name, entry in header.tensors.items()}


def _read_shards(folder: epath.Path, index: epath.Path) -> dict[str, _Location]:
    """The tensors of the files that an index names; what is in the files and what the index says must be the same."""
    named = read_object(index, {"weight_map": dict})["weight_map"]
    for name, file in named.items():
        if not isinstance(file, str):
            raise UserError(f"{index}: names {file!r:.80} for {name!r}; needed is an object 'weight_map' of file names")
    locations: dict[str, _Location] = {}
    for file in sorted(set(named.values())):
        if file in ("", ".", "..") or set(file) & set("/\\:"):
            raise UserError(f"{index}: names the file {file!r}; allowed: names of files in the same folder")
        if not (folder / file).exists():
            raise UserError(f"{index}: names the file {file!r}, which is not there")
        for name, location in _read_locations(folder / file).items():
            if named.get(name) != file:
                told = f"says that {name!r} is in {named[name]!r}" if name in named else f"does not name {name!r}"
                raise UserError(f"{index}: {told}, which {file!r} holds")
            locations[name] = location
    for name, file in named.items():
        if name not in locations:
            raise UserError(f"{index}: says that {name!r} is in {file!r}, which does not hold it")
    return locations


def _bounds(shape: tuple[int, ...], index: tuple[Index, ...]) -> tuple[list[tuple[int, int]], list[int]]:
    """[start, stop) of every dimension, and the shape that remains: an int takes its dimension away."""
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} indices for the shape {shape}")
    bounds, remaining = [], []
    for size, entry in zip(shape, [*index, *[slice(None)] * (len(shape) - len(index))], strict=True):
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


def _groups(offsets: np.ndarray, length: int, gap: int) -> Iterator[tuple[int, int]]:
    """Runs that are read together, as (first, count): those no more than `gap` apart, up to `_CHUNK` bytes."""
    first = 0
    for i in range(1, len(offsets) + 1):
        ended = i == len(offsets) or offsets[i] - offsets[i - 1] - length > gap
        if ended or offsets[i] + length - offsets[first] > _CHUNK:
            yield first, i - first
            first = i
