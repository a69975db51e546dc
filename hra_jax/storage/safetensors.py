"""The safetensors format: named arrays in one file.

    8 bytes     the length of the header, little-endian
    header      a JSON object: {name: {"dtype", "shape", "data_offsets": [start, stop]}}, and "__metadata__", an object
                of strings; spaces fill it up to a multiple of 8 bytes
    tensors     in C order, little-endian, without a gap between them; offsets count from their start

What is written is byte for byte what the safetensors library writes. This is the only module that knows the format;
`safetensors_reader` and `safetensors_writer` read and write tensors by pieces.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import IO, Any, TypeGuard

import ml_dtypes
import numpy as np

from hra_jax.errors import UserError
from hra_jax.storage.json_files import parse_json

# In the order in which a file holds them: the library sorts tensors by dtype and then by name.
DTYPES: dict[str, np.dtype] = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = ("F64", "F32", "F16", "BF16")  # the dtypes that weights may have
WEIGHT_METADATA = {"format": "hra_jax"}  # of the files of weights that hra_jax writes
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MOST_AXES, _MOST_SIZE = 32, 2**56  # of a tensor: what numpy can shape, those without values included
_LFS_START = b"version "


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: the bytes [start, stop) of its file; `dtype` is a key of `DTYPES`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The checked header of a file: {name: entry} in the order in which the tensors lie, and the metadata."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, Any]


def dtype_name(dtype: np.dtype) -> str:
    """What the format calls a dtype.

    Raises:
      ValueError: the format has no such dtype (numbers of another byte order included).
    """
    if dtype not in _NAMES:
        allowed = ", ".join(known.name for known in _NAMES)
        raise ValueError(f"{dtype}; allowed: {allowed}, in the byte order of the machine")
    return _NAMES[dtype]


def header_bytes(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The start of a file, up to the first tensor.

    Args:
      tensors: dtype and shape by name, in the order in which the tensors follow.
      metadata: at most one key, because the library gives several no fixed order.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    start = 0
    for name, (dtype, shape) in tensors.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name(dtype), "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = WEIGHT_METADATA) -> bytes:
    """A whole file; the same arrays give the same bytes, whatever their order.

    Raises:
      ValueError: an array of a dtype that the format does not have.
    """
    for array in arrays.values():
        dtype_name(array.dtype)
    names = sorted(arrays, key=lambda name: (_RANKS[arrays[name].dtype], name))
    header = header_bytes({name: (arrays[name].dtype, arrays[name].shape) for name in names}, metadata)
    return b"".join([header, *(np.asarray(arrays[name]).tobytes() for name in names)])


def from_bytes(content: bytes, *, where: str) -> dict[str, np.ndarray]:
    """The arrays of a whole file.

    Args:
      content: the file.
      where: its name, for errors.

    Raises:
      UserError: as `read_header` raises ValueError.
    """
    try:
        tensors = _parse(content[:_LENGTH_BYTES], content, len(content)).tensors
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return {
        name: np.frombuffer(content, DTYPES[entry.dtype], math.prod(entry.shape), entry.start)
        .reshape(entry.shape)
        .copy()
        for name, entry in tensors.items()
    }


def read_header(file: IO[bytes], size: int) -> Header:
    """Reads the header of a file, and checks that it describes every byte of the file.

    Args:
      file: the file, at its start.
      size: the bytes that the whole file has.

    Raises:
      ValueError: not a safetensors file, or one whose header does not fit its size: truncated, overlapping tensors.
      OSError: the file cannot be read.
    """
    start = file.read(_LENGTH_BYTES)
    return _parse(start, start + file.read(_header_length(start, size)), size)


def _header_length(start: bytes, size: int) -> int:
    """Bytes of the JSON object in the header, from the first 8 bytes of the file."""
    length = int.from_bytes(start, "little")
    if start == _LFS_START:
        raise ValueError("a Git LFS pointer, not the file that it stands for")
    if len(start) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, LONGEST_HEADER):
        raise ValueError(f"not a whole safetensors file: a header of {length} bytes in a file of {size}")
    return length


def _parse(start: bytes, content: bytes, size: int) -> Header:
    """The header in the first bytes of a file of `size` bytes."""
    data = _LENGTH_BYTES + _header_length(start, size)
    header = parse_json(
        content[_LENGTH_BYTES:data], where="the header of a safetensors file", most_bytes=LONGEST_HEADER
    )
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file: its header is not a JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata in the header must be an object; got {metadata!r:.80}")
    entries = {name: _entry(name, value, data) for name, value in header.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = data
    for name, entry in tensors.items():
        if entry.start != end:
            what = "overlaps the tensor before it" if entry.start < end else "comes after a gap"
            raise ValueError(f"{name!r} {what}: it starts at byte {entry.start}, which must be {end}")
        if entry.stop > size:
            raise ValueError(f"truncated: {name!r} ends at byte {entry.stop}, the file has {size}")
        end = entry.stop
    if end != size:
        raise ValueError(f"{size - end} bytes come after the last tensor")
    return Header(tensors, metadata)


def _entry(name: str, value: object, data: int) -> TensorEntry:
    """An entry of a header, checked; `data` is the byte at which the tensors start."""
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise ValueError(f"the header's entry of {name!r} needs a dtype, a shape and data_offsets [start, stop]")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if len(shape) > _MOST_AXES or math.prod(size or 1 for size in shape) > _MOST_SIZE:
        allowed = f"at most {_MOST_AXES} axes and {_MOST_SIZE:,} values"
        raise ValueError(f"{name!r} has the shape {str(shape):.80}; allowed: {allowed}")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        found = offsets[1] - offsets[0]
        raise ValueError(f"{name!r} of shape {tuple(shape)} and dtype {dtype} cannot take {found} bytes")
    return TensorEntry(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
