"""Masks of padded positions: everything that a model does about padding is in this file.

Utterances are padded on the right. `lengths` are int32 `[B]`, in whatever unit the tensor beside them has; a mask is
True where a position is valid. Masking is by `where`, never by multiplying: NaN times zero is NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp


def valid_mask(lengths: jax.Array, size: int) -> jax.Array:
    """`[B]` lengths -> bool `[B, size]`, True where valid."""
    return jnp.arange(size)[None, :] < lengths[:, None]


def zero_invalid(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Zeroes the invalid positions of `x` `[B, T, ...]`; `valid` is bool `[B, T]`."""
    shape = valid.shape + (1,) * (x.ndim - 2)
    return jnp.where(valid.reshape(shape), x, jnp.zeros((), x.dtype))


def padded_size(size: int, least: int) -> int:
    """The smallest of 1, 1.5, 2, 3, 4, 6, 8, ... times `least` that holds `size`: few compiled shapes."""
    padded = least
    while padded < size:
        if padded + padded // 2 >= size:
            return padded + padded // 2
        padded *= 2
    return padded


def strided_length(length: Any, *, kernel: int, stride: int, pad: int) -> Any:
    """Length after a strided convolution with `pad` zeros on both sides (int or integer array)."""
    return (length + 2 * pad - kernel) // stride + 1


def masked_mean_variance(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance over the valid positions of axis 1.

    Args:
      x: float `[B, T, F]`.
      valid: bool `[B, T]`.

    Returns:
      Two float `[B, 1, F]`; zero where a row has no valid position.
    """
    # Multiplied and not divided: XLA makes one of the other in some programs and not in others, and they round apart.
    share = 1.0 / jnp.maximum(valid.sum(axis=1), 1)[:, None, None].astype(x.dtype)
    mean = zero_invalid(x, valid).sum(axis=1, keepdims=True) * share
    squares = zero_invalid(jnp.square(x - mean), valid)
    return mean, squares.sum(axis=1, keepdims=True) * share
