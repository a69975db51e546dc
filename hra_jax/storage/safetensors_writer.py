"""Writes the tensors of a folder one after the other, so that no more than a piece of one is in memory.

The files are those that `tensor_files` reads: one, or where that would be too large several beside an index. They are
written under other names and take their own when all are complete.
"""

import json
import math
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from hra_jax.storage.files import json_text, write_file
from hra_jax.storage.safetensors_reader import DTYPES, INDEX_SUFFIX, WEIGHTS

SHARD_BYTES = 2_000_000_000  # of tensors in one file
_CHUNK = 16 << 20  # bytes written at a time
_METADATA = {"format": "hra_jax"}
_STEM, _EXTENSION = WEIGHTS.split(".", 1)
_OURS = re.compile(rf"\.?{_STEM}(-\d{{5,}}-of-\d{{5,}})?\.{_EXTENSION}({re.escape(INDEX_SUFFIX)})?(\.tmp)?")


class TensorWriter:
    """Writes tensors whose shapes are known before their values.

    To be used in a `with` block; where it is left before `finish`, the folder is as it was.

    Attributes:
      names: the tensors, in the order in which they must be written.
    """

    def __init__(self, folder, shapes: Mapping[str, tuple[int, ...]], dtype, *, max_bytes: int = SHARD_BYTES):
        """Lays out the files.

        Args:
          folder: a local or remote path; it is created.
          shapes: of all tensors.
          dtype: of all tensors, one of `tensor_files.DTYPES`.
          max_bytes: of the tensors in one file. A larger tensor has a file of its own.
        """
        self._folder, self._dtype = epath.Path(folder), np.dtype(dtype)
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self.names = tuple(self._shapes)
        shards = _shards({name: self._bytes(name) for name in self.names}, max_bytes)
        self._files = dict(zip(_file_names(len(shards)), shards, strict=True))
        self._open, self._pending, self._missing = None, None, 0
        self._steps = self._walk()

    def __enter__(self) -> "TensorWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._advance()
        return self

    def __exit__(self, *exception) -> None:
        self._steps.close()
        for file in self._files:
            self._temporary(file).unlink(missing_ok=True)

    def append(self, name: str, piece: np.ndarray) -> None:
        """Writes the next values of a tensor, in C order.

        Args:
          name: the tensor. All values of the one before it in `names` must have been written.
          piece: any number of values of the dtype of the files.

        Raises:
          ValueError: another tensor is due, another dtype, or more values than are left of this tensor.
        """
        if piece.dtype != self._dtype:
            raise ValueError(f"{name!r}: values of dtype {piece.dtype} for files of {self._dtype}")
        if not piece.size:
            return
        if name != self._pending or piece.nbytes > self._missing:
            raise ValueError(f"{piece.nbytes} bytes of {name!r}: {self._missing} bytes of {self._pending!r} are due")
        values = memoryview(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
        for start in range(0, len(values), _CHUNK):
            self._open.write(bytes(values[start : start + _CHUNK]))  # remote files take nothing but bytes
        self._missing -= len(values)
        if not self._missing:
            self._advance()

    def finish(self) -> None:
        """Puts the files in place of those that are there, and removes what is left of those.

        Raises:
          ValueError: not all values have been written.
        """
        if self._pending is not None:
            raise ValueError(f"{self._missing} bytes of {self._pending!r} have not been written")
        for file in self._files:
            self._temporary(file).replace(self._folder / file)
        placed, kept = {name: file for file, names in self._files.items() for name in names}, set(self._files)
        if kept != {WEIGHTS}:
            index = {"metadata": {"total_size": sum(map(self._bytes, self.names))}, "weight_map": placed}
            write_file(self._folder / f"{WEIGHTS}{INDEX_SUFFIX}", json_text(index))
            kept.add(f"{WEIGHTS}{INDEX_SUFFIX}")
        for path in list(self._folder.iterdir()):
            if _OURS.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def _bytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._dtype.itemsize

    def _temporary(self, file: str) -> epath.Path:
        return self._folder / f".{file}.tmp"

    def _walk(self):
        """Opens file after file, and yields the tensors that have values; closing it closes the file."""
        for file, names in self._files.items():
            with self._temporary(file).open("wb") as self._open:
                self._open.write(_header({name: self._shapes[name] for name in names}, self._dtype))
                yield from (name for name in names if self._bytes(name))

    def _advance(self) -> None:
        self._pending = next(self._steps, None)
        self._missing = self._bytes(self._pending) if self._pending else 0


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    """Names in groups of at most `max_bytes`, or of one."""
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"{_STEM}-{i:05d}-of-{count:05d}.{_EXTENSION}" for i in range(1, count + 1)]


def _header(shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    """The length of the header and the header, byte for byte as the safetensors library writes them."""
    code = next(name for name, known in DTYPES.items() if known == dtype)
    header, start = {"__metadata__": _METADATA}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content
