"""Language models equal the formulas of their smoothing, written down plainly in float64, and survive storage."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.storage import safetensors
from hra_jax.text import ngram
from hra_jax.text.labels import Labeller
from hra_jax.text.published_vocabularies import CtcTokenVocabulary
from hra_jax.text.vocabularies import CharacterVocabulary

LETTERS = CharacterVocabulary("abcd ")  # ids 1 .. 5; V = 6
BLANK_LAST = CtcTokenVocabulary(["a", "b", "c", "d", "|", "<pad>"], blank_id=5)
START, END = "<s>", "</s>"


def sentences(seed: int, *, count: int = 60, letters: str = "abcd ") -> list[str]:
    """Texts in which some letters follow others more often, so that n-grams occur once and many times."""
    rng = np.random.default_rng(seed)
    follow = rng.dirichlet(np.full(len(letters), 0.3), len(letters))
    texts = []
    for _ in range(count):
        at, text = int(rng.integers(len(letters))), ""
        for _ in range(rng.integers(1, 12)):
            text += letters[at]
            at = int(rng.choice(len(letters), p=follow[at]))
        texts.append(text)
    return texts


class Formula:
    """p(w | h) by the formulas of Chen and Goodman, with sets and dictionaries, one n-gram at a time."""

    def __init__(self, rows, *, order, smoothing, symbols, least_counts):
        self.order, self.symbols, self.kneser_ney = order, symbols, smoothing == "kneser_ney"
        self.least = dict(enumerate(least_counts, start=1))
        self.raw = collections.Counter()
        for row in rows:
            text = [START, *row, END]
            for n in range(1, order + 1):
                self.raw.update(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        self.left = collections.defaultdict(set)
        self.right = collections.defaultdict(set)
        for gram in self.raw:
            self.left[gram[1:]].add(gram[0])
            if gram != (START,):
                self.right[gram[:-1]].add(gram[-1])
        self.discount = {n: self.discounts(n) for n in range(1, order + 1)}

    def count(self, gram):
        if self.kneser_ney and len(gram) < self.order and gram[0] != START:
            return len(self.left[gram])
        return self.raw[gram]

    def discounts(self, n):
        times = collections.Counter(self.count(gram) for gram in self.raw if len(gram) == n and gram != (START,))
        n1, n2, n3, n4 = (times[k] for k in (1, 2, 3, 4))
        if not n1 or not n2:
            return [0.5] * 3
        y = n1 / (n1 + 2 * n2)
        if self.kneser_ney and n3 and n4:
            three = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if min(three) > 0:
                return three
        return [y] * 3

    def off(self, gram):
        """What is taken off the count of an n-gram; all of it where the n-gram is left out."""
        if self.raw[gram] < self.least[len(gram)]:
            return self.count(gram)
        return self.discount[len(gram)][min(self.count(gram), 3) - 1]

    def p(self, w, h):
        """After the last tokens of h that are ever followed by something."""
        h = h[max(0, len(h) - self.order + 1) :]
        below = self.p(w, h[1:]) if h else 1 / self.symbols
        grams = [(*h, v) for v in self.right[h]]
        if not grams:
            return below
        total = sum(map(self.count, grams))
        own = self.count((*h, w)) - self.off((*h, w)) if w in self.right[h] else 0
        return own / total + sum(map(self.off, grams)) / total * below

    def text(self, row):
        text = [START, *row, END]
        return sum(math.log(self.p(text[i], tuple(text[:i]))) for i in range(1, len(text)))


@pytest.mark.parametrize("smoothing", ngram.SMOOTHINGS)
@pytest.mark.parametrize(("order", "most_bytes"), [(1, 2**20), (2, 2**20), (3, 2**20), (5, 2**20), (4, 1500), (3, 700)])
def test_scores_are_those_of_the_formula_with_and_without_n_grams_that_are_left_out(smoothing, order, most_bytes):
    rows = [LETTERS.encode(text) for text in sentences(order)]
    model = ngram.train(rows, LETTERS, order=order, smoothing=smoothing, most_bytes=most_bytes)
    assert model.automaton.sparse_bytes <= most_bytes and (sum(model.left_out) > 0) == (most_bytes < 2**20)
    formula = Formula(rows, order=order, smoothing=smoothing, symbols=LETTERS.size, least_counts=model.least_counts)
    others = [LETTERS.encode(text) for text in [*sentences(99, count=30), "", "dddddddd", "a", "     "]]
    wanted = [formula.text(row) for row in others]
    np.testing.assert_allclose([model.automaton.score(row) for row in others], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ngram.scores(model, others), wanted, rtol=1e-5, atol=1e-5)
    seen = [gram for gram in formula.raw if formula.raw[gram] >= formula.least[len(gram)]]
    assert model.ngrams == tuple(sum(len(gram) == n for gram in seen) for n in range(1, order + 1))
    assert sum(model.left_out) == len(formula.raw) - len(seen)
    symbols = sum(map(len, others)) + len(others)
    assert ngram.perplexity(model, others) == pytest.approx(math.exp(-sum(wanted) / symbols), rel=1e-5)


@pytest.mark.parametrize("smoothing", ngram.SMOOTHINGS)
@pytest.mark.parametrize("most_bytes", [2**20, 2000])
@pytest.mark.parametrize("vocabulary", [LETTERS, BLANK_LAST])
def test_after_every_context_the_tokens_and_the_end_sum_to_one(smoothing, most_bytes, vocabulary):
    rows = [vocabulary.encode(text) for text in sentences(3)]
    model = ngram.train(rows, vocabulary, order=4, smoothing=smoothing, most_bytes=most_bytes)
    scores, _ = model.automaton.dense()
    tokens = np.delete(scores.astype(np.float64), vocabulary.blank_id, axis=1)
    sums = np.exp(tokens).sum(axis=1) + np.exp(model.automaton.final.astype(np.float64))
    np.testing.assert_allclose(sums, 1, atol=2e-6)
    assert (scores[:, vocabulary.blank_id] < -200).all()


@pytest.mark.parametrize("smoothing", ngram.SMOOTHINGS)
def test_the_formula_itself_sums_to_one(smoothing):
    rows = [LETTERS.encode(text) for text in sentences(5, letters="abc ")]
    formula = Formula(rows, order=3, smoothing=smoothing, symbols=LETTERS.size, least_counts=(1, 1, 2))
    for history in [(), (START,), (1,), (START, 2), (1, 2), (4, 4), (3, 5)]:
        total = sum(formula.p(w, history) for w in (*range(1, LETTERS.size), END))
        assert total == pytest.approx(1, abs=1e-12)


def test_tokens_that_no_text_has_share_what_single_tokens_leave():
    model = ngram.train([LETTERS.encode("abab"), LETTERS.encode("ba")], LETTERS, order=3)
    formula = Formula([[1, 2, 1, 2], [2, 1]], order=3, smoothing="kneser_ney", symbols=6, least_counts=(1, 1, 1))
    for token in (3, 4, 5):
        score, state = model.automaton.step(0, token)
        assert state == 0 and score == pytest.approx(math.log(formula.p(token, ())), abs=1e-5)


def test_fewer_bytes_leave_out_the_rarest_n_grams_of_the_largest_order_first():
    rows = [LETTERS.encode(text) for text in sentences(1, count=200)]
    whole = ngram.train(rows, LETTERS, order=4)
    assert whole.left_out == (0, 0, 0, 0) and whole.least_counts == (1, 1, 1, 1)
    least = whole.automaton.sparse_bytes - 1
    slightly = ngram.train(rows, LETTERS, order=4, most_bytes=least)
    assert slightly.least_counts == (1, 1, 1, 2) and slightly.left_out[:3] == (0, 0, 0)
    single = ngram.train(rows, LETTERS, order=1).automaton.sparse_bytes
    assert ngram.train(rows, LETTERS, order=4, most_bytes=single).ngrams[1:] == (0, 0, 0)
    with pytest.raises(UserError, match=r"a language model of at most 99 B; allowed: 104 B or more"):
        ngram.train(rows, LETTERS, order=4, most_bytes=99)


def test_rows_and_arrays_of_labels_give_the_same_model_and_texts_without_a_token_do_not_matter():
    texts = [*sentences(2), "", "zzz"]
    by_row = ngram.train([LETTERS.encode(text) for text in texts], LETTERS, order=3, name="rows")
    by_array = ngram.train(Labeller(LETTERS)(texts), LETTERS, order=3)
    assert by_row.digest == by_array.digest and by_row.texts == len(texts) - 2


def test_a_file_gives_the_model_back(tmp_path):
    model = ngram.train([LETTERS.encode(text) for text in sentences(4)], LETTERS, order=3, name="letters")
    ngram.write(tmp_path / "a.lm", model)
    found = ngram.read(tmp_path / "a.lm")
    for field in dataclasses.fields(model):
        if field.name != "automaton":
            assert getattr(found, field.name) == getattr(model, field.name), field.name
    assert found.digest == model.digest and ngram.to_bytes(found) == ngram.to_bytes(model)


def test_the_digest_is_of_what_the_model_gives_and_for_which_vocabulary():
    rows = [LETTERS.encode(text) for text in sentences(4)]
    model = ngram.train(rows, LETTERS, order=3)
    assert dataclasses.replace(model, name="other").digest == model.digest
    assert ngram.train(rows[1:], LETTERS, order=3).digest != model.digest
    assert ngram.train(rows, CharacterVocabulary("abce "), order=3).digest != model.digest


def test_a_model_of_another_vocabulary_is_refused():
    model = ngram.train([[1, 2]], LETTERS, order=2)
    model.check_vocabulary(CharacterVocabulary("abcd "), where="a.lm")
    for other in (CharacterVocabulary("abdc "), CharacterVocabulary("abcde ")):
        with pytest.raises(UserError, match=r"a.lm: a language model of the vocabulary [0-9a-f]{12} with 6 tokens"):
            model.check_vocabulary(other, where="a.lm")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "the texts have no token"),
        ([[], []], {}, "the texts have no token"),
        ([[1]], {"order": 0}, "order 0; allowed: 1 to 10"),
        ([[1]], {"order": 11}, "order 11; allowed: 1 to 10"),
        ([[1]], {"smoothing": "none"}, "smoothing 'none'; allowed: kneser_ney, absolute"),
        ([[1, 6]], {}, "token 6 of a text; allowed: 0 to 5"),
        ([[1, 0]], {}, "token 0 of a text; allowed: 0 to 5, but for the blank"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused(rows, options, message):
    with pytest.raises(UserError, match=message):
        ngram.train(rows, LETTERS, **options)


def test_files_that_hold_something_else_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="a.lm is not a file; needed is a language model"):
        ngram.read(tmp_path / "a.lm")
    content = ngram.to_bytes(ngram.train([[1, 2]], LETTERS, order=2))
    arrays = safetensors.from_bytes(content, where="a.lm")
    described = arrays["description"].tobytes().decode()

    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            ngram.from_bytes(safetensors.to_bytes(arrays | changes), where="a.lm")

    def text(old, new):
        return np.frombuffer(described.replace(old, new).encode(), np.uint8)

    with pytest.raises(UserError, match=r"a\.lm: an ARPA file; python -m hra_jax\.lm make --arpa"):
        ngram.from_bytes(b"\n\\data\\\nngram 1=2\n", where="a.lm")
    for broken in (b"", b"text", content[:-1]):
        with pytest.raises(UserError, match=r"a\.lm: "):
            ngram.from_bytes(broken, where="a.lm")
    with pytest.raises(UserError, match=r"a\.lm: not a language model of hra_jax"):
        ngram.from_bytes(safetensors.to_bytes({"first": arrays["first"]}), where="a.lm")
    refused(r"a\.lm: the root of an automaton must back off", backoff=arrays["backoff"] + 1)
    refused(r"a\.lm: 'scores' of an automaton holds a score that is not", scores=arrays["scores"] * np.float32(np.nan))
    refused(r"a\.lm: a language model of format 2; allowed: 1", description=text('"format": 1', '"format": 2'))
    refused(r"a\.lm: needs 'order'", description=text('"order": 2', '"order": "2"'))
    refused(r"a\.lm: 'left_out' must be a list", description=text('"left_out": [0', '"left_out": ["x"'))
    refused(r"description: not JSON", description=text("{", "["))


def test_damaged_files_are_refused_or_are_models_still():
    content = bytearray(ngram.to_bytes(ngram.train([LETTERS.encode(text) for text in sentences(4)], LETTERS, order=3)))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(content)
        for at in rng.integers(0, len(broken), rng.integers(1, 4)):
            broken[at] = rng.integers(256)
        try:
            ngram.scores(ngram.from_bytes(bytes(broken), where="a.lm"), [[1, 2, 3]])
        except UserError as error:
            refused += str(error).startswith("a.lm")
    assert refused > 50
