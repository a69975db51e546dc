"""How log-probabilities become text: the group `decode` of a configuration, of a suite, and of recognition from Python.

Where neither a beam nor a language model nor phrases are given, decoding is greedy: the likeliest label of each frame.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hra_jax.config.settings import Rule, check_settings, integer, is_number, setting
from hra_jax.console import near_matches
from hra_jax.decoding.phrases import is_phrase
from hra_jax.errors import UserError
from hra_jax.tasks.names import unknown_task
from hra_jax.text.ngram import LanguageModel

TRAIN, ADAPTER = "train", "adapter"  # language models without a path
TUNED = "tuned"
# What weights are where nothing was tuned.
DEFAULT_WEIGHTS = {"lm_weight": 0.8, "token_bonus": 1.0, "phrase_weight": 1.5}
DEFAULT_BEAM = 16  # where there is anything to search with
_MOST_HYPOTHESES = 1024


def _is_model(value: Any) -> bool:
    return isinstance(value, str | LanguageModel)


def _is_phrase_list(value: Any) -> bool:
    return bool(value) if isinstance(value, str) else isinstance(value, tuple) and all(map(is_phrase, value))


def _by_task(value: Any, allowed: Any) -> bool:
    """Whether a value is pairs (task, something allowed), each task once."""
    if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return False
    names = [pair[0] for pair in value]
    named = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
    return named and all(allowed(pair[1]) for pair in value)


_MODELS = Rule(
    lambda: (
        f"'' (none), a file of hra_jax.lm, '{TRAIN}' (made from the texts that the run trains on), '{ADAPTER}' (that "
        "in the adapter), or a tuple of pairs (task, one of these), each task once"
    ),
    lambda value: _is_model(value) or (bool(value) and _by_task(value, _is_model)),
    types=(str, tuple),
)
_PHRASES = Rule(
    lambda: (
        "a tuple of phrases, each a text or a pair (text, weight), a file with a phrase in each line, or a tuple of "
        "pairs (task, one of these)"
    ),
    lambda value: value == "" or _is_phrase_list(value) or _by_task(value, _is_phrase_list),
    types=(tuple, str),
)


def _weight(low: float, high: float) -> Rule:
    """A finite number in [low, high], or 'tuned'."""
    return Rule(
        lambda: f"a number of at least {low:g} and at most {high:g}, or '{TUNED}'",
        lambda value: value == TUNED if isinstance(value, str) else is_number(value) and low <= value <= high,
        types=(str, int, float),
    )


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """The keys `decode.*`: how log-probabilities become text."""

    beam: int = setting(
        0,
        integer(0, _MOST_HYPOTHESES),
        "hypotheses that are kept; 0: greedy, or, where a language model, phrases or n_best are given, what was found "
        f"for the model with the adapter, else {DEFAULT_BEAM}",
    )
    n_best: int = setting(1, integer(1, _MOST_HYPOTHESES), "hypotheses that are returned, at most as many as are kept")
    lm: str | LanguageModel | tuple[tuple[str, str | LanguageModel], ...] = setting(
        "", _MODELS, "language model of all tasks, or that of each that is recognised"
    )
    lm_weight: float | str = setting(
        TUNED,
        _weight(0, 100),
        "weight of the language model's log-probabilities; tuned: what was found for the model with the adapter, else "
        f"{DEFAULT_WEIGHTS['lm_weight']:g}",
    )
    token_bonus: float | str = setting(
        TUNED,
        _weight(-100, 100),
        "bonus for each token, nats; tuned: what was found for the model with the adapter, else "
        f"{DEFAULT_WEIGHTS['token_bonus']:g} with a language model and 0 without one",
    )
    phrase_weight: float | str = setting(
        TUNED,
        _weight(0, 100),
        "bonus for each token of a phrase, nats; tuned: what was found for the model with the adapter, else "
        f"{DEFAULT_WEIGHTS['phrase_weight']:g}",
    )
    phrases: str | tuple[Any, ...] = setting(
        (), _PHRASES, "words and phrases that are likelier than elsewhere, of all tasks or of each"
    )

    def __post_init__(self) -> None:
        check_settings(self, "decode")
        if self.beam and self.n_best > self.beam:
            raise UserError(f"decode.n_best = {self.n_best}: allowed: at most decode.beam, which is {self.beam}")

    def width(self, *, phrases: bool, tuned: int = 0) -> int:
        """Hypotheses that the search keeps, 0 for greedy decoding.

        Args:
          phrases: whether there are any.
          tuned: what was found for the model, which holds where none are given; 0 where nothing was.
        """
        if self.beam:
            return self.beam
        return max(tuned or DEFAULT_BEAM, self.n_best) if self.lm or phrases or self.n_best > 1 else 0

    def check_used(self, names: Collection[str] = tuple(DEFAULT_WEIGHTS), *, phrases: bool) -> None:
        """Refuses a weight that is given and would weigh nothing.

        Args:
          names: of what is looked at.
          phrases: whether utterances may bring phrases of their own.

        Raises:
          UserError: there is one.
        """
        phrases = phrases or bool(self.phrases)
        needs = {
            "lm_weight": (bool(self.lm), "decode.lm names no language model"),
            "phrase_weight": (phrases, "there are no phrases"),
            "token_bonus": (self.width(phrases=phrases) > 0, "decoding is greedy"),
        }
        for name, (used, why) in needs.items():
            if name in names and getattr(self, name) != TUNED and not used:
                raise UserError(f"decode.{name} = {getattr(self, name)!r} would do nothing: {why}; allowed: {TUNED!r}")

    def check_tasks(self, known: Iterable[str]) -> None:
        """Refuses language models and phrases of tasks that are none of `known`, which would do nothing.

        Raises:
          UserError: one line, with near matches.
        """
        known = sorted({*known})
        phrases = () if isinstance(self.phrases, str) or _is_phrase_list(self.phrases) else self.phrases
        for key, names in (("lm", self.tasks_with_models), ("phrases", [name for name, _ in phrases])):
            for name in names:
                if name not in known:
                    raise UserError(f"decode.{key}: {unknown_task(name, known)}")

    def model_of(self, task: str) -> str | LanguageModel | None:
        """What names the language model of a task; '' for none, None where there are pairs and the task is in none."""
        return dict(self.lm).get(task) if isinstance(self.lm, tuple) else self.lm

    @property
    def files(self) -> list[str]:
        """The files of language models and of phrases that are named, sorted."""
        models = dict(self.lm).values() if isinstance(self.lm, tuple) else [self.lm]
        listed: tuple[Any, ...] = self.phrases if isinstance(self.phrases, tuple) else ()
        phrases = [self.phrases] if _is_phrase_list(self.phrases) or not listed else dict(listed).values()
        named = [value for value in (*models, *phrases) if isinstance(value, str)]
        return sorted({*named} - {"", TRAIN, ADAPTER})

    @property
    def tasks_with_models(self) -> list[str]:
        """The tasks that pairs give a language model to, or none, sorted."""
        return sorted(dict(self.lm)) if isinstance(self.lm, tuple) else []

    def phrases_of(self, task: str) -> str | tuple[Any, ...]:
        """The phrases of a task, or the file that has them."""
        if isinstance(self.phrases, str) or _is_phrase_list(self.phrases):
            return self.phrases
        by_task: dict[str, str | tuple[Any, ...]] = dict(self.phrases)
        return by_task.get(task, ())


def decode_settings(
    given: DecodeSettings | Mapping[str, Any] | Iterable[tuple[str, Any]] | None,
    *,
    where: str = "decode",
    base: DecodeSettings | None = None,
) -> DecodeSettings:
    """Settings from Python, from a group of a configuration, or from the pairs of a suite.

    Args:
      given: settings, a mapping {key: value}, pairs (key, value), or None for nothing.
      where: what an error calls `given`.
      base: what holds for the keys that `given` does not have; None for the defaults.

    Raises:
      UserError: an unknown key, one that is given twice, or a value that is not allowed.
    """
    if isinstance(given, DecodeSettings):
        return given
    base = DecodeSettings() if base is None else base
    if given is None:
        return base
    known = tuple(field.name for field in dataclasses.fields(DecodeSettings))
    if isinstance(given, str) or not isinstance(given, Mapping | Iterable):
        raise UserError(f"{where} = {given!r}: allowed: pairs (key, value) of {', '.join(known)}")
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where} = {given!r}: allowed: pairs (key, value) of {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {near_matches(str(key), known)}")
        if key in values:
            raise UserError(f"{where}: the key {key!r} is given twice; allowed: once")
        values[key] = _tuples(value)
    try:
        return dataclasses.replace(base, **values)
    except UserError as error:
        raise UserError(str(error) if where == "decode" else f"{where}: {error}") from error


def _tuples(value: Any) -> Any:
    """A value in which lists are tuples, mappings by task pairs, and paths texts."""
    if isinstance(value, Mapping):
        return tuple((task, _tuples(one)) for task, one in value.items())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(_tuples(item) for item in value) if isinstance(value, tuple | list) else value
