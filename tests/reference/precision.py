"""Double precision in JAX for a block of code, by the name that each version has for it."""

import contextlib

import jax
import jax.experimental


def enable_x64(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context in which JAX has 64-bit types, or none."""
    return jax.enable_x64(enabled) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(enabled)
