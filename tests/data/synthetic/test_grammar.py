"""The built-in English: its words, and the partition that keeps test sentences out of every training text."""

import collections
import functools
import hashlib

import numpy as np
import pytest

from hra_jax.data.synthetic import grammar
from hra_jax.errors import UserError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@functools.cache
def _train(count=20000, seed=3):
    return grammar.sample("train", np.random.default_rng(seed), count=count, unique=False)


def test_texts_use_the_declared_characters_and_words_only():
    words = set(grammar.vocabulary())
    assert len(words) > 500
    for text in [*_train(5000), *grammar.held_out("test"), *grammar.held_out("validation")]:
        assert set(text) <= set(grammar.CHARACTERS)
        assert set(text.split(" ")) <= words


def test_test_sentences_occur_in_no_training_text_not_even_inside_one():
    held_out = grammar.held_out("test") + grammar.held_out("validation")
    training = "\n".join(f" {text} " for text in _train())
    assert [text for text in held_out if f" {text} " in training] == []
    # The check itself finds a sentence inside a longer one, and no part of a word.
    assert grammar.contains_held_out(f"please {held_out[0]} now")
    assert not grammar.contains_held_out("seven")


def test_every_split_draws_from_its_own_texts():
    draws = {split: grammar.sample(split, np.random.default_rng(1), count=500) for split in grammar.SPLITS}
    for split, texts in draws.items():
        assert {grammar.split_of(text) for text in texts} == {split}
        assert len(set(texts)) == 500


def test_the_splits_have_their_shares_and_short_texts_are_for_training():
    rng = np.random.default_rng(0)
    texts = {text for text in (grammar.sentence(rng) for _ in range(20000)) if len(text.split()) >= 3}
    shares = collections.Counter(map(grammar.split_of, texts))
    assert shares["test"] / len(texts) == pytest.approx(0.1, abs=0.01)
    assert shares["validation"] / len(texts) == pytest.approx(0.1, abs=0.01)
    assert {grammar.split_of(word) for word in grammar.vocabulary()} == {"train"}
    assert grammar.split_of("turn  on the light ") == grammar.split_of("turn on the light")


def test_every_word_is_trained_and_digits_are_common_also_alone():
    texts = _train()
    words = collections.Counter(word for text in texts for word in text.split())
    alone = collections.Counter(texts)
    assert set(words) >= set(grammar.vocabulary()) - {"s"}
    for digit in DIGITS:
        assert words[digit] > 500
        assert alone[digit] > 100


def test_isolated_words_are_at_least_the_share_that_was_asked_for():
    def alone(share):
        texts = grammar.sample("train", np.random.default_rng(0), count=5000, unique=False, isolated_share=share)
        return sum(len(text.split()) <= 2 for text in texts) / len(texts)

    assert alone(1.0) == 1.0
    assert alone(0.0) < 0.2 < alone(0.2) < 0.4
    assert alone(0.5) > 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "zero"),
        (17, "seventeen"),
        (40, "forty"),
        (99, "ninety nine"),
        (305, "three hundred five"),
        (1000, "one thousand"),
        (21_450, "twenty one thousand four hundred fifty"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_are_spelled_in_english(value, text):
    assert grammar.cardinal(value) == text


def test_ranks_are_spelled_in_english():
    assert [grammar.ordinal(i) for i in (1, 12, 20, 21, 30, 31)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty first",
        "thirtieth",
        "thirty first",
    ]


def test_the_texts_of_a_seed_never_change():
    texts = [text for split in grammar.SPLITS for text in grammar.sample(split, np.random.default_rng(7), count=300)]
    # Rendered sets and the shipped backbone were made from these texts: whoever changes the grammar raises `_RENDERING`
    # in synthesize.py, and must not take sentences into training that the backbone is tested on.
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == "513643cd79ed0060"


def test_unknown_splits_and_too_many_sentences_are_refused():
    with pytest.raises(UserError, match=r"'dev'.*train, validation, test"):
        grammar.sample("dev", np.random.default_rng(0), count=1)
    with pytest.raises(UserError, match="1000000 different test sentences"):
        grammar.sample("test", np.random.default_rng(0), count=1_000_000)
