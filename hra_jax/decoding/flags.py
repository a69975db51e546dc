"""The flags `--decode.KEY`, by which commands without a configuration are told how to decode."""

import ast
from typing import Any

from absl import flags

from hra_jax.config.settings import settings_of
from hra_jax.decoding.settings import DecodeSettings, decode_settings

_GROUP = "decode"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """A flag for each key of `DecodeSettings`; what is left out is as it would be without them."""
    for key, default, rule, meaning in settings_of(DecodeSettings):
        told = f"{meaning} (allowed: {rule.describe()}; default: {default!r} or as stored)."
        flags.DEFINE_string(f"{_GROUP}.{key}", None, told, flag_values=values)


def asked(values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The keys that the command gives, with their values, written as in a configuration.

    Raises:
      UserError: a value that is not allowed.
    """
    given = {key: values[f"{_GROUP}.{key}"].value for key, *_ in settings_of(DecodeSettings)}
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
