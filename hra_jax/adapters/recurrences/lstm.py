"""Long short-term memory (Hochreiter and Schmidhuber, 1997).

    c_l = f c_{l-1} + i act(W x_l + U s_{l-1} + b),  s_l = o act(c_l)            4 R (D + R + 1) weights

with gates f, i, o = sigmoid(W' x_l + U' s_{l-1} + b') of weights of their own. The blocks are the candidate, f, i, o;
the carry is s_l, c_l.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.activations import Activation
from hra_jax.adapters.controllers import Recurrence, register
from hra_jax.adapters.weights import Weight, orthogonal_blocks

with epy.lazy_imports():
    import flax.linen as nn
    import jax.numpy as jnp
    import torch

if TYPE_CHECKING:
    import jax


@register
class LongShortTermMemory(Recurrence):
    """A cell beside the state, with a gate to forget it, one to write to it and one to show it."""

    name = "lstm"
    formula = "4 * R * (D + R + 1)"
    blocks = 4
    carried = 2

    def weights(self, width: int) -> dict[str, Weight]:
        return {"recurrent": orthogonal_blocks(width, self.blocks)}

    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        width = carry.shape[-1] // 2
        feedback = carry[..., :width] @ weights["recurrent"]
        keep, write, show = jnp.split(nn.sigmoid((drive + feedback)[..., width:]), 3, axis=-1)
        cell = keep * carry[..., width:] + write * act.apply((drive + feedback)[..., :width])
        state = show * act.apply(cell)
        return state, jnp.concatenate([state, cell], axis=-1)

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        width = carry.shape[-1] // 2
        feedback = carry[..., :width] @ weights["recurrent"]
        keep, write, show = (drive + feedback)[..., width:].sigmoid().chunk(3, dim=-1)
        cell = keep * carry[..., width:] + write * act.torch_apply((drive + feedback)[..., :width])
        state = show * act.torch_apply(cell)
        return state, torch.cat([state, cell], dim=-1)
