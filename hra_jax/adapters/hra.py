"""The hierarchical recurrent adapter (arXiv 2403.19709).

One controller for all layers and all tasks recurs over the depth of the encoder, frame by frame; a head per task, the
same for all layers, turns its state into a correction of the layer's output:

    s_l = relu(W x_l + u * s_{l-1} + b),  s_0 = 0
    x_l <- x_l + head(s_l),  linear head: V s + c;  FFN head: V2 relu(V1 s + c1) + c2

Letters: B batch, T frames, D width, R controller width, H hidden width of an FFN head.

Parameters: shared R (D + 2); a task R D + D with a linear head, H (R + 1) + D (H + 1) with an FFN head.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.errors import UserError


class IndRNN(nn.Module):
    """Independently recurrent controller: each unit recurs on itself alone (arXiv 1803.04831)."""

    width: int

    @nn.compact
    def __call__(self, x, state):
        """x `[..., D]`, state float32 `[..., R]` -> the new state, float32."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.width))
        # Between forgetting and keeping: each unit gets its own reach over the depth.
        recurrent = self.param("recurrent", nn.initializers.uniform(scale=1.0), (self.width,))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        drive = jnp.einsum("...d,dr->...r", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        shape = (1,) * (drive.ndim - 1) + (self.width,)
        return nn.relu(drive + recurrent.reshape(shape) * state + bias.reshape(shape))


class LinearHead(nn.Module):
    """o = V s + c; zero when new."""

    width: int

    @nn.compact
    def __call__(self, state):
        """`[..., R]` -> `[..., width]`."""
        kernel = self.param("kernel", nn.initializers.zeros, (state.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return state @ kernel + bias.reshape((1,) * (state.ndim - 1) + (-1,))


class FFNHead(nn.Module):
    """o = V2 relu(V1 s + c1) + c2; zero when new."""

    hidden: int
    width: int

    @nn.compact
    def __call__(self, state):
        """`[..., R]` -> `[..., width]`."""
        kernel = self.param("hidden_kernel", nn.initializers.lecun_normal(), (state.shape[-1], self.hidden))
        bias = self.param("hidden_bias", nn.initializers.zeros, (self.hidden,))
        hidden = nn.relu(state @ kernel + bias.reshape((1,) * (state.ndim - 1) + (-1,)))
        return LinearHead(self.width, name="output")(hidden)


HEADS = ("linear", "ffn")


@dataclasses.dataclass(frozen=True)
class HierarchicalRecurrentAdapter(Adapter):
    """Hyper-parameters of the method; the modules are applied to explicit trees."""

    name: ClassVar[str] = "hra"

    width: int = 64  # R
    head: str = "linear"  # linear | ffn
    head_width: int = 32  # H, hidden width of an FFN head
    dropout: float = 0.0  # of the controller's state, before the head

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"adapter.head = {self.head!r}: allowed are {', '.join(map(repr, HEADS))}")

    def _head(self, d_model: int) -> nn.Module:
        return LinearHead(d_model) if self.head == "linear" else FFNHead(self.head_width, d_model)

    def init_shared(self, rng, encoder) -> dict:
        """The controller: it has no layer axis, one set of weights serves every layer."""
        x, state = jnp.zeros((1, encoder.d_model)), jnp.zeros((1, self.width))
        controller = IndRNN(self.width).init(rng, x, state)["params"]
        return no_parameters() | {"all_layers": {"controller": controller}}

    def init_task(self, rng, encoder) -> dict:
        """One task's head."""
        head = self._head(encoder.d_model).init(rng, jnp.zeros((1, self.width)))["params"]
        return no_parameters() | {"all_layers": {"head": head}}

    def initial_carry(self, x):
        """s_0 = 0: float32 `[B, T, R]`."""
        return jnp.zeros((*x.shape[:2], self.width), jnp.float32)

    def after_layer(self, params, x, carry, *, rng):
        """Advances the controller and adds each utterance's own head."""
        all_layers, _ = params
        state = IndRNN(self.width).apply({"params": all_layers["shared"]["controller"]}, x, carry)
        read = state
        if self.dropout and (key := rng()) is not None:
            read = nn.Dropout(self.dropout, deterministic=False).apply({}, state, rngs={"dropout": key})
        head = self._head(x.shape[-1])
        delta = jax.vmap(lambda row, s: head.apply({"params": row}, s))(all_layers["rows"]["head"], read)
        # `where`, so that `__base__` rows are untouched whatever the controller holds.
        delta = jnp.where(all_layers["active"][:, None, None], delta, 0.0)
        return x + delta.astype(x.dtype), state
