"""The dtypes that weights are stored in and that a model computes in."""

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.errors import UserError

STORAGE_DTYPES = ("float32", "bfloat16")
AUTO = "auto"  # bfloat16 on TPUs and GPUs, float32 on CPUs
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00}  # the bits that are all set in what is not finite
_CHECKED = 2**20  # numbers at a time
COMPUTE_DTYPES = (AUTO, *STORAGE_DTYPES)


def compute_dtype(name: str, *, platform: str | None = None) -> jnp.dtype:
    """The dtype of frozen weights and of activations.

    Args:
      name: one of COMPUTE_DTYPES.
      platform: "cpu", "gpu" or "tpu"; None for the platform that JAX runs on.

    Raises:
      UserError: another name.
    """
    if name not in COMPUTE_DTYPES:
        raise UserError(f"dtype = {name!r}: allowed are {', '.join(map(repr, COMPUTE_DTYPES))}")
    if name != AUTO:
        return jnp.dtype(name)
    return jnp.dtype(jnp.float32 if (platform or jax.default_backend()) == "cpu" else jnp.bfloat16)


def all_finite(array: np.ndarray) -> bool:
    """Whether no number of a floating-point array is NaN or infinite; a pass over it in small pieces."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = _EXPONENTS.get(array.dtype.name)
    if bits is not None:  # numpy has no fast way for these
        flat = flat.view(np.uint16)
    for start in range(0, flat.size, _CHECKED):
        piece = flat[start : start + _CHECKED]
        if not np.isfinite(piece).all() if bits is None else ((piece & bits) == bits).any():
            return False
    return True
