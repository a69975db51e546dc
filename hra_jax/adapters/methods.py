"""The adaptation methods by name, and their settings as plain values."""

import dataclasses

from hra_jax.adapters.base import Adapter
from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.output import OutputAdapter
from hra_jax.adapters.outputs import OWN_VOCABULARIES
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.errors import UserError

METHODS = {
    cls.name: cls for cls in (HierarchicalRecurrentAdapter, ResidualAdapter, LowRankAdapter, BiasAdapter, OutputAdapter)
}


def from_settings(settings) -> Adapter:
    """A method from a mapping with its 'name' and hyper-parameters, as in an exported adapter; lists become tuples.

    Raises:
      UserError: an unknown method, or a hyper-parameter that the method does not have, or of a value it refuses.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(settings).items()}
    name = settings.pop("name", None)
    if name not in METHODS:
        raise UserError(f"adapter.name = {name!r}: allowed are {', '.join(map(repr, METHODS))}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in settings:
        if key not in fields:
            raise UserError(f"{name}.{key}: {name!r} has no such setting; allowed are {', '.join(fields)}")
    return METHODS[name](**settings)


def own_settings(config) -> dict:
    """The settings that only the method `config.adapter.name` has: the group of its name, {} without one."""
    name = config.adapter.name
    return config[name].to_dict() if name in config else {}


def from_config(adapter, own, *, output_size: int = 0) -> Adapter:
    """The method of a run's configuration.

    Args:
      adapter: the group `adapter`, what all methods have.
      own: from `own_settings`.
      output_size: outputs that hold every vocabulary, where tasks have their own.
    """
    name = adapter.name
    common = {"layers": adapter.layers, "dropout": adapter.dropout}
    # This method is nothing but an output layer, whatever the setting says for the others.
    if name != OutputAdapter.name or adapter.output != "backbone":
        common["output"] = adapter.output
    if adapter.output in OWN_VOCABULARIES:
        common["output_size"] = output_size
    return from_settings({"name": name, **common, **own})


def settings(adapter: Adapter) -> dict:
    """The inverse of `from_settings`, in JSON values."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(adapter).items()}
    return {"name": adapter.name, **values}
