"""Projections, norms and the depthwise convolution that all encoder blocks are made of.

Letters: B batch, T frames, D width, K kernel. Weights keep the dtype they are stored in and are cast to the dtype of
the activations; norms are computed in float32, and in float64 where the activations are. Every weight names its logical
axes where it is created.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hra_jax.models.encoder_config import BATCH_NORM_EPS

# What sees the input and the output of a named affine map, and returns the output that goes on.
Hook = Callable[[str, jax.Array, jax.Array], jax.Array]
STATISTICS = ("mean", "variance")  # names of the weights that no training moves


def wide(dtype: DTypeLike) -> np.dtype:
    """The dtype in which values of `dtype` are summed: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def weight(
    module: nn.Module, name: str, initializer: Callable, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """A parameter of `module` with logical axis names, unboxed."""
    value = module.param(name, nn.with_logical_partitioning(initializer, axes), shape, jnp.float32)
    return value.unbox() if isinstance(value, nn.meta.AxisMetadata) else value


def along_last(vector: jax.Array, y: jax.Array) -> jax.Array:
    """A vector `[D]` as `[1, ..., D]`, to meet y `[..., D]` without implicit rank promotion, in the dtype of y."""
    return vector.reshape((1,) * (y.ndim - 1) + vector.shape).astype(y.dtype)


class Projection(nn.Module):
    """y = x W + b with W `[in, out]`.

    `axes` are the logical names of the two axes of W; `gain` scales its initial values.
    """

    width: int
    axes: tuple[str, str] = ("embed", "embed_out")
    use_bias: bool = True
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` -> `[..., width]`, in the dtype of x."""
        initial = nn.initializers.variance_scaling(self.gain**2, "fan_in", "truncated_normal")
        kernel = weight(self, "kernel", initial, (x.shape[-1], self.width), self.axes)
        y = jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype))
        if self.use_bias:
            y = y + along_last(weight(self, "bias", nn.initializers.zeros, (self.width,), self.axes[1:]), y)
        return y


def standardized(x: jax.Array, eps: float) -> jax.Array:
    """x `[..., D]` shifted and scaled to mean 0 and variance 1 along its last axis, in `wide` dtype."""
    y = x.astype(wide(x.dtype))
    y = y - y.mean(axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with float32 statistics."""

    eps: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` -> the same shape and dtype."""
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",))
        y = standardized(x, self.eps)
        y = y * along_last(scale, y)
        if self.use_bias:
            y = y + along_last(weight(self, "bias", nn.initializers.zeros, x.shape[-1:], ("norm",)), y)
        return y.astype(x.dtype)


class BatchNorm(nn.Module):
    """BatchNorm as at inference, by stored statistics: y = (x - mean) / sqrt(variance + eps) scale + bias.

    Nothing updates the statistics, and no gradient reaches them: whoever trains all weights trains scale and bias.
    """

    eps: float = BATCH_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` -> the same shape and dtype."""
        shape, axes = x.shape[-1:], ("norm",)
        scale = weight(self, "scale", nn.initializers.ones, shape, axes)
        bias = weight(self, "bias", nn.initializers.zeros, shape, axes)
        initial = (nn.initializers.zeros, nn.initializers.ones)
        mean, variance = (
            jax.lax.stop_gradient(weight(self, name, start, shape, axes))
            for name, start in zip(STATISTICS, initial, strict=True)
        )
        y = x.astype(wide(x.dtype))
        rate = jax.lax.rsqrt(variance.astype(y.dtype) + self.eps) * scale.astype(y.dtype)
        return ((y - along_last(mean, y)) * along_last(rate, y) + along_last(bias, y)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted_products(x: jax.Array, taps: jax.Array, left: int) -> jax.Array:
    """Depthwise convolution over time as a sum of K shifted products.

    The gradient of x is such a sum too: left to itself it would be one of K padded arrays, each of which goes to memory
    and back.

    Args:
      x: `[B, T, D]`; zeros are before and after it.
      taps: `[K, D]`, the dtype of x.
      left: how many frames before its own the first tap takes.

    Returns:
      `[B, T, D]`, y[t] = sum_k x[t + k - left] taps[k].
    """
    padded = _padded(x, taps, left)
    return sum(padded[:, k : k + x.shape[1]] * tap[None, None] for k, tap in enumerate(taps))


def _padded(x: jax.Array, taps: jax.Array, left: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (left, taps.shape[0] - 1 - left), (0, 0)))


def _shifted_forward(x: jax.Array, taps: jax.Array, left: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted_products(x, taps, left), (x, taps)


def _shifted_backward(left: int, kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, taps = kept
    padded, size = _padded(x, taps, left), x.shape[1]
    products = [(padded[:, k : k + size] * slope).sum((0, 1), dtype=wide(x.dtype)) for k in range(taps.shape[0])]
    return shifted_products(slope, taps[::-1], taps.shape[0] - 1 - left), jnp.stack(products).astype(taps.dtype)


shifted_products.defvjp(_shifted_forward, _shifted_backward)


class DepthwiseConvolution(nn.Module):
    """Depthwise convolution over time, as a sum of K shifted products.

    XLA:CPU runs grouped convolutions several times slower than this (benchmarks/layers.py).
    """

    kernel: int
    causal: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]` -> `[B, T, D]`; zeros beyond both ends; an even kernel looks one frame further right."""
        taps = weight(self, "kernel", nn.initializers.lecun_normal(), (self.kernel, x.shape[-1]), ("taps", "conv"))
        left = self.kernel - 1 if self.causal else (self.kernel - 1) // 2
        y = shifted_products(x, taps.astype(x.dtype), left)
        if self.use_bias:
            y = y + along_last(weight(self, "bias", nn.initializers.zeros, x.shape[-1:], ("conv",)), y)
        return y
