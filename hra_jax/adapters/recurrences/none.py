"""No recurrence: every layer stands alone.

s_l = act(W x_l + b)            R (D + 1) weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hra_jax.adapters.activations import Activation
from hra_jax.adapters.controllers import Recurrence, register

if TYPE_CHECKING:
    import jax


@register
class NoRecurrence(Recurrence):
    """A feed-forward layer; nothing is carried."""

    name = "none"
    formula = "R * (D + 1)"
    carried = 0

    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        return act.apply(drive), carry

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        return act.torch_apply(drive), carry
