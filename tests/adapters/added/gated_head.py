"""A head and an activation in one file: a linear head behind a gate of the state, and a rectifier that leaks."""

from __future__ import annotations

import flax.linen as nn
from etils import epy

from hra_jax.adapters import activations
from hra_jax.adapters.heads import LinearHead, register
from hra_jax.adapters.weights import lecun_normal

with epy.lazy_imports():
    import torch

activations.register(
    activations.Activation("leaky_relu", lambda x: nn.leaky_relu(x), lambda x: torch.nn.functional.leaky_relu(x))
)


@register
class GatedHead(LinearHead):
    """o = V (s sigmoid(G s)) + c."""

    name = "gated"
    formula = "R * R + D * (R + 1)"

    def weights(self, *, width, state, hidden):
        return {"gate": lecun_normal(state, state)} | super().weights(width=width, state=state, hidden=hidden)

    def apply(self, weights, state):
        return super().apply(weights, state * nn.sigmoid(state @ weights["gate"]))

    def torch_apply(self, weights, state):
        return super().torch_apply(weights, state * (state @ weights["gate"]).sigmoid())
