"""What version 0.1.0 stored is read as it was meant then; tests/fixtures/README.md says what there is."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from reference import micro as world
from reference.defaults import turn_over

import hra_jax
from hra_jax import train
from hra_jax.adapters.methods import METHODS
from hra_jax.config import keys
from hra_jax.config.files import FORMAT, config_from_json, flatten_config, load_config, validate_config
from hra_jax.config.renamed import RENAMED
from hra_jax.evaluate import evaluate
from hra_jax.transcribe import transcribe

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
    np.testing.assert_allclose(values, log_probs[key], rtol=0, atol=1e-5)


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
    def read() -> tuple:
        files = hra_jax.load_backbone(str(FIXTURES / "backbone")).files
        adapters = [hra_jax.load_adapter(FIXTURES / folder, backbone).adapter for folder in ADAPTERS]
        text = (FIXTURES / "workdir" / "config.json").read_text()
        return files.features, files.encoder, adapters, flatten_config(config_from_json(text, notify=False))

    before, base = read(), flatten_config(load_config("base"))
    classes = [*keys.groups().values(), *METHODS.values(), *(type(part) for part in before[:2])]
    turn_over(monkeypatch, classes)
    assert not [key for key, value in flatten_config(load_config("base")).items() if value == base[key]]
    assert read() == before
