"""A world in which a training run takes seconds: a backbone of random weights, three speakers who whistle, suites.

Every letter is a tone and a text is its tones one after the other, so there is something to learn. Each speaker
whistles at a pitch of its own.
"""

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from hra_jax import train as training
from hra_jax.adapters import adapter_folder, methods
from hra_jax.adapters.base import Adapter
from hra_jax.config.files import config_to_json, load_config
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.run.place import Run
from hra_jax.text.vocabularies import CharacterVocabulary
from hra_jax.training import sharding
from hra_jax.training.metrics import MetricWriter
from hra_jax.training.progress import Progress
from reference import tiny

MetricWriter.EVERY = 1  # tests look at every step

SPEAKERS = ("ann", "bob", "cy")
RATE = 8000  # Hz
LETTERS = " abcdef"
FEATURES = FeatureConfig(sample_rate=RATE, fft=256, bins=8, high_hz=4000.0)  # encoder frames of 20 ms
GEOMETRY = dict(d_model=16, n_layers=2, n_heads=2, d_ff=24, kernel=3, subsampling=2, subsampling_channels=4) | dict(
    position="rope_qk"
)
TEXTS = {
    "train": ("ab", "cad", "fe d", "abcdef"),
    "validation": ("ba", "fa ce"),
    "test": ("dab", "bed fad"),
}
_SECONDS = 0.12  # of a letter
_MAKE_MESH = sharding.make_mesh


def tones(text: str, *, pitch: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A text as float32 `[S]`: a tone for each letter, and faint noise."""
    time = np.arange(round(_SECONDS * rate)) / rate
    letters = [np.sin(2 * np.pi * pitch * (300 + 250 * LETTERS.index(letter)) * time) for letter in text]
    noise = np.random.default_rng(seed).standard_normal(len(time) * len(text))
    return (0.3 * np.concatenate(letters) + 0.01 * noise).astype(np.float32)


def make_backbone(folder: Path, *, seed: int = 6) -> str:
    """Saves a backbone of random weights (with seed 6 it hears something else in every recording); its fingerprint."""
    vocabulary = CharacterVocabulary(LETTERS)
    encoder = EncoderConfig(vocab_size=vocabulary.size, **GEOMETRY)
    return backbone_folder.save(
        folder,
        tiny.random_params(FEATURES, encoder, seed=seed),
        features=FEATURES,
        encoder=encoder,
        vocabulary=vocabulary.to_json(),
        dtype="float32",
        info={"name": "micro", "source": "random weights", "license": "Apache-2.0"},
    )


def write_manifest(path: Path, rows: list[dict | str]) -> None:
    """Writes a manifest; a row that is a string is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read_manifest(path: Path) -> list[dict]:
    """The rows of a manifest."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_data(folder: Path, *, texts: dict[str, tuple] = TEXTS) -> None:
    """Writes a manifest for each split of `texts`, and their audio: 8 kHz FLAC, and stereo WAV at 16 kHz."""
    (folder / "audio").mkdir(parents=True)
    for split, lines in texts.items():
        rows = []
        for number, (speaker, text) in enumerate((speaker, text) for speaker in SPEAKERS for text in lines):
            pitch = 1.0 + 0.15 * SPEAKERS.index(speaker)
            stereo = number % 4 == 3
            samples = tones(text, pitch=pitch, rate=2 * RATE if stereo else RATE, seed=number)
            name = f"audio/{split}-{number}.{'wav' if stereo else 'flac'}"
            soundfile.write(folder / name, np.stack([samples, samples], 1) if stereo else samples, RATE * (1 + stereo))
            seconds = round(_SECONDS * len(text), 3)
            rows.append({"audio_filepath": name, "duration": seconds, "text": text, "speaker": speaker})
        write_manifest(folder / f"{split}.jsonl", rows)


def write_suite(path: Path, tasks: tuple, *, name: str = "") -> str:
    """Writes a suite file; returns its path."""
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({{'name': {name or path.stem!r}, 'normalizer': 'basic', 'tasks': {tasks!r}}})\n"
    )
    return str(path)


@dataclasses.dataclass(frozen=True)
class Micro:
    """Where everything lies; tests read it and write elsewhere."""

    folder: Path
    fingerprint: str

    @property
    def backbone(self) -> str:
        """The backbone's folder."""
        return str(self.folder / "backbone")

    @property
    def data(self) -> Path:
        """The folder of the manifests."""
        return self.folder / "data"

    def suite(self, name: str) -> str:
        """The path of a suite: test, validation, or mixed (each speaker's own adapter, the mean head, the base)."""
        return str(self.folder / f"{name}.py")

    def validated_config(self) -> ConfigDict:
        """A run of 4 steps that is validated at steps 2 and 4, scored at its end, and keeps all its checkpoints."""
        return self.config(
            eval__suite=self.suite("test"),
            eval__select_suite=self.suite("validation"),
            eval__every_steps=2,
            checkpoint__keep_latest=4,
        )

    def config(self, **changes) -> ConfigDict:
        """A run of 4 steps on the micro data; `changes` has the keys of a configuration with `__` for the dots."""
        config = load_config("base").unlock()
        settings = {
            "steps": 4,
            "backbone": self.backbone,
            "hra.width": 6,
            "data.dir": str(self.data),
            "data.sources": (("micro", "{dir}/train.jsonl", 1.0),),
            "data.threads": 1,
            "batch.seconds": 4.0,
            "batch.max_tasks": 3,
            "batch.buckets": (1.0,),
            "optimizer.learning_rate": 2e-2,
            "optimizer.warmup_steps": 2,
            "optimizer.schedule": "constant",  # other numbers of steps are then the same program
            "checkpoint.every_steps": 100,
            "eval.every_steps": 100,
            "eval.batch_seconds": 6.0,
            "eval.bootstrap": 20,
            "eval.calibrate": False,
            "export.voices": False,  # it is one more program
        }
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        for key, value in settings.items():
            *groups, name = key.split(".")
            node = config
            for group in groups:
                node = node[group]
            assert name in node, key
            with node.ignore_type():
                node[name] = value
        return config.lock()


def write_config(path: Path, config: ConfigDict) -> str:
    """Writes a configuration as a file that `--config` takes; a run of it logs every step. Returns its path."""
    path.write_text(
        "from hra_jax.config.files import config_from_json\n"
        "from hra_jax.training.metrics import MetricWriter\n\n"
        "MetricWriter.EVERY = 1\n\n\n"
        f"def get_config():\n    return config_from_json({config_to_json(config)!r})\n"
    )
    return str(path)


def make(folder: Path) -> Micro:
    """Makes the backbone, the data and the suites."""
    fingerprint = make_backbone(folder / "backbone")
    make_data(folder / "data")
    for split in ("validation", "test"):
        write_suite(folder / f"{split}.py", (("*", f"{{dir}}/{split}.jsonl", "speaker=*", "*"),))
    rows = [(f"ann {name}", "{dir}/test.jsonl", "speaker=ann", f"__{name}__") for name in ("mean", "base")]
    write_suite(folder / "mixed.py", (*rows, ("ann", "{dir}/test.jsonl", "speaker=ann", "ann")))
    return Micro(folder, fingerprint)


def make_recordings(micro: Micro, folder: Path) -> Path:
    """The training data as people have it: a folder for each speaker, a text file beside each recording."""
    for row in read_manifest(micro.data / "train.jsonl"):
        audio, own = micro.data / row["audio_filepath"], folder / row["speaker"]
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(audio, own)
        (own / audio.name).with_suffix(".txt").write_text(row["text"])
    return folder


def write_adapter(folder: Path, adapter: Adapter, micro: Micro) -> Path:
    """Writes an adapter folder of random parameters, with a task for each speaker."""
    files = backbone_folder.load(micro.backbone)
    weights = jax.tree.map(lambda x: 0.5 * x, tiny.random_trainable(adapter, files.encoder, tasks=len(SPEAKERS)))
    shared, own = (sum(leaf.size for leaf in jax.tree.leaves(weights[part])) for part in ("shared", "tasks"))
    adapter_folder.write_adapter(
        folder,
        method=methods.settings(adapter),
        weights=weights,
        tasks=[{"name": task, "row": row, "step": 9} for row, task in enumerate(SPEAKERS)],
        backbone={"name": "micro", "fingerprint": files.fingerprint},
        vocabulary=files.vocabulary,
        accounting={
            "trainable_parameters": shared + own,
            "shared_parameters": shared,
            "parameters_per_task": own // len(SPEAKERS),
            "backbone_parameters": files.parameters,
            "backbone_fingerprint": files.fingerprint,
        },
    )
    return folder


def use_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Lets runs see the first `count` of the fake devices only."""
    devices = jax.devices()[:count]
    monkeypatch.setattr(
        sharding, "make_mesh", lambda *args, **sizes: _MAKE_MESH(*args, **(sizes | {"devices": devices}))
    )


@dataclasses.dataclass
class Trained:
    """What came of a run in this process."""

    workdir: Path
    config: ConfigDict | None = None  # None: given to the run by other means
    status: int | None = None  # None: it raised
    run: Run | None = None  # None: it did not get so far
    start: dict | None = None  # what was to be trained, before the first step
    frozen: dict | None = None  # the frozen weights, before the first step
    printed: str = ""


@contextlib.contextmanager
def watched(done: Trained, on_step: Callable[[int], None], devices: int):
    """Runs inside see few devices, report each step, and leave behind what they were made of."""
    prepare, update = training.prepare, Progress.update

    def remember(*args, **keywords):
        done.run = prepare(*args, **keywords)
        done.start = jax.tree.map(np.array, done.run.state.trainable)
        done.frozen = jax.tree.map(np.array, done.run.frozen)
        return done.run

    def report(progress, step, **figures):
        update(progress, step, **figures)
        on_step(step)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        use_devices(patch, devices)
        patch.setattr(training, "prepare", remember)
        patch.setattr(Progress, "update", report)
        try:
            yield
        finally:
            done.printed = printed.getvalue()


def train(
    config: ConfigDict, workdir: Path, *, devices: int = 1, on_step: Callable[[int], None] = lambda step: None
) -> Trained:
    """Trains in this process; `on_step` is called after each step, before its checkpoint."""
    done = Trained(Path(workdir), config)
    with watched(done, on_step, devices):
        done.status = training.train(config, workdir)
    return done


def losses(workdir: Path) -> list[float]:
    """The training losses in metrics.jsonl, which must be those of steps 1, 2, 3, ..."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train/loss"] for line in lines]
