"""Settings: fields of a class that say their default, what they allow and what they mean, in one place.

    @dataclasses.dataclass(frozen=True)
    class ProfileSettings:
        start_step: int = setting(-1, integer(-1), "first step of a profile; -1 for none")
        steps: int = setting(5, integer(1), "steps that are profiled")

`hra_jax.config.keys` makes the keys of a configuration, their defaults and the documentation of such classes. A class
that is also made from Python calls `check_settings(self, "profile")` in its `__post_init__`, so that both ways refuse
the same values with the same words.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from hra_jax.errors import UserError


class Rule(NamedTuple):
    """What a setting allows: in words, as a predicate, and as the list of choices where there is one.

    These are functions, so that a rule can name a list that grows when a module registers something. A setting that
    may be of several types names them in `types`; all others keep to the type of their default.
    """

    describe: Callable[[], str]
    accepts: Callable[[Any], bool]
    choices: Callable[[], tuple[str, ...]] | None = None
    types: tuple[type, ...] = ()


class Setting(NamedTuple):
    """One field made by `setting`."""

    name: str
    default: Any
    rule: Rule
    meaning: str


def setting(default: Any, rule: Rule, meaning: str) -> Any:
    """A dataclass field with its default, its rule, and what it means (a phrase with its unit, for docs and `base`)."""
    return dataclasses.field(default=default, metadata={"setting": (rule, meaning)})


def settings_of(cls: type) -> Iterator[Setting]:
    """The settings of a dataclass, in the order of its fields; fields not made by `setting` are passed over."""
    for field in dataclasses.fields(cls):
        if "setting" in field.metadata:
            rule, meaning = field.metadata["setting"]
            yield Setting(field.name, field.default, rule, meaning)


def check_settings(instance: Any, group: str) -> None:
    """Checks every setting of a dataclass instance against its rule.

    Raises:
      UserError: `group.name = value: allowed: ...`, for the first that is refused; `group` may be ''.
    """
    for name, _, rule, _ in settings_of(type(instance)):
        value = getattr(instance, name)
        if not rule.accepts(value):
            key = f"{group}.{name}" if group else name
            raise UserError(f"{key} = {value!r}: allowed: {rule.describe()}")


# --- Rules ------------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float, and no bool."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def integer(low: int, high: int | None = None, *, extra: int | None = None, unit: str = "") -> Rule:
    """An integer of at least `low` (and at most `high`), or `extra`."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value == extra or (value >= low and (high is None or value <= high))

    top = "" if high is None else f" and at most {high}"
    also = "" if extra is None else f", or {extra}"
    return Rule(lambda: f"an integer of at least {low}{top}{unit}{also}", accepts)


def number(low: float, high: float = math.inf, *, above: bool = False, unit: str = "") -> Rule:
    """A number in [low, high], or in (low, high] where `above`."""
    bottom = f"above {low}" if above else f"of at least {low}"
    top = "" if high == math.inf else f" and at most {high}"

    def accepts(value: Any) -> bool:
        return is_number(value) and low <= value <= high and not (above and value == low)

    return Rule(lambda: f"a number {bottom}{top}{unit}", accepts)


def one_of(choices: Iterable[str] | Callable[[], Iterable[str]]) -> Rule:
    """One of some words; a list that can grow, or that costs an import, is given as a function."""

    def listed() -> tuple[str, ...]:
        return tuple(choices() if callable(choices) else choices)

    def describe() -> str:
        return ", ".join(map(repr, listed()))

    return Rule(describe, lambda value: isinstance(value, str) and value in listed(), listed)


def text(*, empty: bool = True) -> Rule:
    """A string."""
    kind = "a string" if empty else "a string that is not empty"
    return Rule(lambda: kind, lambda value: isinstance(value, str) and (empty or bool(value)))


def boolean() -> Rule:
    """True or False."""
    return Rule(lambda: "True or False", lambda value: isinstance(value, bool))


def distinct_names(description: str, *, empty: bool, reserved: Iterable[str] = ()) -> Rule:
    """A tuple of distinct strings that are not empty, none of them reserved."""
    refused = frozenset(reserved)

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
            return False
        return (empty or bool(value)) and len(set(value)) == len(value) and refused.isdisjoint(value)

    return Rule(lambda: description, accepts)
