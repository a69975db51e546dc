"""Head-only adaptation: a task owns a correction of the output layer and nothing else.

    logits = (W + W_a) x + b + b_a

W_a and b_a are zero when new. Nothing is shared by the tasks: a task `V * (D + 1)`.

Letters: D width, V vocabulary.
"""

import dataclasses
from typing import ClassVar

from hra_jax.adapters.base import Adapter
from hra_jax.adapters.outputs import OUTPUTS_OF_TASKS


@dataclasses.dataclass(frozen=True)
class OutputAdapter(Adapter):
    """The output layer of every task's own, which the base class knows how to run."""

    name: ClassVar[str] = "output"
    description: ClassVar[str] = "an output layer of each task's own"

    output: str = "task"

    def __post_init__(self):
        super().__post_init__()
        # Without a layer of its own a task would have no parameters at all.
        self._one_of("output", OUTPUTS_OF_TASKS)

    def merged(self, layer_weights: dict, row: dict, encoder) -> dict:
        """As `LowRankAdapter.merged`: no weight of the layers changes."""
        del layer_weights, row, encoder
        return {}
