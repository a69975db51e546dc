"""The hierarchical recurrent adapter (arXiv 2403.19709).

One controller for all layers and all tasks recurs over the depth of the encoder, frame by frame; a head per task, the
same for all layers, turns its state into a correction of the layer's output:

    s_l = relu(W x_l + u * s_{l-1} + b),  s_0 = 0
    x_l <- x_l + head(s_l)

Other recurrences and heads are in `recurrences` and `heads`, with their numbers of parameters. With the defaults:
shared `R * (D + 2)`, a task `D * (R + 1)`. A head for each layer costs a task L times as much.

Letters: B batch, T frames, D width, L adapted layers, R controller width, H hidden width of a head.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters import controllers, weights
from hra_jax.adapters.activations import ACTIVATIONS
from hra_jax.adapters.base import MOST_WIDTH, Adapter, DropoutKey, Params, no_parameters, unless_skipped
from hra_jax.adapters.controllers import RECURRENCES
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.heads import HEADS
from hra_jax.adapters.methods import register
from hra_jax.adapters.weights import Tree
from hra_jax.config.settings import boolean, integer, one_of, setting, text
from hra_jax.errors import UserError

# Imported at the first use: either library is enough for its own formulas.
with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import torch

    from hra_jax.models import encoder_config

if TYPE_CHECKING:
    from hra_jax.adapters.heads import Head
    from hra_jax.models.encoder_config import EncoderConfig


@register
@dataclasses.dataclass(frozen=True)
class HierarchicalRecurrentAdapter(Adapter):
    """Hyper-parameters of the method; its weights are explicit trees."""

    name = "hra"
    description = "the hierarchical recurrent adapter of arXiv 2403.19709"
    peft_type = "HIERARCHICAL_RECURRENT"
    uses_dropout = True  # of the controller's state, before the head

    width: int = setting(64, integer(1, MOST_WIDTH), "controller width R")
    recurrence: str = setting("indrnn", one_of(lambda: RECURRENCES), "recurrence; none is feed-forward")
    activation: str = setting("relu", one_of(lambda: ACTIVATIONS), "activation of the controller")
    reads: str = setting(
        "layer",
        text(empty=False),
        "what the controller reads: layer (its output), input (of the layer), or an affine map, such as "
        "attention.output",
    )
    head: str = setting("linear", one_of(lambda: HEADS), "kind of head")
    head_width: int = setting(
        32, integer(1, MOST_WIDTH), "hidden units of an ffn head, rank of a lowrank one; unused by a linear head"
    )
    head_per_layer: bool = setting(False, boolean(), "a head for each adapted layer in place of one for all")

    def _head(self) -> Head:
        return HEADS[self.head]()

    def _read_width(self, encoder: EncoderConfig) -> int:
        if self.reads in ("layer", "input"):
            return encoder.d_model
        maps = encoder_config.affine_maps(encoder)
        if self.reads not in maps:
            raise UserError(f"hra.reads = {self.reads!r}: allowed are 'layer', 'input', {', '.join(map(repr, maps))}")
        return maps[self.reads].outputs

    @property
    def taps(self) -> tuple[str, ...]:
        """What the controller reads, where it is not the layer's output."""
        return () if self.reads == "layer" else (self.reads,)

    def init_shared(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """The controller: it has no layer axis, one set of weights serves every layer."""
        inputs = self._read_width(encoder)
        controller = controllers.new_weights(self.recurrence, rng, inputs=inputs, width=self.width)
        return no_parameters() | {"all_layers": {"controller": controller}}

    def init_own(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """One task's head, or its heads."""
        declared = self._head().weights(width=encoder.d_model, state=self.width, hidden=self.head_width)
        if not self.head_per_layer:
            return no_parameters() | {"all_layers": {"head": weights.draw(declared, rng)}}
        keys = jax.random.split(rng, len(self.adapted(encoder)))
        return no_parameters() | {"per_layer": {"head": jax.vmap(lambda key: weights.draw(declared, key))(keys)}}

    def own_formula(self) -> Formula:
        """Of the controller and of a head."""
        shared = RECURRENCES[self.recurrence].formula
        if self.reads not in ("layer", "input"):
            shared = re.sub(r"\bD\b", "I", shared)
        task = HEADS[self.head].formula
        return Formula(shared, f"L * ({task})" if self.head_per_layer else task)

    def letters(self, encoder: EncoderConfig) -> dict[str, int]:
        """R, H, and I, the width of what the controller reads."""
        own = {"R": self.width, "H": self.head_width, "I": self._read_width(encoder)}
        return super().letters(encoder) | own

    def initial_carry(self, x: jax.Array) -> jax.Array:
        """s_0 = 0: float32 `[B, T, R]`, or what else the recurrence carries."""
        return jnp.zeros((*x.shape[:2], controllers.carry_width(self.recurrence, self.width)), jnp.float32)

    def after_layer(
        self, params: Params, x: jax.Array, carry: jax.Array, taps: Mapping[str, jax.Array], *, rng: DropoutKey
    ) -> tuple[jax.Array, jax.Array]:
        """Advances the controller and adds each utterance's own head."""
        all_layers, per_layer = params
        read = taps[self.reads] if self.taps else x
        controller, kinds = all_layers["shared"]["controller"], (self.recurrence, self.activation)
        state, new_carry = controllers.advance(controller, read, carry, *kinds)
        state = self.dropped(state, rng)
        rows = per_layer["rows"]["head"] if self.head_per_layer else all_layers["rows"]["head"]
        delta = jax.vmap(self._head().apply)(rows, state)
        # `where`, so that `__base__` rows are untouched whatever the controller holds.
        delta = jnp.where(all_layers["active"][:, None, None], delta, 0.0)
        adapted: tuple[jax.Array, jax.Array] = unless_skipped(
            per_layer, (x + delta.astype(x.dtype), new_carry), (x, carry)
        )
        return adapted

    def voice(self, x: jax.Array, carry: jax.Array) -> jax.Array:
        """The controller's state, float32 `[B, T, R]`; x where the recurrence carries none."""
        return carry[..., : self.width] if carry.shape[-1] else x

    # --- PyTorch ---

    def check_torch(self) -> None:
        """Refuses a recurrence, activation or head without a PyTorch formula, and to read inside of a layer."""
        if self.reads not in ("layer", "input"):
            raise UserError(f"hra.reads = {self.reads!r}; allowed here: 'layer', 'input'")
        RECURRENCES[self.recurrence].check_torch()
        ACTIVATIONS[self.activation].check_torch()
        HEADS[self.head].check_torch()

    def encoder_width(self, row: Mapping[str, tuple[int, ...]]) -> int | None:
        """D, the width of a head's correction."""
        kernel = row.get(f"{'per_layer' if self.head_per_layer else 'all_layers'}.head.kernel")
        return None if kernel is None else kernel[-1]

    def torch_initial_carry(self, x: Any) -> Any:
        """As `initial_carry`."""
        return torch.zeros(*x.shape[:2], controllers.carry_width(self.recurrence, self.width), device=x.device)

    def torch_after_layer(self, params: Params, x: Any, carry: Any, taps: Mapping[str, Any]) -> tuple[Any, Any]:
        """As `after_layer`."""
        all_layers, per_layer = params
        read = taps[self.reads] if self.taps else x
        controller, kinds = all_layers["shared"]["controller"], (self.recurrence, self.activation)
        state, carry = controllers.torch_advance(controller, read.float(), carry, *kinds)
        rows = per_layer["rows"]["head"] if self.head_per_layer else all_layers["rows"]["head"]
        delta = torch.where(all_layers["active"][:, None, None], self._head().torch_apply(rows, state), 0.0)
        return x + delta.to(x.dtype), carry
