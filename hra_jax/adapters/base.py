"""What every adaptation method is to the encoder.

A method is a frozen dataclass of hyper-parameters. It declares two trees by initialising them: what all tasks share,
and what one task owns. Each tree has two parts, `all_layers` (used by every layer) and `per_layer` (leaves with a
leading axis of L layers). The trainable tree of a run is then

    {'shared': {'all_layers': ..., 'per_layer': [L, ...]},
     'tasks':  {'all_layers': [A, ...], 'per_layer': [A, L, ...]}}

The encoder knows two hooks: after each named projection, and after each layer with a carry through the depth.

Letters: B batch, T frames, D width, L layers, A tasks.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

PARTS = ("all_layers", "per_layer")


def no_parameters() -> dict:
    """The tree of a scope that owns nothing."""
    return {part: {} for part in PARTS}


class Bound(NamedTuple):
    """Adapter parameters of the rows of one batch, as the encoder takes them.

    all_layers: {'shared': tree, 'rows': tree with leading `[B]`, 'active': bool `[B]`}.
    per_layer: {'shared': tree with leading `[L]`, 'rows': tree with leading `[L, B]`}.
    """

    all_layers: dict
    per_layer: dict


@dataclasses.dataclass(frozen=True)
class Adapter:
    """No adaptation: the identity. Methods derive from it and override what they use."""

    name: ClassVar[str] = "none"

    def init_shared(self, rng, encoder) -> dict:
        """Parameters shared by all tasks; `encoder` is an `EncoderConfig`."""
        del rng, encoder
        return no_parameters()

    def init_task(self, rng, encoder) -> dict:
        """Parameters of one task. A new task must leave the encoder's output unchanged."""
        del rng, encoder
        return no_parameters()

    def initial_carry(self, x) -> Any:
        """What runs through the depth beside x `[B, T, D]`, before the first layer."""
        del x
        return ()

    def after_projection(self, params, name: str, x, y, *, rng):
        """The output y `[B, T, out]` of the projection `name` of x `[B, T, in]`, adapted.

        `params` is (all_layers, per_layer) of `Bound` with the `[L]` axis taken off; `rng()` gives a key for dropout,
        or None where the pass is deterministic.
        """
        del params, name, x, rng
        return y

    def after_layer(self, params, x, carry, *, rng):
        """The layer's output x `[B, T, D]` and the carry, adapted."""
        del params, rng
        return x, carry


def take_rows(tree, index):
    """Rows of a bank by position.

    Args:
      tree: leaves `[K, ...]`.
      index: int32 `[B]`; K or beyond gives zeros (`__base__` and padding rows), never another row.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="fill", fill_value=0), tree)


def bind(shared: dict, rows: dict, index) -> Bound:
    """Gathers what each utterance of a batch needs, once, outside the scan over layers.

    Args:
      shared: the shared tree.
      rows: the tree of K gathered task rows.
      index: int32 `[B]`, the position of each utterance's task among the K rows; K or beyond means `__base__`.
    """
    leaves = jax.tree.leaves(rows)
    count = leaves[0].shape[0] if leaves else 0
    taken = take_rows(rows, index)
    per_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), taken["per_layer"])
    return Bound(
        all_layers={"shared": shared["all_layers"], "rows": taken["all_layers"], "active": index < count},
        per_layer={"shared": shared["per_layer"], "rows": per_layer},
    )


def unbound() -> Bound:
    """What the encoder takes when there is no adapter."""
    return Bound(all_layers={}, per_layer={})
