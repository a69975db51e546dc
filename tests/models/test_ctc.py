"""CTC loss, its gradient and greedy decoding against enumeration of all paths and float64 recurrences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ctc_numpy

from hra_jax.models import ctc


def random_logits(*shape, seed=0, scale=2.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def padded(rows, width, filler):
    out = np.full((len(rows), width), filler, np.int32)
    for row, labels in enumerate(rows):
        out[row, : len(labels)] = labels
    return out, np.array([len(labels) for labels in rows], np.int32)


@functools.partial(jax.jit, static_argnames=("blank", "normalise"))
def value_and_gradient(logits, lengths, labels, label_lengths, *, blank, normalise=True):
    """((sum, (losses, feasibility)), gradient of the sum), with respect to logits or to log-probabilities."""

    def total(x):
        log_probs = jax.nn.log_softmax(x, axis=-1) if normalise else x
        loss, feasible = ctc.ctc_loss(log_probs, lengths, labels, label_lengths, blank)
        return loss.sum(), (loss, feasible)

    return jax.value_and_grad(total, has_aux=True)(logits)


def loss_of(logits, lengths, rows, *, blank=0, filler=1, width=None, normalise=True):
    """Losses, feasibility, and the gradient of the sum."""
    labels, label_lengths = padded(rows, width or max(map(len, rows)), filler)
    (_, (loss, feasible)), gradient = value_and_gradient(
        logits, np.asarray(lengths, np.int32), labels, label_lengths, blank=blank, normalise=normalise
    )
    return np.asarray(loss), np.asarray(feasible), np.asarray(gradient)


@pytest.mark.parametrize("blank", [0, 2])
def test_loss_equals_the_sum_over_all_paths(blank):
    letters = [label for label in range(3) if label != blank]
    a, b = letters
    rows = [[], [a], [b], [a, b], [a, a], [b, a], [a, b, a], [a, a, b], [b, b, b], [a, b, a, b]]
    lengths = [5, 5, 1, 4, 3, 2, 5, 4, 5, 5]
    logits = random_logits(len(rows), 5, 3)
    loss, feasible, _ = loss_of(logits, lengths, rows, blank=blank)
    assert feasible.all()
    for row, labels in enumerate(rows):
        expected = ctc_numpy.enumerated_loss(log_softmax(logits[row, : lengths[row]]), labels, blank)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-5, atol=1e-5)


def test_the_recurrences_of_the_reference_agree_with_enumeration_and_finite_differences():
    logits = np.asarray(random_logits(4, 3, seed=3), np.float64)
    for labels in ([], [1], [1, 1], [2, 1, 2]):
        loss, gradient = ctc_numpy.loss_and_gradient(logits, labels, 0)
        np.testing.assert_allclose(loss, ctc_numpy.enumerated_loss(log_softmax(logits), labels, 0), rtol=1e-12)
        for t, v in np.ndindex(*logits.shape):
            step = np.zeros_like(logits)
            step[t, v] = 1e-5
            up, down = (ctc_numpy.enumerated_loss(log_softmax(logits + s), labels, 0) for s in (step, -step))
            np.testing.assert_allclose((up - down) / 2e-5, gradient[t, v], atol=1e-8)


def test_loss_and_gradient_equal_float64_recurrences_on_long_ragged_rows():
    rng = np.random.default_rng(4)
    rows = [rng.integers(1, 8, 20).tolist(), [3] * 20, [1, 1, 2, 5, 5, 7, 1, 2], []]
    lengths = [60, 39, 10, 60]
    assert [ctc.augmented_length(row) for row in rows[1:3]] == lengths[1:3]  # not a frame to spare
    logits = random_logits(4, 60, 8, seed=5)
    loss, feasible, gradient = loss_of(logits, lengths, rows, filler=0)
    assert feasible.all()
    for row, length in enumerate(lengths):
        expected, slope = ctc_numpy.loss_and_gradient(np.asarray(logits[row, :length], np.float64), rows[row], 0)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-5)
        # exp of a float32 log-likelihood of about 150: 1.5e-5 is one unit in its last place.
        np.testing.assert_allclose(gradient[row, :length], slope, atol=1e-4)
        assert not gradient[row, length:].any()


def test_infeasible_rows_have_no_loss_no_gradient_and_disturb_no_other_row():
    rows = [[1, 2], [1, 1], [1, 2, 3], [2], [1, 2]]
    lengths = [3, 2, 2, 0, 3]  # the second lacks a frame for its repeat, the third for its third label
    logits = random_logits(5, 6, 4, seed=6)
    loss, feasible, gradient = loss_of(logits, lengths, rows)
    assert feasible.tolist() == [True, False, False, False, True]
    assert not loss[1:4].any() and not gradient[1:4].any()
    assert np.isfinite(gradient).all() and np.isfinite(loss).all()
    easy, possible, slope = loss_of(logits, [3, 6, 6, 6, 3], [rows[0], [2], [3, 1, 2], [1], rows[4]])
    assert possible.all()
    np.testing.assert_array_equal(loss[[0, 4]], easy[[0, 4]])
    np.testing.assert_array_equal(gradient[[0, 4]], slope[[0, 4]])


def test_feasibility_is_whether_any_path_exists():
    rng = np.random.default_rng(7)
    rows = [rng.integers(1, 3, rng.integers(0, 5)).tolist() for _ in range(60)]
    lengths = rng.integers(1, 6, 60)
    exists = [
        np.isfinite(ctc_numpy.enumerated_loss(np.zeros((length, 3)), labels, 0))
        for labels, length in zip(rows, lengths, strict=True)
    ]
    assert 10 < sum(exists) < 50
    _, feasible, _ = loss_of(np.zeros((60, 5, 3), np.float32), lengths, rows)
    assert feasible.tolist() == exists
    assert [ctc.augmented_length(labels) <= n for labels, n in zip(rows, lengths, strict=True)] == exists


def test_what_stands_behind_frames_and_labels_does_not_matter():
    rows, lengths = [[1, 2, 2], [3]], [6, 3]
    logits = random_logits(2, 6, 4, seed=8)
    dirty = logits.copy()
    dirty[1, 3:] = np.nan
    clean = loss_of(logits, lengths, rows, filler=0)
    for filler in (1, 3, -1, 99):  # 3 repeats the last label
        other = loss_of(dirty, lengths, rows, filler=filler)
        np.testing.assert_array_equal(clean[0], other[0])
        np.testing.assert_array_equal(clean[1], other[1])
        np.testing.assert_array_equal(clean[2][0], other[2][0])
        np.testing.assert_array_equal(clean[2][1, :3], other[2][1, :3])
    # The gradient that reaches the encoder is clean too, when the log-probabilities themselves are what is NaN.
    _, _, gradient = loss_of(dirty, lengths, rows, normalise=False)
    assert np.isfinite(gradient).all() and not gradient[1, 3:].any()


def test_half_precision_input_is_summed_in_float32():
    rows = [[1, 2, 3]]
    labels, label_lengths = padded(rows, 3, 0)
    log_probs = jnp.asarray(log_softmax(random_logits(1, 200, 5)), jnp.bfloat16)
    loss, _ = ctc.ctc_loss(log_probs, jnp.array([200]), labels, label_lengths, 0)
    expected, _ = ctc_numpy.loss_and_gradient(np.asarray(log_probs[0], np.float64), rows[0], 0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss[0], expected, rtol=1e-5)


def test_greedy_decoding_is_the_collapsed_likeliest_path():
    for seed, blank in [(0, 0), (1, 2), (2, 1)]:
        logits = log_softmax(random_logits(6, 6, 3, seed=seed))
        lengths = np.array([6, 5, 3, 2, 1, 0])
        expected = [ctc_numpy.best_path(logits[row, :n], blank) for row, n in enumerate(lengths)]
        assert ctc.greedy_decode(logits, lengths, blank) == expected
        assert ctc.greedy_decode(logits.argmax(axis=-1), lengths, blank) == expected
        assert all(type(label) is int for labels in expected for label in labels)


def test_greedy_decoding_keeps_a_repeat_only_across_a_blank():
    paths = np.array([[1, 1, 0, 1, 2, 2, 0, 0, 2, 3], [0, 0, 0, 4, 4, 4, 4, 4, 1, 1]])
    assert ctc.greedy_decode(paths, [10, 8], 0) == [[1, 1, 2, 2, 3], [4]]


def test_rows_may_have_different_blanks():
    paths = np.array([[0, 1, 1, 2, 1], [0, 1, 1, 2, 1], [0, 1, 1, 2, 1]])
    assert ctc.greedy_decode(paths, [5, 5, 4], [0, 2, 1]) == [[1, 2, 1], [0, 1, 1], [0, 2]]
