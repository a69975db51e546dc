"""Text: what normalisation keeps, and that labels give the text back."""

import json
import time

import pytest
from reference.sentences import SENTENCES

from hra_jax.data.sources import DataSettings
from hra_jax.errors import UserError
from hra_jax.text import vocabularies
from hra_jax.text.normalization import normalize_text


def _vocabularies():
    return [vocabularies.CharacterVocabulary(), vocabularies.SentencePieceVocabulary.train(SENTENCES, 48)]


@pytest.mark.parametrize(
    "written, normal",
    [
        ("Don\u2019t  STOP!", "don't stop"),
        ("'Tis the dogs' bone, 'quoted'", "tis the dogs bone quoted"),
        ("twenty-one\tand\u00a0\uff15", "twenty one and 5"),
        ("caf\u0065\u0301 (closed)", "caf\u00e9 closed"),
        ("don\u00b4t", "don't"),
        (" ... ", ""),
    ],
)
def test_basic_normalizer_keeps_words_and_inner_apostrophes_only(written, normal):
    assert normalize_text(written, "basic") == normal


@pytest.mark.parametrize("normalizer", ["none", "lower", "basic"])
@pytest.mark.parametrize(
    "written, normal",
    [
        ("\ufeffhello", "hello"),
        ("hel\u00adlo", "hello"),
        ("one\u200b two", "one two"),
        ("\u202bone\u202c \u2067two\u2069\u200f", "one two"),
        ("wo\u200drd\u200c \u200dx", "word x"),
        # Persian "mi-ravam" with its joiner; "na" of Malayalam with virama and joiner at the end of a word.
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u200c\u0631\u0648\u0645"),
        ("\u0d05\u0d35\u0d28\u0d4d\u200d x", "\u0d05\u0d35\u0d28\u0d4d\u200d x"),
        ("\u0645\u200c \u200c\u0631", "\u0645 \u0631"),
        ("\u0645\u200c\u200c\u0631", "\u0645\u200c\u0631"),
        ("\x01one\x7f\0 t\x9bwo\x1b", "one two"),
        ("o\u034fne\ufe0f \u115ft\u3164w\U000e0100o\u180b", "one two"),
        ("\u0645\ufe0f\u200c\u0631", "\u0645\u200c\u0631"),
    ],
)
def test_invisible_characters_are_no_part_of_a_word_but_joiners_where_scripts_need_them(normalizer, written, normal):
    assert normalize_text(written, normalizer) == normal
    assert normalize_text(written, "none@1") == written


def test_a_new_vocabulary_has_no_invisible_outputs_and_a_run_of_before_keeps_those_it_had():
    texts = ["\ufeffone", "t\u00adwo"]
    for settings, there in ((DataSettings(), False), (DataSettings(format_characters="kept"), True)):
        normal = [normalize_text(text, settings.text_normalizer) for text in texts]
        assert bool(set("\ufeff\u00ad") & set("".join(normal))) == there


@pytest.mark.parametrize(
    "text",
    [
        "'" * 100_000 + "a",
        "' " * 50_000,
        "a" + "\u0301\u0323" * 50_000,
        "a" + "\u0f73" * 50_000,
        "\u0958\u0323" * 30_000,
    ],
    ids=["apostrophes", "separate apostrophes", "marks", "marks that decompose", "characters that decompose"],
)
def test_no_text_takes_long(text):
    started = time.process_time()
    normalize_text(text, "basic")
    assert time.process_time() - started < 2


def test_long_texts_are_normalised_as_short_ones_are():
    marked = "e\u0301\u0323 \u1e9b\u0323\u0301 \u0f73\u0323 \u0344\u0327 \ufb01\u0323 \u00b4n 'x' I\u0307\u0323 "
    assert normalize_text(marked * 100, "basic") == " ".join([normalize_text(marked, "basic")] * 100)


def test_normalizers_are_idempotent_and_named():
    hard = "\u0130stanbul \u2018A\u2019 \ufb01n\u2026 O\u2019Neil''s -- 3\u00bd \u1e9e"
    for name in ("none", "lower", "basic"):
        once = normalize_text(hard, name)
        assert normalize_text(once, name) == once
    assert normalize_text(" A,b ", "none") == " A,b "
    assert normalize_text(" A,b ", "lower") == " a,b "
    with pytest.raises(UserError, match="'whisper'.*none, lower, basic"):
        normalize_text("a", "whisper")


@pytest.mark.parametrize("index", [0, 1])
def test_encoded_text_decodes_to_itself_through_json_and_never_uses_the_blank(index):
    vocabulary = _vocabularies()[index]
    restored = vocabularies.vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert isinstance(restored, vocabularies.Vocabulary)
    for sentence in [*SENTENCES, "a new sentence"]:
        labels = vocabulary.encode(sentence)
        assert labels and vocabulary.blank_id not in labels and max(labels) < vocabulary.size
        assert restored.encode(sentence) == labels
        assert restored.decode([0, *labels, 0]) == sentence
    assert restored.size == vocabulary.size


@pytest.mark.parametrize("index", [0, 1])
def test_unknown_characters_are_dropped_and_named(index):
    vocabulary = _vocabularies()[index]
    assert vocabulary.unknown_characters("turn \u00e9 the 5") == {"\u00e9", "5"}
    assert vocabulary.unknown_characters("turn it on") == set()
    assert vocabulary.decode(vocabulary.encode("tu5rn\u00e9")) == "turn"
    assert vocabulary.encode("\u00e9") == []


def test_character_ids_follow_the_order_given():
    vocabulary = vocabularies.CharacterVocabulary("ba")
    assert (vocabulary.encode("ab"), vocabulary.size, vocabulary.blank_id) == ([2, 1], 3, 0)


def test_sentencepiece_training_is_deterministic_and_has_the_size_asked_for():
    first, second = (vocabularies.SentencePieceVocabulary.train(SENTENCES, 48) for _ in range(2))
    assert first.to_json() == second.to_json() and first.size == 48


@pytest.mark.parametrize(
    "content, message",
    [
        (["a"], "JSON object"),
        ({"type": "words"}, "'words' is unknown; allowed: blank, characters, ctc_tokens, sentencepiece, tokenizer"),
        ({"type": "characters"}, "'characters'"),
        ({"type": "characters", "characters": 3}, "must be a list"),
        ({"type": "characters", "characters": ["ab"]}, "'ab' is not a single character"),
        ({"type": "characters", "characters": "aba"}, "'a' more than once"),
        ({"type": "characters", "characters": []}, "at least one"),
        ({"type": "sentencepiece", "model": "%%"}, "not base64"),
        ({"type": "sentencepiece", "model": 3}, "not base64"),
        ({"type": "sentencepiece", "model": "aGVsbG8="}, "not a SentencePiece model"),
    ],
)
def test_a_wrong_vocabulary_is_one_clear_line(content, message):
    with pytest.raises(UserError, match=message) as caught:
        vocabularies.vocabulary_from_json(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [4, 100_000])
def test_an_impossible_vocabulary_size_is_one_clear_line(size):
    with pytest.raises(UserError, match=f"size {size} cannot be trained") as caught:
        vocabularies.SentencePieceVocabulary.train(SENTENCES, size)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no text"):
        vocabularies.SentencePieceVocabulary.train([" "], size)


def test_decoding_an_id_outside_the_vocabulary_is_an_error():
    for vocabulary in _vocabularies():
        for wrong in (-1, vocabulary.size):
            with pytest.raises(ValueError, match=str(wrong)):
                vocabulary.decode([1, wrong])
