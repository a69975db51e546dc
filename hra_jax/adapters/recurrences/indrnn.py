"""The independently recurrent network (arXiv 1803.04831): each unit sees its own state alone.

s_l = act(W x_l + u * s_{l-1} + b)            R (D + 2) weights
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.activations import Activation
from hra_jax.adapters.controllers import Recurrence, register
from hra_jax.adapters.weights import Weight, uniform

with epy.lazy_imports():
    from hra_jax.models import layers

if TYPE_CHECKING:
    import jax


@register
class IndependentRecurrence(Recurrence):
    """One recurrent weight for each unit."""

    name = "indrnn"
    formula = "R * (D + 2)"

    def weights(self, width: int) -> dict[str, Weight]:
        # Between forgetting and keeping: each unit gets its own reach over the depth.
        return {"recurrent": uniform(width)}

    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        state = act.apply(drive + layers.along_last(weights["recurrent"], drive) * carry)
        return state, state

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        state = act.torch_apply(drive + weights["recurrent"] * carry)
        return state, state
