"""The errors that a user's input can cause, and how texts from elsewhere are shown."""

import struct
import unicodedata
import zlib

# Whatever goes wrong in what must not cost other work, such as a report: storage, memory, a compiler, a library that
# reads or draws. Not Ctrl-C, and not SIGTERM.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_MOST = 4000  # characters of an error line
_JOINERS = "\u200c\u200d"  # invisible, but parts of words in some scripts
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: object, *, most: int | None = 300) -> str:
    r"""A text that somebody else may have written, as it may be shown on a terminal or in a document.

    What is no visible character (control characters and with them line breaks and terminal escapes, marks that turn
    the direction of writing, lone surrogates, characters that Unicode does not assign) becomes `\uXXXX`, as JSON
    escapes it, so that JSON stays JSON.

    Args:
      text: the text, or what `str` makes one of.
      most: characters that are shown; None for all.
    """
    text = str(text)
    more = "" if most is None or len(text) <= most else f"... ({len(text):,} characters)"
    text = text[:most] if more else text
    if text.isprintable():
        return text + more
    return "".join(_escaped(character) for character in text) + more


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def one_line(text: object) -> str:
    """A message in one line, for an error: line breaks become spaces, what cannot be seen is escaped, and it ends."""
    return printable(" ".join(line.strip() for line in str(text).strip().splitlines()), most=_MOST)


class UserError(ValueError):
    """A value that the user gave is wrong: the message is one line that names the value and what is allowed.

    Commands print the message without a traceback and exit with status 2. Whatever it quotes, it is one line of visible
    characters.
    """

    def __init__(self, message: object = ""):
        """Takes the message."""
        super().__init__(one_line(message))


class DamagedError(UserError):
    """Stored data is not what was stored: the message names the file, or the array in it, and what is wrong."""
