"""From feature frames to encoder frames: one module for each `EncoderConfig.subsampler`.

Letters: B batch, S samples, T frames, F feature width, C channels, D width.

Each module takes features `[B, T, F]` and int32 `[B]` lengths in feature frames, and returns `[B, T', D]` and lengths
in encoder frames; what invalid frames hold does not reach valid ones. Inputs shorter than a kernel have length 0.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.errors import UserError
from hra_jax.models import padding
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.models.layers import LayerNorm, Projection, along_last, weight


def check(features: FeatureConfig, encoder: EncoderConfig) -> None:
    """Refuses features that the subsampler is not made for.

    Raises:
      UserError: one of them is made for samples, and the other for spectra.
    """
    if (features.kind == "waveform") != (encoder.subsampler == "wave_cnn"):
        raise UserError(
            f"encoder.subsampler = {encoder.subsampler!r}: features.kind is {features.kind!r}, and 'wave_cnn' is for "
            "'waveform', the other subsamplers are for 'log_mel'"
        )


def make(encoder: EncoderConfig, *, dtype: jnp.dtype, name: str) -> nn.Module:
    """The module that `encoder.subsampler` names; `dtype` is that of the activations that it returns."""
    width, channels = encoder.d_model, encoder.subsampling_channels
    if encoder.subsampler == "projection":
        return NormProjection(width, encoder.norm_eps, name=name)
    if encoder.subsampler == "wave_cnn":
        layers = tuple((kernel, stride) for kernel, stride, _ in encoder.subsampling_layers)
        return WaveConvolutions(width, channels, layers, encoder.norm_eps, dtype=dtype, name=name)
    if encoder.subsampler == "conv1d":
        return TimeConvolutions(width, channels, encoder.subsampling_kernel, name=name)
    separable = encoder.subsampler == "conv2d_separable"
    return ConvSubsampling(width, channels, len(encoder.subsampling_layers), separable=separable, name=name)


def _valid_only(x: jax.Array, lengths: jax.Array) -> jax.Array:
    return padding.zero_invalid(x, padding.valid_mask(lengths, x.shape[1]))


def _halve(module: nn.Module, index: int, x: jax.Array, channels: int) -> jax.Array:
    """A 3 x 3 convolution of stride 2 over time and frequency with ReLU: `[B, T, F, C]` -> `[B, T', F', channels]`."""
    axes = ("taps", "taps", "conv_in", "conv")
    kernel = weight(module, f"conv_{index}_kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], channels), axes)
    bias = weight(module, f"conv_{index}_bias", nn.initializers.zeros, (channels,), ("conv",))
    x = jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return nn.relu(x + along_last(bias, x))


def _halve_depthwise(module: nn.Module, index: int, x: jax.Array) -> jax.Array:
    """A 3 x 3 convolution of stride 2 of each channel: `[B, T, F, C]` -> `[B, T', F', C]`.

    It is a sum of nine shifted products, for the reason given at `layers.DepthwiseConvolution`.
    """
    channels = x.shape[-1]
    axes = ("taps", "taps", "conv_in", "conv")
    taps = weight(module, f"depthwise_{index}_kernel", nn.initializers.lecun_normal(), (3, 3, 1, channels), axes)
    bias = weight(module, f"depthwise_{index}_bias", nn.initializers.zeros, (channels,), ("conv",))
    taps = taps.astype(x.dtype)
    frames, bins = (padding.strided_length(size, kernel=3, stride=2, pad=1) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y: Any = sum(
        padded[:, i : i + 2 * frames - 1 : 2, j : j + 2 * bins - 1 : 2] * taps[i, j][None, None]
        for i in range(3)
        for j in range(3)
    )
    return y + along_last(bias, y)


class ConvSubsampling(nn.Module):
    """3 x 3 convolutions of stride 2 over time and frequency, each with ReLU, then a projection to D.

    Where they are `separable`, every one after the first is a depthwise 3 x 3 and a pointwise one.
    """

    width: int
    channels: int
    layers: int
    separable: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, T, F]` -> `[B, T / 2^layers, D]`, see the head of this file."""
        x = _valid_only(features, lengths)[..., None]
        for index in range(self.layers):
            if index == 0 or not self.separable:
                x = _halve(self, index, x, self.channels)
            else:
                x = _halve_depthwise(self, index, x)
                x = nn.relu(Projection(self.channels, axes=("conv_in", "conv"), name=f"pointwise_{index}")(x))
            lengths = padding.strided_length(lengths, kernel=3, stride=2, pad=1)
            x = _valid_only(x, lengths)
        x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
        return Projection(self.width, axes=("conv_out", "embed"), name="projection")(x), lengths.astype(jnp.int32)


class NormProjection(nn.Module):
    """A LayerNorm of each frame and a projection to D."""

    width: int
    norm_eps: float

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, T, F]` -> `[B, T, D]`, see the head of this file."""
        x = LayerNorm(self.norm_eps, name="norm")(features)
        return Projection(self.width, axes=("conv_out", "embed"), name="projection")(x), lengths.astype(jnp.int32)


def _convolve_time(
    module: nn.Module,
    index: int,
    x: jax.Array,
    *,
    channels: int,
    kernel: int,
    stride: int,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """A convolution over time without padding: `[B, T, in]` -> `[B, (T - kernel) // stride + 1, channels]`."""
    shape, axes = (kernel, x.shape[-1], channels), ("taps", "conv_in", "conv")
    taps = weight(module, f"conv_{index}_kernel", nn.initializers.lecun_normal(), shape, axes)
    bias = weight(module, f"conv_{index}_bias", nn.initializers.zeros, (channels,), ("conv",))
    y = jax.lax.conv_general_dilated(
        x, taps.astype(x.dtype), (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision=precision
    )
    return y + along_last(bias, y)


class TimeConvolutions(nn.Module):
    """A projection to D, two convolutions of stride 2 over time, each with ReLU, and a projection (LASR)."""

    width: int
    channels: int  # of the second convolution
    kernel: int

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, T, F]` -> `[B, T', D]`, see the head of this file."""
        x = _valid_only(features, lengths)
        x = nn.relu(Projection(self.width, axes=("conv_in", "embed"), name="input")(x))
        for index, channels in enumerate((self.width, self.channels)):
            x = nn.relu(_convolve_time(self, index, x, channels=channels, kernel=self.kernel, stride=2))
            lengths = padding.strided_length(lengths, kernel=self.kernel, stride=2, pad=0)
        x = Projection(self.width, axes=("conv_out", "embed"), name="projection")(x)
        return x, jnp.maximum(lengths, 0).astype(jnp.int32)


class WaveConvolutions(nn.Module):
    """Convolutions over samples, each with LayerNorm and exact GELU, then LayerNorm and a projection (wav2vec 2.0)."""

    width: int
    channels: int
    layers: tuple[tuple[int, int], ...]  # (kernel, stride) of each
    norm_eps: float
    dtype: jnp.dtype  # of the activations after the first convolution

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, S, 1]` -> `[B, T', D]`, see the head of this file."""
        x = _valid_only(features, lengths)
        for index, (kernel, stride) in enumerate(self.layers):
            # Samples have 16 bits and bfloat16 has 8: the first convolution is of float32 and at full precision.
            precision = None if index else jax.lax.Precision.HIGHEST
            x = _convolve_time(
                self, index, x, channels=self.channels, kernel=kernel, stride=stride, precision=precision
            )
            x = LayerNorm(self.norm_eps, name=f"norm_{index}")(x)
            x = nn.gelu(x, approximate=False).astype(self.dtype)
            lengths = padding.strided_length(lengths, kernel=kernel, stride=stride, pad=0)
        x = LayerNorm(self.norm_eps, name="norm")(x)
        x = Projection(self.width, axes=("conv_out", "embed"), name="projection")(x)
        return x, jnp.maximum(lengths, 0).astype(jnp.int32)
