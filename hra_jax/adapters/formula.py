"""Numbers of parameters as arithmetic over letters, such as `R * (D + 2)`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_ALLOWED = re.compile(r"[A-Za-z0-9_\s()+*-]+")
_LETTER = re.compile(r"[A-Za-z]\w*")


def letters_in(text: str) -> set[str]:
    """The letters of a formula."""
    return set(_LETTER.findall(text))


def wrong_with(text: object, letters: Iterable[str]) -> str | None:
    """What is wrong with a text as a formula over `letters`, as the end of a sentence; None where nothing is."""
    if not isinstance(text, str) or not _ALLOWED.fullmatch(text):
        return f"has the formula {text!r}; allowed: sums and products of letters and numbers"
    allowed = set(letters)
    unknown = sorted(letters_in(text) - allowed)
    if unknown:
        return f"has the formula {text!r} with {unknown[0]!r}; allowed letters: {', '.join(sorted(allowed))}"
    try:
        evaluated(text, dict.fromkeys(allowed, 1))
    except (SyntaxError, TypeError):
        return f"has the formula {text!r}, which is no arithmetic"
    return None


def evaluated(text: str, letters: Mapping[str, int]) -> int:
    """The number that a formula gives."""
    return int(eval(text, {"__builtins__": {}}, dict(letters)))


class Formula(NamedTuple):
    """The numbers of parameters of a method."""

    shared: str
    task: str

    def evaluate(self, letters: Mapping[str, int]) -> tuple[int, int]:
        """The shared number and that of one task, with the letters filled in."""
        return evaluated(self.shared, letters), evaluated(self.task, letters)
