"""The dtypes that weights are stored in and that a model computes in."""

import jax
import jax.numpy as jnp

from hra_jax.errors import UserError

STORAGE_DTYPES = ("float32", "bfloat16")
AUTO = "auto"  # bfloat16 on TPUs and GPUs, float32 on CPUs
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
