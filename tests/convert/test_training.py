"""Adapters train on converted encoders of every family, from the published folder to the texts of the exported adapter.

The encoders are random and tiny. What they must learn to write are tones that stand for letters which the published
vocabularies have, and real digits, which they cannot spell.
"""

import functools
import hashlib
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import micro as world
from reference import published

import hra_jax
from hra_jax.adapters.base import bind
from hra_jax.api import Backbone, Model
from hra_jax.convert.conversion import convert
from hra_jax.data.audio import decode_file
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.run import stages
from hra_jax.training.preemption import PREEMPTED
from hra_jax.transcribe import transcribe

RATE = 16000  # Hz, of every published encoder; the recordings are at 8 and 16 kHz
STEPS, STOP = 50, 17
TEXTS = {"train": ("ab", "cab", "ba c", "bca ac"), "test": ("ac", "bab ca", "cb a")}
WORDS, TALKERS = ("one", "two", "six", "nine"), ("jackson", "theo")
# Family: what it hears, and the output layer that a user would choose for that.
CASES = {
    "w2v-bert bare": ("digits", "shared_characters"),
    "w2v-bert shaw": ("letters", "task"),
    "conformer rel-pos": ("letters", "task"),
    "conformer rope": ("letters", "task"),
    "parakeet": ("letters", "backbone"),
    "lasr": ("letters", "task"),
    "seamless encoder": ("letters", "shared_characters"),
}


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """The folder of manifests of three speakers who whistle."""
    folder = tmp_path_factory.mktemp("letters") / "data"
    world.make_data(folder, texts=TEXTS)
    return folder


@pytest.fixture(scope="module")
def digits(fsdd_dir, tmp_path_factory) -> Path:
    """The folder of manifests of two real speakers: each word three times to train, once to try."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 3), ("test", 1)):
        found = {(speaker, word): [] for speaker in TALKERS for word in WORDS}
        for row in world.read_manifest(fsdd_dir / f"{split}.jsonl"):
            found.get((row["speaker"], row["text"]), []).append(row)
        rows = [row for same in found.values() for row in same[:count]]
        assert len(rows) == count * len(found)
        for row in rows:
            row["audio_filepath"] = str(fsdd_dir / row["audio_filepath"])
        world.write_manifest(folder / f"{split}.jsonl", rows)
    return folder


def publish(folder: Path, family: str) -> Path:
    """A folder of the family whose encoder lets the sound through: each norm scales by about 1, biases are small."""

    def calm(tensors):
        for name, value in tensors.items():
            if "norm" in name and name.endswith(".weight"):
                tensors[name] = 1 + 0.2 * value
            elif name.endswith(".bias"):
                tensors[name] = 0.1 * value

    published.edit_tensors(published.write(folder, family), calm)
    return folder


def settings_of(micro, data: Path, report, **changes):
    """A run on a converted backbone; where that takes samples, with the one setting that it needs."""
    settings = {"augment__freq_masks": 0} if report.features.kind == "waveform" else {}
    settings |= {"backbone": str(report.folder), "data__dir": str(data), "steps": STEPS, "hra__width": 16}
    settings |= {"optimizer__learning_rate": 0.1, "batch__seconds": 12.0, "augment__time_masks": 1}
    return micro.config(**settings | changes)


def digest(tree) -> str:
    leaves = backbone_folder.flatten(jax.device_get(tree), separator=".")
    content = b"".join(name.encode() + np.ascontiguousarray(leaves[name]).tobytes() for name in sorted(leaves))
    return hashlib.sha256(content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def terminate_at(step: int):
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


def model_of(done: world.Trained, backbone: Backbone, weights: dict) -> Model:
    """What would be loaded if `weights` of a run were exported."""
    weights = jax.tree.map(jnp.asarray, weights)
    layout, own = done.run.layout, done.run.material.own
    return Model(backbone, layout.method, weights["shared"], weights["tasks"], layout.tasks, own)


def hidden(waveforms):
    """`f(model, tasks) -> [B, T, D]`: what the encoder gives to the output layer, each waveform through its task."""
    lengths = jnp.array([len(waveform) for waveform in waveforms])
    batch = np.zeros((len(waveforms), max(map(len, waveforms))), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, params, shared, rows, index, symbols):
        bound = bind(module.adapter, module.encoder, shared, rows, index)
        _, found = module.apply(
            {"params": params}, batch, lengths, bound, symbols,
            capture_intermediates=lambda part, method: part.name == "encoder", mutable=["intermediates"],
        )  # fmt: skip
        return found["intermediates"]["encoder"]["__call__"][0]

    def encode(model, tasks):
        files, numbers = model.backbone.files, {name: row for row, name in enumerate(model.tasks)}
        module = AsrModel(files.features, files.encoder, adapter=model.adapter)
        index = jnp.array([numbers.get(name, model.slots) for name in tasks])
        symbols = np.stack([model.own.symbols(name) for name in tasks])
        return np.asarray(run(module, model.backbone.params, model.shared, model.rows, index, symbols))

    return encode


def log_probs(waveforms):
    """`f(model, tasks) -> [B, T, V]`."""
    return lambda model, tasks: model.log_probs(waveforms, sample_rate=RATE, tasks=tasks)[0]


def check_is_the_identity_until_trained(done: world.Trained, trained: Model, waveforms: list) -> None:
    """A new task is `__base__` bit for bit: in log-probabilities, or in the encoder where tasks write otherwise."""
    names = list(trained.tasks)
    new, base = model_of(done, trained.backbone, done.start), ["__base__"] * len(names)
    hear = log_probs(waveforms) if trained.own is None else hidden(waveforms)
    plain = hear(new, base)
    np.testing.assert_array_equal(hear(new, names), plain)
    np.testing.assert_array_equal(hear(trained, base), plain)
    assert (np.abs(hear(trained, names) - plain).max(axis=(1, 2)) > 0.01).all()


def check_recognises_as_it_was_scored(done: world.Trained, trained: Model, data: Path) -> set[str]:
    """Texts of the exported adapter are those of the evaluation; returns them. Its weights are those of the run."""
    adapter, found = done.workdir / "adapter", set()
    weights = jax.device_get(done.run.state.trainable)
    assert digest({"shared": trained.shared, "tasks": trained.rows}) == digest(weights)
    for name in trained.tasks:
        scored = world.read_manifest(done.workdir / "eval" / "suite" / f"predictions_{name}.jsonl")
        files = [str(data / row["key"]) for row in scored]
        texts = list(transcribe(files, adapter=str(adapter), backbone=str(trained.backbone.files.folder), task=name))
        assert texts == [(file, row["pred_text"], None) for file, row in zip(files, scored, strict=True)]
        found |= {text for _, text, _ in texts}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_an_adapter_trains_on_a_converted_encoder(family, micro, tmp_path, request):
    kind, output = CASES[family]
    data = request.getfixturevalue(kind)
    report = convert(publish(tmp_path / "published", family), tmp_path / "backbone")
    stored, on_disk = backbone_folder.load(str(report.folder), verify=True), files_of(tmp_path / "backbone")
    suite = world.write_suite(tmp_path / "suite.py", (("*", "{dir}/test.jsonl", "speaker=*", "*"),))
    config = settings_of(micro, data, report, adapter__output=output, eval__suite=suite)

    whole = world.train(config, tmp_path / "whole")
    losses = world.losses(tmp_path / "whole")
    print(f"\n{family}, {kind}, {output}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps")
    assert whole.status == 0 and np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])

    assert digest(whole.frozen) == digest(whole.run.frozen) == digest(stored.params)
    assert files_of(tmp_path / "backbone") == on_disk

    trained = hra_jax.load_adapter(tmp_path / "whole" / "adapter", hra_jax.load_backbone(str(report.folder)))
    rows = world.read_manifest(data / "test.jsonl")[: len(trained.tasks)]
    waveforms = [decode_file(str(data / row["audio_filepath"]), RATE) for row in rows]
    check_is_the_identity_until_trained(whole, trained, waveforms)
    texts = check_recognises_as_it_was_scored(whole, trained, data)
    print(f"texts: {sorted(texts)}")
    assert len(texts) > 2 and any(texts)  # equal texts that do not depend on the sound would say nothing

    config = settings_of(micro, data, report, adapter__output=output)
    stopped = world.train(config, tmp_path / "W", on_step=terminate_at(STOP))
    assert stopped.status == PREEMPTED and not (tmp_path / "W" / "adapter").exists()
    assert world.train(config, tmp_path / "W").status == 0 and world.losses(tmp_path / "W") == losses
    weights = (files_of(tmp_path / folder / "adapter")["adapter_model.safetensors"] for folder in ("W", "whole"))
    assert next(weights) == next(weights)


@pytest.mark.slow
def test_full_fine_tuning_moves_all_but_the_statistics_of_a_kept_batch_norm(letters, micro, tmp_path):
    source = published.write(tmp_path / "published", "conformer rel-pos")
    report = convert(source, tmp_path / "backbone", keep_batch_norm=True)
    config = settings_of(micro, letters, report, method="full", steps=10, optimizer__learning_rate=1e-2)
    done = world.train(config, tmp_path / "W")
    losses = world.losses(tmp_path / "W")
    print(f"\nfull: loss {losses[0]:.2f} -> {losses[-1]:.2f} in 10 steps")
    assert done.status == 0 and losses[-1] < 0.8 * losses[0]
    before, after = (
        backbone_folder.flatten(backbone_folder.load(str(folder), verify=True).params, separator=".")
        for folder in (report.folder, tmp_path / "W" / "backbone")
    )
    statistics = {name for name in before if name.endswith(("depthwise_norm.mean", "depthwise_norm.variance"))}
    assert len(statistics) == 2 and set(after) == set(before)
    for name, value in before.items():
        assert (np.asarray(value).tobytes() == np.asarray(after[name]).tobytes()) == (name in statistics), name


@pytest.mark.parametrize("method", ["adapter", "full"])
def test_masks_of_frequencies_are_refused_for_samples_before_anything_is_compiled(method, micro, tmp_path, monkeypatch):
    report = convert(published.write(tmp_path / "published", "conformer rope"), tmp_path / "backbone")
    monkeypatch.setattr(stages, "place", lambda *args, **keywords: pytest.fail("went on"))
    config = micro.config(backbone=str(report.folder), method=method, augment__speed=0.1)
    with pytest.raises(UserError) as caught:
        world.train(config, tmp_path / "W")
    line = str(caught.value)
    assert "augment.speed = 0.1, augment.freq_masks = 2: for spectra" in line and "\n" not in line
    assert line.endswith("allowed there: --config.augment.speed=0, --config.augment.freq_masks=0")
