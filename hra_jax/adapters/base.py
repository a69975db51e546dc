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

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import numpy as np
from etils import epy

from hra_jax.adapters.formula import Formula
from hra_jax.adapters.output_kinds import NEVER, OUTPUTS, OWN_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.adapters.registry import without_torch
from hra_jax.adapters.weights import Tree
from hra_jax.config.settings import Rule, check_settings, integer, number, one_of, setting
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import MOST_LAYERS
from hra_jax.text.published_vocabularies import MOST_SYMBOLS

# Imported at the first use, so that hra_jax.torch, and commands that only read, need no JAX.
with epy.lazy_imports():
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

if TYPE_CHECKING:
    from hra_jax.models.encoder_config import EncoderConfig

Params = tuple[Tree, Tree]  # (all_layers, per_layer) of `Bound`, without the layer axis
DropoutKey = Callable[[], "jax.Array | None"]  # gives a key for dropout; None where the pass is deterministic

PARTS = ("all_layers", "per_layer")
MOST_WIDTH = 2**16  # of a bottleneck or a controller, and the highest rank


def key_of(name: str) -> str:
    """The name of an affine map as a key of a parameter tree, where a dot would start a new level."""
    return name.replace(".", "_")


def no_parameters() -> Tree:
    """The tree of a scope that owns nothing."""
    return {part: {} for part in PARTS}


class Bound(NamedTuple):
    """Adapter parameters of the rows of one batch, as the encoder takes them.

    all_layers: {'shared': tree, 'rows': tree with leading `[B]`, 'active': bool `[B]`}.
    per_layer: {'shared': tree, 'rows': tree with a further `[B]`, 'adapted': bool}, each with leading `[layers]`;
      'adapted' is there only where some layers are not.
    """

    all_layers: Tree
    per_layer: Tree


class PeftFactor(NamedTuple):
    """One tensor of a task as PEFT holds it: `base_model.model.<module>.<name>.weight`."""

    affine_map: str  # a name of `affine_maps`
    layer: int  # from 0
    name: str  # such as 'lora_A'
    kernel: Any  # [in, out]


def _are_layers(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    return numbers and all(0 <= n < MOST_LAYERS for n in value) and len(set(value)) == len(value)


_LAYERS = Rule(lambda: f"a tuple of distinct layer numbers from 0 to {MOST_LAYERS - 1}, or () for all", _are_layers)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """No adaptation: the identity. Methods derive from it and override what they use.

    With `output='task'` every task also owns a correction of the output layer, `W' = W + W_a`, `b' = b + b_a`, zero
    when new: V (D + 1) parameters a task. With `output='characters'` or 'sentencepiece' the layer has `output_size`
    outputs, O, for a vocabulary of the task's own: what a task starts from are the backbone's outputs for the same
    characters, and 0 for others; O (D + 1) parameters a task. With 'shared_characters' or 'shared_sentencepiece' all
    tasks share one such layer and vocabulary: O (D + 1) parameters that belong to none of them.

    A method says of itself, beside its settings:
      name: the value of `adapter.name`, and the group of its settings in a configuration.
      description: what it is, in one phrase, for model cards and tables.
      peft_type: what its adapter folders call it. PEFT must refuse them, so it is none of PEFT's own names.
      uses_dropout: whether it has a place for `dropout`; others refuse it.
      adapts_layers: whether it adapts layers, so that `layers` chooses some.
    """

    name: ClassVar[str] = "none"
    description: ClassVar[str] = ""
    peft_type: ClassVar[str] = ""
    uses_dropout: ClassVar[bool] = False
    adapts_layers: ClassVar[bool] = True

    layers: tuple[int, ...] = setting((), _LAYERS, "numbers of the adapted layers, from 0; () for all")
    output: str = setting(
        "backbone",
        one_of(lambda: OUTPUTS),
        "output layer: backbone; task (each task owns a correction); characters, sentencepiece (each task owns it, "
        "with a new vocabulary of its training texts); shared_characters, shared_sentencepiece (one for all tasks)",
    )
    output_size: int = setting(
        0, integer(0, MOST_SYMBOLS), "outputs with a new vocabulary; 0: as many as the largest vocabulary needs"
    )
    dropout: float = setting(
        0.0,
        number(0, 1),
        "in training, of the state before the head (hra), the bottleneck (residual), or a projection's input on the "
        "low-rank path (lora)",
    )

    def __post_init__(self) -> None:
        check_settings(self, self.name)
        if self.own_vocabulary != (self.output_size > 0):
            raise UserError(
                f"{self.name}.output_size = {self.output_size}: allowed with output={self.output!r}: "
                f"{'1 or more' if self.own_vocabulary else '0'}"
            )
        if self.dropout and not self.uses_dropout:
            raise UserError(f"{self.name}.dropout = {self.dropout}: allowed: 0, since {self.name!r} has none")
        if self.layers and not self.adapts_layers:
            raise UserError(f"{self.name}.layers = {self.layers}: allowed: (), since {self.name!r} adapts no layer")

    def adapted(self, encoder: EncoderConfig) -> tuple[int, ...]:
        """The numbers of the adapted layers, ascending.

        Raises:
          UserError: a layer that the encoder does not have, or one given twice.
        """
        if not self.layers:
            return tuple(range(encoder.n_layers))
        if not all(n < encoder.n_layers for n in self.layers):
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

    @classmethod
    def defines(cls, part: str) -> bool:
        """Whether the method has a part that not every method needs: such as 'merged' or 'torch_after_layer'."""
        return getattr(cls, part) is not getattr(Adapter, part)

    # --- what a method declares ---

    def init_shared(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """Parameters shared by all tasks, without the output layer."""
        del rng, encoder
        return no_parameters()

    def init_own(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """Parameters of one task, without the output layer. A new task must leave the encoder's output unchanged."""
        del rng, encoder
        return no_parameters()

    def own_formula(self) -> Formula:
        """Numbers of parameters of `init_shared` and `init_own`, over `letters`."""
        return Formula("0", "0")

    def letters(self, encoder: EncoderConfig) -> dict[str, int]:
        """What the letters of the formula stand for."""
        return {
            "D": encoder.d_model,
            "L": len(self.adapted(encoder)),
            "V": encoder.vocab_size,
            "O": self.outputs(encoder),
        }

    def outputs(self, encoder: EncoderConfig) -> int:
        """Outputs of the last layer: V, or O."""
        return self.output_size or encoder.vocab_size

    # --- what follows from it ---

    def init_task(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """Parameters of one task."""
        tree = self.init_own(rng, encoder)
        if self.output != "backbone" and not self.shared_output:
            tree["all_layers"]["output"] = self._new_output(encoder)
        return tree

    def init_common(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """Parameters of all tasks together."""
        tree = self.init_shared(rng, encoder)
        if self.shared_output:
            tree["all_layers"]["output"] = self._new_output(encoder)
        return tree

    def _new_output(self, encoder: EncoderConfig) -> Tree:
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

    def initial_carry(self, x: jax.Array) -> Any:
        """What runs through the depth beside x `[B, T, D]`, before the first layer."""
        del x
        return ()

    def after_affine(self, params: Params, name: str, x: jax.Array, y: jax.Array, *, rng: DropoutKey) -> jax.Array:
        """The output y `[B, T, out]` of the affine map `name` of x `[B, T, in]`, adapted.

        `params` is (all_layers, per_layer) of `Bound` with the layer axis taken off; `rng()` gives a key for dropout,
        or None where the pass is deterministic. The names are those of `models.encoder_config.affine_maps`.
        """
        del params, name, x, rng
        return y

    def after_layer(
        self, params: Params, x: jax.Array, carry: Any, taps: Mapping[str, jax.Array], *, rng: DropoutKey
    ) -> tuple[jax.Array, Any]:
        """The layer's output x `[B, T, D]` and the carry, adapted; `taps` holds what the property of that name asks."""
        del params, taps, rng
        return x, carry

    def voice(self, x: jax.Array, carry: Any) -> jax.Array:
        """What tells voices apart, of each frame after a layer: x `[B, T, D]`, or what the method knows better.

        Args:
          x: `[B, T, D]`, what the layer gave.
          carry: what runs on to the next layer.

        Returns:
          `[B, T, S]`.
        """
        del carry
        return x

    def after_output(self, all_layers: Tree, x: jax.Array, logits: jax.Array, symbols: jax.Array | None) -> jax.Array:
        """The logits of the encoder's output, adapted.

        Args:
          all_layers: as in `Bound`; {} without an adapter.
          x: `[B, T, D]`.
          logits: `[B, T, V]`.
          symbols: int32 `[B, O]`, where each output of an utterance's own vocabulary starts from: an output of the
            backbone, V for 0, beyond V for none at all; None for the backbone's own vocabulary.

        Returns:
          `[B, T, V]`, or `[B, T, O]` with `NEVER` after the end of a shorter vocabulary.
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

    def _correction(self, all_layers: Tree, x: jax.Array) -> jax.Array:
        """What the output layer of each utterance's task, or of all tasks, adds: float32 `[B, T, O]`."""
        if not self.shared_output:
            return affine(all_layers["rows"]["output"], x)
        layer = all_layers["shared"]["output"]
        y = jnp.einsum("btd,do->bto", x, layer["kernel"].astype(x.dtype), preferred_element_type=jnp.float32)
        # `__base__` is the backbone alone.
        return jnp.where(all_layers["active"][:, None, None], y + layer["bias"][None, None, :], 0.0)

    def dropped(self, x: jax.Array, rng: DropoutKey) -> jax.Array:
        """x with `dropout` in training, as it is where the pass is deterministic; for what a method drops."""
        if not self.dropout or (key := rng()) is None:
            return x
        return cast("jax.Array", nn.Dropout(self.dropout, deterministic=False).apply({}, x, rngs={"dropout": key}))

    # --- PyTorch ---

    def torch_initial_carry(self, x: Any) -> Any:
        """As `initial_carry`, of a PyTorch tensor."""
        del x
        return ()

    def torch_after_layer(self, params: Params, x: Any, carry: Any, taps: Mapping[str, Any]) -> tuple[Any, Any]:
        """As `after_layer`, of PyTorch tensors and without dropout; `taps` has 'input' where the method wants it.

        Raises:
          UserError: the method has no PyTorch formula.
        """
        raise without_torch("method", self.name, "torch_after_layer")

    def check_torch(self) -> None:
        """Refuses settings that have no PyTorch formula.

        Raises:
          UserError: one of them has none.
        """

    def encoder_width(self, row: Mapping[str, tuple[int, ...]]) -> int | None:
        """D as the weights of a task `{dotted path: shape}` tell it; None where they do not."""
        output = row.get("all_layers.output.kernel")
        return None if output is None else output[0]

    # --- merged into a backbone, or given to PEFT ---

    def merged(self, layer_weights: Tree, row: Tree, encoder: EncoderConfig) -> dict[tuple[str, ...], jax.Array]:
        """{path of a weight of the layers: what it becomes} with the correction of one task added in.

        Args:
          layer_weights: the stacked weights of the layers, leaves `[layers, ...]`.
          row: the parameters of the task, as `init_task` shapes them.
          encoder: the geometry of the encoder.

        Raises:
          UserError: the method cannot be merged.
        """
        raise UserError(f"method {self.name!r} cannot be merged (`merged`)")

    def peft_config(self) -> dict[str, Any]:
        """What PEFT's own configuration of this method says, beside the modules that it adapts.

        Raises:
          UserError: PEFT has no such method.
        """
        raise UserError(f"PEFT has no method {self.name!r} of hra_jax (`peft_config`)")

    def peft_factors(self, row: Tree, encoder: EncoderConfig) -> Iterator[PeftFactor]:
        """The tensors of a task as PEFT holds them, without the output layer.

        Raises:
          UserError: PEFT has no such method.
        """
        raise UserError(f"PEFT has no method {self.name!r} of hra_jax (`peft_factors`)")


def affine(row: Tree, x: jax.Array) -> jax.Array:
    """x W + b with the weights of each utterance's own row: W `[B, in, out]`, b `[B, out]`; float32 `[B, T, out]`."""
    kernel = row["kernel"].astype(x.dtype)
    y = jnp.einsum("bti,bio->bto", x, kernel, preferred_element_type=jnp.float32)
    bias: jax.Array = row["bias"]
    return y + bias[:, None, :]


def take_rows(tree: Tree, index: jax.Array) -> Tree:
    """Rows of a bank by position.

    Args:
      tree: leaves `[K, ...]`.
      index: int32 `[B]`; K or beyond gives zeros (`__base__` and padding rows), never another row.
    """
    taken: Tree = jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="fill", fill_value=0), tree)
    return taken


def bind(adapter: Adapter, encoder: EncoderConfig, shared: Tree, rows: Tree, index: jax.Array) -> Bound:
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
        numbers = np.array(adapted)

        def spread(leaf: jax.Array) -> jax.Array:
            return jnp.zeros((encoder.n_layers, *leaf.shape[1:]), leaf.dtype).at[numbers].set(leaf)

        per_layer = jax.tree.map(spread, per_layer) | {
            "adapted": jnp.zeros(encoder.n_layers, bool).at[numbers].set(True)
        }
    return Bound(
        all_layers={"shared": shared["all_layers"], "rows": taken["all_layers"], "active": index < count},
        per_layer=per_layer,
    )


def unbound() -> Bound:
    """What the encoder takes when there is no adapter."""
    return Bound(all_layers={}, per_layer={})


def unless_skipped(per_layer: Tree, new: Any, old: Any) -> Any:
    """`new` in an adapted layer, `old` in another; trees of arrays."""
    if "adapted" not in per_layer:
        return new
    return jax.tree.map(lambda a, b: jnp.where(per_layer["adapted"], a, b), new, old)
