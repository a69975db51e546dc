"""The encoder: against float64 numpy, over padding, layers, context and what the backward pass keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, tiny

from hra_jax.adapters import base
from hra_jax.errors import UserError
from hra_jax.models import conformer, layers, padding
from hra_jax.models.asr import AsrModel
from hra_jax.training.step import forward

LENGTHS, SIZE = [240, 133, 64], 240  # 24, 13 and 6 feature frames

# Every option of the encoder's settings has a value other than its default in at least one row.
COMBINATIONS = {
    "plain": dict(position="none", subsampling=2),
    "xl, window, masked before": dict(
        position="xl",
        context="window",
        left_context=3,
        right_context=1,
        kernel=4,
        conv_mask="pre_pointwise",
        conv_bias=False,
        ff_residual=(1.5, 0.5),
        conv_residual=(2.0, 0.9),
        final_norm=True,
        norm_eps=1e-3,
    ),
    "rotary, chunks, causal, x4": dict(
        position="rope_qk",
        rope_base=100.0,
        context="chunk",
        chunk=2,
        left_context=1,
        subsampling=4,
        subsampling_channels=3,
        conv_padding="causal",
        kernel=6,
        conv_norm="none",
        input_scale=4.0,
        n_heads=4,
        d_ff=20,
    ),
    "xl, unmasked convolution": dict(position="xl", conv_mask="none", n_layers=2, d_model=24, n_heads=3, kernel=5),
    "shaw, batch norm, few biases": dict(
        position="shaw",
        shaw_left=5,
        shaw_right=2,
        conv_norm="batch",
        norm_bias=False,
        attention_bias=False,
        ff_bias=False,
        depthwise_bias=False,
    ),
}


@pytest.mark.parametrize("name, head", list(zip(COMBINATIONS, ["linear", "ffn", "ffn", "linear", "ffn"], strict=True)))
def test_the_whole_model_equals_the_float64_reference(name, head):
    encoder = dataclasses.replace(tiny.ENCODER, **COMBINATIONS[name])
    params = tiny.random_params(tiny.FEATURES, encoder)
    trainable = tiny.random_trainable(tiny.ADAPTERS[head], encoder)
    batch = tiny.random_batch(LENGTHS, size=SIZE, tasks=[3, -1, 0], filler=np.nan)
    log_probs, lengths = tiny.compiled_forward(encoder, head)(params, trainable, batch)
    for row, task in enumerate(batch["task"]):
        adapter = None if task < 0 else tiny.one_task(trainable, task)
        wave = batch["waveform"][row, : LENGTHS[row]]
        expected = conformer_numpy.log_probs(params, wave, log_probs.shape[1], tiny.FEATURES, encoder, adapter)
        assert lengths[row] == len(expected) == encoder.output_length(tiny.FEATURES, LENGTHS[row])
        np.testing.assert_allclose(log_probs[row, : len(expected)], expected, atol=1e-4)
    assert np.isfinite(log_probs).all()


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapted"])
def test_padding_content_does_not_change_valid_frames(adapted):
    params, trainable = tiny.random_params(tiny.FEATURES, tiny.ENCODER), tiny.random_trainable(tiny.ADAPTERS["linear"])
    lengths = [240, 133, 64, 31, 0]
    tasks = [2, 0, 2, 4, 1] if adapted else [-1] * 5
    run = tiny.compiled_forward()

    def padded(filler, size=SIZE):
        return run(params, trainable, tiny.random_batch(lengths, size=size, tasks=tasks, filler=filler))

    clean, frames = padded(0.0)
    valid = np.asarray(padding.valid_mask(frames, clean.shape[1]))
    for filler in (np.nan, np.inf, 1e30):
        np.testing.assert_array_equal(padded(filler)[0], clean)
    longer, longer_frames = padded(np.nan, size=391)
    np.testing.assert_array_equal(longer_frames, frames)
    np.testing.assert_allclose(longer[:, : clean.shape[1]][valid], np.asarray(clean)[valid], atol=1e-5)


def layer_by_layer(encoder, adapter, params, bound, x, lengths):
    """The blocks in a Python loop, each with its own slice of the stacked parameters."""
    valid = padding.valid_mask(lengths, x.shape[1])
    mask = valid[:, None, None, :] & jnp.ones((1, 1, x.shape[1], x.shape[1]), bool)
    x, state = padding.zero_invalid(x, valid), adapter.initial_carry(x)
    block = conformer.ConformerLayer(encoder, adapter)
    for index in range(encoder.n_layers):
        own, extra = jax.tree.map(lambda leaf: leaf[index], (params["layers"], bound.per_layer))  # noqa: B023
        (x, state), _ = block.apply({"params": own}, (x, state), extra, bound.all_layers, valid, mask)
    return x


@pytest.mark.parametrize("name", ["defaults", "shaw, batch norm, few biases"])
def test_scan_equals_a_python_loop_over_layers(name):
    adapter, encoder = tiny.ADAPTERS["ffn"], dataclasses.replace(tiny.ENCODER, **COMBINATIONS.get(name, {}))
    params = tiny.random_params(tiny.FEATURES, encoder)["encoder"]
    trainable = tiny.random_trainable(adapter)
    x = np.random.default_rng(0).standard_normal((3, 7, 16)).astype(np.float32)
    lengths, index = jnp.array([7, 4, 5]), jnp.array([1, tiny.TASKS, 4])
    bound = base.bind(adapter, encoder, trainable["shared"], trainable["tasks"], index)
    model = conformer.Conformer(encoder, adapter)
    scanned = jax.jit(lambda p, b: model.apply({"params": p}, x, lengths, b))(params, bound)
    looped = jax.jit(lambda p, b: layer_by_layer(encoder, adapter, p, b, x, lengths))(params, bound)
    np.testing.assert_allclose(scanned, looped, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_depthwise_convolution_sees_exactly_its_taps(kernel, causal):
    module = layers.DepthwiseConvolution(kernel, causal=causal)
    x = np.random.default_rng(0).standard_normal((1, 8, 2)).astype(np.float32)
    params = {
        "params": {"kernel": 1.0 + np.arange(2 * kernel, dtype=np.float32).reshape(kernel, 2), "bias": np.ones(2)}
    }
    slopes = np.asarray(jax.jacobian(lambda x: module.apply(params, x))(x))[0, :, :, 0]  # [T, D, T', D']
    left = kernel - 1 if causal else (kernel - 1) // 2
    for t in range(8):
        for other in range(8):
            tap = other - t + left
            expected = params["params"]["kernel"][tap] if 0 <= tap < kernel else np.zeros(2)
            np.testing.assert_array_equal(slopes[t, :, other], np.diag(expected))
    if causal:
        assert not any(slopes[t, :, t + 1 :].any() for t in range(8))
    expected = conformer_numpy.depthwise(params["params"], x[0].astype(np.float64), causal=causal)
    np.testing.assert_allclose(module.apply(params, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kernel, left", [(1, 0), (4, 1), (4, 3), (5, 2), (9, 4)])
def test_gradients_of_the_depthwise_convolution_are_those_of_a_grouped_one(kernel, left):
    rng = np.random.default_rng(0)
    x, taps, slope = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 3), (kernel, 3), (2, 6, 3)))

    def grouped(x, taps):
        pads, form = [(left, kernel - 1 - left)], ("NTC", "TIO", "NTC")
        return jax.lax.conv_general_dilated(x, taps[:, None], (1,), pads, dimension_numbers=form, feature_group_count=3)

    y, back = jax.vjp(lambda x, taps: layers.shifted_products(x, taps, left), x, taps)
    expected, expected_back = jax.vjp(grouped, x, taps)
    for found, wanted in zip((y, *back(slope)), (expected, *expected_back(slope)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("conv_padding, looks_ahead", [("causal", False), ("same", True)])
def test_a_causal_encoder_with_an_adapter_does_not_look_ahead(conv_padding, looks_ahead):
    adapter = tiny.ADAPTERS["linear"]
    window = dict(context="window", left_context=-1, right_context=0, position="xl", kernel=4)
    encoder = dataclasses.replace(tiny.ENCODER, conv_padding=conv_padding, **window)
    params, trainable = tiny.random_params(tiny.FEATURES, encoder)["encoder"], tiny.random_trainable(adapter, encoder)
    bound = base.bind(adapter, encoder, trainable["shared"], trainable["tasks"], jnp.array([1]))
    x = np.random.default_rng(0).standard_normal((1, 9, 16)).astype(np.float32)
    model = conformer.Conformer(encoder, adapter)

    def early(x):
        """The sum of all features up to frame 4."""
        return model.apply({"params": params}, x, jnp.array([9]), bound)[:, :5].sum(axis=2).dot(jnp.arange(1.0, 6.0))[0]

    slope = np.abs(np.asarray(jax.jit(jax.grad(early))(x)))[0].max(axis=1)
    assert (slope[:5] > 1e-3).all()
    assert (slope[5:] > 0).any() == looks_ahead


def encoder_gradient(remat):
    """Value and gradient of a function of all features with a trained-looking adapter, and the program's text."""
    adapter = tiny.ADAPTERS["ffn"]
    encoder = dataclasses.replace(tiny.ENCODER, position="none", kernel=2)
    model = conformer.Conformer(encoder, adapter, remat=remat)
    params, trainable = tiny.random_params(tiny.FEATURES, encoder)["encoder"], tiny.random_trainable(adapter)
    x, weights = np.random.default_rng(0).standard_normal((2, 3, 7, 16)).astype(np.float32)

    def value(trainable, params):
        bound = base.bind(adapter, encoder, trainable["shared"], trainable["tasks"], jnp.array([1, 0, 3]))
        return (weights * model.apply({"params": params}, x, jnp.array([7, 4, 6]), bound)).sum()

    traced = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).trace(trainable, params)
    return traced.lower().compile()(trainable, params), str(traced.jaxpr)


def test_remat_policies_change_what_is_kept_and_no_value():
    (loss, gradient), program = encoder_gradient("none")
    assert "remat" not in program and "checkpoint" not in program
    for remat in ("dots", "full"):
        (other_loss, other), other_program = encoder_gradient(remat)
        assert "remat" in other_program or "checkpoint" in other_program
        np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max())), other, gradient
        )


def test_an_unknown_remat_policy_is_an_error_that_lists_the_known_ones():
    model = AsrModel(tiny.FEATURES, tiny.ENCODER, remat="dot")
    batch = tiny.random_batch([64], size=64, tasks=[-1])
    with pytest.raises(UserError, match="remat = 'dot'.*'none', 'dots', 'full'"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batch["waveform"], batch["num_samples"], base.unbound()))


def test_bfloat16_activations_stay_close_to_float32():
    params, trainable = tiny.random_params(tiny.FEATURES, tiny.ENCODER), tiny.random_trainable(tiny.ADAPTERS["linear"])
    batch = tiny.random_batch(LENGTHS, size=SIZE, tasks=[2, -1, 0])
    exact, frames = tiny.compiled_forward()(params, trainable, batch)
    model = AsrModel(tiny.FEATURES, tiny.ENCODER, adapter=tiny.ADAPTERS["linear"], dtype=jnp.bfloat16)
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    index = np.where(batch["task"] < 0, tiny.TASKS, batch["task"])
    run = jax.jit(lambda p, t: forward(model, p, t["shared"], t["tasks"], index, batch))
    rough, _ = run(small, trainable)
    assert rough.dtype == jnp.float32
    valid = np.asarray(padding.valid_mask(frames, exact.shape[1]))
    assert np.abs(np.asarray(rough - exact))[valid].mean() < 0.1
