"""Hashes of the weights of a backbone, and whether its files hold what they tell."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from hra_jax.errors import DamagedError
from hra_jax.storage.safetensors_reader import TensorFiles

_PIECE = 2**26  # bytes that are read at a time


class Hashes(NamedTuple):
    """Hashes of weights as they are stored.

    Attributes:
      begin: makes what hashes one of them.
      expected: by dotted name, in hexadecimal digits.
    """

    begin: Callable[[], Any]
    expected: dict[str, str]

    def compare(self, tensors: TensorFiles, name: str, digest: Any) -> None:
        """Raises DamagedError where what has hashed a whole weight gives another hash than was stored."""
        if digest.hexdigest() != self.expected.get(name):
            raise DamagedError(f"{tensors.path(name)}: {name!r} is not what was stored; its hash differs")


def verify(tensors: TensorFiles, hashes: Hashes, *, names: Iterable[str] | None = None) -> None:
    """Hashes every weight, or some, a few rows at a time.

    Raises:
      UserError: a file cannot be read; DamagedError where one holds something else than was stored.
    """
    for name in tensors.names() if names is None else names:
        shape, digest = tensors.shape(name), hashes.begin()
        if len(shape) > 1 and math.prod(shape) > 0:
            rows = max(1, _PIECE * shape[0] // (tensors.dtype(name).itemsize * math.prod(shape)))
            for first in range(0, shape[0], rows):
                digest.update(content(tensors.read_slice(name, slice(first, first + rows))))
        else:
            digest.update(content(tensors.read(name)))
        hashes.compare(tensors, name, digest)


def content(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
