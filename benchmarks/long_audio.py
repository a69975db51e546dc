"""What long audio costs in errors: sentences one by one, and as one recording with pauses and without.

The recordings are recognised by `Model.transcribe` and, as a suite with a task for each, by `evaluate`.

python benchmarks/long_audio.py --adapter runs/quickstart/adapter --manifest runs/data/hard/test.jsonl \
    --tasks croak,whisper,french,noisy --json benchmarks/results/long_audio.json

A recording holds the sentences of one task in random order, again and again until it is long enough. In its pauses is
pink noise, 20 dB under the speech.
"""

import json
import tempfile

import harness
import numpy as np
import soundfile
from absl import flags
from etils import epath

from hra_jax import api, cli
from hra_jax.console import percent, ratio, say, stdout, table
from hra_jax.data import audio
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation import error_rates

FLAGS = flags.FLAGS
NORMALIZER = "basic"
PAUSES = {"pauses": 0.5, "no pauses": 0.0}  # seconds
COUNTS = ("substitutions", "deletions", "insertions")
SUITE = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{"name": "long_audio", "normalizer": {normalizer!r}, "tasks": {tasks!r}}})
"""


def room_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Pink noise of power 1, float32 `[samples]`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def recording(sentences: list[np.ndarray], pause: float, *, rate: int, rng: np.random.Generator) -> np.ndarray:
    """The sentences one after the other, with room noise for `pause` seconds between them, float32 `[S]`."""
    pieces = []
    for sentence in sentences:
        level = np.sqrt(np.mean(sentence**2)) * 10 ** (-20 / 20)
        pieces += [sentence, level * room_noise(int(pause * rate), rng)] if pause else [sentence]
    return np.concatenate(pieces)


def measured(
    model: api.Model, task: str, texts: list[str], waveforms: list[np.ndarray], *, seconds: float, folder: epath.Path
) -> dict:
    """The errors of the sentences of a task said one by one, and of recordings of them, which are left in a folder."""
    rng, rate = np.random.default_rng(0), model.backbone.sample_rate
    order: list[int] = []
    while sum(len(waveforms[n]) / rate + max(PAUSES.values()) for n in order) < seconds:
        order += rng.permutation(len(texts)).tolist()
    said = " ".join(texts[n] for n in order)

    alone = model.transcribe(waveforms, sample_rate=rate, tasks=[task] * len(texts))
    counts = [error_rates.word_errors(*pair, normalizer=NORMALIZER) for pair in zip(texts, alone, strict=True)]
    found = {"words": sum(counts[n].words for n in order), "one by one": sum(counts[n].errors for n in order)}
    for name, pause in PAUSES.items():
        waveform = recording([waveforms[n] for n in order], pause, rate=rate, rng=rng)
        found.setdefault("seconds", len(waveform) / rate)
        (text,) = model.transcribe([waveform], sample_rate=rate, tasks=[task])
        found[name] = error_rates.word_errors(said, text, normalizer=NORMALIZER).errors
        path = folder / f"{task}, {name}"
        soundfile.write(path.with_suffix(".wav"), waveform, rate, subtype="FLOAT")
        row = {"audio_filepath": f"{path.name}.wav", "duration": len(waveform) / rate, "text": said}
        path.with_suffix(".jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return found


def evaluated(folder: epath.Path) -> dict[tuple[str, str], int]:
    """The errors that `evaluate` counts in the recordings of a folder, by task and name."""
    keys = [(task, name) for task in FLAGS.tasks for name in PAUSES]
    rows = tuple((f"{task}, {name}", f"{{dir}}/{task}, {name}.jsonl", "", task) for task, name in keys)
    suite = folder / "suite.py"
    suite.write_text(SUITE.format(normalizer=NORMALIZER, tasks=rows), encoding="utf-8")
    results = evaluate_systems(
        [str(suite)],
        folder / "R",
        adapters=[f"adapter={FLAGS.adapter}"],
        backbones=[FLAGS.backbone],
        data_dir=str(folder),
    )
    tasks = results["long_audio"]["adapter"]["tasks"]
    return {(task, name): sum(tasks[f"{task}, {name}"][count] for count in COUNTS) for task, name in keys}


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter.", required=True)
    flags.DEFINE_string("manifest", None, "Sentences of its tasks.", required=True)
    flags.DEFINE_list("tasks", None, "Tasks of the adapter; the tag `speaker` of the manifest.", required=True)
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")
    flags.DEFINE_float("seconds", 600, "Of each recording.")


def main(argv) -> None:
    """Counts all, and prints the table."""
    del argv
    model = api.load_adapter(FLAGS.adapter, api.load_backbone(FLAGS.backbone))
    utterances, _ = read_manifest(FLAGS.manifest, report=DataReport())
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folder = epath.Path(place)
        for task in FLAGS.tasks:
            mine = [utterance for utterance in utterances if utterance.tag("speaker") == task]
            waveforms = [audio.decode(utterance, model.backbone.sample_rate) for utterance in mine]
            texts = [utterance.text for utterance in mine]
            found[task] = measured(model, task, texts, waveforms, seconds=FLAGS.seconds, folder=folder)
        for (task, name), errors in evaluated(folder).items():
            found[task][f"{name}, evaluate"] = errors
    sides = [name for name in next(iter(found.values())) if name not in ("seconds", "words")]
    rows = [
        [task, *(f"{percent(n[side] / n['words'])} ({ratio(n[side] / n[sides[0]])})" for side in sides)]
        for task, n in found.items()
    ]
    say(stdout(), f"chunks of {model.chunk_seconds:g} s; word error rate, and times that of the sentences one by one")
    stdout().print(table(["task", *sides], rows))
    harness.write("long_audio", FLAGS.json, chunk_seconds=model.chunk_seconds, tasks=found)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
