"""Settings of adapters that every method has; those of one method stand with its class."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hra_jax.adapters.base import Adapter
from hra_jax.adapters.methods import METHODS
from hra_jax.adapters.output_kinds import SHARED_VOCABULARIES
from hra_jax.config.settings import check_settings, integer, one_of, setting, settings_of, text
from hra_jax.training.task_bank import BANKS
from hra_jax.training.train_state import TRAINED

_COMMON = {entry.name: entry for entry in settings_of(Adapter)}


def _of_methods(name: str) -> Any:
    """A setting that every method has, as its base class declares it."""
    entry = _COMMON[name]
    return setting(entry.default, entry.rule, entry.meaning)


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The keys `adapter.*`: which method, which layers and outputs, what trains, and where it starts."""

    name: str = setting("hra", one_of(METHODS.keys), "the method; its own settings are in the group of that name")
    layers: tuple[int, ...] = _of_methods("layers")
    output: str = _of_methods("output")
    output_size: int = _of_methods("output_size")
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
    dropout: float = _of_methods("dropout")

    def __post_init__(self) -> None:
        check_settings(self, "adapter")


def shares_what_trains(flat: Mapping[str, Any]) -> bool:
    """Whether the tasks of an adapter share weights that train, from the keys `adapter.*` of a configuration."""
    name, output = flat["adapter.name"], flat["adapter.output"]
    shares = name in METHODS and METHODS[name].defines("init_shared")
    # Old configurations ask before they are checked.
    return "shared" not in TRAINED.get(flat["adapter.train"], ()) and (shares or output in SHARED_VOCABULARIES)
