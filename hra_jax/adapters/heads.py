"""Heads of the hierarchical recurrent adapter: from the controller's state to a correction of the layer's output.

    linear   o = V s + c                            R D + D parameters
    ffn      o = V2 relu(V1 s + c1) + c2            H (R + 1) + D (H + 1)
    lowrank  o = V2 (V1 s) + c                      H R + D (H + 1)

Letters: D width, R controller width, H hidden width or rank.
"""

import flax.linen as nn

from hra_jax.models.layers import along_last

FORMULAS = {"linear": "D * (R + 1)", "ffn": "H * (R + 1) + D * (H + 1)", "lowrank": "H * R + D * (H + 1)"}


class Head(nn.Module):
    """A head of one of the three kinds; its output is zero when new."""

    kind: str
    width: int  # of the output, D
    hidden: int = 0  # H

    @nn.compact
    def __call__(self, state):
        """`[..., R]` -> `[..., width]`."""
        if self.kind != "linear":
            name = "hidden_kernel"
            state = state @ self.param(name, nn.initializers.lecun_normal(), (state.shape[-1], self.hidden))
        if self.kind == "ffn":
            bias = self.param("hidden_bias", nn.initializers.zeros, (self.hidden,))
            state = nn.relu(state + along_last(bias, state))
        kernel = self.param("kernel", nn.initializers.zeros, (state.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return state @ kernel + along_last(bias, state)
