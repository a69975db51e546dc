"""Published JSON settings, read with the defaults of their classes: types and supported values are checked here."""

import json
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

from hra_jax.errors import UserError

SILU = ("swish", "silu")  # two names of one function
MOST = 64


class Only(NamedTuple):
    """A setting of which some values are supported: the class default, and those values."""

    default: object
    allowed: tuple


class Count(NamedTuple):
    """A whole number: the class default, and the least that is allowed (None: no limit); for a bare default 1.

    The most that is allowed is `MOST` times the default, where that is not 0: shapes are computed before they are
    compared with a file, and those of an absurd setting would take for ever.
    """

    default: int
    least: int | None = 1


def select(values: dict, defaults: dict, *, where: str) -> SimpleNamespace:
    """The settings that `defaults` names, as attributes.

    Args:
      values: what a file holds; other keys are not looked at.
      defaults: name to the class default, or to `Only` or `Count`. The type of a default is that of the setting (a
        whole number is fine where a float is asked for); where it is None, a whole number or null.
      where: the file, for errors.

    Raises:
      UserError: another type, or a value that is not supported; names the setting and the value.
    """
    found = {}
    for name, default in defaults.items():
        if isinstance(default, Only):
            value = values.get(name, default.default)
            # True is 1 and 1.0 in Python, not in JSON.
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in default.allowed):
                supported = " or ".join(json.dumps(one) for one in default.allowed)
                raise UserError(f"{where}: {name} is {_short(value)}; supported: {supported}")
        else:
            default = Count(default) if type(default) is int else default
            value = values.get(name, default.default if isinstance(default, Count) else default)
            kind = _mismatch(value, default)
            if kind:
                raise UserError(f"{where}: {name} is {_short(value)}; it must be {kind}")
        found[name] = tuple(value) if isinstance(value, list) else value
    return SimpleNamespace(**found)


def _short(value: Any) -> str:
    return json.dumps(value)[:60]


def _number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return math.isfinite(value)


def _mismatch(value: Any, default: Any) -> str | None:
    """What the value should have been, where it is of another kind than the default; else None."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, Count):
        least = "" if default.least is None else f" of at least {default.least}"
        fits = _number(value, True) and (default.least is None or value >= default.least)
        if fits and default.default > 0 and value > MOST * default.default:
            return f"at most {MOST * default.default}"
        return None if fits else f"a whole number{least}"
    if isinstance(default, float):
        return None if _number(value, False) else "a number"
    if default is None:
        return None if value is None or _number(value, True) else "a whole number or null"
    whole = isinstance(default[0], int)
    if (
        isinstance(value, list | tuple)
        and value
        and all(_number(one, whole) and (one > 0 or not whole) for one in value)
    ):
        if whole and max(value) > MOST * max(default):
            return f"a list of numbers of at most {MOST * max(default)}"
        return None
    return f"a list of {'whole numbers of at least 1' if whole else 'numbers'}"
