"""The flags `--decode.KEY`, by which commands without a configuration are told how to decode."""

import ast
from collections.abc import Mapping
from typing import Any

from absl import flags

from hra_jax.config.settings import settings_of
from hra_jax.decoding.settings import DecodeSettings, decode_settings

NAMES = tuple(f"decode.{key}" for key, *_ in settings_of(DecodeSettings))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """A flag for each key of `DecodeSettings`; what is left out is as it would be without them."""
    for name, (_, default, rule, meaning) in zip(NAMES, settings_of(DecodeSettings), strict=True):
        told = f"{meaning} (allowed: {rule.describe()}; default: {default!r} or as stored)."
        flags.DEFINE_string(name, None, told, flag_values=values)


def asked(values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The keys that the command gives, with their values; as `parsed`."""
    return parsed({name.partition(".")[2]: values[name].value for name in NAMES})


def parsed(given: Mapping[str, str | None]) -> dict[str, Any]:
    """Keys with their values, which are written as in a configuration; None for a key that is not given.

    Raises:
      UserError: a value that is not allowed.
    """
    found = {key: _value(text) for key, text in given.items() if text is not None}
    decode_settings(found)
    return found


def _value(text: str) -> Any:
    """A number or a tuple where the text is one; a word or a path stays as it is."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, int | float | tuple) and not isinstance(value, bool) else text
