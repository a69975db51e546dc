"""Low-rank adaptation of named projections (arXiv 2106.09685).

    y <- y + (alpha / r) B (A x)

for each named projection y = W x + b of each adapted layer, with A `[in, r]` and B `[r, out]`, B zero when new.
Nothing is shared by the tasks: a task `L * r * P`, where P is the sum of in + out over the named projections.

Letters: B batch, T frames, D width, L adapted layers, r rank.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, Formula, no_parameters
from hra_jax.config.settings import distinct_names, integer, number, setting
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import AffineMap, affine_maps


def key_of(name: str) -> str:
    """The name of an affine map as a key of a parameter tree, where a dot would start a new level."""
    return name.replace(".", "_")


@dataclasses.dataclass(frozen=True)
class LowRankAdapter(Adapter):
    """A low-rank correction of each named projection, per adapted layer and task."""

    name: ClassVar[str] = "lora"
    description: ClassVar[str] = "low-rank adaptation of projections (LoRA, arXiv 2106.09685)"
    uses_dropout: ClassVar[bool] = True

    projections: tuple[str, ...] = setting(
        ("attention.query", "attention.value"),
        distinct_names("a tuple of distinct names of projections, at least one", empty=False),
        "projections that are corrected: attention.query, ff1.up, convolution.gated, ...",
    )
    rank: int = setting(4, integer(1), "rank of each correction")
    alpha: float = setting(8.0, number(0, above=True), "corrections are scaled by alpha / rank")

    def _maps(self, encoder) -> dict[str, AffineMap]:
        known = {name: found for name, found in affine_maps(encoder).items() if found.kind == "projection"}
        if not self.projections or len(set(self.projections)) < len(self.projections):
            raise UserError(f"lora.projections = {self.projections}: needs at least one name, each given once")
        for name in self.projections:
            if name not in known:
                raise UserError(f"lora.projections: {name!r} is no projection; allowed are {', '.join(known)}")
        return {name: known[name] for name in self.projections}

    def init_own(self, rng, encoder) -> dict:
        """A drawn, B zero, of every adapted layer."""
        layers, tree = len(self.adapted(encoder)), {}
        down = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0)
        for place, (name, found) in enumerate(self._maps(encoder).items()):
            key = jax.random.fold_in(rng, place)
            tree[key_of(name)] = {
                "a": down(key, (layers, found.inputs, self.rank)),
                "b": jnp.zeros((layers, self.rank, found.outputs)),
            }
        return no_parameters() | {"per_layer": tree}

    def own_formula(self) -> Formula:
        """Both factors of every named projection."""
        return Formula("0", "L * r * P")

    def letters(self, encoder) -> dict[str, int]:
        """r, and P, the sum of in + out over the named projections."""
        widths = sum(found.inputs + found.outputs for found in self._maps(encoder).values())
        return super().letters(encoder) | {"r": self.rank, "P": widths}

    def after_affine(self, params, name, x, y, *, rng):
        """Adds each utterance's own correction; rows of zeros (`__base__`, layers left out) add zero."""
        if name not in self.projections:
            return y
        row = params[1]["rows"][key_of(name)]
        if self.dropout and (key := rng()) is not None:
            x = nn.Dropout(self.dropout, deterministic=False).apply({}, x, rngs={"dropout": key})
        low = jnp.einsum("bti,bir->btr", x, row["a"].astype(x.dtype), preferred_element_type=jnp.float32)
        delta = jnp.einsum(
            "btr,bro->bto", low.astype(x.dtype), row["b"].astype(x.dtype), preferred_element_type=jnp.float32
        )
        return y + (self.alpha / self.rank * delta).astype(y.dtype)

    def merged(self, layer_weights: dict, row: dict, encoder) -> dict:
        """{path of a weight of the layers: what it becomes} with the correction of one task added in.

        Args:
          layer_weights: the stacked weights of the layers, leaves `[layers, ...]`.
          row: the parameters of the task, as `init_task` shapes them.
          encoder: the `EncoderConfig`.
        """
        places, changed = jnp.array(self.adapted(encoder)), {}
        for name, found in self._maps(encoder).items():
            own, kernel = row["per_layer"][key_of(name)], layer_weights
            for key in found.path:
                kernel = kernel[key]
            delta = self.alpha / self.rank * jnp.einsum("lir,lro->lio", own["a"], own["b"])
            changed[(*found.path, "kernel")] = jnp.asarray(kernel["kernel"], jnp.float32).at[places].add(delta)
        return changed
