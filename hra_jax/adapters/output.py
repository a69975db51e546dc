"""Head-only adaptation: a task owns a correction of the output layer and nothing else.

    logits = (W + W_a) x + b + b_a

W_a and b_a are zero when new. Nothing is shared by the tasks: a task `V * (D + 1)`.

Letters: D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hra_jax.adapters.base import Adapter, Params
from hra_jax.adapters.methods import register
from hra_jax.adapters.output_kinds import OUTPUTS_OF_TASKS
from hra_jax.adapters.weights import Tree
from hra_jax.config.settings import one_of, setting

if TYPE_CHECKING:
    import jax

    from hra_jax.models.encoder_config import EncoderConfig


@register
@dataclasses.dataclass(frozen=True)
class OutputAdapter(Adapter):
    """The output layer of every task's own, which the base class knows how to run."""

    name = "output"
    description = "an output layer of each task's own"
    peft_type = "HRA_JAX_OUTPUT"
    adapts_layers = False

    # Without a layer of its own a task would have no parameters at all.
    output: str = setting(
        "task",
        one_of(OUTPUTS_OF_TASKS),
        "output layer: task (each task owns a correction); characters, sentencepiece (with a new vocabulary)",
    )

    def merged(self, layer_weights: Tree, row: Tree, encoder: EncoderConfig) -> dict[tuple[str, ...], jax.Array]:
        """No weight of the layers changes."""
        del layer_weights, row, encoder
        return {}

    def torch_after_layer(self, params: Params, x: Any, carry: Any, taps: Mapping[str, Any]) -> tuple[Any, Any]:
        """A layer's output as it is."""
        del params, taps
        return x, carry
