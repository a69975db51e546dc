"""The plain recurrent network.

s_l = act(W x_l + U s_{l-1} + b)            R (D + R + 1) weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hra_jax.adapters.activations import Activation
from hra_jax.adapters.controllers import Recurrence, register
from hra_jax.adapters.weights import Weight, orthogonal_blocks

if TYPE_CHECKING:
    import jax


@register
class PlainRecurrence(Recurrence):
    """One matrix between the states of neighbouring layers."""

    name = "rnn"
    formula = "R * (D + R + 1)"

    def weights(self, width: int) -> dict[str, Weight]:
        return {"recurrent": orthogonal_blocks(width, 1)}

    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        state = act.apply(drive + carry @ weights["recurrent"])
        return state, state

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        state = act.torch_apply(drive + carry @ weights["recurrent"])
        return state, state
