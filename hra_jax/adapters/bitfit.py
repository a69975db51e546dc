"""BitFit: a task owns a correction of every bias of the adapted layers (arXiv 2106.10199).

    y <- y + d

for each affine map of the layers that has a bias: projections, LayerNorms, the depthwise convolution; d is zero when
new. Nothing is shared by the tasks: a task `L * C`, where C is the number of biases in a layer.

Letters: B batch, T frames, L adapted layers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from etils import epy

from hra_jax.adapters.base import Adapter, DropoutKey, Params, key_of, no_parameters
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.methods import register
from hra_jax.adapters.weights import Tree

# Imported at the first use, so that commands which only read need no JAX.
with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from hra_jax.models import encoder_config

if TYPE_CHECKING:
    from hra_jax.models.encoder_config import AffineMap, EncoderConfig


@register
@dataclasses.dataclass(frozen=True)
class BiasAdapter(Adapter):
    """A correction of each bias, per adapted layer and task."""

    name = "bitfit"
    description = "corrections of the biases (BitFit, arXiv 2106.10199)"
    peft_type = "HRA_JAX_BITFIT"

    def _maps(self, encoder: EncoderConfig) -> dict[str, AffineMap]:
        return {name: found for name, found in encoder_config.affine_maps(encoder).items() if found.bias}

    def init_own(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """A correction of zero for every bias."""
        del rng
        layers = len(self.adapted(encoder))
        tree = {key_of(name): {"bias": jnp.zeros((layers, m.outputs))} for name, m in self._maps(encoder).items()}
        return no_parameters() | {"per_layer": tree}

    def own_formula(self) -> Formula:
        """Every bias of the adapted layers."""
        return Formula("0", "L * C")

    def letters(self, encoder: EncoderConfig) -> dict[str, int]:
        """C, the number of biases in a layer."""
        count = sum(found.outputs for found in self._maps(encoder).values())
        return super().letters(encoder) | {"C": count}

    def after_affine(self, params: Params, name: str, x: jax.Array, y: jax.Array, *, rng: DropoutKey) -> jax.Array:
        """Adds each utterance's own biases; rows of zeros (`__base__`, layers left out) add zero."""
        rows = params[1].get("rows", {})
        if key_of(name) not in rows:
            return y
        correction: jax.Array = rows[key_of(name)]["bias"]
        return y + correction[:, None, :].astype(y.dtype)

    def merged(self, layer_weights: Tree, row: Tree, encoder: EncoderConfig) -> dict[tuple[str, ...], jax.Array]:
        """Every bias with its correction added."""
        numbers, changed = jnp.array(self.adapted(encoder)), {}
        for name, found in self._maps(encoder).items():
            bias = layer_weights
            for key in (*found.path, "bias"):
                bias = bias[key]
            own = row["per_layer"][key_of(name)]["bias"]
            changed[(*found.path, "bias")] = jnp.asarray(bias, jnp.float32).at[numbers].add(own)
        return changed
