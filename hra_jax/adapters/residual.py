"""Residual adapters: a bottleneck after each layer (arXiv 1902.00751; for speech arXiv 1909.05330).

    x_l <- x_l + U relu(P norm(x_l) + p) + u

with a LayerNorm of its own, P `[D, H]` and U `[H, D]`; U and u are zero when new. Nothing is shared by the tasks:
a task `L * (2 * D + H * (D + 1) + D * (H + 1))`.

Letters: B batch, T frames, D width, L adapted layers, H bottleneck.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, Formula, affine, no_parameters
from hra_jax.config.settings import integer, setting
from hra_jax.models.layers import standardized

_EPS = 1e-5  # of the norm


@dataclasses.dataclass(frozen=True)
class ResidualAdapter(Adapter):
    """A bottleneck per adapted layer and task."""

    name: ClassVar[str] = "residual"
    description: ClassVar[str] = "a residual bottleneck adapter after each layer"
    uses_dropout: ClassVar[bool] = True

    width: int = setting(16, integer(1), "width of the bottleneck")

    def init_own(self, rng, encoder) -> dict:
        """Norm, down-projection, and an up-projection of zeros, of every adapted layer."""
        d, h, layers = encoder.d_model, self.width, len(self.adapted(encoder))
        down = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=-2, out_axis=-1, batch_axis=0)
        tree = {
            "norm": {"scale": jnp.ones((layers, d)), "bias": jnp.zeros((layers, d))},
            "down": {"kernel": down(rng, (layers, d, h)), "bias": jnp.zeros((layers, h))},
            "up": {"kernel": jnp.zeros((layers, h, d)), "bias": jnp.zeros((layers, d))},
        }
        return no_parameters() | {"per_layer": tree}

    def own_formula(self) -> Formula:
        """Norm, down-projection and up-projection."""
        return Formula("0", "L * (2 * D + H * (D + 1) + D * (H + 1))")

    def letters(self, encoder) -> dict[str, int]:
        """H."""
        return super().letters(encoder) | {"H": self.width}

    def after_layer(self, params, x, carry, taps, *, rng):
        """Adds each utterance's own bottleneck; rows of zeros (`__base__`, layers left out) add zero."""
        rows = params[1]["rows"]
        y = standardized(x, _EPS)
        y = y * rows["norm"]["scale"][:, None, :] + rows["norm"]["bias"][:, None, :]
        y = nn.relu(affine(rows["down"], y.astype(x.dtype)))
        if self.dropout and (key := rng()) is not None:
            y = nn.Dropout(self.dropout, deterministic=False).apply({}, y, rngs={"dropout": key})
        return x + affine(rows["up"], y.astype(x.dtype)).astype(x.dtype), carry
