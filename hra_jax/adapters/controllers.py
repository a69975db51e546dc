"""The controller of the hierarchical recurrent adapter: a recurrence over the depth of the encoder.

x_l is what layer l gives, s_{l-1} the state after the layer below (zero before the first), `act` the activation.
A gate is g(W) = sigmoid(W x_l + U s_{l-1} + b) with weights of its own.

    none    s_l = act(W x_l + b)                                               R (D + 1) parameters
    indrnn  s_l = act(W x_l + u * s_{l-1} + b)            arXiv 1803.04831     R (D + 2)
    rnn     s_l = act(W x_l + U s_{l-1} + b)                                   R (D + R + 1)
    gru     n = act(W x_l + b + r * (U s_{l-1} + c)), s_l = (1 - z) n + z s_{l-1} with gates r, z
                                                          arXiv 1412.3555      3 R (D + R + 1) + R
    mgu     as gru with one gate f for both r and z       arXiv 1603.09420     2 R (D + R + 1) + R
    lstm    c_l = f c_{l-1} + i act(W x_l + U s_{l-1} + b), s_l = o act(c_l) with gates i, f, o
                                                          Hochreiter 1997      4 R (D + R + 1)

Weights of several products stand side by side: the candidate first, then the gates r z, f, or f i o.

Letters: D width, R controller width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.models.layers import along_last

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "silu": nn.silu, "sigmoid": nn.sigmoid}
FORMULAS = {
    "none": "R * (D + 1)",
    "indrnn": "R * (D + 2)",
    "rnn": "R * (D + R + 1)",
    "gru": "3 * R * (D + R + 1) + R",
    "mgu": "2 * R * (D + R + 1) + R",
    "lstm": "4 * R * (D + R + 1)",
}
_BLOCKS = {"none": 1, "indrnn": 1, "rnn": 1, "mgu": 2, "gru": 3, "lstm": 4}  # products of x, side by side


class Controller(nn.Module):
    """One step of the recurrence; the same weights serve every layer."""

    recurrence: str
    width: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x, carry):
        """Advances the state.

        Args:
          x: `[..., D]`.
          carry: float32 `[..., R]`, or `[..., 2 R]` for an LSTM: its state and its cell.

        Returns:
          The new state float32 `[..., R]`, and the new carry.
        """
        act, blocks, width = ACTIVATIONS[self.activation], _BLOCKS[self.recurrence], self.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], blocks * width))
        bias = self.param("bias", nn.initializers.zeros, (blocks * width,))
        drive = jnp.einsum("...d,dr->...r", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        drive = drive + along_last(bias, drive)
        if self.recurrence == "none":
            return act(drive), carry
        if self.recurrence == "indrnn":
            # Between forgetting and keeping: each unit gets its own reach over the depth.
            recurrent = self.param("recurrent", nn.initializers.uniform(scale=1.0), (width,))
            state = act(drive + along_last(recurrent, drive) * carry)
            return state, state
        before = carry[..., :width]
        recurrent = self.param("recurrent", _orthogonal_blocks(blocks), (width, blocks * width))
        feedback = before @ recurrent
        if self.recurrence == "rnn":
            state = act(drive + feedback)
            return state, state
        if self.recurrence == "lstm":
            gates = nn.sigmoid((drive + feedback)[..., width:])
            keep, write, show = jnp.split(gates, 3, axis=-1)
            cell = keep * carry[..., width:] + write * act((drive + feedback)[..., :width])
            state = show * act(cell)
            return state, jnp.concatenate([state, cell], axis=-1)
        # The candidate comes first; its feedback has a bias of its own, since the gate multiplies it.
        inner = self.param("feedback_bias", nn.initializers.zeros, (width,))
        gates = nn.sigmoid((drive + feedback)[..., width:])
        reset, keep = jnp.split(gates, 2, axis=-1) if self.recurrence == "gru" else (gates, gates)
        candidate = feedback[..., :width] + along_last(inner, drive)
        state = (1 - keep) * act(drive[..., :width] + reset * candidate) + keep * before
        return state, state


def _orthogonal_blocks(count: int):
    """An initialiser of `[R, count R]` whose square blocks are orthogonal."""

    def initialize(key, shape, dtype=jnp.float32):
        orthogonal, square = nn.initializers.orthogonal(), (shape[0], shape[0])
        blocks = [orthogonal(jax.random.fold_in(key, n), square, dtype) for n in range(count)]
        return jnp.concatenate(blocks, axis=-1)

    return initialize


def carry_width(recurrence: str, width: int) -> int:
    """Numbers per frame that run through the depth."""
    return {"none": 0, "lstm": 2 * width}.get(recurrence, width)
