"""Which heads and queries attention takes at a time, and that it makes no difference which."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from hra_jax.config.files import load_config
from hra_jax.models import attention, attention_parts, padding
from hra_jax.models.attention_parts import Budget
from hra_jax.run import programs
from hra_jax.training.sharding import make_mesh

ROWS, FRAMES, HEADS, LENGTHS = 3, 20, 4, [20, 13, 1]
ONE_HEAD = 4 * ROWS * FRAMES * FRAMES  # bytes of the scores of one head
# Bytes, and the heads and queries that they are enough for.
PARTS = {
    "all": (HEADS * ONE_HEAD, (4, 20)),
    "two heads": (HEADS * ONE_HEAD - 1, (2, 20)),
    "one head": (2 * ONE_HEAD - 1, (1, 20)),
    "one head, few queries": (ONE_HEAD - 1, (1, 16)),
    "less than is possible": (1, (1, 16)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_fits_the_budget(name):
    size, expected = PARTS[name]
    assert attention_parts.part(Budget(size), ROWS, HEADS, FRAMES) == expected
    # Devices that share the rows have so much room each.
    assert attention_parts.part(Budget(size, devices=4), 4 * ROWS, HEADS, FRAMES) == expected


@pytest.mark.parametrize(
    ("devices", "tensor", "rows", "heads", "frames", "expected"),
    [
        (256, 1, 1024, 16, 750, (8, 128)),  # 4 utterances of 30 s on a chip
        (256, 1, 512, 16, 750, (16, 128)),
        (256, 1, 8192, 16, 750, (1, 128)),
        (256, 1, 65536, 16, 750, (1, 16)),
        (8, 1, 64, 16, 1500, (2, 128)),
        (8, 8, 64, 16, 1500, (8, 32)),  # no fewer heads than devices that share them
        (1, 1, 4, 16, 200, (16, 200)),
        (1, 1, 32, 16, 200, (2, 200)),
        (1, 3, 1, 16, 9999, (16, 16)),  # heads that are not divided evenly are not parted
    ],
)
def test_parts_of_batches_on_many_chips(devices, tensor, rows, heads, frames, expected):
    some, queries = attention_parts.part(Budget(devices=devices, tensor=tensor), rows, heads, frames)
    assert (some, queries) == expected


@pytest.mark.parametrize(("block", "expected"), [(0, (4, 20)), (7, (4, 7)), (64, (4, 20))])
def test_a_number_is_one_of_queries(block, expected):
    assert attention_parts.part(block, ROWS, HEADS, FRAMES) == expected


def test_what_suits_the_devices():
    assert attention_parts.for_platform("tpu", devices=8, tensor=2) == Budget(12 << 20, devices=8, tensor=2)
    assert attention_parts.for_platform("cpu") == attention_parts.for_platform("gpu") == 0


@pytest.mark.parametrize(
    ("platform", "setting", "expected"),
    [("tpu", -1, Budget(devices=8, tensor=2)), ("tpu", 0, 0), ("tpu", 64, 64), ("cpu", -1, 0), ("cpu", 64, 64)],
)
def test_a_run_takes_what_suits_its_devices_or_what_it_is_told(platform, setting, expected):
    # There is no TPU here: what a mesh says of its devices is all that is asked.
    devices = np.array([types.SimpleNamespace(platform=platform)] * 8, dtype=object)
    mesh = types.SimpleNamespace(devices=devices, size=8, shape={"tensor": 2})
    config = load_config("quickstart")
    config.attention_block = setting
    foundation = types.SimpleNamespace(features=tiny.FEATURES, encoder=tiny.ENCODER)
    assert programs.model_on(mesh, foundation, tiny.METHODS["hra"], settings=config).attention_block == expected


def attend(position: str, block, *, shard=lambda params, x: (params, x)):
    """Output and gradients of an attention module with random weights, as lists of arrays."""
    config = dataclasses.replace(tiny.ENCODER, position=position, n_heads=HEADS, shaw_left=4, shaw_right=2)
    module, keep = attention.Attention(config, block), lambda name, inputs, outputs: outputs
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS + 1, FRAMES, config.d_model)).astype(np.float32)
    mask = padding.valid_mask(jnp.asarray([*LENGTHS, 5]), FRAMES)[:, None, None, :] & jnp.ones((1, 1, FRAMES, 1), bool)
    shapes = nn.unbox(jax.eval_shape(lambda key: module.init(key, x, mask, keep), jax.random.key(0)))["params"]
    params = jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    wanted = rng.standard_normal(x.shape).astype(np.float32)

    def loss(params, x):
        y = module.apply({"params": params}, x, mask, keep)
        return (y * wanted).sum(), y

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), gradients = run(*shard(params, x))
    return [np.asarray(leaf) for leaf in jax.tree.leaves((y, gradients))]


@pytest.mark.parametrize("position", ["none", "xl", "shaw", "rope_qk"])
def test_parts_give_what_all_at_once_give(position):
    whole = attend(position, 0)
    for name in ("two heads", "one head, few queries"):
        # One row more than the budgets are made for.
        size = PARTS[name][0] * (ROWS + 1) // ROWS
        assert attention_parts.part(Budget(size), ROWS + 1, HEADS, FRAMES) == PARTS[name][1]
        for expected, found in zip(whole, attend(position, Budget(size)), strict=True):
            assert np.abs(expected).max() > 0
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 fake devices (XLA_FLAGS of tests/conftest.py)")
@pytest.mark.parametrize("position", ["xl", "shaw"])
def test_devices_that_share_rows_and_heads_compute_the_same(position):
    mesh = make_mesh(4, tensor=2)

    def shard(params, x):
        def place(path, leaf):
            heads = leaf.ndim == 2 and path[0].key in ("query", "key", "value", "position")
            spec = (None, "tensor") if heads else ()
            return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*spec)))

        return jax.tree_util.tree_map_with_path(place, params), jax.device_put(
            x, jax.NamedSharding(mesh, jax.P("data"))
        )

    block = Budget(ONE_HEAD // ROWS // 2, devices=8, tensor=2)
    assert attention_parts.part(block, ROWS + 1, HEADS, FRAMES) == (2, 16)
    for expected, found in zip(attend(position, 0), attend(position, block, shard=shard), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
