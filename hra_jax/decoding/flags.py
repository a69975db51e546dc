"""The flags `--decode.KEY`, by which commands without a configuration are told how to decode."""

import ast
from collections.abc import Mapping
from typing import Any

from absl import flags

from hra_jax.config.settings import settings_of
from hra_jax.decoding.settings import DecodeSettings, decode_settings

NAMES = tuple(f"decode.{key}" for key, *_ in settings_of(DecodeSettings))


_EXAMPLES = {
    "lm": """Such as --decode.lm=own.lm, --decode.lm="(('ann', 'ann.lm'), ('bob', ''))".""",
    "phrases": """Such as --decode.phrases=phrases.txt, --decode.phrases="('new york', ('anna schmidt', 2.0))".""",
}


def define_flags(values: flags.FlagValues = flags.FLAGS, *, otherwise: str = "") -> None:
    """A flag for each key of `DecodeSettings`; what is left out is as it would be without them.

    Args:
      values: where the flags are defined.
      otherwise: what says how to decode where a flag is left out, for their help; '' for nothing.
    """
    for name, (key, default, rule, meaning) in zip(NAMES, settings_of(DecodeSettings), strict=True):
        told = f"{meaning[0].upper()}{meaning[1:]}. Allowed: {rule.describe()}. Default: "
        told += f"as {otherwise}, else {default!r}." if otherwise else f"{default!r}."
        flags.DEFINE_string(name, None, " ".join([told, *filter(None, [_EXAMPLES.get(key)])]), flag_values=values)


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
    """A number, a tuple or a quoted word where the text is one; any other word or path stays as it is."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, int | float | tuple | str) and not isinstance(value, bool) else text
