"""Low-rank adaptation of named projections (arXiv 2106.09685).

    y <- y + (alpha / r) B (A x)

for each named projection y = W x + b of each adapted layer, with A `[in, r]` and B `[r, out]`, B zero when new.
Nothing is shared by the tasks: a task `L * r * P`, where P is the sum of in + out over the named projections.

Letters: B batch, T frames, D width, L adapted layers, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters.base import MOST_WIDTH, Adapter, DropoutKey, Params, PeftFactor, key_of, no_parameters
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.methods import register
from hra_jax.adapters.weights import Tree
from hra_jax.config.settings import distinct_names, integer, number, setting
from hra_jax.errors import UserError

# Imported at the first use, so that commands which only read need no JAX.
with epy.lazy_imports():
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from hra_jax.models import encoder_config

if TYPE_CHECKING:
    from hra_jax.models.encoder_config import AffineMap, EncoderConfig


_MOST_ALPHA = 10**9  # far from what overflows in float32: infinity times a correction of 0 would be NaN


@register
@dataclasses.dataclass(frozen=True)
class LowRankAdapter(Adapter):
    """A low-rank correction of each named projection, per adapted layer and task."""

    name = "lora"
    description = "low-rank adaptation of projections (LoRA, arXiv 2106.09685)"
    peft_type = "HRA_JAX_LORA"
    uses_dropout = True  # of the projections' input, on the low-rank path alone

    projections: tuple[str, ...] = setting(
        ("attention.query", "attention.value"),
        distinct_names("a tuple of distinct names of projections, at least one", empty=False),
        "projections that are corrected: attention.query, ff1.up, convolution.gated, ...",
    )
    rank: int = setting(4, integer(1, MOST_WIDTH), "rank of each correction")
    alpha: float = setting(8.0, number(0, _MOST_ALPHA, above=True), "corrections are scaled by alpha / rank")

    def _maps(self, encoder: EncoderConfig) -> dict[str, AffineMap]:
        maps = encoder_config.affine_maps(encoder)
        known = {name: found for name, found in maps.items() if found.kind == "projection"}
        for name in self.projections:
            if name not in known:
                raise UserError(f"lora.projections: {name!r} is no projection; allowed are {', '.join(known)}")
        return {name: known[name] for name in self.projections}

    def init_own(self, rng: jax.Array, encoder: EncoderConfig) -> Tree:
        """A drawn, B zero, of every adapted layer."""
        layers, tree = len(self.adapted(encoder)), {}
        down = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0)
        for index, (name, found) in enumerate(self._maps(encoder).items()):
            key = jax.random.fold_in(rng, index)
            tree[key_of(name)] = {
                "a": down(key, (layers, found.inputs, self.rank)),
                "b": jnp.zeros((layers, self.rank, found.outputs)),
            }
        return no_parameters() | {"per_layer": tree}

    def own_formula(self) -> Formula:
        """Both factors of every named projection."""
        return Formula("0", "L * r * P")

    def letters(self, encoder: EncoderConfig) -> dict[str, int]:
        """r, and P, the sum of in + out over the named projections."""
        widths = sum(found.inputs + found.outputs for found in self._maps(encoder).values())
        return super().letters(encoder) | {"r": self.rank, "P": widths}

    def after_affine(self, params: Params, name: str, x: jax.Array, y: jax.Array, *, rng: DropoutKey) -> jax.Array:
        """Adds each utterance's own correction; rows of zeros (`__base__`, layers left out) add zero."""
        if name not in self.projections:
            return y
        row = params[1]["rows"][key_of(name)]
        x = self.dropped(x, rng)
        low = jnp.einsum("bti,bir->btr", x, row["a"].astype(x.dtype), preferred_element_type=jnp.float32)
        delta = jnp.einsum(
            "btr,bro->bto", low.astype(x.dtype), row["b"].astype(x.dtype), preferred_element_type=jnp.float32
        )
        return y + (self.alpha / self.rank * delta).astype(y.dtype)

    def merged(self, layer_weights: Tree, row: Tree, encoder: EncoderConfig) -> dict[tuple[str, ...], jax.Array]:
        """Every adapted kernel with alpha / r A B added."""
        numbers, changed = jnp.array(self.adapted(encoder)), {}
        for name, found in self._maps(encoder).items():
            own, kernel = row["per_layer"][key_of(name)], layer_weights
            for key in found.path:
                kernel = kernel[key]
            delta = self.alpha / self.rank * jnp.einsum("lir,lro->lio", own["a"], own["b"])
            changed[(*found.path, "kernel")] = jnp.asarray(kernel["kernel"], jnp.float32).at[numbers].add(delta)
        return changed

    def peft_config(self) -> dict[str, Any]:
        """What PEFT's `LoraConfig` is made of."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
        }

    def peft_factors(self, row: Tree, encoder: EncoderConfig) -> Iterator[PeftFactor]:
        """`lora_A` `[in, r]` and `lora_B` `[r, out]` of each projection in each adapted layer."""
        for name in self.projections:
            factors = row["per_layer"][key_of(name)]
            for n, layer in enumerate(self.adapted(encoder)):
                yield PeftFactor(name, layer, "lora_A", factors["a"][n])
                yield PeftFactor(name, layer, "lora_B", factors["b"][n])
