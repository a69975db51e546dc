"""A small English: sentences to be spoken, and their partition into training, validation and test texts.

Texts are lower case and hold only the letters a to z, spaces and apostrophes. A sentence belongs to one split for ever,
by a hash of its words; what is held out (`held_out`) occurs in no training text, not even as a part of a longer
sentence.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from hra_jax.errors import UserError

# Words and sentence patterns; `{name}` is a slot. Weights say how often a group of patterns is drawn, relative to the
# others. Any change makes other texts of every seed: it needs another `_RENDERING` in rendering.py.
_ENGLISH = json.loads((pathlib.Path(__file__).parent / "english.json").read_text(encoding="utf-8"))
_ONES: list[str] = _ENGLISH["ones"]
_TENS: list[str] = _ENGLISH["tens"]
_ORDINALS: list[str] = _ENGLISH["ordinals"]
_BEFORE_HOUR: list[str] = _ENGLISH["before_hour"]
_SLOTS: dict[str, list[str]] = _ENGLISH["slots"]
_TEMPLATES: dict[str, list[str]] = _ENGLISH["templates"]

Option = TypeVar("Option")

SPLITS = ("train", "validation", "test")
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"

_SHORTEST_HELD_OUT = 3  # words; shorter texts are too few to hold any out, and every split needs them spoken
_POOL_SIZE = 4000  # sentences held out for each of validation and test
_POOL_SEED = 20240329
_SLOT = re.compile(r"\{(\w+)\}")


def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


def cardinal(value: int) -> str:
    """The words of a whole number from 0 to 999,999 ("two hundred and five" without the "and")."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    unit, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    head, tail = divmod(value, unit)
    return f"{cardinal(head)} {name}" + (f" {cardinal(tail)}" if tail else "")


def ordinal(value: int) -> str:
    """The words of the rank 1 to 31."""
    if value < 20:
        return _ORDINALS[value]
    tens, ones = divmod(value, 10)
    return f"{_TENS[tens]} {_ORDINALS[ones]}" if ones else {20: "twentieth", 30: "thirtieth"}[value]


def _digits(rng: np.random.Generator, low: int = 3, high: int = 7) -> str:
    return " ".join(_ONES[d] for d in rng.integers(0, 10, int(rng.integers(low, high + 1))))


def _number(rng: np.random.Generator) -> str:
    limit = int(_pick(rng, (100, 100, 1000, 10000, 100000)))
    value = int(rng.integers(limit))
    if value > 1000:  # round numbers, as people say them: at most six words
        value -= value % int(_pick(rng, (10, 100)))
    return cardinal(value)


def _year(rng: np.random.Generator) -> str:
    century, rest = int(rng.integers(17, 21)), int(rng.integers(100))
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {_ONES[rest]}" if rest else "")
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _time(rng: np.random.Generator) -> str:
    hour, form = _ONES[int(rng.integers(1, 13))], int(rng.integers(5))
    if form == 0:
        return f"{hour} o'clock"
    if form == 1:
        return f"{_pick(rng, _BEFORE_HOUR)} {hour}"
    if form == 2:
        return f"{hour} {_pick(rng, ('in the morning', 'in the evening', 'at night'))}"
    return f"{hour} {cardinal(int(rng.integers(10, 60)))}"


def _date(rng: np.random.Generator) -> str:
    month, day = _pick(rng, _SLOTS["month"]), ordinal(int(rng.integers(1, 32)))
    return _pick(rng, (f"{month} {day}", f"the {day} of {month}", f"{_pick(rng, _SLOTS['day'])} {month} {day}"))


_MADE: dict[str, Callable[[np.random.Generator], str]] = {
    "digits": _digits,
    "code": lambda rng: _digits(rng, 3, 5),
    "number": _number,
    "small": lambda rng: cardinal(int(rng.integers(2, 31))),
    "count": lambda rng: cardinal(int(rng.integers(2, 13))),
    "percent": lambda rng: cardinal(int(rng.integers(1, 101))),
    "year": _year,
    "time": _time,
    "date": _date,
    "ordinal": lambda rng: ordinal(int(rng.integers(1, 13))),
    "letter_digits": lambda rng: f"{_pick(rng, _SLOTS['spelling'])} {_digits(rng, 2, 4)}",
}


@functools.cache
def _parsed(template: str) -> tuple[str, ...]:
    return tuple(_SLOT.split(template))  # text, slot, text, slot, ..., text


def _expand(template: str, rng: np.random.Generator) -> str:
    pieces = list(_parsed(template))
    for position in range(1, len(pieces), 2):
        slot = pieces[position]
        made = _MADE[slot](rng) if slot in _MADE else _pick(rng, _SLOTS[slot])
        pieces[position] = _expand(made, rng) if "{" in made else made
    return "".join(pieces)


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """All distinct words that the grammar can say, sorted."""
    found = set(_ONES) | set(_TENS[2:]) | set(_ORDINALS[1:]) | {"hundred", "thousand", "twentieth", "thirtieth"}
    texts = [_SLOT.sub(" ", t) for group in _TEMPLATES.values() for t in group]
    texts += [_SLOT.sub(" ", option) for options in _SLOTS.values() for option in options]
    texts += ["o'clock half past a quarter to twenty five ten in the morning evening at night oh of and"]
    return tuple(sorted(found.union(*(text.split() for text in texts))))


@functools.cache
def _isolated_words() -> tuple[str, ...]:
    return tuple(word for word in vocabulary() if len(word) > 1)


@functools.cache
def _groups() -> tuple[tuple[str, ...], np.ndarray]:
    names = tuple(_TEMPLATES)
    return names, np.cumsum([_ENGLISH["weights"][name] for name in names])


def sentence(rng: np.random.Generator) -> str:
    """Draws one sentence of the grammar (mostly two to eight words)."""
    names, cumulative = _groups()
    group = names[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]
    return _expand(_pick(rng, _TEMPLATES[group]), rng)


def isolated(rng: np.random.Generator) -> str:
    """Draws one or two words on their own: half of the draws are digits."""
    draw = rng.random()
    if draw < 0.4:
        return _ONES[int(rng.integers(10))]
    if draw < 0.5:
        return _digits(rng, 2, 2)
    return _pick(rng, _isolated_words())


def split_of(text: str) -> str:
    """The split of a text: "test" (10%), "validation" (10%) or "train" (80%, and all texts of one or two words)."""
    parts = text.split()
    if len(parts) < _SHORTEST_HELD_OUT:
        return "train"
    bucket = int.from_bytes(hashlib.sha256(" ".join(parts).encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


@functools.cache
def held_out(split: str) -> tuple[str, ...]:
    """The fixed pool of sentences from which every validation or test set is drawn."""
    rng = np.random.default_rng([_POOL_SEED, SPLITS.index(split)])
    pool: dict[str, None] = {}
    while len(pool) < _POOL_SIZE:
        text = sentence(rng)
        if split_of(text) == split:
            pool[text] = None
    return tuple(pool)


@functools.cache
def _held_out_set() -> frozenset[str]:
    return frozenset(held_out("validation") + held_out("test"))


def contains_held_out(text: str) -> bool:
    """Whether a held-out sentence occurs in the text, as the whole of it or as a run of its words."""
    parts = text.split()
    runs = (
        " ".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + _SHORTEST_HELD_OUT, len(parts) + 1)
    )
    return any(run in _held_out_set() for run in runs)


def sample(
    split: str, rng: np.random.Generator, *, count: int, unique: bool = True, isolated_share: float = 0.2
) -> list[str]:
    """Draws texts of one split.

    Args:
      split: "train", "validation" or "test".
      rng: where the randomness comes from.
      count: how many texts.
      unique: no text twice.
      isolated_share: least share of isolated words among training texts (held-out texts have at least three words).

    Returns:
      `count` texts. No training text contains a validation or test text, whatever the seeds.

    Raises:
      UserError: unknown split, or more unique held-out texts than there are.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    if split != "train":
        pool = held_out(split)
        if unique and count > len(pool):
            raise UserError(f"{count} different {split} sentences were asked for; there are {len(pool)}")
        return [pool[i] for i in rng.choice(len(pool), count, replace=not unique)]
    texts: list[str] = []
    seen: set[str] = set()
    while len(texts) < count:
        text = isolated(rng) if rng.random() < isolated_share else sentence(rng)
        if (unique and text in seen) or split_of(text) != "train" or contains_held_out(text):
            continue
        seen.add(text)
        texts.append(text)
    return texts
