"""What version 0.1.0 stored is read as it was meant then; tests/fixtures/README.md says what there is."""

import dataclasses
import importlib
import json
import pkgutil
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import soundfile
from reference import micro as world
from reference.defaults import turn_over

import hra_jax
from hra_jax import adapters, models, text, train, training
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.methods import METHODS
from hra_jax.config import keys
from hra_jax.config.files import FORMAT, config_from_json, flatten_config, load_config, validate_config
from hra_jax.config.renamed import RENAMED
from hra_jax.evaluate import evaluate
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.storage import safetensors
from hra_jax.tasks import library
from hra_jax.transcribe import transcribe

pytestmark = pytest.mark.optimised  # the stored figures are those of optimised programs
FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
HEARD = ("data/audio/test-0.flac", "data/audio/test-4.flac")
ADAPTERS = {  # folder: what its expectations are stored under
    "adapters/hra": "hra",
    "workdir/adapter": "hra",
    "adapters/lora": "lora",
    "adapters/characters": "characters",
}
TASKS = (*world.SPEAKERS, "__base__")


@pytest.fixture(scope="module")
def log_probs() -> dict[str, np.ndarray]:
    """The stored log-probabilities and numbers of frames."""
    with np.load(FIXTURES / "log_probs.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def backbone() -> hra_jax.Backbone:
    """The stored backbone; every tensor is hashed again."""
    return hra_jax.load_backbone(str(FIXTURES / "backbone"), verify=True)


@pytest.fixture
def stored(tmp_path, monkeypatch) -> Path:
    """A copy of the fixtures that may be written to, as the current folder; runs see one device."""
    world.use_devices(monkeypatch, 1)
    folder = Path(shutil.copytree(FIXTURES, tmp_path / "stored"))
    monkeypatch.chdir(folder)
    return folder


def check(
    key: str, model: hra_jax.Backbone | hra_jax.Model, files: tuple[str, ...], log_probs: dict, **tasks: list[str]
) -> None:
    """Compares the texts and log-probabilities of a model with the stored ones."""
    waveforms = [soundfile.read(FIXTURES / file, dtype="float32")[0] for file in files]
    assert model.transcribe(waveforms, sample_rate=world.RATE, **tasks) == EXPECTED["texts"][key]
    values, frames = model.log_probs(waveforms, sample_rate=world.RATE, **tasks)
    np.testing.assert_array_equal(frames, log_probs[f"{key}/frames"])
    # Other compilers than the one that they come from round the largest ones, 23, otherwise.
    tolerance = 1e-5 if jax.__version_info__[:2] == (0, 10) else 3e-5
    np.testing.assert_allclose(values, log_probs[key], rtol=0, atol=tolerance)


def errors(results: dict) -> dict[str, dict]:
    """Of the results of an evaluation what is stored of each task: counts and rates."""
    return {name: {key: task[key] for key in EXPECTED["errors"]["3"][name]} for name, task in results["tasks"].items()}


def test_backbones_keep_their_fingerprints_texts_and_log_probabilities(backbone, log_probs):
    tiny = hra_jax.load_backbone("builtin:tiny", verify=True)
    found = {"backbone": backbone.fingerprint, "builtin:tiny": tiny.fingerprint}
    assert found == EXPECTED["fingerprints"]
    check("backbone", backbone, HEARD, log_probs)
    check("builtin:tiny", tiny, ("speech.flac",), log_probs)


@pytest.mark.parametrize("folder", ADAPTERS)
def test_adapters_keep_their_tasks_texts_and_log_probabilities(folder, backbone, log_probs):
    model = hra_jax.load_adapter(FIXTURES / folder, backbone)
    assert model.tasks == world.SPEAKERS
    for task in TASKS:
        check(f"{ADAPTERS[folder]}/{task}", model, HEARD, log_probs, tasks=[task] * len(HEARD))


def test_the_stored_expectations_tell_tasks_and_adapters_apart(log_probs):
    keys = [f"{name}/{task}" for name in sorted({*ADAPTERS.values()}) for task in world.SPEAKERS]
    assert len({tuple(EXPECTED["texts"][key]) for key in [*keys, "backbone"]}) == len(keys) + 1
    assert all(np.abs(log_probs[key][..., :8] - log_probs["backbone"]).max() > 0.1 for key in keys)


def test_a_stored_folder_serves_the_command_that_transcribes(log_probs):
    files = [str(FIXTURES / file) for file in HEARD]
    folders = {"adapter": str(FIXTURES / "adapters" / "lora"), "backbone": str(FIXTURES / "backbone")}
    found = list(transcribe(files, task="cy", **folders))
    assert found == [(file, text, None) for file, text in zip(files, EXPECTED["texts"]["lora/cy"], strict=True)]


@pytest.mark.parametrize("step", ["1", "3"])
def test_checkpoints_of_the_work_directory_make_the_same_errors(step, stored, capsys):
    shutil.rmtree("workdir/eval")
    results = evaluate("workdir", "test.py", step=step)
    assert told(capsys) == list(RENAMED)
    assert results["step"] == int(step)
    assert errors(results) == EXPECTED["errors"][step]
    assert json.loads(Path("workdir/eval/test/results.json").read_text()) == results


def test_the_finished_run_exports_the_same_adapter_again(stored, backbone):
    before = hra_jax.load_adapter("workdir/adapter", backbone)
    metrics = Path("workdir/metrics.jsonl").read_bytes()
    for folder in ("adapter", "eval"):
        shutil.rmtree(stored / "workdir" / folder)
    assert train.train(load_config("user.py"), "workdir") == 0
    after = hra_jax.load_adapter("workdir/adapter", backbone)
    assert (after.tasks, after.adapter) == (before.tasks, before.adapter)
    jax.tree.map(np.testing.assert_array_equal, after.shared, before.shared)
    jax.tree.map(np.testing.assert_array_equal, after.rows, before.rows)
    results = json.loads(Path("workdir/eval/test/results.json").read_text())
    assert (results["step"], errors(results)) == (3, EXPECTED["errors"]["3"])
    assert Path("workdir/metrics.jsonl").read_bytes() == metrics  # nothing was trained
    assert json.loads(Path("workdir/config.json").read_text())["format"] == FORMAT


def told(capsys: pytest.CaptureFixture) -> list[str]:
    """The old keys that lines on stderr have told of since the last call."""
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.startswith("config.")]
    return [words[0].removeprefix("config.") for words in lines]


def test_the_configuration_file_of_a_user_keeps_its_values(stored, capsys):
    config = load_config("user.py")
    assert told(capsys) == list(RENAMED)
    validate_config(config)
    found = flatten_config(config)
    expected = {
        "steps": 3,
        "backbone": "backbone",
        "hra.width": 6,
        "batch.buckets": (1.0,),
        "optimizer.learning_rate": 2e-2,
        "checkpoint.keep_latest": 2,
        "eval.suite": "test.py",
        "adapter.dropout": 0.1,
        "optimizer.clip": 0.5,
        "export.step": "best",
    }
    assert {key: found[key] for key in expected} == expected
    assert not set(RENAMED) & set(found)


def test_defaults_that_have_all_changed_leave_what_is_stored_as_it_is(backbone, monkeypatch):
    monkeypatch.chdir(FIXTURES)  # its suites are files there

    def read() -> tuple:
        files = hra_jax.load_backbone(str(FIXTURES / "backbone")).files
        adapters = [hra_jax.load_adapter(FIXTURES / folder, backbone).adapter for folder in ADAPTERS]
        text = (FIXTURES / "workdir" / "config.json").read_text()
        config = config_from_json(text, notify=False)
        validate_config(config, stored=True)
        return files.features, files.encoder, adapters, flatten_config(config)

    before, base = read(), flatten_config(load_config("base"))
    classes = [*keys.groups().values(), *METHODS.values(), *(type(part) for part in before[:2])]
    turn_over(monkeypatch, classes)
    assert not [key for key, value in flatten_config(load_config("base")).items() if value == base[key]]
    assert read() == before


# --- What is written again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["hra", "lora", "characters"])
def test_an_adapter_that_is_written_again_is_the_same_bytes(folder, tmp_path):
    stored, again = FIXTURES / "adapters" / folder, tmp_path / "again"
    library.write(again, read_adapter(stored))
    for file in ("adapter_model.safetensors", "tasks.json"):
        assert (again / file).read_bytes() == (stored / file).read_bytes(), file
    before, after = (json.loads((path / "adapter_config.json").read_text()) for path in (stored, again))
    assert sorted(after.pop("sha256")) == sorted(path.name for path in again.iterdir())  # they came later
    assert after == before | {"hra_jax": hra_jax.__version__}


def test_an_adapter_with_a_file_for_each_task_keeps_its_tensors_in_one_file(tmp_path):
    stored, again = FIXTURES / "workdir" / "adapter", tmp_path / "again"
    library.write(again, read_adapter(stored))
    before = {}
    for path in stored.rglob("*.safetensors"):
        before |= safetensors.from_bytes(path.read_bytes(), where=path.name)
    (path,) = again.rglob("*.safetensors")
    assert path.read_bytes() == safetensors.to_bytes(before)
    assert list(read_adapter(again).tasks) == list(read_adapter(stored).tasks)


def test_a_backbone_that_is_written_again_is_the_same_bytes(tmp_path):
    stored = backbone_folder.load(str(FIXTURES / "backbone"))
    settings = json.loads((FIXTURES / "backbone" / "backbone.json").read_text())
    fingerprint = backbone_folder.write(
        tmp_path,
        stored.tensors.read,
        features=stored.features,
        encoder=stored.encoder,
        vocabulary=stored.vocabulary,
        dtype=settings["storage_dtype"],
        info=stored.info,
    )
    assert fingerprint == EXPECTED["fingerprints"]["backbone"]
    assert (tmp_path / "model.safetensors").read_bytes() == (FIXTURES / "backbone" / "model.safetensors").read_bytes()
    again = json.loads((tmp_path / "backbone.json").read_text())
    assert again.pop("hra_jax") == hra_jax.__version__
    assert again.pop("settings_sha256") and again.pop("stored_xxh3")  # they came later
    for part in ("features", "encoder"):
        assert again[part].items() >= settings[part].items()
        assert set(again[part]) == {field.name for field in dataclasses.fields(getattr(stored, part))}
        again[part] = settings[part]
    assert again == settings


# --- A default that changes changes nothing that is stored ------------------------------------------------------------


def has_defaults(value: object) -> bool:
    """Whether a value is a dataclass, no network, that gives a field a default."""
    if not isinstance(value, type) or not dataclasses.is_dataclass(value) or issubclass(value, nn.Module):
        return False
    # `Adapter` itself is the identity, which code makes and no folder stores.
    return value is not Adapter and any(f.default is not dataclasses.MISSING for f in dataclasses.fields(value))


def classes_with_defaults() -> dict[str, type]:
    """All such classes of the packages whose settings are stored, by name."""
    found = {}
    for package in (adapters, models, text, training):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            values = vars(importlib.import_module(module.name)).values()
            found |= {f"{value.__module__}.{value.__qualname__}": value for value in values if has_defaults(value)}
    return found


class Turned:
    """What every default is while defaults are turned over: no value of any setting, so what relies on one fails."""

    def __repr__(self) -> str:
        return "a default that was turned over"


def turn_defaults_over(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Gives every field of every dataclass another default; returns the names of the classes."""
    classes = classes_with_defaults()
    for cls in classes.values():
        defaults, named = cls.__init__.__defaults__ or (), cls.__init__.__kwdefaults__ or {}
        monkeypatch.setattr(cls.__init__, "__defaults__", (Turned(),) * len(defaults))
        monkeypatch.setattr(cls.__init__, "__kwdefaults__", dict.fromkeys(named, Turned()))
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                monkeypatch.setattr(field, "default", Turned())
                if field.name in vars(cls):
                    monkeypatch.setattr(cls, field.name, Turned())
    return {cls.__name__ for cls in classes.values()}


def everything_stored() -> dict[str, np.ndarray]:
    """The log-probabilities that all stored folders give, each task of the adapters included."""
    waveforms = [soundfile.read(FIXTURES / file, dtype="float32")[0] for file in HEARD]
    models = {name: hra_jax.load_backbone(name) for name in (str(FIXTURES / "backbone"), "builtin:tiny")}
    found = {name: model.log_probs(waveforms, sample_rate=world.RATE)[0] for name, model in models.items()}
    for folder in ADAPTERS:
        model = hra_jax.load_adapter(FIXTURES / folder, models[str(FIXTURES / "backbone")])
        for task in TASKS:
            tasks = [task] * len(HEARD)
            found[f"{folder}/{task}"] = model.log_probs(waveforms, sample_rate=world.RATE, tasks=tasks)[0]
    return found


def test_defaults_that_are_turned_over_change_nothing_that_is_stored(monkeypatch):
    world.use_devices(monkeypatch, 1)
    before = everything_stored()
    with monkeypatch.context() as turned:
        names = turn_defaults_over(turned)
        assert names >= {"FeatureConfig", "EncoderConfig", "HierarchicalRecurrentAdapter", "LowRankAdapter"}
        with pytest.raises((TypeError, ValueError)):
            EncoderConfig(vocab_size=30, d_model=8, n_layers=1, n_heads=1, d_ff=8, kernel=3)
        after = everything_stored()
    assert after.keys() == before.keys() and len(before) == 2 + len(ADAPTERS) * len(TASKS)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
