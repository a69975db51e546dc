"""Settings of adapters that every method has; those of one method stand with its class."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hra_jax.adapters.base import Adapter
from hra_jax.adapters.methods import METHODS
from hra_jax.adapters.outputs import OUTPUTS, SHARED_VOCABULARIES
from hra_jax.config.settings import Rule, check_settings, integer, number, one_of, setting, text
from hra_jax.training.task_bank import BANKS
from hra_jax.training.train_state import TRAINED


def _are_layers(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    return numbers and all(n >= 0 for n in value) and len(set(value)) == len(value)


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The keys `adapter.*`: which method, which layers and outputs, what trains, and where it starts."""

    name: str = setting("hra", one_of(METHODS.keys), "the method; its own settings are in the group of that name")
    layers: tuple[int, ...] = setting(
        (),
        Rule(lambda: "a tuple of distinct layer numbers from 0, or () for all", _are_layers),
        "numbers of the adapted layers, from 0; () for all",
    )
    output: str = setting(
        "backbone",
        one_of(lambda: OUTPUTS),
        "output layer: backbone; task (each task owns a correction); characters, sentencepiece (each task owns it, "
        "with a new vocabulary of its training texts); shared_characters, shared_sentencepiece (one for all tasks)",
    )
    output_size: int = setting(
        0, integer(0), "outputs with a new vocabulary; 0: as many as the largest vocabulary needs"
    )
    output_pieces: int = setting(
        128,
        integer(3, unit=" pieces"),
        "size of a new SentencePiece vocabulary at most, the blank included; with `start`, that of the tasks there",
    )
    train: str = setting("all", one_of(lambda: TRAINED), "all, or tasks: task rows alone; what they share stays fixed")
    start: str = setting("", text(), "folder of an exported adapter to start from; '' for a new one")
    new_task: str = setting(
        "zero", text(empty=False), "start of a task that `start` lacks: zero (no effect), mean, or a task's name there"
    )
    slots: int = setting(
        0, integer(0), "rows of the task bank; more than there are tasks leaves room to add some without recompiling"
    )
    bank: str = setting(
        "device", one_of(lambda: BANKS), "memory of the task bank: device, or host (a step's rows are on the device)"
    )
    dropout: float = setting(
        0.0,
        number(0, 1),
        "in training, of the state before the head (hra), the bottleneck (residual), or a projection's input on the "
        "low-rank path (lora)",
    )

    def __post_init__(self) -> None:
        check_settings(self, "adapter")


def shares_what_trains(flat: Mapping[str, Any]) -> bool:
    """Whether the tasks of an adapter share weights that train, from the keys `adapter.*` of a configuration."""
    name, output = flat["adapter.name"], flat["adapter.output"]
    shares = name in METHODS and METHODS[name].init_shared is not Adapter.init_shared
    # Old configurations ask before they are checked.
    return "shared" not in TRAINED.get(flat["adapter.train"], ()) and (shares or output in SHARED_VOCABULARIES)
