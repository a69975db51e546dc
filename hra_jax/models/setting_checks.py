"""Checks of single settings: one line that names the setting, its value and what is allowed."""

from collections.abc import Iterable
from typing import Any

from hra_jax.errors import UserError


def one_of(name: str, value: object, allowed: Iterable) -> None:
    """Refuses a value that is not in a list of choices.

    Raises:
      UserError: the line names the setting, the value and the choices.
    """
    choices = tuple(allowed)
    if value not in choices:
        raise UserError(f"{name} = {value!r}: allowed are {', '.join(map(repr, choices))}")


def at_least(name: str, value: float, least: float) -> None:
    """Refuses a value below a limit.

    Raises:
      UserError: the line names the setting, the value and the limit.
    """
    if value < least:
        raise UserError(f"{name} = {value!r}: must be at least {least}")


def within(name: str, value: Any, least: float, most: float) -> None:
    """Refuses a value outside of [least, most], a NaN with them; of a tuple each value.

    Raises:
      UserError: the line names the setting, the value and both limits.
    """
    for one in value if isinstance(value, tuple) else (value,):
        if not least <= one <= most:
            raise UserError(f"{name} = {value!r:.80}: must be at least {least:,} and at most {most:,}")
