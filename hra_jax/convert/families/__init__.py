"""All families of published encoders: every module of this folder, and what `register` adds from outside.

A family is added with one file here that defines `FAMILY` (`hra_jax.convert.family.Family` says what belongs in it), or
with one call of `register`. Conversion, `backbone=abstract:NAME`, exports for PEFT and `hra_jax.torch` then know it.
Family files import neither JAX nor PyTorch.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from hra_jax.convert.family import Family
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

_BY_TYPE: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family.

    Raises:
      UserError: another family has its `model_type`, its block in PyTorch, one of its architectures, or the name of
        one of its models.
    """
    _discover()
    _add(family)


def known() -> Mapping[str, Family]:
    """All families by their `model_type`."""
    _discover()
    return MappingProxyType(_BY_TYPE)


def models() -> dict[str, tuple[FeatureConfig, EncoderConfig]]:
    """Feature settings and geometry of the published models by name, as their weights are converted."""
    return {name: model for family in known().values() for name, model in family.models.items()}


def find(config: dict, where: str) -> tuple[Family, str]:
    """The family and the architecture that a config.json names.

    Args:
      config: the object in config.json.
      where: the file, for errors.

    Raises:
      UserError: a model type or an architecture that cannot be converted; the line lists what can be.
    """
    kind, by_type = config.get("model_type"), known()
    if not isinstance(kind, str) or kind not in by_type:
        raise UserError(f"{where}: model_type is {str(kind)[:60]!r}; allowed: {', '.join(by_type)}")
    family = by_type[kind]
    named = config.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and named[0] in tuple(family.architectures)):
        allowed = " or ".join(family.architectures)
        raise UserError(f"{where}: architectures is {str(named)[:80]}; allowed for {kind}: one of {allowed}")
    return family, named[0]


@functools.cache
def _discover() -> None:
    """Imports the modules of this folder, once."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        _add(importlib.import_module(f"{__name__}.{module.name}").FAMILY)


def _names(family: Family) -> dict[str, set[str]]:
    """What no two families may share."""
    return {
        "model_type": {family.model_type},
        "architectures": set(family.architectures),
        "models": set(family.models),
        "torch block": set() if family.torch is None else {family.torch.block},
    }


def _add(family: Family) -> None:
    for other in _BY_TYPE.values():
        theirs = _names(other)
        for what, mine in _names(family).items():
            for name in sorted(mine & theirs[what]):
                raise UserError(f"family {family.name!r}: {what} {name!r} belongs to the family {other.name!r}")
    _BY_TYPE[family.model_type] = family
