"""Error counts and macro rates."""

import jiwer
import kaldialign
import numpy as np
import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.error_rates import ErrorCounts


def levenshtein(reference, hypothesis):
    """Least number of edits, by the plain recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, unit in enumerate(reference, 1):
        previous, row = row, [i]
        for j, other in enumerate(hypothesis, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (unit != other)))
    return row[-1]


def random_texts(number, *, seed=0, least=0):
    rng = np.random.default_rng(seed)
    words = ["one", "two", "to", "too", "three", "on"]
    return [tuple(" ".join(rng.choice(words, size=rng.integers(least, 9))) for _ in range(2)) for _ in range(number)]


def random_counts(number, *, seed=0):
    return [error_rates.word_errors(a, b, normalizer="none") for a, b in random_texts(number, seed=seed, least=1)]


def test_word_errors_equal_brute_force_levenshtein():
    for reference, hypothesis in random_texts(300):
        counts = error_rates.word_errors(reference, hypothesis, normalizer="none")
        assert counts.errors == levenshtein(reference.split(), hypothesis.split())
        assert counts.words == len(reference.split())
        # Every reference word is hit, substituted or deleted; every recognised word is a hit, substituted or inserted.
        hits = counts.words - counts.substitutions - counts.deletions
        assert hits + counts.substitutions + counts.insertions == len(hypothesis.split())


def test_character_errors_equal_brute_force_levenshtein_with_single_spaces():
    for reference, hypothesis in random_texts(60, seed=1):
        counts = error_rates.character_errors(reference, hypothesis.replace(" ", "  "), normalizer="none")
        assert counts.errors == levenshtein(reference, hypothesis)
        assert counts.words == len(reference)


def test_counts_add_up_over_any_partition_of_the_utterances():
    counts = random_counts(100)
    rng = np.random.default_rng(3)
    whole = error_rates.total(counts)
    assert whole.utterances == 100
    for parts in (1, 2, 7):
        owner = rng.integers(0, parts, size=len(counts))
        split = [error_rates.total(c for c, o in zip(counts, owner, strict=True) if o == part) for part in range(parts)]
        assert error_rates.total(split) == whole
    assert whole.rate == whole.errors / whole.words


def test_normalizer_is_applied_to_reference_and_hypothesis():
    for reference, hypothesis in [("Hello, World!", "hello world"), ("hello world", "HELLO -- world.")]:
        assert error_rates.word_errors(reference, hypothesis, normalizer="basic").errors == 0
        assert error_rates.character_errors(reference, hypothesis, normalizer="basic").errors == 0
        assert error_rates.word_errors(reference, hypothesis, normalizer="none").errors > 0
    with pytest.raises(UserError, match="'loud'.*basic"):
        error_rates.word_errors("a", "a", normalizer="loud")


def test_a_wrong_hypothesis_for_an_empty_reference_counts_as_insertions():
    counts = error_rates.word_errors("", "two words", normalizer="basic")
    assert counts == ErrorCounts(insertions=2, words=0, utterances=1)


def test_no_reference_words_is_an_error_that_says_so():
    silent = error_rates.word_errors(" , ", "word", normalizer="basic")
    with pytest.raises(UserError, match="1 utterances hold 0 words"):
        _ = silent.rate
    with pytest.raises(UserError, match="0 tasks"):
        error_rates.macro_rate([])


def test_macro_rate_weighs_tasks_equally():
    small = ErrorCounts(substitutions=1, words=1, utterances=1)
    large = ErrorCounts(deletions=10, words=1000, utterances=100)
    assert error_rates.macro_rate([small, large]) == pytest.approx((1 + 0.01) / 2)


def test_ten_thousand_random_pairs_are_counted_as_kaldialign_and_jiwer_count_them():
    pairs = random_texts(10_000, seed=7, least=1)
    found = [error_rates.word_errors(*pair, normalizer="none") for pair in pairs]
    for (reference, hypothesis), counts in zip(pairs, found, strict=True):
        theirs = kaldialign.edit_distance(reference.split(), hypothesis.split())
        assert (counts.substitutions, counts.deletions, counts.insertions) == (
            theirs["sub"],
            theirs["del"],
            theirs["ins"],
        )
        assert counts.errors == theirs["total"]
    # Where alignments tie, jiwer may take another one of as many errors.
    theirs = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
    assert sum(counts.errors for counts in found) == theirs.substitutions + theirs.deletions + theirs.insertions
    assert error_rates.total(found).rate == pytest.approx(theirs.wer, abs=1e-12)
    for (reference, hypothesis), counts in list(zip(pairs, found, strict=True))[:500]:
        one = jiwer.process_words(reference, hypothesis)
        assert counts.errors == one.substitutions + one.deletions + one.insertions


def test_ten_thousand_random_pairs_have_as_many_character_errors_as_kaldialign_counts():
    for reference, hypothesis in random_texts(10_000, seed=8, least=1):
        counts = error_rates.character_errors(reference, hypothesis, normalizer="none")
        assert counts.errors == kaldialign.edit_distance(list(reference), list(hypothesis))["total"]
