"""Convolution of waveforms by Fourier transforms that are matrix products.

On a mesh such a product stays split by rows, where an FFT may be gathered to every device.

Letters: B batch, S samples, L taps of a kernel; a transform of n1 x n2 points: R of the n1 rows of samples, C of the n2
columns, and K = n1 // 2 + 1 rows of frequencies, all that real signals need.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_Complex = tuple[jax.Array, jax.Array]  # the real and the imaginary part


class _Transform(NamedTuple):
    """The matrices of a transform of n1 x n2 points, float32.

    Sample t stands in row t // n2 and column t % n2, and frequency k in row k % n1 and column k // n1, so that
    exp(-2 pi i t k / (n1 n2)) is a product of three factors: one for the rows, one for both, one for the columns
    (Cooley and Tukey, 1965). Real and imaginary parts are one matrix: fewer and larger products compile sooner.
    """

    rows: jax.Array  # [2 K, n1], the real parts above the imaginary ones
    twiddle: _Complex  # [1, K, n2]
    columns: jax.Array  # [2 n2, 2 n2], which multiplies a row of real parts and then imaginary ones


def _turns(first: int, second: int, points: int) -> _Complex:
    """exp(-2 pi i j k / points), `[first, second]` for each j and k.

    It is computed where it is used: as constants, the matrices of a minute of sound would be megabytes of the program.
    """
    turns = (jnp.arange(first)[:, None] * jnp.arange(second)[None, :]) % points
    # Angles from -pi to pi have the smallest errors.
    angle = jnp.where(2 * turns > points, turns - points, turns).astype(jnp.float32) * (-2 * math.pi / points)
    return jnp.cos(angle), jnp.sin(angle)


def _transform(points: int) -> _Transform:
    """The transform of at least so many points."""
    n1 = 8 * math.ceil(math.sqrt(points) / 8)
    n2 = 8 * math.ceil(points / n1 / 8)
    kept = n1 // 2 + 1
    twiddle_real, twiddle_imaginary = _turns(kept, n2, n1 * n2)
    real, imaginary = _turns(n2, n2, n2)
    columns = jnp.block([[real, imaginary], [-imaginary, real]])
    return _Transform(jnp.concatenate(_turns(kept, n1, n1)), (twiddle_real[None], twiddle_imaginary[None]), columns)


def _times(a: _Complex, b: _Complex) -> _Complex:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _halves(x: jax.Array, axis: int) -> _Complex:
    real, imaginary = jnp.split(x, 2, axis=axis)
    return real, imaginary


def _spectrum(x: jax.Array, of: _Transform) -> _Complex:
    """`[B, S]` float32 -> `[B, K, n2]`; samples after S are zero."""
    columns = of.columns.shape[0] // 2
    rows = math.ceil(x.shape[1] / columns)
    x = jnp.pad(x, ((0, 0), (0, rows * columns - x.shape[1]))).reshape(-1, rows, columns)
    real, imaginary = _halves(_product("kr,brc->bkc", of.rows[:, :rows], x), 1)
    turned = jnp.concatenate(_times((real, imaginary), of.twiddle), axis=2)
    return _halves(_product("bkc,cd->bkd", turned, of.columns), 2)


def _samples(spectrum: _Complex, of: _Transform) -> jax.Array:
    """The inverse: `[B, K, n2]` -> `[B, n1 n2]`. It turns the other way, so that every sine has the other sign."""
    kept, n1 = of.rows.shape[0] // 2, of.rows.shape[1]
    real, imaginary = _halves(_product("bkc,dc->bkd", jnp.concatenate(spectrum, axis=2), of.columns), 2)
    turned = jnp.concatenate(_times((real, imaginary), (of.twiddle[0], -of.twiddle[1])), axis=1)
    # A row k of frequencies that is left out is the conjugate of row n1 - k; rows 0 and n1 / 2 have no other.
    weights = jnp.where(jnp.arange(kept) % (n1 // 2) == 0, 1.0, 2.0) / (n1 * real.shape[2])
    x = _product("kr,bkc->brc", of.rows * jnp.tile(weights, 2)[:, None], turned)
    return x.reshape(x.shape[0], -1)


def convolve(waveform: jax.Array, kernels: jax.Array, *, delay: int = 0) -> jax.Array:
    """Convolves each row with a kernel of its own, samples before and after it being zero.

    Args:
      waveform: float32 `[B, S]`.
      kernels: float32 `[B, L]`.
      delay: the tap that stays where it is; that in the middle, for kernels that are symmetric.

    Returns:
      float32 `[B, S]`: sample t is the sum over l of kernel[l] waveform[t + delay - l].
    """
    size = waveform.shape[1]
    of = _transform(size + kernels.shape[1] - 1)
    found = _samples(_times(_spectrum(waveform, of), _spectrum(kernels, of)), of)
    return found[:, delay : delay + size]
