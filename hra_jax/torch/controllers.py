"""The controllers and heads of `hra_jax.adapters`, in PyTorch: the same formulas on the same weights.

Letters: B batch, T frames, D width, R controller width, H hidden width of a head.
"""

import torch
from torch.nn import functional

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    # JAX's default for this one is the approximation by tanh.
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}


def carry_width(recurrence: str, width: int) -> int:
    """Numbers per frame that run through the depth."""
    return {"none": 0, "lstm": 2 * width}.get(recurrence, width)


def advance(weights: dict, recurrence: str, activation: str, x, carry):
    """One step of the recurrence; the formulas are those of `hra_jax.adapters.controllers`.

    Args:
      weights: the controller's, float32.
      recurrence, activation: as in the method's settings.
      x: float32 `[B, T, D]`.
      carry: float32 `[B, T, carry_width]`.

    Returns:
      The new state float32 `[B, T, R]`, and the new carry.
    """
    act, drive = ACTIVATIONS[activation], x @ weights["kernel"] + weights["bias"]
    if recurrence == "none":
        return act(drive), carry
    if recurrence == "indrnn":
        state = act(drive + weights["recurrent"] * carry)
        return state, state
    width = weights["recurrent"].shape[0]
    before = carry[..., :width]
    feedback = before @ weights["recurrent"]
    if recurrence == "rnn":
        state = act(drive + feedback)
        return state, state
    gates = torch.sigmoid((drive + feedback)[..., width:])
    if recurrence == "lstm":
        keep, write, show = gates.chunk(3, dim=-1)
        cell = keep * carry[..., width:] + write * act((drive + feedback)[..., :width])
        state = show * act(cell)
        return state, torch.cat([state, cell], dim=-1)
    # gru and mgu: the gate multiplies the candidate's feedback, which has a bias of its own.
    reset, keep = gates.chunk(2, dim=-1) if recurrence == "gru" else (gates, gates)
    candidate = feedback[..., :width] + weights["feedback_bias"]
    state = (1 - keep) * act(drive[..., :width] + reset * candidate) + keep * before
    return state, state


def correction(rows: dict, kind: str, state):
    """What the heads of a batch add: rows of weights with leading `[B]`, state `[B, T, R]` -> `[B, T, D]`."""
    if kind != "linear":
        state = state @ rows["hidden_kernel"]
    if kind == "ffn":
        state = torch.relu(state + rows["hidden_bias"][:, None, :])
    return state @ rows["kernel"] + rows["bias"][:, None, :]
