"""The likeliest path against all paths of small cases, and against a plain float64 recurrence."""

import itertools

import numpy as np
import pytest

from hra_jax.models import alignment, ctc


def log_probs_of(*shape, seed=0):
    logits = 2 * np.random.default_rng(seed).standard_normal(shape)
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def best_of_all_paths(log_probs, labels, blank):
    """The score of the best path `[T, V]` that says the labels, float64, and the path; -inf and None for none."""
    best, found = -np.inf, None
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if ctc.labels_of_path(np.array(path, np.int32), blank) == list(labels):
            score = sum(float(log_probs[frame, label]) for frame, label in enumerate(path))
            if score > best:
                best, found = score, list(path)
    return best, found


def best_by_recurrence(log_probs, labels, blank):
    """The score of the best path: over (labels said, whether the last frame was a blank), frame by frame, float64."""
    scores = {(0, True): 0.0}
    for frame in np.asarray(log_probs, np.float64):
        ways = {}
        for (said, blanked), score in scores.items():
            moves = [(said, True, blank)]
            if said and not blanked:
                moves.append((said, False, labels[said - 1]))
            if said < len(labels) and (blanked or not said or labels[said] != labels[said - 1]):
                moves.append((said + 1, False, labels[said]))
            for *state, label in moves:
                ways[tuple(state)] = max(ways.get(tuple(state), -np.inf), score + frame[label])
        scores = ways
    return max(scores.get((len(labels), True), -np.inf), scores.get((len(labels), False), -np.inf))


def test_the_path_is_the_best_of_all_that_say_the_labels():
    rows = [[], [1], [2], [1, 2], [1, 1], [2, 1, 2], [2, 2, 1], [1, 2, 1, 2, 1], [1, 1, 1], [2, 2, 2]]
    lengths = np.array([5, 5, 1, 4, 3, 5, 4, 5, 5, 4], np.int32)
    log_probs = log_probs_of(len(rows), 5, 3)
    paths, scores = alignment.align(log_probs, lengths, rows, 0)
    for row, labels in enumerate(rows):
        best, path = best_of_all_paths(log_probs[row, : lengths[row]], labels, 0)
        if path is None:
            assert scores[row] == -np.inf
            assert not paths[row].any(), "a row that cannot say its labels is blank"
        else:
            assert paths[row].tolist() == path
            assert abs(scores[row] - best) < 1e-5
    assert np.isinf(scores).sum() == 1


def test_long_paths_score_as_a_recurrence_in_float64_and_say_their_labels():
    generator = np.random.default_rng(1)
    lengths = np.array([180, 200, 61, 200, 1], np.int32)
    rows = [generator.integers(1, 12, size).tolist() for size in (30, 60, 30, 0, 1)]
    log_probs = log_probs_of(5, 200, 12)
    paths, scores = alignment.align(log_probs, lengths, rows, 0)
    for row, labels in enumerate(rows):
        within = log_probs[row, : lengths[row]]
        assert abs(scores[row] - best_by_recurrence(within, labels, 0)) < 1e-3
        assert ctc.labels_of_path(paths[row], 0) == labels
        assert abs(within.astype(np.float64)[np.arange(len(within)), paths[row]].sum() - scores[row]) < 1e-3


def test_a_row_is_the_same_alone_in_a_batch_and_padded_with_anything():
    log_probs = log_probs_of(3, 40, 6)
    lengths, rows = np.array([40, 23, 9], np.int32), [[1, 2, 2, 5], [3, 3, 4], [5]]
    paths, scores = alignment.align(log_probs, lengths, rows, 0)
    for row, labels in enumerate(rows):
        (path,), score = alignment.align(log_probs[row : row + 1, : lengths[row]], lengths[row : row + 1], [labels], 0)
        assert path.tolist() == paths[row].tolist()
        assert score[0] == scores[row]
    wide = np.full((3, 50, 6), np.nan, np.float32)
    tokens = np.full((3, 11), 5, np.int32)
    for row, labels in enumerate(rows):
        wide[row, : lengths[row]] = log_probs[row, : lengths[row]]
        tokens[row, : len(labels)] = labels
    counts = np.array([len(labels) for labels in rows], np.int32)
    padded_paths, padded_scores = map(np.asarray, alignment.viterbi(wide, lengths, tokens, counts, 0))
    assert (padded_scores == scores).all()
    for row in range(3):
        assert padded_paths[row, : lengths[row]].tolist() == paths[row].tolist()
        assert not padded_paths[row, lengths[row] :].any()


def test_each_row_has_its_own_blank():
    log_probs, rows = log_probs_of(2, 5, 3), [[1, 2, 2], [0, 1, 1]]
    paths, scores = alignment.align(log_probs, np.array([5, 5]), rows, np.array([0, 2]))
    for row, (labels, blank) in enumerate(zip(rows, (0, 2), strict=True)):
        best, path = best_of_all_paths(log_probs[row], labels, blank)
        assert paths[row].tolist() == path
        assert abs(scores[row] - best) < 1e-5


@pytest.mark.parametrize(("forbidden", "possible"), [(0, True), (2, False)])
def test_what_is_impossible_is_gone_round_or_told(forbidden, possible):
    log_probs = log_probs_of(1, 4, 3).copy()
    log_probs[0, :, forbidden] = -np.inf
    (path,), score = alignment.align(log_probs, np.array([4]), [[1, 2]], 0)
    best, expected = best_of_all_paths(log_probs[0], [1, 2], 0)
    if possible:
        assert path.tolist() == expected
        assert abs(score[0] - best) < 1e-5
    else:
        assert best == score[0] == -np.inf
        assert not path.any()
