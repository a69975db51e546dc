"""BitFit: a task owns a correction of every bias of the adapted layers (arXiv 2106.10199).

    y <- y + d

for each affine map of the layers that has a bias: projections, LayerNorms, the depthwise convolution; d is zero when
new. Nothing is shared by the tasks: a task `L * C`, where C is the number of biases in a layer.

Letters: B batch, T frames, L adapted layers.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, Formula, no_parameters
from hra_jax.adapters.lora import key_of
from hra_jax.models.encoder_config import affine_maps


@dataclasses.dataclass(frozen=True)
class BiasAdapter(Adapter):
    """A correction of each bias, per adapted layer and task."""

    name: ClassVar[str] = "bitfit"
    description: ClassVar[str] = "corrections of the biases (BitFit, arXiv 2106.10199)"

    def init_own(self, rng, encoder) -> dict:
        """Zeros."""
        del rng
        layers = len(self.adapted(encoder))
        maps = {name: found for name, found in affine_maps(encoder).items() if found.bias}
        tree = {key_of(name): {"bias": jnp.zeros((layers, found.outputs))} for name, found in maps.items()}
        return no_parameters() | {"per_layer": tree}

    def own_formula(self) -> Formula:
        """Every bias of the adapted layers."""
        return Formula("0", "L * C")

    def letters(self, encoder) -> dict[str, int]:
        """C, the number of biases in a layer."""
        count = sum(found.outputs for found in affine_maps(encoder).values() if found.bias)
        return super().letters(encoder) | {"C": count}

    def after_affine(self, params, name, x, y, *, rng):
        """Adds each utterance's own biases; rows of zeros (`__base__`, layers left out) add zero."""
        rows = params[1].get("rows", {})
        if key_of(name) not in rows:
            return y
        return y + rows[key_of(name)]["bias"][:, None, :].astype(y.dtype)

    def merged(self, layer_weights: dict, row: dict, encoder) -> dict:
        """As `LowRankAdapter.merged`."""
        places, changed = jnp.array(self.adapted(encoder)), {}
        for name, found in affine_maps(encoder).items():
            if found.bias:
                bias = layer_weights
                for key in (*found.path, "bias"):
                    bias = bias[key]
                own = row["per_layer"][key_of(name)]["bias"]
                changed[(*found.path, "bias")] = jnp.asarray(bias, jnp.float32).at[places].add(own)
        return changed
