"""ARPA files: what is written is read back exactly, means what a plain look-up means, and what is wrong is named."""

import math
import re

import numpy as np
import pytest
from reference.sentences import SENTENCES

from hra_jax.errors import UserError
from hra_jax.text import arpa, ngram
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary
from hra_jax.text.vocabularies import CharacterVocabulary, SentencePieceVocabulary, Vocabulary

TEXTS = [*SENTENCES, SENTENCES[0]]
OTHERS = ["turn the train on", "call the kitchen", "anna", "", "zzz on the third", "seven songs of may and june"]
PLAIN = CharacterVocabulary("abc ")

# As another program may have pruned it: "b c" is not there, though "a b c" and "c b c" are; "c" has a weight, though
# nothing follows it; "c b" backs off with a positive one.
GIVEN = """
a line before

\\data\\
ngram 1=7
ngram  2=5
ngram 3=4

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.4
-0.9\t</s>
-0.5\ta\t-0.3
-0.7\tb\t-0.2
-0.6\tc\t-0.25
-1\t\u2581\t-0.1

\\2-grams:
-0.2\t<s> a\t-0.15
-0.3\ta b\t-0.35
-0.8\tc b\t0.05
-0.4\tb </s>
-0.45\t\u2581 a\t-0.5

\\3-grams:
-0.1\t<s> a b
-0.05\ta b c
-0.12\tc b c
-0.07\ta b </s>

\\end\\
"""


def vocabularies() -> list[Vocabulary]:
    published = CtcTokenVocabulary(["<s>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "<unk>", "<pad>"], blank_id=30)
    odd = CharacterVocabulary("abcdefghijklmnopqrstuvwxyz' \u2581\\\u3000\u00ad")
    pieces = ["<blank>", "<unk>", "<s>", "</s>", *"\u2581abcdefghijklmnopqrstuvwxyz'", "\u2581the", "ing", "\u2581a"]
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 1, "vocab": [[piece, -2.0] for piece in pieces], "byte_fallback": False},
    }
    tokenizer = TokenizerVocabulary(content, size=len(pieces), blank_id=0)
    return [CharacterVocabulary(), SentencePieceVocabulary.train(TEXTS, 48), published, odd, tokenizer]


def plain_score(content: str, text: list[str]) -> float:
    """log10 p of a text of words, by looking up the lines of the file."""
    table = {}
    for line in content.splitlines():
        parts = line.split()
        if parts and re.fullmatch(r"-?[\d.]+", parts[0]):
            numbers = len(parts) - 1 if re.fullmatch(r"-?[\d.]+", parts[-1]) and len(parts) > 2 else len(parts)
            table[tuple(parts[1:numbers])] = float(parts[0]), float(parts[-1]) if numbers < len(parts) else 0.0

    def score(history, word):
        if (*history, word) in table:
            return table[(*history, word)][0]
        if not history:
            return table[("<unk>",)][0]
        return table.get(history, (0, 0.0))[1] + score(history[1:], word)

    words = ["<s>", *text, "</s>"]
    # An unknown word is forgotten: it is in no history.
    known = [word if (word,) in table else "<unk>" for word in words]
    return sum(score(tuple(known[max(0, i - 2) : i]), known[i]) for i in range(1, len(known)))


@pytest.mark.parametrize("number", range(5))
def test_what_is_written_is_read_back_exactly(number):
    vocabulary = vocabularies()[number]
    rows = [vocabulary.encode(text) for text in TEXTS]
    for options in (
        {"order": 4},
        {"order": 1},
        {"order": 3, "smoothing": "absolute"},
        {"order": 4, "most_bytes": 3000},
    ):
        model = ngram.train(rows, vocabulary, name="some", **options)
        content = "".join(arpa.to_text(model, vocabulary))
        found = arpa.from_bytes(content.encode(), vocabulary, where="a.arpa", name="other")
        assert found.digest == model.digest
        assert (found.name, found.smoothing, found.order) == ("other", "arpa", content.count("-grams:"))


@pytest.mark.parametrize("number", range(5))
def test_every_token_has_a_word_of_its_own_that_white_space_does_not_cut(number):
    vocabulary = vocabularies()[number]
    words = list(arpa.words(vocabulary))
    del words[vocabulary.blank_id]
    assert len({*words}) == len(words) and not {*words} & {"<s>", "</s>", "<unk>", "<UNK>"}
    assert all(word.isprintable() and word.split() == [word] for word in words)


def test_characters_are_their_own_words_and_a_space_is_that_of_sentencepiece():
    assert arpa.words(CharacterVocabulary("a \u00e9'"))[1:] == ("a", "\u2581", "\u00e9", "'")
    assert arpa.words(CharacterVocabulary("a \u2581\\"))[1:] == ("a", "\u2581", "\\u2581", "\\u005c")


def test_a_file_means_what_a_plain_look_up_of_it_means():
    model = arpa.from_bytes(GIVEN.encode(), PLAIN, where="a.arpa")
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rng.integers(1, 5, rng.integers(0, 8)).tolist()
        words = [arpa.words(PLAIN)[token] for token in row]
        assert model.automaton.score(row) / math.log(10) == pytest.approx(plain_score(GIVEN, words), abs=1e-5), words
    written = "".join(arpa.to_text(model, PLAIN))
    assert arpa.from_bytes(written.encode(), PLAIN, where="b.arpa").digest == model.digest


def test_a_token_that_a_file_does_not_name_gets_what_it_says_of_unknown_ones():
    wider = CharacterVocabulary("abc xy")
    model = arpa.from_bytes(GIVEN.encode(), wider, where="a.arpa")
    assert model.automaton.step(0, 5) == (pytest.approx(-1.5 * math.log(10)), 0)
    without = GIVEN.replace("ngram 1=7", "ngram 1=6").replace("-1.5\t<unk>\n", "")
    model = arpa.from_bytes(without.encode(), wider, where="a.arpa")
    assert model.automaton.step(0, 6)[0] == pytest.approx(-99 * math.log(10))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "", r"a\.arpa: no ARPA file, it has no line \\data\\"),
        ("ngram 3=4", "ngram 3=5", r"a\.arpa: has 4 n-grams of order 3, and says 5"),
        ("ngram 1=7", "ngram 1=2", r"a\.arpa: has 7 n-grams of order 1, and says 2"),
        ("ngram  2=5\n", "", r"a\.arpa:6: the count of order 3; needed here: 2"),
        ("ngram 1=7\nngram  2=5\nngram 3=4\n", "", r"a\.arpa: n-grams of 0 orders; allowed: 1 to 10"),
        ("\\2-grams:\n", "", r"a\.arpa:18: 4 columns; allowed: 2 or 3, an n-gram of order 1"),
        ("\\3-grams:", "\\4-grams:", r"a\.arpa:25: '\\\\4-grams:'; needed here: \\3-grams:"),
        ("\\end\\\n", "", r"a\.arpa: ends without a line \\end\\"),
        ("-0.3\ta b", "nan\ta b", r"a\.arpa:20: the logarithm of a probability is nan; allowed: 0 or less"),
        ("-0.3\ta b", "0.3\ta b", r"a\.arpa:20: the logarithm of a probability is 0\.3; allowed: 0 or less"),
        ("-0.3\ta b", "x\ta b", r"a\.arpa:20: a logarithm that is no number"),
        ("a b\t-0.35", "a b\tnan", r"a\.arpa:20: the logarithm for backing off is nan"),
        ("a b\t-0.35", "a b\tinf", r"a\.arpa:20: the logarithm for backing off is inf"),
        ("c b\t0.05", "c b\t0.05\t1", r"a\.arpa:21: 5 columns; allowed: 3 or 4, an n-gram of order 2"),
        ("a b c", "a b x", r"a\.arpa:27: a word that is no token of the vocabulary: 'x'"),
        ("a b c", "<s> a b", r"a\.arpa:27: an n-gram that is there before"),
        ("a b c", "a c b", r"a\.arpa:27: an n-gram of order 3 without its first 2 tokens"),
        ("a b c", "a b <unk>", r"a\.arpa:27: <unk> in an n-gram; allowed: by itself"),
        ("-0.9\t</s>", "-0.9\t<UNK>", r"a\.arpa:12: <unk> is there twice"),
        ("-1.5\t<unk>\n-99\t<s>\t-0.4\n-0.9\t</s>", "-1\t<s>\n-1\t<s>\n-1\t</s>", r"a\.arpa:11: an n-gram that is"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(old, new, message):
    assert old in GIVEN
    with pytest.raises(UserError, match=message):
        arpa.from_bytes(GIVEN.replace(old, new, 1).encode(), PLAIN, where="a.arpa")


def test_a_file_without_an_end_of_texts_is_refused():
    content = "\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n\n\\end\\\n"
    with pytest.raises(UserError, match="has no probability of </s>, the end of a text"):
        arpa.from_bytes(content.encode(), PLAIN, where="a.arpa")


def test_words_of_another_vocabulary_are_counted_and_some_named():
    with pytest.raises(UserError, match=r"a\.arpa:14: a word that is no token of the vocabulary: 'b'"):
        arpa.from_bytes(GIVEN.encode(), CharacterVocabulary("ac "), where="a.arpa")


def test_damaged_files_are_refused_in_a_line_or_are_models_still():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(GIVEN.encode())
        for at in rng.integers(0, len(broken), rng.integers(1, 4)):
            broken[at] = rng.choice(list(b"\x00\xff-.9 \t\n\\<e_"))
        try:
            arpa.from_bytes(bytes(broken), PLAIN, where="a.arpa").automaton.score([1, 2, 3])
        except UserError as error:
            refused += str(error).startswith("a.arpa")
    assert refused > 50


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("most_bytes", [2**20, 4000])
def test_kenlm_gives_the_same_scores(number, most_bytes, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm could not be built")
    vocabulary = vocabularies()[number]
    model = ngram.train([vocabulary.encode(text) for text in TEXTS], vocabulary, order=5, most_bytes=most_bytes)
    file = tmp_path / "some.arpa"
    file.write_text("".join(arpa.to_text(model, vocabulary)), encoding="utf-8")
    judge = kenlm.Model(str(file))
    words = arpa.words(vocabulary)
    assert judge.order == model.order
    for text in (*TEXTS, *OTHERS):
        row = vocabulary.encode(text)
        expected = judge.score(" ".join(words[token] for token in row), bos=True, eos=True) * math.log(10)
        assert model.automaton.score(row) == pytest.approx(expected, abs=1e-4), text


@pytest.mark.slow(minutes=0.1)
def test_kenlm_gives_the_same_scores_of_a_file_that_another_program_pruned(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm could not be built")
    (tmp_path / "given.arpa").write_text(GIVEN[GIVEN.index("\\data\\") :], encoding="utf-8")
    judge, model = kenlm.Model(str(tmp_path / "given.arpa")), arpa.from_bytes(GIVEN.encode(), PLAIN, where="a.arpa")
    rng = np.random.default_rng(1)
    for _ in range(100):
        row = rng.integers(1, 5, rng.integers(0, 8)).tolist()
        expected = judge.score(" ".join(arpa.words(PLAIN)[token] for token in row)) * math.log(10)
        assert model.automaton.score(row) == pytest.approx(expected, abs=1e-4)
