"""Strided-convolution subsampling, by 2 or by 4.

Letters: B batch, T frames, F mel bins, C channels, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.models import padding
from hra_jax.models.layers import Projection, along_last, weight


class ConvSubsampling(nn.Module):
    """3 x 3 convolutions of stride 2 over time and frequency, each with ReLU, then a projection to D."""

    width: int
    channels: int
    layers: int

    @nn.compact
    def __call__(self, features, lengths):
        """Subsamples.

        Args:
          features: `[B, T, F]`.
          lengths: int32 `[B]`, feature frames.

        Returns:
          `[B, T / 2^layers, D]` and int32 `[B]` lengths; what invalid frames hold does not reach valid ones.
        """
        x = padding.zero_invalid(features, padding.valid_mask(lengths, features.shape[1]))[..., None]
        for index in range(self.layers):
            shape = (3, 3, x.shape[-1], self.channels)
            axes = ("taps", "taps", "conv_in", "conv")
            kernel = weight(self, f"conv_{index}_kernel", nn.initializers.lecun_normal(), shape, axes)
            bias = weight(self, f"conv_{index}_bias", nn.initializers.zeros, (self.channels,), ("conv",))
            x = jax.lax.conv_general_dilated(
                x, kernel.astype(x.dtype), (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = nn.relu(x + along_last(bias, x))
            lengths = padding.strided_length(lengths, kernel=3, stride=2, pad=1)
            x = padding.zero_invalid(x, padding.valid_mask(lengths, x.shape[1]))
        x = x.reshape(*x.shape[:2], -1)
        return Projection(self.width, axes=("conv_out", "embed"), name="projection")(x), lengths.astype(jnp.int32)
