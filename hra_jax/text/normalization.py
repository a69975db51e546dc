"""Normalisation of transcripts, by name: what a word is, for training texts and for error rates alike."""

import itertools
import re
import unicodedata
from collections.abc import Callable

from hra_jax.errors import UserError

# Typographic apostrophes and the accents that keyboards offer in their place. U+00B4 must go before NFKC, which would
# turn it into a space and a combining accent.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\uff07`", "'"))
# A run is looked at from its beginning alone: from each apostrophe of it, the time would be the square of its length.
_EDGE_APOSTROPHES = re.compile(r"(?<!\S)'+|(?<!')'++(?!\S)")
_LONG = 1000  # characters


def _basic(text: str) -> str:
    """NFKC, lower case, punctuation to spaces except apostrophes inside words, white space collapsed."""
    text = unicodedata.normalize("NFKC", _ordered(text.translate(_APOSTROPHES))).lower()
    # Lower case can undo a composition (a dotted capital I), hence NFKC once more.
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    text = "".join(c if c == "'" or unicodedata.category(c)[0] != "P" else " " for c in text)
    return " ".join(_EDGE_APOSTROPHES.sub(" ", text).split())


def _ordered(text: str) -> str:
    """A long text decomposed, with the marks on each character in the order that Unicode gives them.

    `unicodedata` does the same, but sorts marks by insertion, in the square of their number.
    """
    if len(text) <= _LONG or text.isascii():
        return text
    characters = "".join(unicodedata.normalize("NFKD", character) for character in text)
    runs = itertools.groupby(characters, key=lambda character: unicodedata.combining(character) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": lambda text: text, "lower": str.lower, "basic": _basic}


def normalize_text(text: str, normalizer: str) -> str:
    """Returns `text` as the named normalizer writes it.

    Args:
      text: a transcript.
      normalizer: "none" (unchanged), "lower" (lower case), or "basic" (NFKC, lower case, every punctuation mark is a
        space except apostrophes inside words, white space collapsed). Applying one twice changes nothing more.

    Raises:
      UserError: no normalizer has that name.
    """
    if normalizer not in NORMALIZERS:
        raise UserError(f"normalizer {normalizer!r} is unknown; allowed: {', '.join(NORMALIZERS)}")
    return NORMALIZERS[normalizer](text)
