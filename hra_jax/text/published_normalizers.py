"""Normalizers that others have published, from the package whisper-normalizer.

They are compared with published numbers, so they are what the package does, its quirks included ("$12.50, twenty-one"
becomes "$12.5021"). Where it fails on a text (numbers of thousands of digits), our own takes its place.
"""

import importlib
import importlib.metadata
import re
import unicodedata
from collections.abc import Callable

from hra_jax.errors import UserError

_PACKAGE, _VERSION = "whisper-normalizer", "0.1.15"
_EXTRA = "pip install 'hra_jax[normalizers]'"
# The class of each language. That of Devanagari writes every number in Hindi, so of other languages it sees none.
_INDIC = {
    "bn": "Bengali",
    "gu": "Gujarati",
    "hi": "Hindi",
    "kn": "Kannada",
    "ml": "Malayalam",
    "mr": "Devanagari",
    "ne": "Devanagari",
    "or": "Odia",
    "pa": "Punjabi",
    "ta": "Tamil",
    "te": "Telugu",
}
_MOST = 10_000  # characters; of some texts, the time it takes is the square of their length
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def check(kind: str, language: str) -> None:
    """Checks that a normalizer can be used: "english", or "indic" of a language.

    Raises:
      UserError: an unknown language, or the package is missing or of another version.
    """
    if kind == "indic" and language not in _INDIC:
        raise UserError(f"normalizer 'indic:{language}': unknown language; allowed: {', '.join(_INDIC)}")
    try:
        found = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != _VERSION:
        raise UserError(f"normalizer {kind!r} needs {_PACKAGE} {_VERSION}; installed is {found}: {_EXTRA}")


def english(*, otherwise: Callable[[str], str]) -> Callable[[str], str]:
    """Whisper's normalizer of English (Radford et al., 2022, appendix C); `otherwise` where it fails."""
    function = importlib.import_module("whisper_normalizer.english").EnglishTextNormalizer()
    return _guarded(function, otherwise)


def indic(language: str, *, then: Callable[[str], str]) -> Callable[[str], str]:
    """The normalizer of a language of India, then `then`, which takes out punctuation; alone where the first fails."""
    name = _INDIC[language]
    function = getattr(importlib.import_module("whisper_normalizer.indic"), f"{name}Normalizer")(language)
    if name == "Devanagari":
        in_hindi = function
        function = lambda text: "".join(  # noqa: E731
            piece if piece.isdecimal() else in_hindi(piece) for piece in re.split(r"(\d+)", text)
        )
    guarded = _guarded(function, lambda text: text)
    return lambda text: then(guarded(_ascii_digits(text)))


def _guarded(function: Callable[[str], str], otherwise: Callable[[str], str]) -> Callable[[str], str]:
    def normalize(text: str) -> str:
        if len(text) > _MOST:
            return otherwise(text)
        try:
            return function(text)
        except _FAILURES:
            return otherwise(text)

    return normalize


def _ascii_digits(text: str) -> str:
    """The text with the digits of every script as those of ASCII, the only ones that the package knows."""
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
