"""An exported program beside the library: sizes, seconds, and how far its log-probabilities are from the library's.

python benchmarks/serving.py --adapter runs/quickstart/adapter --hard runs/data/hard --json serving.json

The adapter is exported, a task is added to a copy of it (`tasks add --init mean`), and its row goes into the export. A
process without hra_jax then recognises utterances of the test set in batches of 8, in which tasks are mixed, and the
library recognises the same: in the same batches, and each utterance alone, so with another padding, with which it
differs from itself too.
"""

import json
import shutil
import subprocess
import sys
import time
from typing import Any

import harness
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.api import load_adapter, load_backbone
from hra_jax.data.audio import decode_file
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.export import export
from hra_jax.serving.folder import task_file
from hra_jax.storage.writing import temporary_folder

FLAGS = flags.FLAGS
NEW = "newcomer"
HEARD = {"whisper": "whisper", "croak": "croak", "french": "french", NEW: "german"}  # whose voice each task hears
EACH, TOGETHER = 20, 8
SERVER = """
import json, sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
import serve
start = time.perf_counter()
recogniser = serve.Recogniser(sys.argv[1])
loaded = time.perf_counter() - start
waveforms, files = list(np.load(sys.argv[2]).values()), json.loads(sys.argv[3])
rows = {file: recogniser.row(f"{sys.argv[1]}/{file}") for file in set(files)}
found, seconds = [], []
for turn in range(2):
    for at in range(0, len(files), 8):
        start = time.perf_counter()
        found += recogniser.log_probs(waveforms[at : at + 8], [rows[file] for file in files[at : at + 8]])
        seconds.append(time.perf_counter() - start)
found, half = found[: len(files)], len(seconds) // 2
texts = [recogniser.text(log_probs, rows[file]) for log_probs, file in zip(found, files)]
np.savez(sys.argv[4], *found)
foreign = sorted({name.partition(".")[0] for name in sys.modules} & {"hra_jax", "flax", "tensorflow", "safetensors"})
first, again = sum(seconds[:half]), sum(seconds[half:])
print(json.dumps({"texts": texts, "foreign": foreign, "load": loaded, "first": first, "again": again}))
"""


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far log-probabilities `[T, V]` are from those of the library."""
    apart = np.abs(found - expected)
    return {
        "log_probabilities": float(apart.max()),
        "relative": float((apart / np.maximum(1, np.abs(expected))).max()),
        "probabilities": float(np.abs(np.exp(found) - np.exp(expected)).max()),
    }


def worst(entries: list[dict[str, float]]) -> dict[str, float]:
    """The largest of each."""
    return {key: max(entry[key] for entry in entries) for key in entries[0]}


def measured(folder: epath.Path) -> dict[str, Any]:
    """Exports into a folder, serves from it, and compares."""
    adapter, served = folder / "adapter", folder / "served"
    shutil.copytree(FLAGS.adapter, adapter)
    start = time.perf_counter()
    written = export(adapter, served)
    seconds = {"export": time.perf_counter() - start}
    add = [sys.executable, "-m", "hra_jax.tasks", "add", str(adapter), NEW, "--init", "mean"]
    subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
    start = time.perf_counter()
    export(adapter, served, tasks=[NEW])
    seconds["row"] = time.perf_counter() - start
    model = load_adapter(adapter, load_backbone("builtin:tiny"))
    rate = model.backbone.sample_rate
    rows = list(load_manifest(epath.Path(FLAGS.hard) / "test.jsonl", report=DataReport(strict=True)))
    pairs = [
        (task, row)
        for task, voice in HEARD.items()
        for row in [row for row in rows if row.tag("speaker") == voice][:EACH]
    ]
    pairs = [pairs[at] for at in np.random.default_rng(0).permutation(len(pairs))]
    tasks, waveforms = [task for task, _ in pairs], [decode_file(row.audio_filepath, rate) for _, row in pairs]
    np.savez(folder / "in.npz", *waveforms)
    words = [served, folder / "in.npz", json.dumps([task_file(task) for task in tasks]), folder / "out.npz"]
    done = subprocess.run([sys.executable, "-c", SERVER, *map(str, words)], check=True, capture_output=True, text=True)
    told, found = json.loads(done.stdout), list(np.load(folder / "out.npz").values())
    same: dict[str, list] = {task: [] for task in HEARD}
    other: dict[str, list] = {task: [] for task in HEARD}
    library: dict[str, list] = {task: [] for task in HEARD}
    for start_row in range(0, len(tasks), TOGETHER):
        batch = slice(start_row, start_row + TOGETHER)
        expected, frames = model.log_probs(waveforms[batch], sample_rate=rate, tasks=tasks[batch])
        for at, (log_probs, length) in enumerate(zip(expected, frames, strict=True), start_row):
            same[tasks[at]].append(difference(found[at], log_probs[:length]))
            alone, (count,) = model.log_probs([waveforms[at]], sample_rate=rate, tasks=[tasks[at]])
            other[tasks[at]].append(difference(found[at], alone[0, :count]))
            library[tasks[at]].append(difference(log_probs[:length], alone[0, :count]))
    texts = model.transcribe(waveforms, sample_rate=rate, tasks=tasks)
    return {
        "bytes": written.sizes,
        "seconds": seconds | {key: told[key] for key in ("load", "first", "again")},
        "utterances": len(tasks),
        "audio_seconds": sum(map(len, waveforms)) / rate,
        "foreign_modules": told["foreign"],
        "same_texts": sum(a.strip() == b for a, b in zip(texts, told["texts"], strict=True)),
        "same_padding": {task: worst(entries) for task, entries in same.items()},
        "other_padding": {task: worst(entries) for task, entries in other.items()},
        "library_other_padding": {task: worst(entries) for task, entries in library.items()},
    }


def main(argv: list[str]) -> None:
    """Measures, prints and writes everything down."""
    del argv
    with temporary_folder() as folder:
        found = measured(epath.Path(folder))
    print(json.dumps(found, indent=1))
    harness.write("serving", FLAGS.json, **found)


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("adapter", None, "The adapter that the configuration quickstart exports.", required=True)
    flags.DEFINE_string("hard", None, "Folder of the synthetic set `hard`.", required=True)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
