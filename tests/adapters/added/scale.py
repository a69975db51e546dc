"""A method in one file: every task scales the channels of the adapted layers, x_l <- (1 + g_l) x_l."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.methods import register
from hra_jax.config.settings import number, setting


@register
@dataclasses.dataclass(frozen=True)
class ScaleAdapter(Adapter):
    """One factor for each channel, layer and task."""

    name = "scale"
    description = "a factor for each channel after each layer"
    peft_type = "HRA_JAX_SCALE"

    strength: float = setting(2.0, number(0, above=True), "of every factor")

    def init_own(self, rng, encoder):
        return no_parameters() | {"per_layer": {"gain": jnp.zeros((len(self.adapted(encoder)), encoder.d_model))}}

    def own_formula(self):
        return Formula("0", "L * D")

    def after_layer(self, params, x, carry, taps, *, rng):
        gain = self.strength * params[1]["rows"]["gain"][:, None, :]
        return x + (gain * x).astype(x.dtype), carry

    def torch_after_layer(self, params, x, carry, taps):
        return x + self.strength * params[1]["rows"]["gain"][:, None, :] * x, carry
