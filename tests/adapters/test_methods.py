"""Every adaptation method: identity when new, equal to float64 numpy, tasks that do not mix, a frozen backbone."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import adapters_numpy, conformer_numpy, defaults, tiny

from hra_jax.adapters import base, initial, methods
from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.output import OutputAdapter
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.errors import UserError
from hra_jax.models import conformer, padding
from hra_jax.models.asr import AsrModel
from hra_jax.training import train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import make_train_step

SAMPLES = [240, 133, 64, 200, 240, 90]
TASKS = [3, -1, 0, 3, 4, 1]
EVERY_METHOD = pytest.mark.parametrize("name", tiny.METHODS)
BITS = pytest.mark.optimised  # the bits that users get; the tests of all that run() gives share its programs
# The recurrences, heads and places to read that METHODS leaves out.
MORE_HRA = {
    "indrnn, two layers": dict(layers=(1, 2)),
    "rnn, a head per layer": dict(recurrence="rnn", activation="sigmoid", head_per_layer=True),
    "mgu, inside": dict(recurrence="mgu", activation="gelu", reads="ff1.up", head="lowrank", head_width=3),
    "none": dict(recurrence="none", reads="convolution.norm", head="ffn", head_width=3, output="task"),
}
VARIANTS = tiny.METHODS | {
    name: HierarchicalRecurrentAdapter(width=6, **settings) for name, settings in MORE_HRA.items()
}
MASKED_BEFORE = dataclasses.replace(tiny.ENCODER, conv_mask="pre_pointwise", conv_bias=False)
LAYERWISE = {name: tiny.METHODS[name] for name in ("residual", "lora", "bitfit")} | {
    "hra": HierarchicalRecurrentAdapter(width=6, recurrence="none", head_per_layer=True)
}
OPTIMIZER = OptimizerConfig(steps=10, learning_rate=0.02, warmup_steps=1, schedule="constant", eps=0.1)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.FEATURES, tiny.ENCODER)


def batch_of(tasks=TASKS, **settings):
    settings = {"size": 240, "filler": np.nan} | settings
    return tiny.random_batch(SAMPLES, tasks=tasks, **settings)


def run(params, adapter, trainable, batch, encoder=tiny.ENCODER):
    """Log-probabilities, numpy."""
    return np.asarray(tiny.compiled_forward(encoder, adapter=adapter)(params, trainable, batch)[0])


# --- What a method computes ---


@BITS
@pytest.mark.parametrize("name", VARIANTS)
def test_the_whole_model_equals_the_float64_reference(params, name):
    adapter = VARIANTS[name]
    trainable, batch = tiny.random_trainable(adapter), batch_of()
    log_probs = run(params, adapter, trainable, batch)
    for row, task in enumerate(TASKS):
        hooks = adapters_numpy.make(methods.settings(adapter), trainable, None if task < 0 else task, 3)
        wave = batch["waveform"][row, : SAMPLES[row]]
        expected = conformer_numpy.log_probs(params, wave, log_probs.shape[1], tiny.FEATURES, tiny.ENCODER, hooks=hooks)
        np.testing.assert_allclose(log_probs[row, : len(expected)], expected, atol=5e-5)
    assert np.isfinite(log_probs).all()


def assert_bare(log_probs, bare, *, name):
    """Asserts that what a method leaves alone has the bits of the bare backbone."""
    if name == "lora" and jax.__version_info__[:2] == (0, 7):
        # The compiler of jax 0.7 fuses a layer otherwise where LoRA adds to it, and so rounds otherwise.
        np.testing.assert_allclose(log_probs, bare, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(log_probs, bare)


@BITS
@EVERY_METHOD
def test_a_new_adapter_is_the_identity_bit_for_bit(params, name):
    adapter, batch = tiny.METHODS[name], batch_of([0, 1, 2, 3, 4, 4])
    new = run(params, adapter, tiny.new_trainable(adapter), batch)
    assert_bare(new, tiny.compiled_base()(params, batch)[0], name=name)


@BITS
@EVERY_METHOD
def test_base_rows_are_the_bare_backbone_whatever_the_adapter_holds(params, name):
    adapter = tiny.METHODS[name]
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), tiny.random_trainable(adapter))
    mixed = run(params, adapter, broken, batch_of([-1, 0, -1, 3, -1, tiny.TASKS]))
    bare = np.asarray(tiny.compiled_base()(params, batch_of())[0])
    assert_bare(mixed[[0, 2, 4, 5]], bare[[0, 2, 4, 5]], name=name)
    assert not np.isfinite(mixed[[1, 3]]).any()


@BITS
@EVERY_METHOD
def test_a_mixed_batch_equals_each_task_alone_bit_for_bit(params, name):
    adapter = tiny.METHODS[name]
    trainable = tiny.random_trainable(adapter)
    mixed = run(params, adapter, trainable, batch_of())
    for task in sorted(set(TASKS)):
        alone = run(params, adapter, trainable, batch_of([task] * 6))
        own = np.array(TASKS) == task
        np.testing.assert_array_equal(mixed[own], alone[own])
        # Every other row is another function of the same sound.
        assert (np.abs(mixed[~own] - alone[~own]).max(axis=(1, 2)) > 1e-2).all()


@BITS
@EVERY_METHOD
def test_rows_in_another_order_give_the_same_bits_in_that_order(params, name):
    adapter, order = tiny.METHODS[name], np.array([4, 2, 5, 0, 3, 1])
    trainable = tiny.random_trainable(adapter)
    log_probs = run(params, adapter, trainable, batch_of())
    np.testing.assert_array_equal(run(params, adapter, trainable, tiny.rows_of(batch_of(), order)), log_probs[order])


@BITS
@EVERY_METHOD
def test_padding_content_changes_no_bit(params, name):
    adapter = tiny.METHODS[name]
    trainable = tiny.random_trainable(adapter)
    clean = run(params, adapter, trainable, batch_of(filler=0.0))
    for filler in (np.nan, np.inf, 1e30):
        np.testing.assert_array_equal(run(params, adapter, trainable, batch_of(filler=filler)), clean)


@pytest.mark.parametrize(
    "name, encoder",
    [("residual", tiny.ENCODER), ("lora", MASKED_BEFORE), ("bitfit", MASKED_BEFORE)],
    ids=["residual", "lora", "bitfit"],
)
def test_more_padding_does_not_change_valid_frames(name, encoder):
    adapter, params = tiny.METHODS[name], tiny.random_params(tiny.FEATURES, encoder)
    trainable = tiny.random_trainable(adapter, encoder)
    short, longer = (run(params, adapter, trainable, batch_of(size=size), encoder) for size in (240, 301))
    frames = short.shape[1]
    valid = np.asarray(padding.valid_mask(encoder.output_length(tiny.FEATURES, np.array(SAMPLES)), frames))
    assert not valid.all() and longer.shape[1] > frames
    np.testing.assert_allclose(longer[:, :frames][valid], short[valid], atol=1e-5)


# --- Which layers, which output layer ---


@functools.lru_cache(maxsize=16)
def compiled_encoder(adapter, dropout=False):
    model = conformer.Conformer(tiny.ENCODER, adapter)

    def run(params, trainable, x, key):
        bound = base.bind(adapter, tiny.ENCODER, trainable["shared"], trainable["tasks"], jnp.array([2, tiny.TASKS, 0]))
        rngs = {"dropout": key} if dropout else None
        return model.apply({"params": params["encoder"]}, x, jnp.array([7, 7, 5]), bound, rngs=rngs)

    return jax.jit(run)


def encoded(params, adapter, trainable, seed=None):
    """The encoder's output of random frames: of task 2, of `__base__`, of task 0; with dropout where it has a seed."""
    x = np.random.default_rng(0).standard_normal((3, 7, 16)).astype(np.float32)
    run = compiled_encoder(adapter, seed is not None)
    return np.asarray(run(params, trainable, x, jax.random.key(seed or 0)))


@pytest.mark.parametrize("name", LAYERWISE)
def test_some_layers_adapted_equals_all_adapted_with_zeros_in_the_others(params, name):
    adapter = LAYERWISE[name]
    some = dataclasses.replace(adapter, layers=(2, 0))  # in any order
    trainable = tiny.random_trainable(adapter)
    zeroed, few = jax.tree.map(np.copy, (trainable, trainable))
    for leaf in jax.tree.leaves(zeroed["tasks"]["per_layer"]):
        leaf[:, 1] = 0.0
    few["tasks"]["per_layer"] = jax.tree.map(lambda leaf: leaf[:, [0, 2]], few["tasks"]["per_layer"])
    assert jax.tree.map(np.shape, few) == jax.tree.map(np.shape, tiny.new_trainable(some))
    adapted = encoded(params, some, few)
    np.testing.assert_allclose(adapted, encoded(params, adapter, zeroed), atol=1e-6)
    assert np.abs(adapted - encoded(params, adapter, trainable))[0].max() > 1e-2


@BITS
def test_an_output_layer_of_its_own_adds_to_another_method(params):
    both = tiny.METHODS["lora and output"]
    inner = dataclasses.replace(both, output="backbone")
    trainable = tiny.random_trainable(both)
    tasks = {"all_layers": trainable["tasks"]["all_layers"], "per_layer": {}}
    no_output = {"all_layers": jax.tree.map(np.zeros_like, tasks["all_layers"])}
    np.testing.assert_array_equal(
        run(params, both, trainable | {"tasks": trainable["tasks"] | no_output}, batch_of()),
        run(params, inner, trainable | {"tasks": trainable["tasks"] | {"all_layers": {}}}, batch_of()),
    )
    no_lora = {"per_layer": jax.tree.map(np.zeros_like, trainable["tasks"]["per_layer"])}
    np.testing.assert_array_equal(
        run(params, both, trainable | {"tasks": trainable["tasks"] | no_lora}, batch_of()),
        run(params, tiny.METHODS["output"], trainable | {"tasks": tasks}, batch_of()),
    )


# --- What is trained ---


@functools.lru_cache(maxsize=16)
def compiled_step(name):
    model = AsrModel(tiny.FEATURES, tiny.ENCODER, adapter=tiny.METHODS[name])
    step = make_train_step(model, OPTIMIZER, blank_id=0, seed=5, max_tasks=6)
    return jax.jit(step)


def row_has_values(tree):
    """{leaf: which rows, `[A]` or by layer `[A, L]`, have anything but zeros}."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        axes = 2 if path[0].key == "per_layer" else 1
        found[jax.tree_util.keystr(path)] = (np.asarray(leaf) != 0).reshape(*leaf.shape[:axes], -1).any(axis=-1)
    return found


@pytest.mark.parametrize("name", ["hra per layer", "residual", "lora and output", "bitfit", "output"])
def test_steps_train_every_leaf_of_the_tasks_present_and_nothing_else(params, name):
    adapter, step = tiny.METHODS[name], compiled_step(name)
    start = tiny.random_trainable(adapter)
    frozen, state = jax.tree.map(jnp.asarray, params), train_state.create(jax.tree.map(jnp.asarray, start), OPTIMIZER)
    batch = batch_of([3, -1, 0, 3, 4, 0], labels=2)
    losses = []
    for number in range(3):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        if number == 0:  # the first moments are then a tenth of the gradient
            gradients = state.optimizer
    assert losses[2] < losses[0]
    present = [0, 3, 4]
    for leaf, rows in row_has_values(gradients["tasks"]["mu"]).items():
        assert rows[present].all() and not rows[[1, 2]].any(), leaf
    moves = jax.tree.map(lambda new, old: np.asarray(new) - old, state.trainable, start)
    for leaf, rows in row_has_values(moves["tasks"]).items():
        assert rows[present].all() and not rows[[1, 2]].any(), leaf
    slopes = jax.tree.leaves(optax.tree_utils.tree_get(gradients["shared"], "mu"))
    assert len(slopes) == len(jax.tree.leaves(start["shared"])) and all(np.asarray(leaf).any() for leaf in slopes)
    assert bool(slopes) == (adapter.name == "hra")
    assert all(leaf.any() for leaf in jax.tree.leaves(moves["shared"]))
    jax.tree.map(np.testing.assert_array_equal, frozen, params)


DROPPING = {name: dataclasses.replace(LAYERWISE[name], dropout=0.4) for name in ("hra", "residual", "lora")}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_acts_only_with_a_key_and_never_on_base_rows(params, name):
    adapter = DROPPING[name]
    trainable = tiny.random_trainable(adapter)
    plain = encoded(params, LAYERWISE[name], trainable)
    np.testing.assert_allclose(encoded(params, adapter, trainable), plain, atol=1e-6)
    once, again, other = (encoded(params, adapter, trainable, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    for adapted in (0, 2):
        assert np.abs(once[adapted] - plain[adapted]).max() > 1e-2
        assert np.abs(once[adapted] - other[adapted]).max() > 1e-2
    np.testing.assert_array_equal(once[1], other[1])
    np.testing.assert_allclose(once[1], plain[1], atol=1e-6)


@pytest.mark.parametrize(
    "adapter",
    [
        HierarchicalRecurrentAdapter(width=16, recurrence="none", dropout=0.4),
        ResidualAdapter(width=16, dropout=0.4),
        LowRankAdapter(rank=16, alpha=16.0, dropout=0.4),
    ],
    ids=lambda adapter: adapter.name,
)
def test_dropout_scales_what_it_keeps_so_that_the_mean_stays(adapter):
    """With identity matrices inside, the correction is the dropped-out quantity itself."""
    eye, zero = jnp.eye(16), jnp.zeros(16)
    identity = {"kernel": eye, "bias": zero}
    norm = {"scale": jnp.ones(16), "bias": zero}
    row = {"head": identity, "norm": norm, "down": identity, "up": identity, "attention_query": {"a": eye, "b": eye}}
    own = {"shared": {"controller": identity}, "rows": jax.tree.map(lambda leaf: leaf[None], row)}
    params, x = (
        (own | {"active": jnp.array([True])}, own),
        jnp.asarray(np.random.default_rng(0).normal(size=(1, 300, 16))),
    )

    def correction(key):
        y = adapter.after_affine(params, "attention.query", x, x, rng=lambda: key)
        y, _ = adapter.after_layer(params, y, adapter.initial_carry(x), {}, rng=lambda: key)
        return np.asarray(y - x)

    whole, dropped = correction(None), correction(jax.random.key(3))
    lost = (dropped == 0) & (whole != 0)
    np.testing.assert_allclose(dropped[~lost], whole[~lost] / 0.6, atol=1e-5)
    assert abs(lost[whole != 0].mean() - 0.4) < 0.03 and lost.sum() > 900


# --- What a method says of itself ---

SETTINGS = VARIANTS | {f"default {name}": cls() for name, cls in methods.METHODS.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_formula_counts_the_parameters(name):
    adapter = SETTINGS[name]
    wide = dict(d_model=12, n_heads=3, d_ff=20, vocab_size=9, n_layers=4)
    for changes in ({}, wide, dict(conv_bias=False, conv_norm="none", n_layers=5)):
        encoder = dataclasses.replace(tiny.ENCODER, **changes)
        weights = jax.eval_shape(lambda e=encoder: initial.new_weights(adapter, jax.random.key(0), e, 2))
        counts = train_state.count(weights["shared"]), train_state.count(weights["tasks"]) // 2
        assert adapter.formula().evaluate(adapter.letters(encoder)) == counts


@pytest.mark.parametrize("cls", methods.METHODS.values(), ids=list(methods.METHODS))
def test_the_formula_of_the_defaults_stands_in_the_docstring(cls):
    text = " ".join(sys.modules[cls.__module__].__doc__.split())
    shared, task = cls().formula()
    assert f"a task `{task}`" in text
    assert ("Nothing is shared by the tasks" if shared == "0" else f"shared `{shared}`") in text


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_survive_json(name):
    adapter = SETTINGS[name]
    written = json.dumps(methods.settings(adapter))
    found = methods.from_settings(json.loads(written))
    # Equal and of one hash, or a program would be compiled again for the adapter that was read.
    assert found == adapter and hash(found) == hash(adapter)
    assert set(json.loads(written)) == {"name", *(field.name for field in dataclasses.fields(adapter))}


@pytest.mark.parametrize(
    "adapter, message",
    [
        (BiasAdapter(layers=(0, 3)), r"adapter.layers = \(0, 3\): allowed are distinct numbers 0 to 2"),
        (LowRankAdapter(projections=("ff1.norm",)), "'ff1.norm' is no projection; allowed are ff1.up, ff1.down"),
        (
            HierarchicalRecurrentAdapter(reads="ff3.up"),
            "hra.reads = 'ff3.up': allowed are 'layer', 'input', 'ff1.norm'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_fit_the_encoder_are_errors_that_list_what_does(adapter, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: initial.new_weights(adapter, jax.random.key(0), tiny.ENCODER, 2))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: HierarchicalRecurrentAdapter(recurrence="srnn"),
            "hra.recurrence = 'srnn': allowed: 'gru', 'indrnn'",
        ),
        (
            lambda: HierarchicalRecurrentAdapter(activation="elu"),
            "hra.activation = 'elu': allowed: 'gelu', 'relu', 'sigmoid'",
        ),
        (lambda: HierarchicalRecurrentAdapter(head="lora"), "hra.head = 'lora': allowed: 'ffn', 'linear', 'lowrank'"),
        (lambda: HierarchicalRecurrentAdapter(width=0), "hra.width = 0: allowed: an integer of at least 1"),
        (lambda: ResidualAdapter(layers=(1, 1)), r"residual.layers = \(1, 1\): allowed: a tuple of distinct layer"),
        (lambda: ResidualAdapter(layers=(-1,)), r"residual.layers = \(-1,\): allowed: a tuple of distinct layer"),
        (lambda: LowRankAdapter(projections=()), r"lora.projections = \(\): allowed: a tuple of distinct names"),
        (lambda: LowRankAdapter(projections=("ff1.up",) * 2), "allowed: a tuple of distinct names of projections"),
        (lambda: BiasAdapter(output="own"), "bitfit.output = 'own': allowed: 'backbone', 'task'"),
        (lambda: BiasAdapter(dropout=0.1), "bitfit.dropout = 0.1: allowed: 0, since 'bitfit' has none"),
        (lambda: LowRankAdapter(dropout=1.5), "lora.dropout = 1.5: allowed: a number of at least 0 and at most 1"),
        (lambda: OutputAdapter(output="backbone"), "output.output = 'backbone': allowed: 'task'"),
        (lambda: OutputAdapter(layers=(0,)), r"output.layers = \(0,\): allowed: \(\)"),
        (lambda: methods.from_settings({"name": "prefix"}), "adapter.name = 'prefix': allowed: 'bitfit', 'hra'"),
        (lambda: methods.from_settings({"name": "bitfit", "rank": 2}), "bitfit.rank: 'bitfit' has no such setting"),
    ],
)
def test_a_setting_that_no_method_has_is_an_error_that_lists_the_known_ones(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- What a folder does not say ---

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapters"


@pytest.mark.parametrize("folder", sorted(path.name for path in FIXTURES.iterdir()))
def test_a_stored_folder_means_what_it_meant_whatever_the_defaults_become(folder, monkeypatch):
    config = json.loads((FIXTURES / folder / "adapter_config.json").read_text())
    before = methods.from_folder(config)
    silent = config | {"method": {"name": before.name}}
    unsaid = methods.from_folder(silent)
    assert methods.settings(before) == {"dropout": 0.0} | config["method"]
    defaults.turn_over(monkeypatch, methods.METHODS.values())
    assert all(field.default != getattr(unsaid, field.name) for field in dataclasses.fields(unsaid))
    assert vars(methods.from_folder(config)) == vars(before)
    assert vars(methods.from_folder(silent)) == vars(unsaid)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_folder_that_says_nothing_gets_the_values_of_its_format_version(name, monkeypatch):
    defaults.turn_over(monkeypatch, methods.METHODS.values())
    found = methods.from_folder({"format_version": 1, "method": {"name": name}})
    assert vars(found) == UNSAID_1 | {"output": "task" if name == "output" else "backbone"} | OWN_UNSAID_1[name]


# Written down again: a change of what version 1 means is an error, whoever makes it.
UNSAID_1 = {"layers": (), "output_size": 0, "dropout": 0.0}
OWN_UNSAID_1 = {
    "hra": {"width": 64, "recurrence": "indrnn", "activation": "relu", "reads": "layer"}
    | {"head": "linear", "head_width": 32, "head_per_layer": False},
    "residual": {"width": 16},
    "lora": {"projections": ("attention.query", "attention.value"), "rank": 4, "alpha": 8.0},
    "bitfit": {},
    "output": {},
}


def test_a_setting_that_nobody_knows_to_have_been_absent_is_an_error():
    with pytest.raises(UserError, match="hra.layers: not said in an adapter folder of format version 2"):
        methods.from_folder({"format_version": 2, "method": {"name": "hra"}})
