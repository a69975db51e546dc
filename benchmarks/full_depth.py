"""The published sizes on one machine: conversion in bounded memory, and agreement with transformers at full depth.

python benchmarks/full_depth.py --workdir runs/full_depth --json benchmarks/results/full_depth.json

w2v-BERT 2.0 (24 layers, 580 million parameters) and Parakeet CTC 1.1B (42 layers) with random weights, written by
transformers as published (float32). Each step has a process of its own, whose peak of memory is given above that of the
bare interpreter: conversion, what transformers gives for one utterance, and what the converted backbone gives.
"""

import json
import shutil
import subprocess
import sys
import time

import harness
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli

FLAGS = flags.FLAGS
MODELS = {
    "w2v-BERT 2.0": ("Wav2Vec2BertModel", "Wav2Vec2BertConfig", {}, "SeamlessM4TFeatureExtractor"),
    "Parakeet CTC 1.1B": (
        "ParakeetForCTC",
        "ParakeetCTCConfig",
        {"encoder_config": {"num_hidden_layers": 42}},
        "ParakeetFeatureExtractor",
    ),
}
SECONDS = 5.0
STEPS = ("publish", "convert", "transformers", "hra_jax")


def waveform() -> np.ndarray:
    """One utterance of noise over a rising tone, float32."""
    rng, time_axis = np.random.default_rng(0), np.arange(round(SECONDS * 16000)) / 16000
    return (0.1 * np.sin(1500 * time_axis**2) + 0.03 * rng.standard_normal(time_axis.size)).astype(np.float32)


def publish(name: str, folder: epath.Path) -> dict:
    """Writes the folder as published; every weight, statistic and bias is drawn."""
    import torch
    import transformers

    kind, config_kind, settings, extractor = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config_kind)(**settings))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(float("norm" in key and key.endswith("weight")), 0.1)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    getattr(transformers, extractor)().save_pretrained(folder)
    if kind.endswith("ForCTC"):
        pieces = {f"<{i}>": i for i in range(model.config.vocab_size - 1)} | {"<pad>": model.config.vocab_size - 1}
        (folder / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}), encoding="utf-8"
        )
    return {"parameters": sum(weight.numel() for weight in model.parameters())}


def convert(name: str, folder: epath.Path) -> dict:
    """Converts it, to float32."""
    from hra_jax.convert.conversion import convert as converted

    del name
    start = time.perf_counter()
    report = converted(folder, folder / "backbone")
    return {"seconds": time.perf_counter() - start, "parameters": report.parameters, "largest": _largest(folder)}


def _largest(folder: epath.Path) -> int:
    """Bytes of the largest stacked tensor."""
    import jax

    from hra_jax.models import backbone_folder

    leaves = jax.tree.leaves(backbone_folder.load(str(folder / "backbone")).abstract)
    return max(4 * int(np.prod(leaf.shape)) for leaf in leaves)


def transformers(name: str, folder: epath.Path) -> dict:
    """Writes what transformers gives for the utterance: log-probabilities, or the encoder's output."""
    import torch
    import transformers as library

    kind, _, _, extractor = MODELS[name]
    model = getattr(library, kind).from_pretrained(folder, dtype=torch.float32).eval()
    inputs = getattr(library, extractor)()(waveform(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        output = model(input_features=inputs["input_features"], attention_mask=inputs["attention_mask"])
        found = output.logits.log_softmax(-1) if hasattr(output, "logits") else output.last_hidden_state
    np.save(folder / "transformers.npy", found[0].float().numpy())
    return {"frames": found.shape[1]}


def hra_jax(name: str, folder: epath.Path) -> dict:
    """The difference of the converted backbone's output."""
    import jax

    from hra_jax.adapters.base import unbound
    from hra_jax.api import load_backbone
    from hra_jax.models.asr import AsrModel

    del name
    backbone = load_backbone(str(folder / "backbone"), dtype="float32")

    model = AsrModel(backbone.files.features, backbone.files.encoder)
    samples = waveform()
    lengths = np.array([samples.size], np.int32)
    headless = backbone.files.encoder.vocab_size == 1

    @jax.jit
    def run(params):
        (log_probs, frames), kept = model.apply(
            {"params": params}, samples[None], lengths, unbound(), capture_intermediates=_is_encoder
        )
        hidden = kept["intermediates"]["encoder"]["__call__"][0]
        return (hidden if headless else log_probs), frames

    found, frames = run(backbone.params)
    expected = np.load(folder / "transformers.npy")
    count = int(frames[0])
    apart = np.abs(np.asarray(found)[0, :count] - expected[:count])
    return {
        "compared": "last hidden state" if headless else "log-probabilities",
        "frames": count,
        "max": float(apart.max()),
        "mean": float(apart.mean()),
        "root_mean_square": float(np.sqrt(np.square(expected[:count]).mean())),
    }


def _is_encoder(module, method: str) -> bool:
    return module.name == "encoder" and method == "__call__"


def _bare() -> int:
    """The peak of an interpreter that has imported nothing, bytes."""
    program = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    return 1024 * int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("workdir", None, "Where the weights are written; emptied afterwards.", required=True)
    flags.DEFINE_list("models", list(MODELS), "Which ones.")
    flags.DEFINE_list("step", [], "MODEL,STEP: runs one step in --workdir and prints what it found.")


def main(argv) -> None:
    """Entry point."""
    if FLAGS.step:
        name, step = FLAGS.step
        found = globals()[step](name, epath.Path(FLAGS.workdir))
        print(json.dumps(found | {"above_bare_gib": (harness.peak_memory() - _bare()) / 2**30}))
        return
    results = {}
    for name in FLAGS.models:
        folder = epath.Path(FLAGS.workdir) / name.replace(" ", "_")
        if folder.exists():
            folder.rmtree()
        results[name] = {}
        for step in STEPS:
            command = [sys.executable, argv[0], f"--step={name},{step}", f"--workdir={folder}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name][step] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}, {step}: {results[name][step]}", flush=True)
        shutil.rmtree(folder)
    harness.write("full_depth", FLAGS.json, packages=("torch", "transformers"), models=results)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
