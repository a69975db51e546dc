"""The padding convention: masks, zeroing, lengths and statistics."""

import jax.numpy as jnp
import numpy as np

from hra_jax.models import padding


def test_mask_is_true_exactly_at_the_valid_places():
    mask = np.asarray(padding.valid_mask(jnp.array([0, 2, 5, 9]), 5))
    for row, length in enumerate([0, 2, 5, 9]):
        assert [place < length for place in range(5)] == mask[row].tolist()


def test_zeroing_removes_nan_and_infinity_and_keeps_the_rest_bit_exact():
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float32)
    dirty = x.copy()
    lengths = [4, 1, 0]
    for row, length in enumerate(lengths):
        dirty[row, length:] = [[np.nan, np.inf], [-np.inf, 1e38]]
    out = np.asarray(padding.zero_invalid(dirty, padding.valid_mask(jnp.array(lengths), 4)))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(out[row, :length], x[row, :length])
        assert not out[row, length:].any()


def test_strided_length_counts_the_places_of_a_sliding_window():
    for kernel, stride, pad in [(3, 2, 1), (5, 3, 0), (4, 1, 2)]:
        sizes = np.arange(kernel, 40)
        counted = [len(range(0, size + 2 * pad - kernel + 1, stride)) for size in sizes]
        assert padding.strided_length(sizes, kernel=kernel, stride=stride, pad=pad).tolist() == counted
        assert [padding.strided_length(int(s), kernel=kernel, stride=stride, pad=pad) for s in sizes] == counted
    assert padding.strided_length(0, kernel=3, stride=2, pad=1) == 0


def test_statistics_are_those_of_the_valid_part_alone():
    x = np.random.default_rng(1).standard_normal((3, 6, 4)).astype(np.float32)
    lengths = [6, 3, 0]
    dirty = np.where(np.asarray(padding.valid_mask(jnp.array(lengths), 6))[..., None], x, np.nan)
    mean, variance = padding.masked_mean_variance(dirty, padding.valid_mask(jnp.array(lengths), 6))
    for row, length in enumerate(lengths[:2]):
        np.testing.assert_allclose(mean[row, 0], x[row, :length].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(variance[row, 0], x[row, :length].var(axis=0), atol=1e-6)
    assert not np.asarray(mean[2]).any() and not np.asarray(variance[2]).any()


def test_few_shapes_hold_any_size():
    sizes = {padding.padded_size(size, 8) for size in range(1, 1025)}
    assert sizes == {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
    assert all(size <= padding.padded_size(size, 8) <= max(8, 1.5 * size) for size in range(1, 1025))
