"""How commands speak to people: percentages, table cells, near matches."""

import difflib
import re
from collections.abc import Mapping, Sequence


def percent(rate: float | None) -> str:
    """A rate for people: one decimal, or `-` where there is none."""
    return "-" if rate is None else f"{rate:.1%}"


def bounds(scores: Mapping) -> str:
    """The 95% interval of the word error rate in a part of the results, for people; `-` where there is none."""
    return "-" if scores["wer_low"] is None else f"{percent(scores['wer_low'])} to {percent(scores['wer_high'])}"


def markdown_cell(text: str) -> str:
    """A text that neither ends a cell of a Markdown table nor starts markup in it."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def near_matches(name: str, allowed: Sequence[str]) -> str:
    """Returns the end of an error line: the near matches of `name`, or the allowed names where none is near.

    Args:
      name: what the user wrote.
      allowed: what would have been right.

    Returns:
      For example `"did you mean 'steps'?"` or `"allowed: adapter, full, pretrain"`.
    """
    matches = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
    if not matches:
        matches = [word for word in allowed if word.split(".")[-1] == name][:3]
    if matches:
        return f"did you mean {' or '.join(map(repr, matches))}?"
    return f"allowed: {', '.join(allowed)}"
