"""Phrases: what a text gets for those in it, what is taken back, and what no list of phrases may be."""

import itertools
import random
import re

import numpy as np
import pytest
from reference.sentences import SENTENCES

from hra_jax.decoding import phrases
from hra_jax.errors import UserError
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary
from hra_jax.text.vocabularies import CharacterVocabulary, SentencePieceVocabulary

LISTS = [
    [],
    ["a"],
    ["ab", "ab ab", ("ab ab b", 2.0)],  # each the beginning of the next
    ["a b", "b a", ("a b a", 0.25)],  # which overlap
    ["bab", "ab", "b"],  # which end alike, but only one begins a word
    [("a", -1.5), "a a", ("b", 0.0), "abba"],
]


def _bonus_by_words(text, given, vocabulary):
    """What a text gets, counted naively: each phrase at each word."""
    total, words = 0.0, text.split()
    for phrase, weight in ((p, 1.0) if isinstance(p, str) else p for p in given):
        wanted = phrase.split()
        found = sum(words[at : at + len(wanted)] == wanted for at in range(len(words)))
        total += found * weight * len(vocabulary.encode(phrase))
    return total


def _texts(seed, *, count=300):
    rng = random.Random(seed)
    return ["".join(rng.choices("aab  ", k=rng.randrange(14))) for _ in range(count)]


@pytest.mark.parametrize("given", LISTS, ids=str)
@pytest.mark.parametrize(
    "vocabulary",
    [CharacterVocabulary(" abc"), CtcTokenVocabulary(["A", "B", "_", "<s>", "|"], blank_id=2, special_ids=[3])],
    ids=["characters", "published symbols"],
)
def test_a_text_gets_the_bonuses_of_the_whole_phrases_in_it(given, vocabulary):
    automaton = phrases.automaton_of(given, vocabulary)
    for text in _texts(1):
        assert automaton.score(vocabulary.encode(text)) == pytest.approx(_bonus_by_words(text, given, vocabulary))


def test_a_text_of_pieces_gets_the_bonuses_of_the_whole_phrases_in_it():
    vocabulary = SentencePieceVocabulary.train(SENTENCES, 48)
    pieces = [vocabulary._processor.IdToPiece(i) for i in range(vocabulary.size - 1)]
    begins = {i + 1 for i, piece in enumerate(pieces) if piece.startswith("\u2581")}
    given = ["the", "the train", ("train leaves", 2.0), "turn", "an", "anna", "on the third", "t", "a"]
    encoded = [(vocabulary.encode(p), 1.0) if isinstance(p, str) else (vocabulary.encode(p[0]), p[1]) for p in given]
    automaton = phrases.automaton_of(given, vocabulary)
    rng = random.Random(0)
    texts = [vocabulary.encode(" ".join(rng.choices(" ".join(SENTENCES).split(), k=8))) for _ in range(100)]
    # Also texts whose words are cut into other pieces than the vocabulary would cut them into.
    texts += [rng.choices([t for tokens, _ in encoded for t in tokens] + [2, 3, 4, 5], k=10) for _ in range(200)]
    got_something = 0
    for tokens in texts:
        expected = 0.0
        for wanted, weight in encoded:
            for at in range(len(tokens)):
                end = at + len(wanted)
                if tokens[at:end] == wanted and (end == len(tokens) or tokens[end] in begins):
                    expected += weight * len(wanted)
        got_something += expected > 0
        assert automaton.score(tokens) == pytest.approx(expected)
    assert got_something > 50


def test_published_pieces_mark_where_a_word_begins_and_a_frame_around_texts_is_no_part_of_a_phrase():
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581the", "\u2581on", "in", *"abcdefghijklmnopqrstuvwxyz"]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": pieces[i], "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[piece, -2.0] for piece in pieces], "byte_fallback": False},
    }
    vocabulary = TokenizerVocabulary(content, size=len(pieces), blank_id=0)
    assert vocabulary.encode("the inn")[-1] == 1  # the frame
    automaton = phrases.automaton_of(["the inn", ("on", 2.0)], vocabulary)
    tokens = vocabulary.encode("on the inn")
    # "the" is one piece; "inn" begins with the mark of a word as a piece of its own, then "in" and "n".
    assert automaton.score(tokens) == automaton.score(tokens[:-1]) == 4 + 2
    for text in ("the inner one", "onto the in"):
        assert automaton.score(vocabulary.encode(text)) == 0.0


def test_where_words_have_no_boundaries_a_phrase_is_whole_wherever_it_stands():
    vocabulary = CharacterVocabulary("abc")
    automaton = phrases.automaton_of(["ab", ("bab", 2.0), "a"], vocabulary)
    for length in range(7):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            expected = 2 * len(re.findall("(?=ab)", text)) + 6 * len(re.findall("(?=bab)", text)) + text.count("a")
            assert automaton.score(vocabulary.encode(text)) == pytest.approx(expected)


def test_what_a_beginning_was_given_is_taken_back_where_it_does_not_become_a_phrase():
    vocabulary = CharacterVocabulary()
    automaton = phrases.automaton_of(["boston", ("new york", 2.0)], vocabulary)
    given, state = [], automaton.start
    for token in vocabulary.encode("new yor"):
        added, state = automaton.step(state, token)
        given.append(added)
    assert given == [2.0] * 7
    taken, _ = automaton.step(state, vocabulary.encode("x")[0])
    assert taken == -14.0
    for text in ("bostonian", "a newt", "newyork", "new yorkers", "xboston", "", " new  ", "bosto"):
        assert automaton.score(vocabulary.encode(text)) == 0.0


@pytest.mark.parametrize("given", LISTS, ids=str)
def test_rows_of_all_tokens_are_what_arcs_and_back_offs_give(given):
    vocabulary = CharacterVocabulary(" abc")
    automaton = phrases.automaton_of(given, vocabulary)
    scores, targets = automaton.dense()
    for text in _texts(2, count=30):
        state, total = automaton.start, 0.0
        for token in vocabulary.encode(text):
            total += scores[state, token]
            state = targets[state, token]
        assert total + automaton.final[state] == pytest.approx(_bonus_by_words(text, given, vocabulary))


def test_a_phrase_is_written_as_the_texts_of_the_task_are():
    lower = CharacterVocabulary()
    cased = CharacterVocabulary(" Adna'")
    assert phrases.spelled("Don\u2019t  STOP!", lower) == "don't stop"
    assert phrases.spelled("Anna", cased) == "Anna"  # as it is, where it can be written so
    assert phrases.spelled("a\tNaN", CharacterVocabulary(" Na"), normalizer="none") == "a NaN"
    # A vocabulary of capitals takes either.
    published = CtcTokenVocabulary(["_", "|", *"ANSD"], blank_id=0)
    assert np.array_equal(
        phrases.automaton_of(["Anna and"], published).tokens, phrases.automaton_of(["ANNA AND"], published).tokens
    )


def test_of_a_phrase_that_is_given_again_the_last_weight_counts():
    vocabulary = CharacterVocabulary()
    automaton = phrases.automaton_of(["anna", ("Anna", 3.0), ("ANNA", 0.5)], vocabulary)
    assert automaton.score(vocabulary.encode("call anna")) == 2.0


BAD = [
    ("anna", "'anna' is not a list of phrases"),
    ([3], "3 is not a phrase; allowed: a text, or a text and its weight"),
    ([("anna", "2")], "is not a phrase"),
    ([("anna", True)], "is not a phrase"),
    ([" "], "an empty phrase, ' '"),
    (["..."], "nothing is left of '...' as the vocabulary writes texts"),
    (["a" * 101], "101 characters; allowed: at most 100"),
    (["a"] * 1001, "more than 1,000 phrases"),
    ([("anna", float("nan"))], "'anna': a weight of nan; allowed: finite numbers from -100 to 100"),
    ([("anna", float("inf"))], "a weight of inf"),
    ([("anna", 1e9)], "a weight of 1000000000.0"),
    (["na\u00efve 42"], "'na\u00efve 42' cannot be written: the vocabulary lacks '2', '4', '\u00ef'"),
]


@pytest.mark.parametrize("given, message", BAD, ids=[str(message) for _, message in BAD])
def test_what_is_no_list_of_phrases_is_refused_in_one_line(given, message):
    with pytest.raises(UserError) as caught:
        phrases.automaton_of(given, CharacterVocabulary(), where="task 'anna': phrases")
    assert message in str(caught.value)
    assert str(caught.value).startswith("task 'anna': phrases: ")
    assert "\n" not in str(caught.value)


def test_phrases_are_bounded_by_their_states(monkeypatch):
    monkeypatch.setattr(phrases, "MOST_STATES", 10)
    with pytest.raises(UserError, match="2 phrases are too long together; allowed: at most 10 tokens"):
        phrases.automaton_of(["anna", "boston"], CharacterVocabulary())


def test_a_file_has_a_phrase_in_each_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("# people\n\nAnna Schmidt\nBoston\t2.5\r\n  # places\nnew york\n", encoding="utf-8")
    assert phrases.read_phrases(file) == (("Anna Schmidt", 1.0), ("Boston", 2.5), ("new york", 1.0))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"anna\nboston\tmuch\n", ":2: a weight of 'much'; allowed: finite numbers"),
        (b"anna\nboston\tnan\n", ":2: 'boston': a weight of nan"),
        (b"anna\n\t2\n", ":2: an empty phrase"),
        (b"anna\n\xff\n", "not UTF-8 at byte 5"),
        (b"a\n" * 1001, "more than 1,000 phrases"),
        (b"x" * (2**20 + 1), "more than 1,048,576 bytes"),
    ],
)
def test_a_bad_file_of_phrases_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        phrases.read_phrases(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_an_utterance_has_the_phrases_of_its_line_in_the_manifest():
    assert phrases.of_line({"phrases": ["Anna", "new york"], "speaker": "x"}) == (("Anna", 1.0), ("new york", 1.0))
    assert phrases.of_line({"phrases": None}) == phrases.of_line({}) == ()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read .*needed is a file with a phrase"):
        phrases.read_phrases(tmp_path / "none.txt")
