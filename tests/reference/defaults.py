"""Other defaults: what is stored must mean the same after every one of them has changed."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from hra_jax.config.settings import Setting, settings_of

# Tried after the other choices, the negation, and numbers near a default.
_CANDIDATES: tuple[Any, ...] = ("another", (0,), (1.0, 3.0), ("another",), (("another", "m.jsonl", 2.0),), 0.5)


def other_value(setting: Setting) -> Any:
    """A value that the setting allows and that is not its default."""
    default = setting.default
    tried = list(setting.rule.choices()) if setting.rule.choices is not None else []
    if isinstance(default, bool):
        tried.append(not default)
    elif isinstance(default, (int, float)):
        tried += [default + 1, default + 2, default * 2, default / 2, default + 0.25]
    types = setting.rule.types or (type(default),)
    fitting = [value for value in (*tried, *_CANDIDATES) if type(value) in types and value != default]
    return next(value for value in fitting if setting.rule.accepts(value))


def turn_over(monkeypatch: pytest.MonkeyPatch, classes: Iterable[type]) -> None:
    """Changes every default of some dataclasses: of settings to another value they allow, of others to no value."""
    # All of them first: a class that derives from another has the same fields, which must not change twice.
    others = {cls: {setting.name: other_value(setting) for setting in settings_of(cls)} for cls in classes}
    for cls, values in others.items():
        fields = [field for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
        defaults = [values.get(field.name, object()) for field in fields]
        monkeypatch.setattr(cls.__init__, "__defaults__", tuple(defaults))
        for field, default in zip(fields, defaults, strict=True):
            monkeypatch.setattr(field, "default", default)
