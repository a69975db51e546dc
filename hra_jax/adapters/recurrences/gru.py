"""The gated recurrent unit (arXiv 1412.3555).

    n = act(W x_l + b + r * (U s_{l-1} + c)),  s_l = (1 - z) n + z s_{l-1}            3 R (D + R + 1) + R weights

with gates r, z = sigmoid(W' x_l + U' s_{l-1} + b') of weights of their own. The blocks are n, r, z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.activations import Activation
from hra_jax.adapters.controllers import Recurrence, register
from hra_jax.adapters.weights import Weight, orthogonal_blocks, zeros

with epy.lazy_imports():
    import flax.linen as nn
    import jax.numpy as jnp

    from hra_jax.models import layers

if TYPE_CHECKING:
    import jax


@register
class GatedRecurrentUnit(Recurrence):
    """A candidate, a gate that resets what it sees of the state, and a gate that keeps the state."""

    name = "gru"
    formula = "3 * R * (D + R + 1) + R"
    blocks = 3

    def weights(self, width: int) -> dict[str, Weight]:
        # The candidate's feedback has a bias of its own, since the gate multiplies it.
        return {"recurrent": orthogonal_blocks(width, self.blocks), "feedback_bias": zeros(width)}

    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        width, feedback = carry.shape[-1], carry @ weights["recurrent"]
        reset, keep = self._gates(nn.sigmoid((drive + feedback)[..., width:]))
        candidate = feedback[..., :width] + layers.along_last(weights["feedback_bias"], drive)
        state = (1 - keep) * act.apply(drive[..., :width] + reset * candidate) + keep * carry
        return state, state

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        width, feedback = carry.shape[-1], carry @ weights["recurrent"]
        reset, keep = self._torch_gates((drive + feedback)[..., width:].sigmoid())
        candidate = feedback[..., :width] + weights["feedback_bias"]
        state = (1 - keep) * act.torch_apply(drive[..., :width] + reset * candidate) + keep * carry
        return state, state

    def _gates(self, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The reset gate and the keep gate `[..., R]`, of all gates side by side."""
        reset, keep = jnp.split(gates, 2, axis=-1)
        return reset, keep

    def _torch_gates(self, gates: Any) -> tuple[Any, Any]:
        reset, keep = gates.chunk(2, dim=-1)
        return reset, keep
