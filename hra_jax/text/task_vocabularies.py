"""Tasks that write in vocabularies of their own, on an output layer that has room for each of them.

A batch holds rows of several vocabularies, so its loss and its best paths need one blank: output 0 of that layer. A
published backbone may have its blank elsewhere; its ids are then renumbered, the blank first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hra_jax.adapters.output_kinds import SHARED_VOCABULARIES
from hra_jax.errors import UserError
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, check_ids
from hra_jax.text.vocabularies import BLANK_ID, CharacterVocabulary, Vocabulary, vocabulary_from_json


class BlankFirst:
    """Another vocabulary with its blank moved to id 0; the other ids keep their order."""

    def __init__(self, vocabulary: Vocabulary):
        """Takes a vocabulary with the blank anywhere."""
        self._vocabulary = vocabulary
        self._original = outputs_in_order(vocabulary)
        self._moved = {old: new for new, old in enumerate(self._original)}

    @property
    def original(self) -> Vocabulary:
        """The vocabulary with the blank where it was."""
        return self._vocabulary

    @property
    def size(self) -> int:
        """V, as before."""
        return self._vocabulary.size

    @property
    def blank_id(self) -> int:
        """0."""
        return BLANK_ID

    @property
    def by_character(self) -> bool:
        """As the vocabulary itself."""
        return self._vocabulary.by_character

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those of the vocabulary itself, the blank's first."""
        symbols = self._vocabulary.tokens
        return tuple(symbols[i] for i in self._original)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, in [1, V)."""
        return [self._moved[i] for i in self._vocabulary.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids of `encode`. ValueError for an id outside [0, V)."""
        return self._vocabulary.decode(self._original[i] for i in check_ids(ids, self.size))

    def unknown_characters(self, text: str) -> set[str]:
        """As the vocabulary itself."""
        return self._vocabulary.unknown_characters(text)

    def to_json(self) -> dict:
        """That of the vocabulary itself: how it is stored does not depend on how a batch numbers it."""
        return self._vocabulary.to_json()


def outputs_in_order(vocabulary: Vocabulary) -> list[int]:
    """The ids of a vocabulary as the outputs of a shared layer have them: the blank, and then the others."""
    return [vocabulary.blank_id] + [i for i in range(vocabulary.size) if i != vocabulary.blank_id]


def output_symbols(vocabulary: Vocabulary, base: Vocabulary, size: int) -> list[int]:
    """Where the outputs of a task's own vocabulary start from.

    Args:
      vocabulary: the task's own.
      base: that of the backbone.
      size: outputs of the task's layer, at least the vocabulary's size.

    Returns:
      For each output the id in `base` of the same character (or the blank), `base.size` for a symbol that `base` does
      not have, and `base.size + 1` beyond the vocabulary's end. Output 0 is the blank, see `outputs_in_order`.
    """
    found = [base.blank_id] + [base.size] * (vocabulary.size - 1)
    if vocabulary.to_json() == base.to_json():
        found = outputs_in_order(base)
    elif isinstance(vocabulary, CharacterVocabulary) and isinstance(base, CharacterVocabulary | CtcTokenVocabulary):
        # A backbone that knows one case alone gives a letter of the other case its own.
        ids = (base.encode(character) for character in vocabulary.characters)
        found = [base.blank_id] + [one[0] if len(one) == 1 else base.size for one in ids]
    return found + [base.size + 1] * (size - len(found))


def stored_vocabularies(
    config: Mapping, tasks: Sequence[Mapping], *, where: str
) -> tuple[dict[str, Vocabulary], Vocabulary | None]:
    """The vocabularies of an exported adapter whose tasks do not write in the backbone's: by task, or one for all.

    Args:
      config: its adapter_config.json.
      tasks: the entries of its tasks.json.
      where: the adapter folder, for errors.

    Raises:
      UserError: a vocabulary is missing or cannot be read.
    """
    room = config["method"]["output_size"]
    if config["method"]["output"] in SHARED_VOCABULARIES:
        return {}, _that_fits(config["vocabulary"], room, where=where)
    for entry in tasks:
        if "vocabulary" not in entry:
            raise UserError(f"{where}: task {entry['name']!r} has no vocabulary; its adapter needs one for each task")
    own = {e["name"]: _that_fits(e["vocabulary"], room, where=f"{where}: task {e['name']!r}") for e in tasks}
    return own, None


def _that_fits(content: dict, outputs: int, *, where: str) -> Vocabulary:
    """A stored vocabulary, which must have no more symbols than its layer has outputs."""
    try:
        vocabulary = vocabulary_from_json(content)
    except UserError as error:
        raise UserError(f"{where}: vocabulary: {error}") from error
    if vocabulary.size > outputs:
        raise UserError(f"{where}: its vocabulary has {vocabulary.size:,} symbols; allowed: {outputs:,}, the outputs")
    return vocabulary


@dataclass(frozen=True)
class OwnVocabularies:
    """Vocabularies of tasks that do not write in the backbone's, on an output layer of `size` outputs (O)."""

    base: Vocabulary  # the backbone's, and that of `__base__`
    by_task: Mapping[str, Vocabulary]
    size: int
    shared: Vocabulary | None = None  # of all tasks; `by_task` is empty then

    def of(self, task: str) -> Vocabulary:
        """The vocabulary of a task, with its blank where it has it."""
        if task == BASE_TASK:
            return self.base
        return self.by_task[task] if self.shared is None else self.shared

    def facts(self, tasks: Iterable[str]) -> dict:
        """The vocabularies of tasks as JSON values."""
        if self.shared is not None:
            return {"shared": self.shared.to_json()}
        return {name: self.of(name).to_json() for name in tasks}

    def in_batch(self, task: str) -> Vocabulary:
        """The vocabulary of a task with the ids of the outputs of a batch: the blank is 0."""
        vocabulary = self.of(task)
        return vocabulary if vocabulary.blank_id == BLANK_ID else BlankFirst(vocabulary)

    def columns(self, task: str) -> np.ndarray:
        """int32 [O]: in a batch's order of outputs, where the outputs lie in the order of the task's own ids."""
        order = outputs_in_order(self.of(task))
        return np.argsort([*order, *range(len(order), self.size)]).astype(np.int32)

    def symbols(self, task: str) -> np.ndarray:
        """int32 [O], see `output_symbols`."""
        return np.asarray(output_symbols(self.of(task), self.base, self.size), np.int32)


def own_vocabularies(config: Mapping, tasks: Sequence[Mapping], base: Vocabulary, *, where: str) -> OwnVocabularies:
    """What `stored_vocabularies` found beside the backbone's vocabulary."""
    found, shared = stored_vocabularies(config, tasks, where=where)
    return OwnVocabularies(base, found, config["method"]["output_size"], shared)
