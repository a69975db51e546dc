"""Scores by offset, by key, and back, in both ways to write it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hra_jax.models import skew

SHAPES = [(1, 1), (2, 2), (5, 5), (2, 5), (5, 3), (8, 11), (9, 4)]
WAYS = {"skew": (skew.skew, skew.unskew), "reads": (skew.read_narrower, skew.read_wider)}
WAYS |= {"slides": (skew.slide, skew.slide_back)}


def random(queries, columns):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, queries, columns)).astype(np.float32))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_every_pair_is_read_at_its_offset_and_written_back_there(way, queries, keys):
    there, back = WAYS[way]
    scores, by_key = random(queries, queries + keys - 1), random(queries, keys)
    out, written = np.asarray(there(scores)), np.asarray(back(by_key))
    assert out.shape == (2, 3, queries, keys)
    expected = np.zeros(scores.shape, np.float32)
    for i in range(queries):
        for j in range(keys):
            # Column 0 is the offset i - j = Q - 1.
            np.testing.assert_array_equal(out[:, :, i, j], scores[:, :, i, queries - 1 - (i - j)])
            expected[:, :, i, queries - 1 - (i - j)] = by_key[:, :, i, j]
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_the_gradient_is_that_of_either_way(queries, keys):
    scores, slope = random(queries, queries + keys - 1), random(queries, keys)
    found = [jax.vjp(there, scores)[1](slope)[0] for there, _ in WAYS.values()]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_each_platform_has_its_way():
    scores = jax.ShapeDtypeStruct((2, 3, 8, 18), jnp.float32)
    gradient = jax.jit(lambda scores: jax.vjp(skew.skew, scores)[1](jnp.ones((2, 3, 8, 11))))
    for platform, slides in (("tpu", True), ("cpu", False), ("cuda", False)):
        for function in (jax.jit(skew.skew), gradient):
            text = function.trace(scores).lower(lowering_platforms=(platform,)).as_text()
            assert ("stablehlo.select" in text) is slides and ("stablehlo.reshape" in text) is not slides
