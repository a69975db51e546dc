"""Normalisation of transcripts, by name: what a word is, for training texts and for error rates alike."""

import re
import unicodedata
from collections.abc import Callable

from hra_jax.errors import UserError

# Typographic apostrophes and the accents that keyboards offer in their place. U+00B4 must go before NFKC, which would
# turn it into a space and a combining accent.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\uff07`", "'"))
# What no one sees or hears: soft hyphen, zero-width space, byte order mark, marks of direction, tags.
_FORMAT = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
)
_JOINERS = "\u200c\u200d"
_JOINED = re.compile(f"[{_JOINERS}]")
_NEED_NO_JOINERS = ("LATIN", "GREEK", "CYRILLIC")
_VIRAMA = 9  # its combining class; a joiner after it may end a word
_EDGE_APOSTROPHES = re.compile(r"(?<!\S)'+|'+(?!\S)")


def _without_format(text: str) -> str:
    """The text without invisible format characters, but for joiners where a script (Persian, Hindi) needs them."""
    if text.isascii():
        return text
    text = _FORMAT.sub("", text)
    if not _JOINED.search(text):
        return text
    kept: list[str] = []
    for at, character in enumerate(text):
        if character in _JOINERS:
            before = kept[-1] if kept else " "
            after = next((found for found in text[at + 1 :] if found not in _JOINERS), " ")
            if not _needs_joiner(before, after):
                continue
        kept.append(character)
    return "".join(kept)


def _needs_joiner(before: str, after: str) -> bool:
    """Whether a joiner between two characters stands inside a word of a script that has joiners."""
    if unicodedata.category(before)[0] not in "LM" or unicodedata.name(before, "").startswith(_NEED_NO_JOINERS):
        return False
    return unicodedata.category(after)[0] in "LM" or unicodedata.combining(before) == _VIRAMA


def _basic(text: str) -> str:
    """NFKC, lower case, punctuation to spaces except apostrophes inside words, white space collapsed."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    # Lower case can undo a composition (a dotted capital I), hence NFKC once more.
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    text = "".join(c if c == "'" or unicodedata.category(c)[0] != "P" else " " for c in text)
    return " ".join(_EDGE_APOSTROPHES.sub(" ", text).split())


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": lambda text: text, "lower": str.lower, "basic": _basic}
FORMAT_KEPT = "format characters kept, "  # before the name of a normalizer: as it was before hra_jax 0.2


def normalize_text(text: str, normalizer: str) -> str:
    """Returns `text` as the named normalizer writes it.

    Args:
      text: a transcript.
      normalizer: "none" (unchanged), "lower" (lower case), or "basic" (NFKC, lower case, every punctuation mark is a
        space except apostrophes inside words, white space collapsed). All of them take out invisible format characters
        first, unless the name begins with `FORMAT_KEPT`. Applying one twice changes nothing more.

    Raises:
      UserError: no normalizer has that name.
    """
    name = normalizer.removeprefix(FORMAT_KEPT)
    if name not in NORMALIZERS:
        raise UserError(f"normalizer {normalizer!r} is unknown; allowed: {', '.join(NORMALIZERS)}")
    if name != normalizer:
        return NORMALIZERS[name](text)
    # Once more at the end: punctuation that was taken out may have left a joiner at the end of a word.
    return _without_format(NORMALIZERS[name](_without_format(text)))
