"""Heads of the hierarchical recurrent adapter: from the controller's state to a correction of the layer's output.

    linear   o = V s + c                            R D + D weights
    ffn      o = V2 relu(V1 s + c1) + c2            H (R + 1) + D (H + 1)
    lowrank  o = V2 (V1 s) + c                      H R + D (H + 1)

A new one is one more class, here or in a file of its own with a call of `register`.

Letters: B batch, T frames, D width, R controller width, H hidden width or rank.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from etils import epy

from hra_jax.adapters import formula
from hra_jax.adapters.registry import Registry, without_torch
from hra_jax.adapters.weights import Weight, lecun_normal, zeros

# Imported at the first use: either library is enough for its own formulas.
with epy.lazy_imports():
    import flax.linen as nn
    import torch

    from hra_jax.models import layers

if TYPE_CHECKING:
    import jax


class Head(abc.ABC):
    """A map from the state to a correction that is zero when new.

    A class of its own says:
      name: the value of `hra.head`.
      formula: the number of weights, over D, R and H.
    """

    name: ClassVar[str]
    formula: ClassVar[str]

    @abc.abstractmethod
    def weights(self, *, width: int, state: int, hidden: int) -> dict[str, Weight]:
        """The weights in the order in which they are drawn; `width` is D, `state` is R, `hidden` is H."""

    @abc.abstractmethod
    def apply(self, weights: Mapping[str, jax.Array], state: jax.Array) -> jax.Array:
        """The correction `[..., D]` of the state `[..., R]`, float32, by the head of one task."""

    @classmethod
    def check_torch(cls) -> None:
        """Refuses, with a UserError, a head that has no PyTorch formula."""
        if cls.torch_apply is Head.torch_apply:
            raise without_torch("head", cls.name, "torch_apply")

    def torch_apply(self, weights: Mapping[str, Any], state: Any) -> Any:
        """The correction `[B, T, D]` of the state `[B, T, R]` in PyTorch; weights `[B, ...]`, a head for each row."""
        raise without_torch("head", self.name, "torch_apply")


def _lacks(cls: type[Head]) -> str | None:
    if not (isinstance(cls, type) and issubclass(cls, Head)):
        return "is no class that derives from Head"
    if cls.__abstractmethods__:
        return f"lacks `{min(cls.__abstractmethods__)}`"
    return formula.wrong_with(getattr(cls, "formula", None), ("D", "R", "H"))


HEADS: Registry[type[Head]] = Registry("head", lacks=_lacks)
register = HEADS.register


@register
class LinearHead(Head):
    """One matrix and a bias."""

    name = "linear"
    formula = "D * (R + 1)"

    def weights(self, *, width: int, state: int, hidden: int) -> dict[str, Weight]:
        return {"kernel": zeros(state, width), "bias": zeros(width)}

    def apply(self, weights: Mapping[str, jax.Array], state: jax.Array) -> jax.Array:
        bias: jax.Array = layers.along_last(weights["bias"], state)
        return state @ weights["kernel"] + bias

    def torch_apply(self, weights: Mapping[str, Any], state: Any) -> Any:
        return state @ weights["kernel"] + weights["bias"][:, None, :]


@register
class LowRankHead(LinearHead):
    """Two matrices through a bottleneck, and a bias."""

    name = "lowrank"
    formula = "H * R + D * (H + 1)"

    def weights(self, *, width: int, state: int, hidden: int) -> dict[str, Weight]:
        inner = {"hidden_kernel": lecun_normal(state, hidden)}
        return inner | super().weights(width=width, state=hidden, hidden=hidden)

    def apply(self, weights: Mapping[str, jax.Array], state: jax.Array) -> jax.Array:
        return super().apply(weights, state @ weights["hidden_kernel"])

    def torch_apply(self, weights: Mapping[str, Any], state: Any) -> Any:
        return super().torch_apply(weights, state @ weights["hidden_kernel"])


@register
class FeedForwardHead(LinearHead):
    """Two layers with a rectifier between them."""

    name = "ffn"
    formula = "H * (R + 1) + D * (H + 1)"

    def weights(self, *, width: int, state: int, hidden: int) -> dict[str, Weight]:
        inner = {"hidden_kernel": lecun_normal(state, hidden), "hidden_bias": zeros(hidden)}
        return inner | super().weights(width=width, state=hidden, hidden=hidden)

    def apply(self, weights: Mapping[str, jax.Array], state: jax.Array) -> jax.Array:
        hidden = state @ weights["hidden_kernel"]
        hidden = nn.relu(hidden + layers.along_last(weights["hidden_bias"], hidden))
        return super().apply(weights, hidden)

    def torch_apply(self, weights: Mapping[str, Any], state: Any) -> Any:
        hidden = torch.relu(state @ weights["hidden_kernel"] + weights["hidden_bias"][:, None, :])
        return super().torch_apply(weights, hidden)
