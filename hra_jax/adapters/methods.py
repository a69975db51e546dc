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


def from_config(config, *, output_size: int = 0) -> Adapter:
    """The method of a run's configuration: `config.adapter` has what all of them have, `config.<name>` the rest.

    `output_size`: outputs that hold every vocabulary, where tasks have their own.
    """
    name = config.adapter.name
    own = config[name].to_dict() if name in config else {}
    common = {"layers": config.adapter.layers, "dropout": config.adapter.dropout}
    # This method is nothing but an output layer, whatever the setting says for the others.
    if name != OutputAdapter.name or config.adapter.output != "backbone":
        common["output"] = config.adapter.output
    if config.adapter.output in OWN_VOCABULARIES:
        common["output_size"] = output_size
    return from_settings({"name": name, **common, **own})


def settings(adapter: Adapter) -> dict:
    """The inverse of `from_settings`, in JSON values."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(adapter).items()}
    return {"name": adapter.name, **values}
