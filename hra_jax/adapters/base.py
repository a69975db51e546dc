"""What every adaptation method is to the encoder.

A method is a frozen dataclass of hyper-parameters. It declares two trees by initialising them: what all tasks share,
and what one task owns. Each tree has two parts, `all_layers` (used by every layer) and `per_layer` (leaves with a
leading axis over the adapted layers). The parameters of an adapter are then

    {'shared': {'all_layers': ..., 'per_layer': [L, ...]},
     'tasks':  {'all_layers': [A, ...], 'per_layer': [A, L, ...]}}

The encoder knows three hooks: after each named affine map, after each layer with a carry through the depth, and after
its output layer.

Letters: B batch, T frames, D width, L adapted layers, A tasks, K gathered rows, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters.outputs import OUTPUTS, OWN_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.errors import UserError

PARTS = ("all_layers", "per_layer")
NEVER = -1e30  # logit of an output that a vocabulary does not have; finite, so that 0 times it is 0


def no_parameters() -> dict:
    """The tree of a scope that owns nothing."""
    return {part: {} for part in PARTS}


class Bound(NamedTuple):
    """Adapter parameters of the rows of one batch, as the encoder takes them.

    all_layers: {'shared': tree, 'rows': tree with leading `[B]`, 'active': bool `[B]`}.
    per_layer: {'shared': tree, 'rows': tree with a further `[B]`, 'adapted': bool}, each with leading `[layers]`;
      'adapted' is there only where some layers are not.
    """

    all_layers: dict
    per_layer: dict


class Formula(NamedTuple):
    """The number of parameters as arithmetic over letters, such as `R * (D + 2)`."""

    shared: str
    task: str

    def count(self, letters: Mapping[str, int]) -> tuple[int, int]:
        """The shared number and that of one task, with the letters filled in."""
        shared, task = (eval(text, {"__builtins__": {}}, dict(letters)) for text in self)
        return shared, task


@dataclasses.dataclass(frozen=True)
class Adapter:
    """No adaptation: the identity. Methods derive from it and override what they use.

    With `output='task'` every task also owns a correction of the output layer, `W' = W + W_a`, `b' = b + b_a`, zero
    when new: V (D + 1) parameters a task. With `output='characters'` or 'sentencepiece' the layer has `output_size`
    outputs, O, for a vocabulary of the task's own: what a task starts from are the backbone's outputs for the same
    characters, and 0 for others; O (D + 1) parameters a task. With 'shared_characters' or 'shared_sentencepiece' all
    tasks share one such layer and vocabulary: O (D + 1) parameters that belong to none of them.
    """

    name: ClassVar[str] = "none"
    description: ClassVar[str] = "no adapter"  # for model cards
    uses_dropout: ClassVar[bool] = False

    layers: tuple[int, ...] = ()  # the adapted layers, from 0; () for all
    output: str = "backbone"  # whose output layer, one of `outputs.OUTPUTS`
    output_size: int = 0  # O, outputs of a task's layer with a vocabulary of its own; 0 otherwise
    dropout: float = 0.0  # in training, of a method that uses it

    def __post_init__(self):
        self._one_of("output", OUTPUTS)
        if self.own_vocabulary != (self.output_size > 0):
            raise UserError(
                f"{self.name}.output_size = {self.output_size}: allowed with output={self.output!r}: "
                f"{'1 or more' if self.own_vocabulary else '0'}"
            )

    def _one_of(self, field: str, allowed) -> None:
        value = getattr(self, field)
        if value not in allowed:
            raise UserError(f"{self.name}.{field} = {value!r}: allowed are {', '.join(map(repr, allowed))}")

    def adapted(self, encoder) -> tuple[int, ...]:
        """The numbers of the adapted layers, ascending.

        Raises:
          UserError: a layer that the encoder does not have, or one given twice.
        """
        if not self.layers:
            return tuple(range(encoder.n_layers))
        if len(set(self.layers)) < len(self.layers) or not all(0 <= n < encoder.n_layers for n in self.layers):
            raise UserError(f"adapter.layers = {self.layers}: allowed are distinct numbers 0 to {encoder.n_layers - 1}")
        return tuple(sorted(self.layers))

    @property
    def own_vocabulary(self) -> bool:
        """Whether tasks write in vocabularies of their own, on `output_size` outputs of which the blank is 0."""
        return self.output in OWN_VOCABULARIES

    @property
    def shared_output(self) -> bool:
        """Whether all tasks share one output layer that is not the backbone's."""
        return self.output in SHARED_VOCABULARIES

    # --- what a method declares ---

    def init_shared(self, rng, encoder) -> dict:
        """Parameters shared by all tasks, without the output layer; `encoder` is an `EncoderConfig`."""
        del rng, encoder
        return no_parameters()

    def init_own(self, rng, encoder) -> dict:
        """Parameters of one task, without the output layer. A new task must leave the encoder's output unchanged."""
        del rng, encoder
        return no_parameters()

    def own_formula(self) -> Formula:
        """Numbers of parameters of `init_shared` and `init_own`, over `letters`."""
        return Formula("0", "0")

    def letters(self, encoder) -> dict[str, int]:
        """What the letters of the formula stand for."""
        return {
            "D": encoder.d_model,
            "L": len(self.adapted(encoder)),
            "V": encoder.vocab_size,
            "O": self.outputs(encoder),
        }

    def outputs(self, encoder) -> int:
        """Outputs of the last layer: V, or O."""
        return self.output_size or encoder.vocab_size

    # --- what follows from it ---

    def init_task(self, rng, encoder) -> dict:
        """Parameters of one task."""
        tree = self.init_own(rng, encoder)
        if self.output != "backbone" and not self.shared_output:
            tree["all_layers"]["output"] = self._new_output(encoder)
        return tree

    def init_common(self, rng, encoder) -> dict:
        """Parameters of all tasks together."""
        tree = self.init_shared(rng, encoder)
        if self.shared_output:
            tree["all_layers"]["output"] = self._new_output(encoder)
        return tree

    def _new_output(self, encoder) -> dict:
        size = self.outputs(encoder)
        return {"kernel": jnp.zeros((encoder.d_model, size)), "bias": jnp.zeros(size)}

    def formula(self) -> Formula:
        """Numbers of parameters, the output layer included."""
        shared, task = self.own_formula()
        if self.output != "backbone":
            layer = "V * (D + 1)" if self.output == "task" else "O * (D + 1)"
            if self.shared_output:
                shared = layer if shared == "0" else f"{shared} + {layer}"
            else:
                task = layer if task == "0" else f"{task} + {layer}"
        return Formula(shared, task)

    # --- hooks ---

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the affine maps whose outputs `after_layer` wants; 'input' is the layer's own input."""
        return ()

    def initial_carry(self, x) -> Any:
        """What runs through the depth beside x `[B, T, D]`, before the first layer."""
        del x
        return ()

    def after_affine(self, params, name: str, x, y, *, rng):
        """The output y `[B, T, out]` of the affine map `name` of x `[B, T, in]`, adapted.

        `params` is (all_layers, per_layer) of `Bound` with the layer axis taken off; `rng()` gives a key for dropout,
        or None where the pass is deterministic. The names are those of `models.encoder_config.affine_maps`.
        """
        del params, name, x, rng
        return y

    def after_layer(self, params, x, carry, taps, *, rng):
        """The layer's output x `[B, T, D]` and the carry, adapted; `taps` holds what the property of that name asks."""
        del params, taps, rng
        return x, carry

    def after_output(self, all_layers, x, logits, symbols):
        """The logits of the encoder's output, adapted.

        Args:
          all_layers: as in `Bound`; {} without an adapter.
          x: `[B, T, D]`.
          logits: `[B, T, V]`.
          symbols: int32 `[B, O]`, where each output of an utterance's own vocabulary starts from: an output of the
            backbone, V for 0, beyond V for none at all; None for the backbone's own vocabulary.

        Returns:
          `[B, T, V]`, or `[B, T, O]` with `NEVER` behind the end of a shorter vocabulary.
        """
        if self.own_vocabulary and symbols is not None:
            padded = jnp.pad(logits, ((0, 0), (0, 0), (0, 2)))
            start = jnp.take_along_axis(padded, jnp.minimum(symbols, logits.shape[-1] + 1)[:, None, :], axis=2)
            if all_layers:
                start = start + self._correction(all_layers, x).astype(start.dtype)
            return jnp.where((symbols > logits.shape[-1])[:, None, :], NEVER, start)
        if self.output != "task" or not all_layers:
            return logits
        return logits + affine(all_layers["rows"]["output"], x).astype(logits.dtype)

    def _correction(self, all_layers, x):
        """What the output layer of each utterance's task, or of all tasks, adds: float32 `[B, T, O]`."""
        if not self.shared_output:
            return affine(all_layers["rows"]["output"], x)
        layer = all_layers["shared"]["output"]
        y = jnp.einsum("btd,do->bto", x, layer["kernel"].astype(x.dtype), preferred_element_type=jnp.float32)
        # `__base__` is the backbone alone.
        return jnp.where(all_layers["active"][:, None, None], y + layer["bias"][None, None, :], 0.0)


def affine(row, x):
    """x W + b with the weights of each utterance's own row: W `[B, in, out]`, b `[B, out]`; float32 `[B, T, out]`."""
    kernel = row["kernel"].astype(x.dtype)
    y = jnp.einsum("bti,bio->bto", x, kernel, preferred_element_type=jnp.float32)
    return y + row["bias"][:, None, :]


def take_rows(tree, index):
    """Rows of a bank by position.

    Args:
      tree: leaves `[K, ...]`.
      index: int32 `[B]`; K or beyond gives zeros (`__base__` and padding rows), never another row.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="fill", fill_value=0), tree)


def bind(adapter: Adapter, encoder, shared: dict, rows: dict, index) -> Bound:
    """Gathers what each utterance of a batch needs, once, outside the scan over layers.

    Args:
      adapter: the method.
      encoder: the `EncoderConfig`.
      shared: the shared tree.
      rows: the tree of K gathered task rows.
      index: int32 `[B]`, the position of each utterance's task among the K rows; K or beyond means `__base__`.
    """
    leaves = jax.tree.leaves(rows)
    count = leaves[0].shape[0] if leaves else 0
    taken = take_rows(rows, index)
    own = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), taken["per_layer"])
    per_layer = {"shared": shared["per_layer"], "rows": own}
    adapted = adapter.adapted(encoder)
    if len(adapted) < encoder.n_layers:
        places = np.array(adapted)

        def spread(leaf):
            return jnp.zeros((encoder.n_layers, *leaf.shape[1:]), leaf.dtype).at[places].set(leaf)

        per_layer = jax.tree.map(spread, per_layer) | {
            "adapted": jnp.zeros(encoder.n_layers, bool).at[places].set(True)
        }
    return Bound(
        all_layers={"shared": shared["all_layers"], "rows": taken["all_layers"], "active": index < count},
        per_layer=per_layer,
    )


def unbound() -> Bound:
    """What the encoder takes when there is no adapter."""
    return Bound(all_layers={}, per_layer={})


def unless_skipped(per_layer: dict, new, old):
    """`new` in an adapted layer, `old` in another; trees of arrays."""
    if "adapted" not in per_layer:
        return new
    return jax.tree.map(lambda a, b: jnp.where(per_layer["adapted"], a, b), new, old)
