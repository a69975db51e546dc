"""Every configuration key: one table that takes default, rule and meaning from the class that uses the value.

The classes are imported when the table is first asked for: they bring JAX with them, and commands that only read files
must not wait for it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from hra_jax.config.settings import Rule, Setting, settings_of
from hra_jax.errors import UserError


def groups() -> dict[str, type]:
    """The class of each group of keys, in the order in which they are documented; '' for the keys without a group.

    Every registered method of adaptation that has settings of its own has a group of its name.
    """
    from hra_jax.adapters.settings import AdapterSettings
    from hra_jax.data.batching import BatchSettings
    from hra_jax.data.sources import DataSettings
    from hra_jax.decoding.settings import DecodeSettings
    from hra_jax.evaluation.runner import EvaluationSettings
    from hra_jax.models.augmentation import AugmentConfig
    from hra_jax.run.exporting import ExportSettings
    from hra_jax.run.processes import DistributedSettings
    from hra_jax.run.settings import PretrainSettings, RunSettings
    from hra_jax.training.checkpoints import CheckpointSettings
    from hra_jax.training.optimizer import OptimizerConfig
    from hra_jax.training.profiling import ProfileSettings
    from hra_jax.training.sharding import MeshSettings

    return {
        "": RunSettings,
        "pretrain": PretrainSettings,
        "adapter": AdapterSettings,
        **method_groups(),
        "data": DataSettings,
        "batch": BatchSettings,
        "augment": AugmentConfig,
        "optimizer": OptimizerConfig,
        "checkpoint": CheckpointSettings,
        "eval": EvaluationSettings,
        "decode": DecodeSettings,
        "export": ExportSettings,
        "mesh": MeshSettings,
        "distributed": DistributedSettings,
        "profile": ProfileSettings,
    }


def method_groups() -> dict[str, type]:
    """The groups that belong to one method of adaptation each: they act where `adapter.name` is their name."""
    from hra_jax.adapters.methods import METHODS

    return {name: cls for name, cls in METHODS.items() if _settings_of_group(cls)}


def _settings_of_group(cls: type) -> tuple[Setting, ...]:
    """The settings of a class; of a method of adaptation those that are its own, for the others are in `adapter`."""
    from hra_jax.adapters.base import Adapter

    common = {field.name for field in dataclasses.fields(Adapter)} if issubclass(cls, Adapter) else set()
    return tuple(entry for entry in settings_of(cls) if entry.name not in common)


def settings() -> dict[str, Setting]:
    """{dotted key: its setting}, in the order of documentation."""
    return {_key(name, entry.name): entry for name, cls in groups().items() for entry in _settings_of_group(cls)}


def _key(name: str, key: str) -> str:
    """The dotted key of a key of the group `name`."""
    return f"{name}.{key}" if name else key


def rules() -> dict[str, Rule]:
    """{dotted key: what it allows}."""
    return {key: entry.rule for key, entry in settings().items()}


def defaults() -> dict[str, Any]:
    """{dotted key: its default}."""
    return {key: entry.default for key, entry in settings().items()}


def meanings() -> dict[str, str]:
    """{dotted key: what it means}."""
    return {key: entry.meaning for key, entry in settings().items()}


def default_config() -> ConfigDict:
    """The locked configuration that has every key at its default."""
    return nest_config(defaults())


def flatten_config(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} with the keys in sorted order: `{"adapter.name": "hra", ...}`."""
    return dict(sorted(_leaves(config, "")))


def _leaves(config: ConfigDict | Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _OfTypes(FieldReference):
    """The value of a key that may be of several types: ConfigDict holds any other to the type of its first value."""

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Takes another value; a list stands for a tuple, as for other keys."""
        super().set(tuple(value) if isinstance(value, list) else value, type_safe)


def nest_config(flat: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `flatten_config`, locked."""
    config, types = ConfigDict(), {key: rule.types for key, rule in rules().items() if rule.types}
    for key, value in flat.items():
        *group, name = key.split(".")
        node = config
        for part in group:
            if part not in node:
                node[part] = ConfigDict()
            node = node[part]
        node[name] = _OfTypes(value, types[key]) if isinstance(value, types.get(key, ())) else value
    return config.lock()


def group(config: ConfigDict, name: str, **more: Any) -> Any:
    """One group of a configuration as an instance of its class, every value checked.

    Args:
      config: a configuration with every key.
      name: the group; '' for the keys without one.
      more: arguments of the class that are no keys of the group.

    Raises:
      UserError: a value that is not allowed, or a key of the group that its class does not have.
    """
    cls, values = groups()[name], config[name] if name else config
    known = [entry.name for entry in _settings_of_group(cls)]
    given = [key for key, value in values.items() if name or not isinstance(value, ConfigDict)]
    for key in given:
        if key not in known:
            raise UserError(f"unknown config key {_key(name, key)!r}; allowed: {', '.join(known)}")
    return cls(**{key: values[key] for key in known}, **more)


def documentation() -> str:
    """All keys as Markdown: for each group its file, and a table of key, default, what is allowed, and the meaning."""
    parts = []
    for name, cls in groups().items():
        rows = [
            f"| `{_key(name, key)}` | `{default!r}` | {_cell(rule.describe())} | {_cell(meaning)} |"
            for key, default, rule, meaning in _settings_of_group(cls)
        ]
        title = f"## `{name}`" if name else "## Keys without a group"
        file = f"In `{cls.__module__.replace('.', '/')}.py`."
        parts.append(
            "\n".join([title, "", file, "", "| key | default | allowed | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", "\\|")
