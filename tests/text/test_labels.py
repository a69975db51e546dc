"""Labels of many texts at a time are those of each text by itself."""

import numpy as np
import pytest

from hra_jax.models.ctc import augmented_length
from hra_jax.text.labels import Labeller
from hra_jax.text.published_vocabularies import CtcTokenVocabulary
from hra_jax.text.task_vocabularies import BlankFirst
from hra_jax.text.vocabularies import BlankVocabulary, CharacterVocabulary, SentencePieceVocabulary

TEXTS = ["", "see", "abba", "caf\u00e9 no 5", "12", "", "straße", "ee", "e", "\U0001f600 bb", "tt t  ttt", "\ud800a"]
TOKENS = ["<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def _pieces():
    return SentencePieceVocabulary.train(["see abba", "no see bb", "tea eat see", "abba no"] * 5, 20, fewer=True)


VOCABULARIES = {
    "characters": CharacterVocabulary,
    "with letters beyond others": lambda: CharacterVocabulary(" ab\u00e9\U0001f600"),
    "pieces": _pieces,
    "nothing": BlankVocabulary,
    "published, one case": lambda: CtcTokenVocabulary(TOKENS, blank_id=0),
    "published, several characters": lambda: CtcTokenVocabulary([*TOKENS, "SEE"], blank_id=0),
    "blank moved": lambda: BlankFirst(CtcTokenVocabulary([*TOKENS[1:], "<pad>"], blank_id=27)),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:4], [], ["", ""]])
def test_labels_of_many_texts_are_those_of_each(kind, texts):
    vocabulary = VOCABULARIES[kind]()
    if "pieces" in kind:
        texts = [text for text in texts if text.isprintable()]
    make = Labeller(vocabulary)
    for some in (texts, texts[::-1]):  # what it has seen changes nothing
        found = make(some)
        expected = [vocabulary.encode(text) for text in some]
        assert found.lengths.tolist() == [len(labels) for labels in expected]
        assert found.flat.tolist() == [label for labels in expected for label in labels]
        assert found.needed.tolist() == [augmented_length(np.array(labels, int)) for labels in expected]
        assert found.dropped.tolist() == [bool(vocabulary.unknown_characters(text)) for text in some]
        assert found.flat.dtype == found.lengths.dtype == found.needed.dtype == np.int32
