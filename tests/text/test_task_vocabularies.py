"""Vocabularies of several tasks on one output layer: one blank, whatever the backbone's is."""

import numpy as np
import pytest

from hra_jax.text.published_vocabularies import CtcTokenVocabulary
from hra_jax.text.task_vocabularies import BlankFirst, OwnVocabularies, output_symbols, outputs_in_order
from hra_jax.text.vocabularies import CharacterVocabulary

LAST = CtcTokenVocabulary(["|", "A", "B", "<s>", "C", "<pad>"], blank_id=5, special_ids=[3])


def test_a_moved_blank_changes_no_text():
    moved = BlankFirst(LAST)
    assert outputs_in_order(LAST) == [5, 0, 1, 2, 3, 4] and moved.blank_id == 0 and moved.size == 6
    for text in ("a bc", "cab", "b", ""):
        labels = moved.encode(text)
        assert [outputs_in_order(LAST)[i] for i in labels] == LAST.encode(text) and 0 not in labels
        assert moved.decode([0, *labels, 0]) == LAST.decode(LAST.encode(text)) == text.upper()
    assert moved.unknown_characters("a z") == {"z"} and moved.to_json() == LAST.to_json()
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=str(wrong)):
            moved.decode([wrong])


def test_outputs_start_from_the_backbones_outputs_of_the_same_letters_and_its_blank():
    own = CharacterVocabulary(" azb")
    assert output_symbols(own, LAST, 7) == [5, 0, 1, 6, 2, 7, 7]
    assert output_symbols(LAST, LAST, 7) == [5, 0, 1, 2, 3, 4, 7]
    assert output_symbols(own, CharacterVocabulary("ab "), 5) == [0, 3, 1, 4, 2]


def test_columns_give_a_batchs_outputs_back_in_the_order_of_the_vocabulary():
    own = OwnVocabularies(LAST, {"x": CharacterVocabulary("ab")}, 8)
    batch = np.arange(8)  # output by output
    assert batch[own.columns("__base__")].tolist() == [1, 2, 3, 4, 5, 0, 6, 7]
    assert batch[own.columns("x")].tolist() == list(range(8))
    assert own.in_batch("x") is own.of("x") and own.in_batch("__base__").blank_id == 0
