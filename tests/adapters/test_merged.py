"""Methods that change weights: the adapted model equals the bare one with the changed weights."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.models.encoder_config import affine_maps

SAMPLES = [240, 133, 64, 200, 240, 90]
TASK = 3
# The adapters as tests/adapters/test_methods.py has compiled them, and with some layers only.
LORA, BITFIT, OUTPUT = (tiny.METHODS[name] for name in ("lora", "bitfit", "output"))
SOME = dict(layers=(2, 0))


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.FEATURES, tiny.ENCODER)


def log_probs(params, adapter=None, trainable=None):
    """Of six utterances of the task; of the bare model where there is no adapter."""
    batch = tiny.random_batch(SAMPLES, size=240, tasks=[TASK] * 6, filler=np.nan)
    if adapter is None:
        return np.asarray(tiny.compiled_base()(params, batch)[0])
    return np.asarray(tiny.compiled_forward(adapter=adapter)(params, trainable, batch)[0])


def weight_of(layers, path):
    for key in path:
        layers = layers[key]
    return layers


def with_weights(params, changed):
    """The backbone with some weights of its layers replaced."""
    params = copy.deepcopy(params)
    for (*path, name), value in changed.items():
        node = weight_of(params["encoder"]["layers"], path)
        assert node[name].shape == value.shape
        node[name] = np.asarray(value, np.float32)
    return params


def biases_of(adapter, trainable, layers):
    """{path: bias + d}, float64 numpy, the adapted layers one by one."""
    own, changed = tiny.row_of(trainable, TASK)["per_layer"], {}
    for name, found in affine_maps(tiny.ENCODER).items():
        bias = weight_of(layers, (*found.path, "bias")).astype(np.float64)
        for place, layer in enumerate(sorted(adapter.layers) or range(3)):
            bias[layer] += own[name.replace(".", "_")]["bias"][place]
        changed[(*found.path, "bias")] = bias
    return changed


def kernels_of(adapter, trainable, layers):
    """{path: W + (alpha / r) sum over ranks of a b^T}, float64 numpy, the adapted layers one by one."""
    own, changed = tiny.row_of(trainable, TASK)["per_layer"], {}
    for name in adapter.projections:
        a, b = (own[name.replace(".", "_")][factor].astype(np.float64) for factor in ("a", "b"))
        path = (*name.split("."), "kernel")
        kernel = weight_of(layers, path).astype(np.float64)
        for place, layer in enumerate(sorted(adapter.layers) or range(3)):
            for rank in range(adapter.rank):
                kernel[layer] += adapter.alpha / adapter.rank * np.outer(a[place, :, rank], b[place, rank])
        changed[path] = kernel
    return changed


CHANGED = {LowRankAdapter: kernels_of, BiasAdapter: biases_of}


@pytest.mark.parametrize(
    "adapter",
    [LORA, BITFIT, dataclasses.replace(LORA, **SOME), dataclasses.replace(BITFIT, **SOME)],
    ids=["lora", "bitfit", "lora, two layers", "bitfit, two layers"],
)
def test_merged_weights_are_those_of_the_formula(params, adapter):
    trainable, layers = tiny.random_trainable(adapter), params["encoder"]["layers"]
    expected = CHANGED[type(adapter)](adapter, trainable, layers)
    merged = adapter.merged(layers, tiny.row_of(trainable, TASK), tiny.ENCODER)
    assert merged.keys() == expected.keys()
    for path, value in merged.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[path], atol=2e-6)
        before = weight_of(layers, path)
        moved = (np.asarray(value) != before).reshape(3, -1).any(axis=1)
        np.testing.assert_array_equal(moved, [n in (adapter.layers or (0, 1, 2)) for n in range(3)])


@pytest.mark.parametrize("adapter", [LORA, BITFIT], ids=["lora", "bitfit"])
def test_the_adapted_model_equals_the_bare_one_with_changed_weights(params, adapter):
    trainable, layers = tiny.random_trainable(adapter), params["encoder"]["layers"]
    adapted, bare = log_probs(params, adapter, trainable), log_probs(params)
    assert np.abs(adapted - bare).max() > 0.5
    by_hand = CHANGED[type(adapter)](adapter, trainable, layers)
    merged = adapter.merged(layers, tiny.row_of(trainable, TASK), tiny.ENCODER)
    for changed in (by_hand, merged):
        np.testing.assert_allclose(adapted, log_probs(with_weights(params, changed)), atol=2e-5)


def test_a_task_with_an_output_layer_equals_the_bare_model_with_that_layer_changed(params):
    trainable = tiny.random_trainable(OUTPUT)
    own = tiny.row_of(trainable, TASK)
    adapted = log_probs(params, OUTPUT, trainable)
    changed = params | {
        "output": {name: leaf + own["all_layers"]["output"][name] for name, leaf in params["output"].items()}
    }
    np.testing.assert_allclose(adapted, log_probs(changed), atol=2e-5)
    assert np.abs(adapted - log_probs(params)).max() > 0.5
    assert OUTPUT.merged(params["encoder"]["layers"], own, tiny.ENCODER) == {}


@pytest.mark.slow
def test_low_rank_adaptation_equals_that_of_hugging_face_peft():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapter = LowRankAdapter(projections=("attention.query",), rank=3, alpha=6.0)
    rng = np.random.default_rng(0)
    kernel, bias, a, b, x = (
        rng.standard_normal(shape).astype(np.float32) for shape in [(16, 12), (12,), (16, 3), (3, 12), (2, 5, 16)]
    )
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, bias="none", target_modules=["query"])
    network = torch.nn.ModuleDict({"query": torch.nn.Linear(16, 12)})
    query = peft.inject_adapter_in_model(config, network)["query"]
    weights = {query.weight: kernel, query.bias: bias}
    weights |= {query.lora_A["default"].weight: a, query.lora_B["default"].weight: b}
    with torch.no_grad():
        for parameter, value in weights.items():
            parameter.copy_(torch.from_numpy(value.T.copy()))  # a torch weight is [out, in]
        expected = query(torch.from_numpy(x)).numpy()
    row = {"rows": {"attention_query": {"a": np.stack([a, a]), "b": np.stack([b, b])}}}
    plain = jnp.asarray(x @ kernel + bias[None, None])
    found = adapter.after_affine(({}, row), "attention.query", jnp.asarray(x), plain, rng=lambda: None)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected - plain).max() > 0.5
