"""The adaptation methods by name, their settings as plain values, and what every method must say of itself.

A method is one file: a frozen dataclass that derives from `Adapter` and registers itself with `register`.

    @register
    @dataclasses.dataclass(frozen=True)
    class PrefixAdapter(Adapter):
        name = "prefix"
        ...

A file of `hra_jax.adapters` is found by itself; one elsewhere is registered once it is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epy

from hra_jax.adapters import formula
from hra_jax.adapters.base import Adapter, bind
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES
from hra_jax.adapters.registry import Registry
from hra_jax.config.settings import Setting, settings_of
from hra_jax.errors import UserError

# Imported at the first use, so that hra_jax.torch, and commands that only read, need no JAX.
with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from hra_jax.adapters.settings import AdapterSettings
    from hra_jax.models.encoder_config import EncoderConfig


# --- What there is ----------------------------------------------------------------------------------------------------


def _lacks(cls: type[Adapter]) -> str | None:
    """What a class lacks to be trained, exported, loaded and counted."""
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        return "is no class that derives from Adapter"
    if "__dataclass_fields__" not in vars(cls) or not vars(cls)["__dataclass_params__"].frozen:
        return "is no frozen dataclass"
    for said in ("description", "peft_type"):
        if not isinstance(getattr(cls, said), str) or not getattr(cls, said):
            return f"lacks `{said}`, a text that is not empty"
    taken = {other.peft_type: name for name, other in METHODS.registered.items() if name != cls.name}
    if cls.peft_type in taken:
        return f"has the peft_type {cls.peft_type!r} of {taken[cls.peft_type]!r}; allowed: one of its own"
    for field in dataclasses.fields(cls):
        if "setting" not in field.metadata:
            return f"lacks `setting(default, rule, meaning)` for its field {field.name!r}"
    if not cls.defines("init_own") and _setting(cls, "output").default == "backbone":
        return "lacks `init_own`, the parameters of one task"
    if (cls.defines("init_own") or cls.defines("init_shared")) and not cls.defines("own_formula"):
        return "lacks `own_formula`, its numbers of parameters"
    if cls.defines("peft_config") != cls.defines("peft_factors"):
        return "lacks one of `peft_config` and `peft_factors`"
    return None


METHODS: Registry[type[Adapter]] = Registry("method", lacks=_lacks)
register = METHODS.register


def peft_types() -> dict[str, str]:
    """What adapter folders call each method, by its name."""
    return {name: cls.peft_type for name, cls in METHODS.items()}


def _setting(cls: type[Adapter], name: str) -> Setting:
    return next(said for said in settings_of(cls) if said.name == name)


def takes_output(name: str, output: str) -> bool:
    """Whether the method `name` can have the output layer that `adapter.output` asks for.

    A method that refuses the default, 'backbone', has another default of its own, which it takes instead.
    """
    said = _setting(METHODS[name], "output")
    return output == _setting(Adapter, "output").default or said.rule.accepts(output)


# --- Settings ---------------------------------------------------------------------------------------------------------

# What a folder of a format version means by a setting that it does not say. A setting that came later is added here
# with the value that stands for its absence; what is here never changes, whatever the defaults of the classes become.
_COMMON_1 = {"layers": (), "output": "backbone", "output_size": 0, "dropout": 0.0}
_UNSAID: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "hra": _COMMON_1
        | {"width": 64, "recurrence": "indrnn", "activation": "relu", "reads": "layer"}
        | {"head": "linear", "head_width": 32, "head_per_layer": False},
        "residual": _COMMON_1 | {"width": 16},
        "lora": _COMMON_1 | {"projections": ("attention.query", "attention.value"), "rank": 4, "alpha": 8.0},
        "bitfit": _COMMON_1,
        "output": _COMMON_1 | {"output": "task"},
    }
}


_COMMON = tuple(field.name for field in dataclasses.fields(Adapter))  # settings of every method: keys `adapter.*`


def from_settings(settings: Mapping[str, Any]) -> Adapter:
    """A method from a mapping with its 'name' and hyper-parameters; lists become tuples, the rest are defaults.

    Raises:
      UserError: an unknown method, or a hyper-parameter that the method does not have, or of a value it refuses.
    """
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    name = values.pop("name", None)
    cls = METHODS.find(name, setting="adapter.name")
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in fields:
            raise UserError(f"{name}.{key}: {name!r} has no such setting; allowed are {', '.join(fields)}")
    return cls(**values)


def from_folder(config: Mapping[str, Any]) -> Adapter:
    """The method of an adapter folder, whose settings mean what they meant when it was written.

    Args:
      config: the content of its adapter_config.json.

    Raises:
      UserError: as for `from_settings`; or a setting is neither in the folder nor known to have been absent then.
    """
    settings, version = dict(config["method"]), config["format_version"]
    cls = METHODS.find(settings.get("name"), setting="adapter.name")
    settings = _UNSAID.get(version, {}).get(cls.name, {}) | settings
    for field in dataclasses.fields(cls):
        if field.name not in settings:
            raise UserError(f"{cls.name}.{field.name}: not said in an adapter folder of format version {version}")
    return from_settings(settings)


def own_settings(config: ConfigDict, name: str) -> dict[str, Any]:
    """The settings that only the method `name` has: the group of its name, {} without one."""
    return dict(config[name].to_dict()) if name in config else {}


def from_config(adapter: AdapterSettings, own: Mapping[str, Any], *, output_size: int = 0) -> Adapter:
    """The method of a run's configuration.

    Args:
      adapter: the group `adapter`, what all methods have.
      own: from `own_settings`.
      output_size: outputs that hold every vocabulary, where tasks have their own.

    Raises:
      UserError: as for `from_settings`.
    """
    cls = METHODS.find(adapter.name, setting="adapter.name")
    values: dict[str, Any] = {"output": adapter.output, "dropout": adapter.dropout}
    # A configuration that chooses some all the same is refused before; `hra_jax.params` counts every method.
    if cls.adapts_layers:
        values["layers"] = adapter.layers
    if adapter.output in OWN_VOCABULARIES:
        values["output_size"] = output_size
    if not _setting(cls, "output").rule.accepts(adapter.output) and takes_output(adapter.name, adapter.output):
        del values["output"]
    return from_settings({"name": adapter.name, **values, **own})


def settings(adapter: Adapter) -> dict[str, Any]:
    """The inverse of `from_settings`, in JSON values: every setting, whatever its value."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(adapter).items()}
    return {"name": adapter.name, **values}


def config_keys(adapter: Adapter) -> dict[str, Any]:
    """The configuration keys, {dotted key: value}, that make a method of these settings."""
    values = {key: value for key, value in vars(adapter).items() if key not in _COMMON}
    common = {f"adapter.{key}": getattr(adapter, key) for key in _COMMON}
    return {"adapter.name": adapter.name} | common | {f"{adapter.name}.{key}": value for key, value in values.items()}


# --- Checked before the first step ------------------------------------------------------------------------------------


def check(adapter: Adapter, encoder: EncoderConfig) -> None:
    """Checks on shapes alone that a method does what it says of itself on an encoder. Nothing is drawn or compiled.

    Raises:
      UserError: its formula does not count its parameters, a task has none, or a layer's output or the carry changes
        its shape or dtype.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    shared = jax.eval_shape(lambda k: adapter.init_common(k, encoder), key)
    rows = jax.eval_shape(lambda k: jax.vmap(lambda one: adapter.init_task(one, encoder))(k[None]), key)
    counts = tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shared, rows))
    letters = adapter.letters(encoder)
    for text, count, part in zip(adapter.formula(), counts, ("shared", "task"), strict=True):
        problem = formula.wrong_with(text, letters)
        if problem is None and formula.evaluated(text, letters) != count:
            problem = f"counts {formula.evaluated(text, letters)} {part} parameters as {text!r}, but has {count}"
        if problem is not None:
            raise UserError(f"method {adapter.name!r} {problem}")
    if not counts[1] and not adapter.shared_output:
        raise UserError(f"method {adapter.name!r} gives a task no parameters; allowed: at least one")
    _check_layer(adapter, encoder, shared, rows)


def _check_layer(adapter: Adapter, encoder: EncoderConfig, shared: Any, rows: Any) -> None:
    """Traces what an adapter does after one layer."""
    from hra_jax.models import encoder_config

    maps = encoder_config.affine_maps(encoder)

    def after_layer(shared: Any, rows: Any) -> Any:
        x = jnp.zeros((1, 2, encoder.d_model))
        bound = bind(adapter, encoder, shared, rows, jnp.zeros(1, jnp.int32))
        per_layer = jax.tree.map(lambda leaf: leaf[0], bound.per_layer)
        taps = {tap: jnp.zeros((1, 2, maps[tap].outputs)) if tap in maps else x for tap in adapter.taps}
        carry = adapter.initial_carry(x)
        return (x, carry), adapter.after_layer((bound.all_layers, per_layer), x, carry, taps, rng=lambda: None)

    try:
        before, after = jax.eval_shape(after_layer, shared, rows)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"method {adapter.name!r} fails in `after_layer`: {reason:.300}") from error
    if before != after:
        raise UserError(f"method {adapter.name!r}: `after_layer` makes {after} of {before}; allowed: the same shapes")
