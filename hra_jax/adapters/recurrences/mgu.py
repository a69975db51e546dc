"""The minimal gated unit (arXiv 1603.09420): a gated recurrent unit with one gate f for both r and z.

    n = act(W x_l + b + f * (U s_{l-1} + c)),  s_l = (1 - f) n + f s_{l-1}            2 R (D + R + 1) + R weights

The blocks are n, f.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hra_jax.adapters.controllers import register
from hra_jax.adapters.recurrences.gru import GatedRecurrentUnit

if TYPE_CHECKING:
    import jax


@register
class MinimalGatedUnit(GatedRecurrentUnit):
    """A candidate and one gate."""

    name = "mgu"
    formula = "2 * R * (D + R + 1) + R"
    blocks = 2

    def _gates(self, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        return gates, gates

    def _torch_gates(self, gates: Any) -> tuple[Any, Any]:
        return gates, gates
