"""The table of affine maps against what adapters see in a forward pass, and against the weights themselves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import conformer_numpy, tiny

from hra_jax.adapters.base import Adapter, unbound
from hra_jax.models import backbone_folder, conformer
from hra_jax.models.asr import AsrModel
from hra_jax.models.encoder_config import affine_maps

GEOMETRIES = {
    "bias, norm": {},
    "no bias": dict(conv_bias=False, conv_mask="pre_pointwise", position="xl"),
    "no norm": dict(conv_norm="none", d_model=12, d_ff=20, final_norm=True),
    "neither": dict(conv_bias=False, conv_norm="none", position="none"),
    "batch norm": dict(conv_norm="batch", position="rope_in", norm_bias=False, depthwise_bias=False),
    "few biases": dict(norm_bias=False, attention_bias=False, ff_bias=False, conv_bias=False, depthwise_bias=True)
    | dict(position="shaw"),
}


def recorder():
    """An adapter that keeps (name, x, y) of every affine map it is shown, and changes nothing."""

    class Recorder(Adapter):
        seen = []

        def after_affine(self, params, name, x, y, *, rng):
            self.seen.append((name, x, y))
            return y

    return Recorder()


def layer_norm(eps, p, x):
    return conformer_numpy.layer_norm(p, x, eps)


def encoder_of(geometry):
    return dataclasses.replace(tiny.ENCODER, **GEOMETRIES[geometry])


def layer_weights(encoder, layer):
    """The weights of one layer, float64 numpy."""
    params = tiny.random_params(tiny.FEATURES, encoder)
    return conformer_numpy.layer_of(params["encoder"]["layers"], layer)


def weights_at(weights, path):
    for key in path:
        weights = weights[key]
    return weights


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_forward_pass_shows_adapters_the_maps_in_the_order_of_the_table(geometry):
    encoder, adapter = encoder_of(geometry), recorder()
    model = AsrModel(tiny.FEATURES, encoder, adapter=adapter)
    batch = tiny.random_batch([64], size=64, tasks=[-1])
    params = tiny.random_params(tiny.FEATURES, encoder)
    jax.eval_shape(lambda p: model.apply({"params": p}, batch["waveform"], batch["num_samples"], unbound()), params)
    table = [(name, found.inputs, found.outputs) for name, found in affine_maps(encoder).items()]
    seen = [(name, x.shape[-1], y.shape[-1]) for name, x, y in adapter.seen]
    # The scan over layers may trace its body more than once.
    assert seen == table * (len(seen) // len(table)) and len(seen) >= len(table)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_map_is_what_its_name_says_of_the_weights_at_its_path(geometry):
    """y is computed from x with the weights at the path: no name stands for another map of the same shape."""
    encoder, adapter = encoder_of(geometry), recorder()
    params = tiny.random_params(tiny.FEATURES, encoder)["encoder"]["layers"]
    own = jax.tree.map(lambda leaf: leaf[1], params)
    x = np.random.default_rng(0).standard_normal((1, 6, encoder.d_model)).astype(np.float32)
    block, mask = conformer.ConformerLayer(encoder, adapter), jnp.ones((1, 1, 6, 6), bool)
    block.apply({"params": own}, (x, ()), {}, {}, jnp.ones((1, 6), bool), mask)
    weights, table = layer_weights(encoder, 1), affine_maps(encoder)
    assert [name for name, _, _ in adapter.seen] == list(table)
    for name, x, y in adapter.seen:
        found, x = table[name], np.asarray(x[0], np.float64)
        p = weights_at(weights, found.path)
        batch = name == "convolution.depthwise_norm" and encoder.conv_norm == "batch"
        own = {"scale" if found.kind == "norm" else "kernel", *(("mean", "variance") if batch else ())}
        assert set(p) == own | ({"bias"} if found.bias else set())
        shapes = {"norm": (found.outputs,), "projection": (found.inputs, found.outputs)}
        shapes["depthwise"] = (encoder.kernel, found.outputs)
        assert p["scale" if found.kind == "norm" else "kernel"].shape == shapes[found.kind]
        expected = {
            "norm": conformer_numpy.batch_norm if batch else functools.partial(layer_norm, encoder.norm_eps),
            "projection": conformer_numpy.linear,
            "depthwise": lambda p, x: conformer_numpy.depthwise(p, x, causal=False),
        }[found.kind](p, x)
        np.testing.assert_allclose(y[0], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_table_leads_to_every_weight_of_a_layer_but_the_position_term(geometry):
    encoder = encoder_of(geometry)
    flat = backbone_folder.flatten(layer_weights(encoder, 0), separator=".")
    owners = {".".join(found.path) for found in affine_maps(encoder).values()}
    left = {name for name in flat if name.rpartition(".")[0] not in owners}
    terms = {
        "xl": {"attention.position.kernel", "attention.content_bias", "attention.position_bias"},
        "shaw": {"attention.distance"},
    }
    assert left == terms.get(encoder.position, set())
