"""Normalisation of transcripts, by name and version: what a word is, for training texts and for error rates alike.

A name may say a version, `basic@1`; without one it is the newest. What is stored says one: a version never changes, so
that old results can be repeated.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence

from hra_jax.errors import UserError
from hra_jax.text import published_normalizers

# Typographic apostrophes and the accents that keyboards offer in their place. U+00B4 must go before NFKC, which would
# turn it into a space and a combining accent.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\u00b4\uff07`", "'"))
_ASCII = _APOSTROPHES | {i: " " for i in range(128) if chr(i) != "'" and unicodedata.category(chr(i))[0] == "P"}
_OTHER = b"\xff"
# Of ASCII what is no control character and no apostrophe needs no more than to be looked up.
_SIMPLE = bytearray(_OTHER * 256)
for _character in filter(str.isprintable, map(chr, range(128))):
    if _character not in "'`":
        _SIMPLE[ord(_character)] = ord(_ASCII.get(ord(_character), _character.lower()))
# What no one sees or hears: control characters but white space, and what Unicode calls default ignorable: soft hyphen,
# zero-width space, byte order mark, marks of direction, selectors of variations, fillers, tags. Not the joiners.
_FORMAT = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = re.compile("[\u200c\u200d]+")
_NEED_NO_JOINERS = ("LATIN", "GREEK", "CYRILLIC")
_VIRAMA = 9  # its combining class; a joiner after it may end a word
# A run is looked at from its beginning alone: from each apostrophe of it, the time would be the square of its length.
_EDGE_APOSTROPHES = re.compile(r"(?<!\S)'+|(?<!')'++(?!\S)")
_LONG = 1000  # characters
_MOST_WORDS = 2**17  # that are remembered, of many texts


def _without_format(text: str) -> str:
    """The text without invisible characters, but for joiners where a script (Persian, Hindi) needs them."""
    if text.isascii() and text.isprintable():
        return text
    return _JOINERS.sub(_needed_joiner, _FORMAT.sub("", text))


def _needed_joiner(found: re.Match[str]) -> str:
    """The joiner that some joiners stand for inside a word of a script that has them; elsewhere ''."""
    text = found.string
    if not found.start():
        return ""
    before, after = text[found.start() - 1], text[found.end()] if found.end() < len(text) else " "
    if unicodedata.category(before)[0] not in "LM" or unicodedata.name(before, "").startswith(_NEED_NO_JOINERS):
        return ""
    needed = unicodedata.category(after)[0] in "LM" or unicodedata.combining(before) == _VIRAMA
    return found[0][0] if needed else ""


def _basic(text: str) -> str:
    """NFKC, lower case, punctuation to spaces except apostrophes inside words, white space collapsed."""
    if text.isascii():  # the same, and faster
        text = text.lower().translate(_ASCII)
        return " ".join((_EDGE_APOSTROPHES.sub(" ", text) if "'" in text else text).split())
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
_NEWEST = {**dict.fromkeys(NORMALIZERS, 2), "english": 1, "indic": 1}
ALLOWED = f"{', '.join(NORMALIZERS)}, english, indic:LANGUAGE, and one with its version, such as basic@1"


def versioned(normalizer: str) -> str:
    """The name of a normalizer with its version, "basic@2", which is what results say.

    Args:
      normalizer: "none" (unchanged), "lower" (lower case), "basic" (NFKC, lower case, every punctuation mark is a space
        except apostrophes inside words, white space collapsed), "english" (that of Whisper), or "indic:hi" and others
        (one spelling where a script has several, numbers as words; then as basic). Version 2 of the first three takes
        out invisible characters first, version 1 does not.

    Raises:
      UserError: no normalizer has that name, no such version, or a package is not installed that it needs.
    """
    name, _, version = normalizer.partition("@")
    kind, colon, language = name.partition(":")
    newest = _NEWEST.get(kind)
    if newest is None or bool(colon) != (kind == "indic"):
        raise UserError(f"normalizer {normalizer!r} is unknown; allowed: {ALLOWED}")
    if version and version not in map(str, range(1, newest + 1)):
        raise UserError(f"normalizer {normalizer!r}: no such version; allowed: {kind} with 1 to {newest}")
    if kind not in NORMALIZERS:
        published_normalizers.check(kind, language)
    return f"{name}@{version or newest}"


@functools.lru_cache
def _function(normalizer: str) -> Callable[[str], str]:
    name, version = versioned(normalizer).split("@")
    if name == "english":
        return published_normalizers.english(otherwise=_without_invisible(_basic))
    if name.startswith("indic:"):
        return published_normalizers.indic(name.removeprefix("indic:"), then=_without_invisible(_basic))
    return NORMALIZERS[name] if version == "1" else _without_invisible(NORMALIZERS[name])


def _without_invisible(function: Callable[[str], str]) -> Callable[[str], str]:
    # Once more at the end: punctuation that was taken out may have left a joiner at the end of a word.
    return lambda text: _without_format(function(_without_format(text)))


def normalize_text(text: str, normalizer: str) -> str:
    """Returns `text`, a transcript, as a normalizer writes it; names and errors as `versioned`.

    Applying none, lower or basic twice changes nothing more.
    """
    return _function(normalizer)(text)


class _ByWord(dict[str, str]):
    """What a normalizer makes of each word, after a space; of a word of which nothing is left, ''."""

    def __init__(self, function: Callable[[str], str]):
        super().__init__()
        self._function = function

    def __missing__(self, word: str) -> str:
        found = self._function(word)
        self[word] = found = f" {found}" if found else ""
        return found


@functools.lru_cache
def _words(normalizer: str) -> _ByWord:
    return _ByWord(_function(normalizer))


def normalize_texts(texts: Sequence[str], normalizer: str) -> list[str]:
    """What `normalize_text` makes of each of many transcripts, in a fraction of its time."""
    function = _function(normalizer)
    if versioned(normalizer).split("@")[0] != "basic":
        return list(map(function, texts))
    # What it does to a character depends on those beside it, and never on those beyond white space; white space ends
    # up as one space. So it is asked once for each word. Joiners alone may leave a word of nothing between two spaces.
    words = _words(normalizer)
    found = []
    for text in texts:
        simple = text.encode().translate(_SIMPLE) if text.isascii() else _OTHER
        if _OTHER not in simple:
            found.append(b" ".join(simple.split()).decode())
        elif "\u200c" in text or "\u200d" in text:
            found.append(function(text))
        else:
            found.append("".join(map(words.__getitem__, text.split()))[1:])
        if len(words) > _MOST_WORDS:
            words.clear()
    return found
