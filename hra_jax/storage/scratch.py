"""Arrays that are too many for the memory, in files without names, which are gone with them."""

import tempfile

import numpy as np


def on_disk(array: np.ndarray) -> np.ndarray:
    """A copy of an array in a file without a name."""
    with tempfile.TemporaryFile(prefix="hra_jax-array-") as file:
        stored = np.memmap(file, array.dtype, mode="w+", shape=array.shape)  # it keeps the file open
    stored[:] = array
    return stored
