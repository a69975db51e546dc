"""Recognition with an exported program. It needs jax, flatbuffers and numpy, and nothing of hra_jax."""

import json
import pathlib
from typing import Any

import jax
import jax.export
import numpy as np

BASE = None  # in place of a row: no adapter


def read_tensors(path: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a safetensors file by name, and what it says of itself."""
    content = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = json.loads(header.pop("__metadata__", {}).get("hra_jax", "{}"))
    tensors = {}
    for name, entry in header.items():
        kind: Any = {"F32": np.float32, "BF16": jax.numpy.bfloat16, "I32": np.int32}[entry["dtype"]]
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(content[start + begin : start + end], kind).reshape(entry["shape"])
    return tensors, about


def padded(size: int, least: int) -> int:
    """The smallest of 1, 1.5, 2, 3, 4, 6, ... times `least` that holds `size`: each is compiled once."""
    found = least
    while found < size:
        if found + found // 2 >= size:
            return found + found // 2
        found *= 2
    return found


class Recogniser:
    """An exported folder, with its weights on the device."""

    def __init__(self, folder: Any):
        folder = pathlib.Path(folder)
        self.facts = json.loads((folder / "serving.json").read_text(encoding="utf-8"))
        self.program = jax.jit(jax.export.deserialize((folder / "recogniser.stablehlo").read_bytes()).call)
        weights: dict[str, np.ndarray] = {}
        for file in sorted((folder / "backbone").glob("*.safetensors")):
            weights |= read_tensors(file)[0]
        self.backbone, self.shared = jax.device_put((weights, read_tensors(folder / "shared.safetensors")[0]))

    def row(self, path: Any) -> Any:
        """What a task owns, from its file; BASE if the task is set aside.

        A task that was trained with another backbone or adapter is refused.
        """
        tensors, about = read_tensors(path)
        for part in ("backbone", "adapter"):
            if about.get(part) != self.facts[part]["fingerprint"]:
                raise ValueError(
                    f"{path}: made for the {part} {about.get(part)}, not {self.facts[part]['fingerprint']}"
                )
        return BASE if about["set_aside"] else (tensors, about.get("labels", self.facts["labels"]))

    def log_probs(self, waveforms: list[np.ndarray], rows: list[Any]) -> list[np.ndarray]:
        """Log-probabilities of each utterance, float32 [frames, V].

        Waveforms are float32, mono, full scale 1, at facts["sample_rate"], and not longer than facts["chunk_seconds"].
        Rows are what `row` gave, or BASE: one for each utterance, of any tasks.
        """
        batch = padded(len(waveforms), 1)
        samples = np.zeros((batch, padded(max(map(len, waveforms), default=0), self.facts["sample_rate"])), np.float32)
        lengths = np.zeros(batch, np.int32)
        numbers = np.full(batch, -1, np.int32)  # -1 is no adapter
        shapes = {name: entry["shape"] for name, entry in self.facts["row"].items()}
        kinds = {name: entry["dtype"] for name, entry in self.facts["row"].items()}
        bank = {name: np.zeros((batch, *shape), kinds[name]) for name, shape in shapes.items()}
        for i, (waveform, row) in enumerate(zip(waveforms, rows, strict=True)):
            if waveform.dtype.kind != "f":
                raise ValueError(
                    f"utterance {i} of the batch: samples are {waveform.dtype}, not floats of full scale 1"
                )
            samples[i, : len(waveform)], lengths[i] = waveform, len(waveform)
            if row is not BASE:
                numbers[i] = i
                for name, tensor in row[0].items():
                    bank[name][i] = tensor
        found, frames = self.program(self.backbone, self.shared, bank, numbers, samples, lengths)
        found, frames = np.asarray(found), np.asarray(frames)
        valid = [found[i, : frames[i]] for i in range(len(waveforms))]
        for i, log_probs in enumerate(valid):
            if not np.isfinite(log_probs).all():  # whose text would be empty
                raise ValueError(f"utterance {i} of the batch: its samples or log-probabilities are not finite")
        return valid

    def text(self, log_probs: np.ndarray, row: Any = BASE) -> str:
        """Greedy decoding: the likeliest label of each frame, repetitions once, without the blank."""
        best = log_probs.argmax(axis=-1)
        labels = self.facts["labels"] if row is BASE else row[1]
        said = best[np.flatnonzero(np.diff(best, prepend=-1))]
        return "".join(labels[label] for label in said if label != self.facts["blank"]).strip()
