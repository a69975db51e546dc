"""A method, a recurrence, a head or an activation is one file and works everywhere, or fails before the first step."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import micro as world
from reference import tiny

import hra_jax
from hra_jax import api, params
from hra_jax.adapters import adapter_folder, methods
from hra_jax.adapters.activations import ACTIVATIONS, Activation
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.base import Adapter, bind, no_parameters
from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.controllers import RECURRENCES, Recurrence
from hra_jax.adapters.formula import Formula
from hra_jax.adapters.heads import HEADS, Head, LinearHead
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.methods import METHODS
from hra_jax.adapters.output import OutputAdapter
from hra_jax.adapters.recurrences.rnn import PlainRecurrence
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.adapters.weights import zeros
from hra_jax.errors import UserError
from hra_jax.tasks import commands
from hra_jax.text.vocabularies import CharacterVocabulary

ADDED = sorted((Path(__file__).parent / "added").glob("*.py"))
REGISTRIES = (METHODS, RECURRENCES, HEADS, ACTIVATIONS)
RUNS = {
    "scale": {"adapter__name": "scale"},
    "hra": {"hra__recurrence": "peephole_gru", "hra__head": "gated", "hra__activation": "leaky_relu"},
}
WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b"))]
MIXED = ["ann", "cy", "__base__"]


@pytest.fixture(autouse=True)
def only_here(monkeypatch):
    """What a test registers is forgotten after it."""
    for registry in REGISTRIES:
        assert len(registry)  # everything is found before the copy
        monkeypatch.setattr(registry, "_entries", dict(registry.registered))


@pytest.fixture
def added(only_here, monkeypatch):
    """The files of `added`, imported."""
    for path in ADDED:
        specification = importlib.util.spec_from_file_location(f"added_{path.stem}", path)
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, specification.name, module)
        specification.loader.exec_module(module)


def stop_at(step: int):
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


@pytest.mark.parametrize("name", RUNS)
def test_one_file_is_enough_to_train_resume_export_and_reload(added, name, micro, tmp_path, capsys):
    config = micro.config(steps=3, checkpoint__every_steps=1, **RUNS[name])
    first = world.train(config, tmp_path / "W", on_step=stop_at(2))
    assert not (tmp_path / "W" / "adapter").exists()
    done = world.train(config, tmp_path / "W")
    assert done.status == 0 and len(world.losses(tmp_path / "W")) == 3
    before, after = map(jax.tree.leaves, (first.start, trained(done)))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    # The folder says everything: what is loaded computes what was trained.
    backbone = hra_jax.load_backbone(micro.backbone)
    loaded = hra_jax.load_adapter(tmp_path / "W" / "adapter", backbone)
    weights = trained(done)
    held = api.Model(backbone, loaded.adapter, weights["shared"], weights["tasks"], world.SPEAKERS)
    found, expected = (model.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=MIXED)[0] for model in (loaded, held))
    np.testing.assert_array_equal(found, expected)
    base = loaded.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=["__base__"] * 3)[0]
    assert np.abs(found[0] - base[0]).max() > 1e-4
    counted = params.account(config, [3])["methods"][config.adapter.name]["costs"][0]
    assert counted["trainable_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights))
    capsys.readouterr()
    commands.list_tasks(str(tmp_path / "W" / "adapter"))
    commands.show(str(tmp_path / "W" / "adapter"), "bob")
    shown = capsys.readouterr().out
    assert config.adapter.name in shown and all(task in shown for task in world.SPEAKERS)
    assert METHODS[config.adapter.name].description in (tmp_path / "W" / "adapter" / "README.md").read_text()


def trained(done: world.Trained) -> dict:
    return jax.tree.map(np.asarray, done.run.state.trainable)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def random_export(adapter: Adapter, folder: Path) -> dict:
    """Exports an adapter of random weights for two tasks; its weights."""
    weights = tiny.random_trainable(adapter, tasks=2)
    adapter_folder.write_adapter(
        folder,
        method=methods.settings(adapter),
        weights=weights,
        tasks=[{"name": name, "row": row} for row, name in enumerate(("ann", "bob"))],
        backbone={"name": "random", "fingerprint": "0123456789abcdef"},
        vocabulary=CharacterVocabulary("ab cd").to_json(),
        accounting={"shared_parameters": 1, "parameters_per_task": 1, "backbone_parameters": 1},
    )
    return weights


def encoder_in_torch():
    """A model of the encoder's width and depth, by the name of a kind that is known, whose layers change nothing."""
    torch = pytest.importorskip("torch")

    class Wav2Vec2BertEncoderLayer(torch.nn.Module):
        def forward(self, x):
            return (x,)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(Wav2Vec2BertEncoderLayer() for _ in range(tiny.ENCODER.n_layers))

        def forward(self, x):
            for layer in self.layers:
                (x,) = layer(x)
            return (x,)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.config = Encoder(), types.SimpleNamespace(hidden_size=tiny.ENCODER.d_model)

        def forward(self, x):
            return self.encoder(x)

    return Model()


def after_all_layers(adapter: Adapter, weights: dict, x: np.ndarray, rows: list[int]) -> np.ndarray:
    """What an adapter makes in JAX of an input that no layer changes."""
    bound = bind(adapter, tiny.ENCODER, weights["shared"], weights["tasks"], jnp.array(rows))
    x, carry = jnp.asarray(x), adapter.initial_carry(x)
    for layer in range(tiny.ENCODER.n_layers):
        per_layer = jax.tree.map(lambda leaf, n=layer: leaf[n], bound.per_layer)
        x, carry = adapter.after_layer((bound.all_layers, per_layer), x, carry, {"input": x}, rng=lambda: None)
    return np.asarray(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: METHODS["scale"](),
        lambda: HierarchicalRecurrentAdapter(width=6, head="gated", activation="leaky_relu"),
        lambda: HierarchicalRecurrentAdapter(width=6, recurrence="lstm", head="gated", reads="input", layers=(2, 0)),
        lambda: ResidualAdapter(width=5),
    ],
    ids=["method", "head and activation", "head per layer", "residual"],
)
@pytest.mark.slow  # needs PyTorch
def test_its_formula_in_pytorch_gives_what_the_one_in_jax_gives(added, make, tmp_path):
    torch = pytest.importorskip("torch")
    from hra_jax.torch import AdaptedModel

    adapter = make()
    weights = random_export(adapter, tmp_path)
    x = np.random.default_rng(1).standard_normal((3, 4, tiny.ENCODER.d_model)).astype(np.float32)
    with torch.no_grad():
        found = AdaptedModel(encoder_in_torch(), tmp_path)(torch.from_numpy(x), tasks=["bob", "__base__", "ann"])
    np.testing.assert_allclose(found.numpy(), after_all_layers(adapter, weights, x, [1, 2, 0]), atol=1e-5, rtol=1e-5)
    assert np.abs(found.numpy() - x)[0].max() > 0.1 and np.abs(found.numpy() - x)[1].max() == 0


@pytest.mark.slow  # needs PyTorch
def test_an_output_adapter_in_pytorch_adds_its_correction_to_the_logits(tmp_path):
    torch = pytest.importorskip("torch")
    from hra_jax.torch import AdaptedModel

    weights = random_export(OutputAdapter(), tmp_path)
    model = encoder_in_torch()
    model.lm_head = torch.nn.Linear(tiny.ENCODER.d_model, tiny.ENCODER.vocab_size)
    model.forward = lambda x: types.SimpleNamespace(logits=model.lm_head(model.encoder(x)[0]))
    x = np.random.default_rng(1).standard_normal((2, 4, tiny.ENCODER.d_model)).astype(np.float32)
    with torch.no_grad():
        base = model(torch.from_numpy(x)).logits.numpy()
        found = AdaptedModel(model, tmp_path)(torch.from_numpy(x), tasks=["bob", "__base__"]).numpy()
    own = jax.tree.map(lambda leaf: leaf[1], weights["tasks"]["all_layers"]["output"])
    np.testing.assert_allclose(found[0], base[0] + x[0] @ own["kernel"] + own["bias"], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found[1], base[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiasAdapter(), "method 'bitfit', which has no PyTorch formula .*allowed here: 'hra', .*'scale'"),
        (lambda: HierarchicalRecurrentAdapter(recurrence="peephole_gru"), "recurrence 'peephole_gru' has no PyTorch"),
        (lambda: HierarchicalRecurrentAdapter(activation="plain"), "activation 'plain' has no PyTorch"),
        (lambda: HierarchicalRecurrentAdapter(head="bare"), "head 'bare' has no PyTorch"),
    ],
    ids=["method", "recurrence", "activation", "head"],
)
@pytest.mark.slow  # needs PyTorch
def test_what_has_no_formula_in_pytorch_says_so_in_one_line(added, make, message, tmp_path):
    pytest.importorskip("torch")
    from hra_jax.torch import AdaptedModel

    ACTIVATIONS.register(Activation("plain", jnp.abs))
    HEADS.register(type("BareHead", (LinearHead,), {"name": "bare", "torch_apply": Head.torch_apply}))
    random_export(make(), tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        AdaptedModel(encoder_in_torch(), tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_methods_and_recurrences_are_found_without_jax_and_without_pytorch():
    code = (
        "import sys\n"
        "from hra_jax.adapters.controllers import RECURRENCES\n"
        "from hra_jax.adapters.methods import METHODS, from_settings\n"
        "from_settings({'name': 'hra'})\n"
        "print(*METHODS, *RECURRENCES, *({'jax', 'flax', 'torch', 'tensorflow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*METHODS, *RECURRENCES]


# --- What is incomplete -----------------------------------------------------------------------------------------------


def method_of(**changes) -> type[Adapter]:
    """A complete method of three biases, but for the changes; None takes something out."""
    parts = {
        "name": "dummy",
        "description": "a dummy",
        "peft_type": "HRA_JAX_DUMMY",
        "init_own": lambda self, rng, encoder: no_parameters() | {"all_layers": {"bias": jnp.zeros(3)}},
        "own_formula": lambda self: Formula("0", "3"),
        "__module__": __name__,
    }
    parts = {key: value for key, value in (parts | changes).items() if value is not None}
    return dataclasses.dataclass(frozen=True)(type("Dummy", (Adapter,), parts))


INCOMPLETE = {
    "no dataclass": (lambda: type("Plain", (Adapter,), {"name": "plain"}), "'plain' is no frozen dataclass"),
    "no name": (lambda: method_of(name="Dummy One"), "has the name 'Dummy One'; allowed: lower-case letters"),
    "no description": (lambda: method_of(description=None), "'dummy' lacks `description`"),
    "no PEFT type": (lambda: method_of(peft_type=None), "'dummy' lacks `peft_type`"),
    "a PEFT type twice": (lambda: method_of(peft_type="HRA_JAX_LORA"), "'dummy' has the peft_type .* of 'lora'"),
    "a name twice": (lambda: method_of(name="lora"), "'lora' is registered twice"),
    "no parameters": (lambda: method_of(init_own=None), "'dummy' lacks `init_own`"),
    "no formula": (lambda: method_of(own_formula=None), "'dummy' lacks `own_formula`"),
    "a bare field": (
        lambda: method_of(width=4, __annotations__={"width": int}),
        r"'dummy' lacks `setting\(default, rule, meaning\)` for its field 'width'",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_method_that_lacks_something_is_not_registered(case):
    make, message = INCOMPLETE[case]
    with pytest.raises(UserError, match=message) as caught:
        methods.register(make())
    assert "\n" not in str(caught.value) and "dummy" not in METHODS
    assert methods.register(method_of()) is METHODS["dummy"]  # the rest of it is complete


RECURRENT = {"name": "dummy", "formula": "R * (D + 1)", "step": PlainRecurrence.step}
HEADED = {"name": "dummy", "formula": "D * (R + 1)", "weights": LinearHead.weights, "apply": LinearHead.apply}


def without(parts: dict, name: str) -> dict:
    return {key: value for key, value in parts.items() if key != name}


@pytest.mark.parametrize(
    ("registry", "base", "parts", "message"),
    [
        (RECURRENCES, Recurrence, without(RECURRENT, "step"), "recurrence 'dummy' lacks `step`"),
        (RECURRENCES, Recurrence, without(RECURRENT, "formula"), "recurrence 'dummy' has the formula None"),
        (RECURRENCES, Recurrence, RECURRENT | {"formula": "R * H"}, "with 'H'; allowed letters: D, R"),
        (RECURRENCES, Recurrence, RECURRENT | {"formula": "R * * D"}, "which is no arithmetic"),
        (RECURRENCES, Recurrence, RECURRENT | {"blocks": 0}, "blocks = 0; allowed: an integer of at least 1"),
        (RECURRENCES, Recurrence, RECURRENT | {"name": "gru"}, "recurrence 'gru' is registered twice"),
        (HEADS, Head, without(HEADED, "apply"), "head 'dummy' lacks `apply`"),
        (HEADS, Head, without(HEADED, "formula"), "head 'dummy' has the formula None"),
    ],
)
def test_a_recurrence_or_head_that_lacks_something_is_not_registered(registry, base, parts, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.register(type("Dummy", (base,), parts))
    assert "\n" not in str(caught.value) and "dummy" not in registry


def test_an_activation_needs_its_function():
    with pytest.raises(UserError, match="activation 'dummy' lacks `apply`"):
        ACTIVATIONS.register(Activation("dummy", None))


def larger(self, params, x, carry, taps, *, rng):
    """A layer's output that is wider than it was."""
    return jnp.concatenate([x, x], axis=-1), carry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own_formula": lambda self: Formula("0", "4")}, "'dummy' counts 4 task parameters as '4', but has 3"),
        ({"own_formula": lambda self: Formula("0", "Q")}, "'dummy' has the formula 'Q' with 'Q'; allowed letters"),
        (
            {"init_own": lambda self, rng, encoder: no_parameters(), "own_formula": lambda self: Formula("0", "0")},
            "'dummy' gives a task no parameters",
        ),
        ({"after_layer": larger}, "'dummy': `after_layer` makes .* allowed: the same shapes"),
        ({"after_layer": lambda self, x: x}, "'dummy' fails in `after_layer`: TypeError"),
    ],
    ids=["count", "letter", "nothing", "shape", "arguments"],
)
def test_a_method_that_does_not_do_what_it_says_stops_before_the_first_step(micro, tmp_path, changes, message):
    methods.register(method_of(**changes))
    done = []
    with pytest.raises(UserError, match=message) as caught:
        world.train(micro.config(adapter__name="dummy"), tmp_path / "W", on_step=done.append)
    assert "\n" not in str(caught.value) and done == []


@pytest.mark.parametrize(
    ("recurrence", "message"),
    [
        ({"formula": "R * (D + 2)"}, r"counts .* shared parameters as 'R \* \(D \+ 2\)', but has"),
        ({"carried": 2}, "`after_layer` makes"),
        ({"weights": lambda self, width: {"other": zeros(width)}, "formula": "R * (D + 2)"}, "KeyError: 'recurrent'"),
    ],
)
def test_a_recurrence_that_does_not_do_what_it_says_stops_before_the_first_step(micro, tmp_path, recurrence, message):
    parts = RECURRENT | {"step": lambda self, w, drive, carry, act: (drive, drive)} | recurrence
    if "weights" in recurrence:
        parts["step"] = PlainRecurrence.step
    RECURRENCES.register(type("Dummy", (Recurrence,), parts))
    with pytest.raises(UserError, match=message):
        world.train(micro.config(hra__recurrence="dummy"), tmp_path / "W")


def test_an_unknown_kind_of_adapter_folder_lists_what_is_known(added, tmp_path):
    random_export(METHODS["scale"](), tmp_path)
    assert read_adapter(tmp_path).config["peft_type"] == "HRA_JAX_SCALE"
    METHODS._entries.pop("scale")
    with pytest.raises(UserError, match="'HRA_JAX_SCALE'; allowed: .*HRA_JAX_BITFIT, HIERARCHICAL_RECURRENT"):
        read_adapter(tmp_path)
