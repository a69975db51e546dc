"""The hierarchical recurrent adapter (arXiv 2403.19709).

One controller for all layers and all tasks recurs over the depth of the encoder, frame by frame; a head per task, the
same for all layers, turns its state into a correction of the layer's output:

    s_l = relu(W x_l + u * s_{l-1} + b),  s_0 = 0
    x_l <- x_l + head(s_l)

Other recurrences and heads are in `controllers` and `heads`, with their numbers of parameters. With the defaults:
shared `R * (D + 2)`, a task `D * (R + 1)`. A head for each layer costs a task L times as much.

Letters: B batch, T frames, D width, L adapted layers, R controller width, H hidden width of a head.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters import controllers, heads
from hra_jax.adapters.base import Adapter, Formula, no_parameters, unless_skipped
from hra_jax.config.settings import boolean, integer, one_of, setting, text
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import affine_maps


@dataclasses.dataclass(frozen=True)
class HierarchicalRecurrentAdapter(Adapter):
    """Hyper-parameters of the method; the modules are applied to explicit trees."""

    name: ClassVar[str] = "hra"
    description: ClassVar[str] = "the hierarchical recurrent adapter of arXiv 2403.19709"
    uses_dropout: ClassVar[bool] = True

    width: int = setting(64, integer(1), "controller width R")
    recurrence: str = setting("indrnn", one_of(controllers.FORMULAS.keys), "recurrence; none is feed-forward")
    activation: str = setting("relu", one_of(controllers.ACTIVATIONS.keys), "activation of the controller")
    reads: str = setting(
        "layer",
        text(empty=False),
        "what the controller reads: layer (its output), input (of the layer), or an affine map, such as "
        "attention.output",
    )
    head: str = setting("linear", one_of(heads.FORMULAS.keys), "kind of head")
    head_width: int = setting(
        32, integer(1), "hidden units of an ffn head, rank of a lowrank one; unused by a linear head"
    )
    head_per_layer: bool = setting(False, boolean(), "a head for each adapted layer in place of one for all")

    def __post_init__(self):
        super().__post_init__()
        self._one_of("recurrence", controllers.FORMULAS)
        self._one_of("activation", controllers.ACTIVATIONS)
        self._one_of("head", heads.FORMULAS)

    def _controller(self) -> nn.Module:
        return controllers.Controller(self.recurrence, self.width, self.activation)

    def _head(self, d_model: int) -> nn.Module:
        return heads.Head(self.head, d_model, self.head_width)

    def _read_width(self, encoder) -> int:
        if self.reads in ("layer", "input"):
            return encoder.d_model
        maps = affine_maps(encoder)
        if self.reads not in maps:
            raise UserError(f"hra.reads = {self.reads!r}: allowed are 'layer', 'input', {', '.join(map(repr, maps))}")
        return maps[self.reads].outputs

    @property
    def taps(self) -> tuple[str, ...]:
        """What the controller reads, where it is not the layer's output."""
        return () if self.reads == "layer" else (self.reads,)

    def init_shared(self, rng, encoder) -> dict:
        """The controller: it has no layer axis, one set of weights serves every layer."""
        x = jnp.zeros((1, self._read_width(encoder)))
        carry = jnp.zeros((1, controllers.carry_width(self.recurrence, self.width)))
        return no_parameters() | {"all_layers": {"controller": self._controller().init(rng, x, carry)["params"]}}

    def init_own(self, rng, encoder) -> dict:
        """One task's head, or its heads."""

        def init(key):
            return self._head(encoder.d_model).init(key, jnp.zeros((1, self.width)))["params"]

        if not self.head_per_layer:
            return no_parameters() | {"all_layers": {"head": init(rng)}}
        keys = jax.random.split(rng, len(self.adapted(encoder)))
        return no_parameters() | {"per_layer": {"head": jax.vmap(init)(keys)}}

    def own_formula(self) -> Formula:
        """Of the controller and of a head."""
        shared = controllers.FORMULAS[self.recurrence]
        if self.reads not in ("layer", "input"):
            shared = shared.replace("D", "I")
        task = heads.FORMULAS[self.head]
        return Formula(shared, f"L * ({task})" if self.head_per_layer else task)

    def letters(self, encoder) -> dict[str, int]:
        """R, H, and I, the width of what the controller reads."""
        own = {"R": self.width, "H": self.head_width, "I": self._read_width(encoder)}
        return super().letters(encoder) | own

    def initial_carry(self, x):
        """s_0 = 0: float32 `[B, T, R]`, or what else the recurrence carries."""
        return jnp.zeros((*x.shape[:2], controllers.carry_width(self.recurrence, self.width)), jnp.float32)

    def after_layer(self, params, x, carry, taps, *, rng):
        """Advances the controller and adds each utterance's own head."""
        all_layers, per_layer = params
        read = taps[self.reads] if self.taps else x
        state, new_carry = self._controller().apply({"params": all_layers["shared"]["controller"]}, read, carry)
        if self.dropout and (key := rng()) is not None:
            state = nn.Dropout(self.dropout, deterministic=False).apply({}, state, rngs={"dropout": key})
        rows = per_layer["rows"]["head"] if self.head_per_layer else all_layers["rows"]["head"]
        head = self._head(x.shape[-1])
        delta = jax.vmap(lambda row, s: head.apply({"params": row}, s))(rows, state)
        # `where`, so that `__base__` rows are untouched whatever the controller holds.
        delta = jnp.where(all_layers["active"][:, None, None], delta, 0.0)
        return unless_skipped(per_layer, (x + delta.astype(x.dtype), new_carry), (x, carry))
