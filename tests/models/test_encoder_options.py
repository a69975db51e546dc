"""The options in which published encoders differ: against float64 numpy, and in adapters, meshes and counts."""

import copy
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, tiny
from reference.precision import enable_x64

from hra_jax.adapters.base import unbound
from hra_jax.models import backbone_folder, conformer, padding
from hra_jax.models.encoder_config import CONV_MASKS, CONV_NORMS, POSITIONS, affine_maps
from hra_jax.training import flops, sharding

# Every map with a bias, none, and some; of the convolutions as the mask allows it.
BIASES = {
    "all": {},
    "none": dict(norm_bias=False, attention_bias=False, ff_bias=False, conv_bias=False),
    "some": dict(attention_bias=False, conv_bias=False, depthwise_bias=True),
    "others": dict(norm_bias=False, ff_bias=False, depthwise_bias=False),
}
PUBLISHED = {
    "w2v-bert": dict(position="shaw", shaw_left=3, shaw_right=2, conv_padding="causal", conv_mask="pre_pointwise")
    | dict(conv_bias=False, kernel=5),
    "wav2vec2-conformer": dict(position="rope_in", conv_norm="batch", conv_bias=False, kernel=5, final_norm=True),
    "medasr": dict(position="rope_qk", conv_norm="batch", kernel=4, norm_eps=1e-6, final_norm=True)
    | dict(ff_residual=(1.5, 0.5), conv_residual=(2.0, 1.0))
    | BIASES["none"],
}


def encoder_of(**changes):
    return dataclasses.replace(tiny.ENCODER, **changes)


def masks_of(lengths, frames):
    valid = padding.valid_mask(jnp.asarray(lengths), frames)
    return valid, valid[:, None, None, :] & jnp.ones((1, 1, frames, frames), bool)


def check_block(encoder, lengths, frames):
    """One block in float64, not compiled, on every frame: padded ones too have one value that is right."""
    own = conformer_numpy.layer_of(tiny.random_params(tiny.FEATURES, encoder)["encoder"]["layers"], 1)
    x = np.random.default_rng(3).standard_normal((len(lengths), frames, encoder.d_model))
    with enable_x64(True):
        block = conformer.ConformerLayer(encoder, conformer.Adapter())
        (y, _), _ = block.apply({"params": own}, (jnp.asarray(x), ()), {}, {}, *masks_of(lengths, frames))
    assert y.dtype == np.float64
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(y[row], conformer_numpy.block(own, x[row], length, encoder), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("conv_mask", CONV_MASKS)
@pytest.mark.parametrize("position", POSITIONS)
def test_each_position_with_each_mask_norm_and_bias_equals_the_float64_reference(position, conv_mask):
    start = POSITIONS.index(position) + CONV_MASKS.index(conv_mask)
    for number, conv_norm in enumerate(CONV_NORMS):
        # Over all tests each choice of biases meets each position, each mask and each norm.
        name = list(BIASES)[(start + number) % len(BIASES)]
        biases = BIASES[name]
        if conv_mask == "pre_pointwise":
            biases = {"depthwise_bias": name == "all"} | biases | {"conv_bias": False}
        changes = dict(conv_padding=("same", "causal")[number % 2], kernel=3 + number, shaw_left=3, shaw_right=1)
        encoder = encoder_of(position=position, conv_mask=conv_mask, conv_norm=conv_norm, **changes | biases)
        check_block(encoder, [7, 4, 1], 7)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("frames", "lengths"), [(1, [1, 0]), (2, [2, 1]), (3, [3])])
def test_inputs_shorter_than_the_kernel_and_the_table_equal_the_float64_reference(position, frames, lengths):
    conv_padding = ("same", "causal")[(frames + POSITIONS.index(position)) % 2]
    check_block(encoder_of(position=position, kernel=6, conv_padding=conv_padding), lengths, frames)


def test_a_misplaced_mask_or_table_row_is_noticed():
    """The comparison above sees what it is there for."""
    encoder = encoder_of(position="shaw", shaw_left=3, shaw_right=1, conv_mask="none", conv_bias=False)
    check_block(encoder, [7, 4], 7)
    own = conformer_numpy.layer_of(tiny.random_params(tiny.FEATURES, encoder)["encoder"]["layers"], 1)
    x = np.random.default_rng(3).standard_normal((7, encoder.d_model))
    right = conformer_numpy.block(own, x, 4, encoder)
    masked = conformer_numpy.block(own, x, 4, dataclasses.replace(encoder, conv_mask="post_glu"))
    other = copy.deepcopy(own)
    other["attention"]["distance"] = own["attention"]["distance"][::-1]
    turned = conformer_numpy.block(other, x, 4, encoder)
    for wrong in (masked, turned):
        assert np.abs(right - wrong)[:4].max() > 1e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stack_of_blocks_in_float32_equals_the_float64_reference(name):
    encoder, lengths = encoder_of(**PUBLISHED[name]), [11, 6, 1]
    params = tiny.random_params(tiny.FEATURES, encoder)["encoder"]
    x = np.random.default_rng(4).standard_normal((3, 11, encoder.d_model)).astype(np.float32)
    model = conformer.Conformer(encoder)
    run = jax.jit(lambda p, x: model.apply({"params": p}, x, jnp.array(lengths), unbound()))
    y = np.asarray(run(params, x))
    assert y.dtype == np.float32
    for row, length in enumerate(lengths):
        expected = conformer_numpy.encode(conformer_numpy.float64(params), x[row].astype(float), length, encoder)
        np.testing.assert_allclose(y[row], expected, atol=2e-5)


@pytest.mark.parametrize("conv_mask", CONV_MASKS)
def test_more_padding_moves_valid_frames_only_where_the_convolution_is_not_masked(conv_mask):
    encoder = encoder_of(position="shaw", kernel=4, conv_mask=conv_mask, conv_bias=False, conv_norm="batch")
    params = tiny.random_params(tiny.FEATURES, encoder)["encoder"]
    x = np.random.default_rng(4).standard_normal((1, 9, encoder.d_model)).astype(np.float32)
    run = jax.jit(lambda x: conformer.Conformer(encoder).apply({"params": params}, x, jnp.array([6]), unbound()))
    alone, padded = np.asarray(run(x[:, :6])), np.asarray(run(x)[:, :6])
    if conv_mask == "none":
        assert np.abs(alone - padded).max() > 1e-2
    else:
        np.testing.assert_allclose(alone, padded, atol=1e-5)


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_absent_where_the_settings_say_so(name):
    encoder = encoder_of(**BIASES[name], conv_norm="batch", final_norm=True, position="shaw", shaw_left=5, shaw_right=2)
    flat = backbone_folder.flatten(nn.unbox(backbone_folder.abstract_params(tiny.FEATURES, encoder)), separator=".")
    layers = {key.removeprefix("encoder.layers."): leaf for key, leaf in flat.items() if ".layers." in key}
    expected = {".".join((*found.path, "bias")) for found in affine_maps(encoder).values() if found.bias}
    assert {key for key in layers if key.endswith("bias")} == expected
    assert len(expected) == {"all": 17, "none": 1, "some": 11, "others": 7}[name]
    assert ("encoder.final_norm.bias" in flat) == encoder.norm_bias
    statistics = {f"convolution.depthwise_norm.{leaf}" for leaf in ("scale", "bias", "mean", "variance")}
    assert statistics <= set(layers)
    assert layers["attention.distance"].shape == (encoder.n_layers, 8, encoder.d_head)


@pytest.mark.optimised
@pytest.mark.parametrize("method", ["hra", "residual", "lora", "bitfit", "output"])
def test_a_new_adapter_is_the_identity_without_biases_and_a_trained_one_is_not(method):
    encoder, adapter = encoder_of(**PUBLISHED["medasr"] | {"position": "rope_in"}), tiny.METHODS[method]
    params = tiny.random_params(tiny.FEATURES, encoder)
    batch = tiny.random_batch([240, 133, 64], size=240, tasks=[3, 0, -1], filler=np.nan)
    base, lengths = tiny.compiled_base(encoder)(params, batch)
    run = tiny.compiled_forward(encoder, adapter=adapter)
    new, _ = run(params, tiny.new_trainable(adapter, encoder), batch)
    np.testing.assert_array_equal(new, base)
    trained = tiny.random_trainable(adapter, encoder)
    adapted, _ = run(params, trained, batch)
    np.testing.assert_array_equal(adapted[2, : lengths[2]], base[2, : lengths[2]])
    assert np.abs(adapted - base)[:2, :6].max() > 1e-2
    if method in ("lora", "bitfit", "output"):
        check_merged(adapter, trained, encoder, params, batch, adapted)


def check_merged(adapter, trained, encoder, params, batch, adapted):
    """The bare model with the weights of task 3 merged gives what the adapter gave in row 0."""
    row = tiny.row_of(trained, 3)
    params = copy.deepcopy(params)
    for (*path, name), value in adapter.merged(params["encoder"]["layers"], row, encoder).items():
        node = params["encoder"]["layers"]
        for key in path:
            node = node[key]
        assert name in node
        node[name] = np.asarray(value)
    if adapter.output == "task":
        for name, value in row["all_layers"]["output"].items():
            params["output"][name] = params["output"][name] + value
    merged, _ = tiny.compiled_base(encoder)(params, batch)
    np.testing.assert_allclose(merged[0], adapted[0], atol=1e-4)


def test_bitfit_corrects_the_biases_that_there_are_and_no_other():
    encoder = encoder_of(**PUBLISHED["medasr"])
    own = tiny.METHODS["bitfit"].init_own(None, encoder)["per_layer"]
    assert set(own) == {"convolution_depthwise_norm"}
    encoder = encoder_of(**BIASES["some"])
    own = tiny.METHODS["bitfit"].init_own(None, encoder)["per_layer"]
    assert "attention_query" not in own and "convolution_gated" not in own
    assert {"attention_norm", "ff1_up", "convolution_depthwise", "final_norm"} <= set(own)


def test_shaw_scores_cost_products_with_the_table_and_not_with_every_pair():
    lengths, frames, products = jnp.array([40, 33]), 40, {}
    x = jnp.zeros((2, frames, tiny.ENCODER.d_model))
    for position in ("none", "shaw"):
        encoder = encoder_of(position=position, shaw_left=5, shaw_right=2)
        params = nn.unbox(backbone_folder.abstract_params(tiny.FEATURES, encoder))["encoder"]
        model = conformer.Conformer(encoder)
        products[position] = flops.of(
            lambda p, x, model=model: model.apply({"params": p}, x, lengths, unbound()), params, x
        )
    rows, heads, width = 5 + 2 + 1, tiny.ENCODER.n_heads, tiny.ENCODER.d_head
    expected = tiny.ENCODER.n_layers * 2 * (2 * heads * frames * rows * width)
    assert products["shaw"] - products["none"] == expected


def test_a_mesh_has_a_place_for_every_weight_of_every_option():
    mesh = sharding.make_mesh(2, 2, tensor=2)
    for settings in PUBLISHED.values():
        boxed = backbone_folder.abstract_params(tiny.FEATURES, encoder_of(**settings))
        placed = sharding.tree_shardings(mesh, nn.get_partition_spec(boxed), nn.unbox(boxed))
        flat = backbone_folder.flatten(placed, separator=".")
        small = [name for name in flat if name.endswith(("distance", "mean", "variance"))]
        assert small and all(flat[name].is_fully_replicated for name in small)
        assert not flat["encoder.layers.attention.query.kernel"].is_fully_replicated
