"""Tasks that write in vocabularies of their own, on an output layer that has room for each of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hra_jax.data.text import BLANK_ID, CharacterVocabulary, Vocabulary
from hra_jax.rules import BASE_TASK


def output_symbols(vocabulary: Vocabulary, base: Vocabulary, size: int) -> list[int]:
    """Where the outputs of a task's own vocabulary start from.

    Args:
      vocabulary: the task's own.
      base: that of the backbone.
      size: outputs of the task's layer, at least the vocabulary's size.

    Returns:
      For each output the id in `base` of the same character (or the blank), `base.size` for a symbol that `base` does
      not have, and `base.size + 1` beyond the vocabulary's end.
    """
    found = [BLANK_ID] + [base.size] * (vocabulary.size - 1)
    if vocabulary.to_json() == base.to_json():
        found = list(range(base.size))
    elif isinstance(vocabulary, CharacterVocabulary) and isinstance(base, CharacterVocabulary):
        ids = {character: number for number, character in enumerate(base.characters, start=1)}
        found = [BLANK_ID] + [ids.get(character, base.size) for character in vocabulary.characters]
    return found + [base.size + 1] * (size - len(found))


@dataclass(frozen=True)
class OwnVocabularies:
    """Vocabularies of tasks that write in their own, on one output layer of `size` outputs (O)."""

    base: Vocabulary  # the backbone's, and that of `__base__`
    by_task: Mapping[str, Vocabulary]
    size: int

    def of(self, task: str) -> Vocabulary:
        """The vocabulary of a task."""
        return self.base if task == BASE_TASK else self.by_task[task]

    def symbols(self, task: str) -> np.ndarray:
        """int32 [O], see `output_symbols`."""
        return np.asarray(output_symbols(self.of(task), self.base, self.size), np.int32)
