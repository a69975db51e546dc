"""Writes the tensors of a folder one after the other, so that no more than a piece of one is in memory.

The files are those that `safetensors_reader` reads: one, or several beside an index where one would be too large. They
are written under temporary names and take their own when all are complete.
"""

import math
import re
from collections.abc import Generator, Mapping

import numpy as np
import numpy.typing
from etils import epath

from hra_jax.storage.files import Replacement, make_folder, remove_file, replaced_name, write_file
from hra_jax.storage.json_files import json_text
from hra_jax.storage.safetensors import WEIGHT_METADATA, header_bytes
from hra_jax.storage.safetensors_reader import INDEX_SUFFIX, WEIGHTS

SHARD_BYTES = 2_000_000_000  # of tensors in one file
_CHUNK = 16 << 20  # bytes written at a time
_STEM, _EXTENSION = WEIGHTS.split(".", 1)
_OURS = re.compile(rf"{_STEM}(-\d{{5,}}-of-\d{{5,}})?\.{_EXTENSION}({re.escape(INDEX_SUFFIX)})?")


class TensorWriter:
    """Writes tensors whose shapes are known before their values.

    To be used in a `with` block; where it is left before `finish`, the folder is as it was.

    Attributes:
      names: the tensors, in the order in which they must be written.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: np.typing.DTypeLike,
        max_bytes: int = SHARD_BYTES,
    ):
        """Lays out the files.

        Args:
          folder: a local or remote path; it is created.
          shapes: of all tensors.
          dtype: of all tensors, one of `safetensors.DTYPES`.
          max_bytes: of the tensors in one file. A larger tensor has a file of its own.
        """
        self._folder, self._dtype = epath.Path(folder), np.dtype(dtype)
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self.names = tuple(self._shapes)
        shards = _shards({name: self._bytes(name) for name in self.names}, max_bytes)
        self._files = dict(zip(_file_names(len(shards)), shards, strict=True))
        self._replacements: list[Replacement] = []  # complete ones, and the one that is being written
        self._pending: str | None = None
        self._missing = 0
        self._steps = self._walk()

    def __enter__(self) -> "TensorWriter":
        make_folder(self._folder)
        self._advance()
        return self

    def __exit__(self, *exception: object) -> None:
        self._steps.close()
        for replacement in self._replacements:
            replacement.discard()

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
        values = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        for start in range(0, len(values), _CHUNK):
            self._replacements[-1].stream.write(
                bytes(values[start : start + _CHUNK])
            )  # remote files take nothing but bytes
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
        for replacement in self._replacements:
            replacement.commit()
        placed, kept = {name: file for file, names in self._files.items() for name in names}, set(self._files)
        if kept != {WEIGHTS}:
            index = {"metadata": {"total_size": sum(map(self._bytes, self.names))}, "weight_map": placed}
            write_file(self._folder / f"{WEIGHTS}{INDEX_SUFFIX}", json_text(index))
            kept.add(f"{WEIGHTS}{INDEX_SUFFIX}")
        for path in list(self._folder.iterdir()):
            if is_written(path.name) and path.name not in kept:
                remove_file(path)

    def _bytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._dtype.itemsize

    def _walk(self) -> Generator[str, None, None]:
        """Opens one file after the other, and yields the tensors that have values."""
        for file, names in self._files.items():
            replacement = Replacement(self._folder / file)
            self._replacements.append(replacement)
            replacement.stream.write(
                header_bytes({name: (self._dtype, self._shapes[name]) for name in names}, WEIGHT_METADATA)
            )
            yield from (name for name in names if self._bytes(name))
            replacement.close()

    def _advance(self) -> None:
        self._pending = next(self._steps, None)
        self._missing = self._bytes(self._pending) if self._pending else 0


def is_written(name: str) -> bool:
    """Whether a file is one that `TensorWriter` writes, by its name; a temporary one of a killed process too."""
    return _OURS.fullmatch(replaced_name(name) or name) is not None


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    """Names in groups of at most `max_bytes`, or of one."""
    shards: list[list[str]] = [[]]
    filled = 0
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
