"""The controller of the hierarchical recurrent adapter: a recurrence over the depth of the encoder.

x_l is what layer l gives, s_{l-1} the state after the layer below (zero before the first), `act` the activation.
Every recurrence is a file of `hra_jax.adapters.recurrences`: its step in JAX and in PyTorch, its weights, and the
formula of their number. A new one is one more file there, or anywhere else with a call of `register`.

All begin with the drive W x_l + b. W holds several products of x_l side by side, the blocks: the candidate first, then
the gates.

Letters: B batch, T frames, D width of what the controller reads, R controller width.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from etils import epy

from hra_jax.adapters import formula, weights
from hra_jax.adapters.activations import ACTIVATIONS, Activation
from hra_jax.adapters.registry import Registry, without_torch
from hra_jax.adapters.weights import Tree, Weight

# Imported at the first use, so that hra_jax.torch needs no JAX.
with epy.lazy_imports():
    import jax.numpy as jnp

    from hra_jax.models import layers

if TYPE_CHECKING:
    import jax


class Recurrence(abc.ABC):
    """One way to advance the state of a controller.

    A class of its own says:
      name: the value of `hra.recurrence`.
      formula: the number of weights, over D and R.
      blocks: how many products of x the drive holds.
      carried: how many vectors `[R]` run through the depth for each frame; the state is the first of them.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    blocks: ClassVar[int] = 1
    carried: ClassVar[int] = 1

    def weights(self, width: int) -> dict[str, Weight]:
        """The weights beside W and b, in the order in which they are drawn; `width` is R."""
        del width
        return {}

    @abc.abstractmethod
    def step(
        self, weights: Mapping[str, jax.Array], drive: jax.Array, carry: jax.Array, act: Activation
    ) -> tuple[jax.Array, jax.Array]:
        """One step.

        Args:
          weights: of the controller, float32.
          drive: W x + b, float32 `[..., blocks R]`.
          carry: float32 `[..., carried R]`, zero before the first layer.
          act: the activation; `act.apply` is its function.

        Returns:
          The new state float32 `[..., R]`, and the new carry.
        """

    @classmethod
    def check_torch(cls) -> None:
        """Refuses, with a UserError, a recurrence that has no PyTorch formula."""
        if cls.torch_step is Recurrence.torch_step:
            raise without_torch("recurrence", cls.name, "torch_step")

    def torch_step(self, weights: Mapping[str, Any], drive: Any, carry: Any, act: Activation) -> tuple[Any, Any]:
        """As `step`, of PyTorch tensors; `act.torch_apply` is the activation."""
        raise without_torch("recurrence", self.name, "torch_step")


def _lacks(cls: type[Recurrence]) -> str | None:
    if not (isinstance(cls, type) and issubclass(cls, Recurrence)):
        return "is no class that derives from Recurrence"
    if cls.__abstractmethods__:
        return f"lacks `{min(cls.__abstractmethods__)}`"
    for count, least in (("blocks", 1), ("carried", 0)):
        value = getattr(cls, count)
        if type(value) is not int or value < least:
            return f"has {count} = {value!r}; allowed: an integer of at least {least}"
    return formula.wrong_with(getattr(cls, "formula", None), ("D", "R"))


RECURRENCES: Registry[type[Recurrence]] = Registry("recurrence", lacks=_lacks)
register = RECURRENCES.register


def carry_width(recurrence: str, width: int) -> int:
    """Numbers per frame that run through the depth, with R = `width`."""
    return RECURRENCES[recurrence].carried * width


def new_weights(recurrence: str, rng: jax.Array, *, inputs: int, width: int) -> Tree:
    """New weights of a controller that reads `inputs` numbers per frame, with R = `width`: float32."""
    found = RECURRENCES[recurrence]()
    size = found.blocks * width
    declared = {"kernel": weights.lecun_normal(inputs, size), "bias": weights.zeros(size)}
    return weights.draw(declared | found.weights(width), rng)


def advance(
    params: Mapping[str, jax.Array], x: jax.Array, carry: jax.Array, recurrence: str, activation: str
) -> tuple[jax.Array, jax.Array]:
    """One step of a controller.

    Args:
      params: what `new_weights` gave, or what came of it.
      x: `[..., D]`, of any floating-point dtype.
      carry: float32 `[..., carry_width]`.
      recurrence: a name in `RECURRENCES`.
      activation: a name in `ACTIVATIONS`.

    Returns:
      The new state float32 `[..., R]`, and the new carry.
    """
    drive = jnp.einsum("...d,dr->...r", x, params["kernel"].astype(x.dtype), preferred_element_type=jnp.float32)
    drive = drive + layers.along_last(params["bias"], drive)
    return RECURRENCES[recurrence]().step(params, drive, carry, ACTIVATIONS[activation])


def torch_advance(params: Mapping[str, Any], x: Any, carry: Any, recurrence: str, activation: str) -> tuple[Any, Any]:
    """As `advance`, of PyTorch tensors; all float32.

    Raises:
      UserError: the recurrence or the activation has no PyTorch formula.
    """
    drive = x @ params["kernel"] + params["bias"]
    return RECURRENCES[recurrence]().torch_step(params, drive, carry, ACTIVATIONS[activation])
