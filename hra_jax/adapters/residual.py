"""Residual adapters: a bottleneck after each layer (arXiv 1902.00751; for speech arXiv 1909.05330).

    x_l <- x_l + U relu(P norm(x_l) + p) + u

with a LayerNorm of its own, P `[D, H]` and U `[H, D]`; U and u are zero when new. Nothing is shared by the tasks:
a task `L * (2 * D + H * (D + 1) + D * (H + 1))`.

Letters: B batch, T frames, D width, L adapted layers, H bottleneck.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.base import MOST_WIDTH, Adapter, DropoutKey, Params, affine, no_parameters
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.methods import register
from hra_jax.adapters.weights import Tree
from hra_jax.config.settings import integer, setting

# Imported at the first use: either library is enough for its own formulas.
with epy.lazy_imports():
    import flax.linen as nn
    import jax.numpy as jnp
    import torch

    from hra_jax.models import layers as model_layers

if TYPE_CHECKING:
    import jax

    from hra_jax.models.encoder_config import EncoderConfig

_EPS = 1e-5  # of the norm


@register
@dataclasses.dataclass(frozen=True)
class ResidualAdapter(Adapter):
    """A bottleneck per adapted layer and task."""

    name = "residual"
    description = "a residual bottleneck adapter after each layer"
    peft_type = "HRA_JAX_RESIDUAL"
    uses_dropout = True  # of the bottleneck

    width: int = setting(16, integer(1, MOST_WIDTH), "width of the bottleneck, H")

    def init_own(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
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

    def letters(self, encoder: EncoderConfig) -> dict[str, int]:
        """H."""
        return super().letters(encoder) | {"H": self.width}

    def after_layer(
        self, params: Params, x: jax.Array, carry: Any, taps: Mapping[str, jax.Array], *, rng: DropoutKey
    ) -> tuple[jax.Array, Any]:
        """Adds each utterance's own bottleneck; rows of zeros (`__base__`, layers left out) add zero."""
        rows = params[1]["rows"]
        y = model_layers.standardized(x, _EPS)
        y = y * rows["norm"]["scale"][:, None, :] + rows["norm"]["bias"][:, None, :]
        y = nn.relu(affine(rows["down"], y.astype(x.dtype)))
        y = self.dropped(y, rng)
        return x + affine(rows["up"], y.astype(x.dtype)).astype(x.dtype), carry

    # --- PyTorch ---

    def encoder_width(self, row: Mapping[str, tuple[int, ...]]) -> int | None:
        """D, the width of the norm."""
        return row["per_layer.norm.scale"][-1]

    def torch_after_layer(self, params: Params, x: Any, carry: Any, taps: Mapping[str, Any]) -> tuple[Any, Any]:
        """As `after_layer`, in float32."""
        rows = params[1]["rows"]
        y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=_EPS)
        y = y * rows["norm"]["scale"][:, None, :] + rows["norm"]["bias"][:, None, :]
        y = torch.relu(y @ rows["down"]["kernel"] + rows["down"]["bias"][:, None, :])
        return x + (y @ rows["up"]["kernel"] + rows["up"]["bias"][:, None, :]).to(x.dtype), carry
