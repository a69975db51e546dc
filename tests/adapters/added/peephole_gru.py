"""A recurrence in one file: a GRU whose gates also see the state through a weight of each unit's own, in JAX alone."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from hra_jax.adapters.controllers import Recurrence, register
from hra_jax.adapters.weights import orthogonal_blocks, zeros
from hra_jax.models.layers import along_last


@register
class PeepholeGatedRecurrentUnit(Recurrence):
    """As a GRU, with peepholes."""

    name = "peephole_gru"
    formula = "3 * R * (D + R + 1) + 2 * R"
    blocks = 3

    def weights(self, width):
        return {"recurrent": orthogonal_blocks(width, self.blocks), "peephole": zeros(2 * width)}

    def step(self, weights, drive, carry, act):
        width, feedback = carry.shape[-1], carry @ weights["recurrent"]
        seen = along_last(weights["peephole"], drive) * jnp.concatenate([carry, carry], axis=-1)
        reset, keep = jnp.split(nn.sigmoid((drive + feedback)[..., width:] + seen), 2, axis=-1)
        state = (1 - keep) * act.apply(drive[..., :width] + reset * feedback[..., :width]) + keep * carry
        return state, state
