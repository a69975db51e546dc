"""The adaptation methods by name, and their settings as plain values."""

import dataclasses

from hra_jax.adapters.base import Adapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.errors import UserError

METHODS = {cls.name: cls for cls in (HierarchicalRecurrentAdapter,)}


def from_settings(settings) -> Adapter:
    """A method from a mapping with its 'name' and hyper-parameters, as in `config.adapter` or an exported adapter.

    Raises:
      UserError: an unknown method, or a hyper-parameter that the method does not have or lacks.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in METHODS:
        raise UserError(f"adapter.name = {name!r}: allowed are {', '.join(map(repr, METHODS))}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for key in settings:
        if key not in fields:
            raise UserError(f"adapter.{key}: {name!r} has no such setting; allowed are {', '.join(fields)}")
    return METHODS[name](**settings)


def settings(adapter: Adapter) -> dict:
    """The inverse of `from_settings`."""
    return {"name": adapter.name, **dataclasses.asdict(adapter)}
