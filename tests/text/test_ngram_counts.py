"""Counts of n-grams equal those of a plain loop, whichever way they are found."""

import collections

import numpy as np
import pytest

from hra_jax.text.ngram_counts import count


@pytest.mark.parametrize("vocabulary_size", [3, 3000])  # few values are counted, many sorted
def test_counts_are_those_of_a_loop_over_all_windows(vocabulary_size):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocabulary_size, rng.integers(1, 9)).tolist() for _ in range(80)]
    flat, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
    levels = count(flat, lengths, vocabulary_size=vocabulary_size, order=4)
    texts = [[vocabulary_size + 1, *row, vocabulary_size] for row in rows]
    grams: list[list[tuple]] = [[()]]
    for n, level in enumerate(levels, start=1):
        plain = collections.Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))
        found = [(*grams[-1][at], token) for at, token in zip(level.context, level.token.tolist(), strict=True)]
        assert {gram: c for gram, c in zip(found, level.counts.tolist(), strict=True) if c} == plain
        assert [grams[-1][at] for at in level.suffix] == [gram[1:] for gram in found]
        assert level.opens.tolist() == [gram[0] == vocabulary_size + 1 for gram in found]
        assert found == sorted(found, key=lambda gram: (grams[-1].index(gram[:-1]), gram[-1]))
        grams.append(found)
