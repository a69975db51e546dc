"""The labels of many transcripts at a time, as arrays."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.text.vocabularies import Vocabulary

_DROPPED, _NOT_ASKED = -1, -2


class Labels(NamedTuple):
    """The labels of N texts.

    Attributes:
      flat: int32, the labels of all texts, one text after the other.
      lengths: int32 [N], how many of them each text has.
      needed: int32 [N], the fewest encoder frames that CTC can align them to, as `models.ctc.augmented_length`.
      dropped: bool [N], whether the text has characters that the vocabulary does not have.
    """

    flat: np.ndarray
    lengths: np.ndarray
    needed: np.ndarray
    dropped: np.ndarray


class Labeller:
    """Makes labels with one vocabulary; it remembers the characters that it has seen."""

    def __init__(self, vocabulary: Vocabulary):
        """Takes the vocabulary."""
        self._vocabulary = vocabulary
        self._by_character = vocabulary.by_character
        self._ids = np.zeros(0, np.int32)  # of each character its label, where those of a text are those of characters

    def __call__(self, texts: Sequence[str]) -> Labels:
        """The labels of some texts: those of `Vocabulary.encode`."""
        found = self._looked_up(texts) if self._by_character else None
        if found is None:
            rows = [self._vocabulary.encode(text) for text in texts]
            lengths = np.fromiter(map(len, rows), np.int32, len(rows))
            flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
            unknown = (bool(self._vocabulary.unknown_characters(text)) for text in texts)
            found = flat, lengths, np.fromiter(unknown, bool, len(rows))
        flat, lengths, dropped = found
        return Labels(flat, lengths, lengths + _repeats(flat, lengths), dropped)

    def _looked_up(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(labels, lengths, dropped), looked up; None where a character has several labels."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        if not self._learn(characters):
            return None
        found = self._ids[characters]
        kept = found != _DROPPED
        lengths = _sums(kept, sizes)
        return found[kept], lengths.astype(np.int32), lengths < sizes

    def _learn(self, characters: np.ndarray) -> bool:
        """Asks the vocabulary for the labels of characters that are new; False where one has several."""
        beyond = int(characters.max(initial=0)) + 1 - len(self._ids)
        if beyond > 0:
            self._ids = np.append(self._ids, np.full(beyond, _NOT_ASKED, np.int32))
        for character in np.unique(characters[self._ids[characters] == _NOT_ASKED]).tolist():
            labels = self._vocabulary.encode(chr(character))
            if len(labels) > 1:
                self._by_character = False
                return False
            self._ids[character] = labels[0] if labels else _DROPPED
        return True


def joined(parts: Iterable[Labels]) -> Labels:
    """The labels of several lots of texts, one after the other."""
    empty = Labels(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))
    return Labels(*map(np.concatenate, zip(empty, *parts, strict=True)))


def _repeats(flat: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int32 [N]: how many labels of each text equal the one before them."""
    equal = np.zeros(len(flat), bool)
    equal[1:] = flat[1:] == flat[:-1]
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    equal[starts[lengths > 0]] = False  # the first label of a text has none before it
    return _sums(equal, lengths).astype(np.int32)


def _sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [N]: the number of true values in each of N neighbouring parts of bool [sum of `lengths`]."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths, dtype=np.int64)
    return before[ends] - before[ends - lengths]
