"""Activations of the controller, each with its PyTorch counterpart.

A new one is one call of `register`, here or in a file of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.registry import Registry, without_torch

# Imported at the first use: either library is enough for its own formulas.
with epy.lazy_imports():
    import flax.linen as nn
    import torch

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of every number by itself.

    Attributes:
      name: of the setting `hra.activation`.
      apply: the function of a float32 array.
      in_torch: the same function of a PyTorch tensor; None where there is none.
    """

    name: str
    apply: Callable[[jax.Array], jax.Array]
    in_torch: Callable[[Any], Any] | None = None

    def check_torch(self) -> None:
        """Refuses, with a UserError, an activation that has no PyTorch formula."""
        if self.in_torch is None:
            raise without_torch("activation", self.name, "in_torch")

    def torch_apply(self, x: Any) -> Any:
        """The activation of a PyTorch tensor."""
        if self.in_torch is None:
            raise without_torch("activation", self.name, "in_torch")
        return self.in_torch(x)


def _lacks(activation: Activation) -> str | None:
    return None if callable(activation.apply) else "lacks `apply`, a function of an array"


ACTIVATIONS: Registry[Activation] = Registry("activation", lacks=_lacks)
register = ACTIVATIONS.register


register(Activation("relu", lambda x: nn.relu(x), lambda x: torch.relu(x)))
register(Activation("tanh", lambda x: nn.tanh(x), lambda x: torch.tanh(x)))
# JAX's default for this one is the approximation by tanh.
register(Activation("gelu", lambda x: nn.gelu(x), lambda x: torch.nn.functional.gelu(x, approximate="tanh")))
register(Activation("silu", lambda x: nn.silu(x), lambda x: torch.nn.functional.silu(x)))
register(Activation("sigmoid", lambda x: nn.sigmoid(x), lambda x: torch.sigmoid(x)))
