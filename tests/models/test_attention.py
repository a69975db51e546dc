"""Position terms, context masks and attention against float64 loops over queries and keys."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, tiny

from hra_jax.models import attention, padding

FRAMES, LENGTHS = 9, [9, 6, 1]


def encoder(**changes):
    return dataclasses.replace(tiny.ENCODER, **changes)


CONTEXTS = {
    "full": {},
    "window both": dict(context="window", left_context=3, right_context=1),
    "window of itself": dict(context="window", left_context=0, right_context=0),
    "window left open": dict(context="window", left_context=-1, right_context=2),
    "window right open": dict(context="window", left_context=1, right_context=-1),
    "chunk alone": dict(context="chunk", chunk=4, left_context=0),
    "chunk and one before": dict(context="chunk", chunk=3, left_context=1),
    "chunk and all before": dict(context="chunk", chunk=2, left_context=-1),
    "chunk beyond the end": dict(context="chunk", chunk=100, left_context=2),
}


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_context_mask_equals_the_rule_for_every_pair(context):
    config = encoder(**CONTEXTS[context])
    for size in (1, 2, 11):
        mask = np.asarray(attention.context_mask(size, config))
        assert mask.tolist() == [[conformer_numpy.may_see(i, j, config) for j in range(size)] for i in range(size)]


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 1), (1, 3), (20, 0), (0, 20), (20, 20)])
def test_unclip_reads_every_pair_at_its_clipped_offset(left, right):
    for keys, queries, padded in [(1, 1, None), (2, 2, None), (7, 7, None), (7, 3, 9), (7, 1, 7)]:
        shape = (2, 3, padded or queries, left + right + 1)
        scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for first in range(0, padded or 1, queries):
            own = scores[:, :, first : first + queries]
            blocks = {} if padded is None else {"first": jnp.int32(first), "padded": padded}
            out = np.asarray(attention.unclip(jnp.asarray(own), keys, left=left, **blocks))
            assert out.shape == (2, 3, queries, keys)
            for i in range(queries):
                for j in range(keys):
                    place = min(max(j - (first + i), -left), right) + left
                    np.testing.assert_array_equal(out[:, :, i, j], own[:, :, i, place])


def test_sinusoids_equal_the_formula():
    table = attention.sinusoids(40, 25, 12)
    expected = [conformer_numpy.sinusoid(offset, 12) for offset in range(39, -25, -1)]
    np.testing.assert_allclose(table, expected, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = np.random.default_rng(0).standard_normal((2, 1, 1, 2, 8)).astype(np.float32)
    repeat = (1, 12, 1, 1)
    queries, keys = (attention.rotate(jnp.tile(x, repeat), 100.0) for x in (query, key))
    scores = np.asarray(jnp.einsum("binh,bjnh->nij", queries, keys))
    for offset in range(-11, 12):
        diagonal = np.stack([np.diag(head, offset) for head in scores])
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-4)
    assert np.abs(scores[:, 0] - scores[:, 0, :1]).max() > 0.1


def run_attention(config, x, lengths, *, block=0):
    """The module with random parameters: its output, and the parameters."""
    module = attention.Attention(config, block)
    valid = padding.valid_mask(jnp.asarray(lengths), x.shape[1])
    mask = valid[:, None, None, :] & attention.context_mask(x.shape[1], config)[None, None]
    keep = lambda name, inputs, outputs: outputs  # noqa: E731
    shapes = nn.unbox(jax.eval_shape(lambda key: module.init(key, x, mask, keep), jax.random.key(0)))["params"]
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    return np.asarray(jax.jit(lambda p: module.apply({"params": p}, x, mask, keep))(params)), params


@pytest.mark.parametrize(
    "settings",
    [
        dict(position="none"),
        dict(position="xl"),
        dict(position="rope_qk"),
        dict(position="rope_qk", rope_base=50.0) | CONTEXTS["window both"],
        dict(position="xl", n_heads=4) | CONTEXTS["chunk and one before"],
        dict(position="xl") | CONTEXTS["window left open"],
        dict(position="rope_in", rope_base=50.0, n_heads=4),
        dict(position="shaw", shaw_left=3, shaw_right=2, attention_bias=False),
        dict(position="shaw", shaw_right=0) | CONTEXTS["chunk and one before"],
    ],
    ids=lambda s: f"{s['position']}-{s.get('context', 'full')}{s.get('right_context', '')}",
)
def test_attention_equals_brute_force_for_every_position_term_and_context(settings):
    config = encoder(**settings)
    x = np.random.default_rng(1).standard_normal((len(LENGTHS), FRAMES, config.d_model)).astype(np.float32)
    out, params = run_attention(config, x, LENGTHS)
    params = conformer_numpy.float64(params)
    for row, length in enumerate(LENGTHS):
        # Padded queries too: they must stay finite and defined, whatever they see.
        expected = conformer_numpy.attention(params, x[row].astype(np.float64), length, config)
        np.testing.assert_allclose(out[row], expected, atol=2e-5)


@pytest.mark.parametrize("block", [1, 4, 8, 9, 20])
@pytest.mark.parametrize(
    "settings",
    [
        dict(position="rope_qk") | CONTEXTS["chunk and one before"],
        dict(position="xl") | CONTEXTS["window both"],
        dict(position="shaw", shaw_left=3, shaw_right=1),
        dict(position="shaw") | CONTEXTS["window both"],
    ],
    ids=["rope_qk", "xl", "shaw", "shaw, long table"],
)
def test_queries_in_blocks_give_what_all_at_once_give(settings, block):
    config = encoder(**settings)
    x = np.random.default_rng(1).standard_normal((len(LENGTHS), FRAMES, config.d_model)).astype(np.float32)
    whole, blocks = (run_attention(config, x, LENGTHS, block=size)[0] for size in (0, block))
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["xl", "shaw"])
def test_queries_in_blocks_give_the_gradients_of_all_at_once(position):
    config = encoder(position=position, shaw_left=4, shaw_right=2)
    x = np.random.default_rng(1).standard_normal((len(LENGTHS), FRAMES, config.d_model)).astype(np.float32)
    _, params = run_attention(config, x, LENGTHS)
    mask = padding.valid_mask(jnp.asarray(LENGTHS), FRAMES)[:, None, None, :] & jnp.ones((1, 1, FRAMES, 1), bool)

    def gradient(block):
        module = attention.Attention(config, block)

        def loss(params, x):
            return jnp.square(module.apply({"params": params}, x, mask, lambda name, x, y: y)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

    whole, blocks = gradient(0), gradient(4)
    for expected, found in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [0, 16])
def test_shaw_scores_need_no_gather_and_no_tensor_of_all_pairs_and_a_head(block):
    frames, config = 40, encoder(position="shaw", shaw_left=5, shaw_right=2)
    x, mask = np.zeros((2, frames, config.d_model), np.float32), jnp.ones((1, 1, frames, frames), bool)
    module = attention.Attention(config, block)
    keep = lambda name, inputs, outputs: outputs  # noqa: E731
    params = nn.unbox(jax.eval_shape(lambda key: module.init(key, x, mask, keep), jax.random.key(0)))
    gradient = jax.grad(lambda params, x: jnp.square(module.apply(params, x, mask, keep)).sum(), argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(params, x))
    assert "dot_general" in program and "gather" not in program and "scatter" not in program
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", program)]
    pairs = 2 * config.n_heads * min(block or frames, frames) * frames
    assert pairs <= max(sizes) < 2 * frames * frames * config.d_head


def test_a_position_term_changes_the_output():
    x = np.random.default_rng(1).standard_normal((1, FRAMES, 16)).astype(np.float32)
    turned = np.ascontiguousarray(x[:, ::-1])
    for position, depends in [("none", False), *((p, True) for p in ("xl", "rope_qk", "rope_in", "shaw"))]:
        config = encoder(position=position)
        out, back = (run_attention(config, value, [FRAMES])[0] for value in (x, turned))
        # Without a position term attention does not know the order of the frames.
        assert (np.abs(out[:, ::-1] - back).max() > 1e-2) == depends


def test_chunk_attention_crosses_no_chunk_boundary():
    config = encoder(position="xl", **CONTEXTS["chunk alone"])
    x = np.random.default_rng(1).standard_normal((1, FRAMES, 16)).astype(np.float32)
    other = x.copy()
    other[:, 4:8] += 1.0  # the second chunk
    out, changed = (run_attention(config, value, [FRAMES])[0] for value in (x, other))
    np.testing.assert_array_equal(out[:, :4], changed[:, :4])
    np.testing.assert_array_equal(out[:, 8:], changed[:, 8:])
    assert np.abs(out[:, 4:8] - changed[:, 4:8]).min() > 0
