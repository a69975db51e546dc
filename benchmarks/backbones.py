"""Converted encoders against transformers on the same weights: forward, and a training step of an adapter.

python benchmarks/backbones.py --workdir runs/backbones --json benchmarks/results/backbones.json

Every family at width 256, 8 layers, random weights, float32, 4 utterances of 8 s, from features (the Conformer of
wav2vec 2.0: from samples). The encoder of SeamlessM4T v2 has no head; both sides put the same one on it, and neither
runs what comes between its Conformer and its decoder. A training step is forward, CTC, backward and AdamW: of the
hierarchical recurrent adapter and of LoRA here (remat = "dots", as in the small configurations), of LoRA with PEFT
there (rank 8, query and value; the CNN on samples frozen as transformers wants it said). Each library has a process of
its own, and the two take turns; the peaks of memory are those of a process that does one thing alone.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import harness
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.models import backbone_folder
from hra_jax.run.jax_setup import setup_jax

FLAGS = flags.FLAGS
D, HEADS, FF, LAYERS, V, RANK = 256, 4, 1024, 8, 64, 8
ROWS, SECONDS, LABELS = 4, 8.0, 24
SAMPLES = 15
_SIDES = {"torch": ("forward", "lora"), "jax": ("forward", "hra", "lora")}
_SHAPE = dict(hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FF)
_STILL = dict.fromkeys(("layerdrop", "attention_dropout", "activation_dropout"), 0.0)  # nothing at random in training
_INNER = _SHAPE | _STILL | dict(dropout=0.0, dropout_positions=0.0)
_META = _SHAPE | _STILL | dict(vocab_size=V, hidden_act="swish", apply_spec_augment=False)
_META |= dict.fromkeys(("hidden_dropout", "feat_proj_dropout", "final_dropout", "conformer_conv_dropout"), 0.0)
_WAVES = _META | dict(feat_extract_norm="layer", conv_bias=True)
_OUTER = dict(vocab_size=V, pad_token_id=V - 1)
_SPEECH = dict(layers=LAYERS, attention_heads=HEADS, intermediate_size=FF, layerdrop=0.0, dropout=0.0)
_SPEECH = dict(hidden_size=D) | {f"speech_encoder_{name}": value for name, value in _SPEECH.items()}
# family -> class of transformers, of its configuration, its settings
FAMILIES = {
    "w2v-BERT, Shaw": (
        "Wav2Vec2BertForCTC",
        "Wav2Vec2BertConfig",
        _META | dict(position_embeddings_type="relative_key"),
    ),
    "w2v-BERT, rotary": ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", _META | dict(position_embeddings_type="rotary")),
    "wav2vec2-conformer, XL": (
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        _WAVES | dict(position_embeddings_type="relative"),
    ),
    "wav2vec2-conformer, rotary": (
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        _WAVES | dict(position_embeddings_type="rotary"),
    ),
    "Parakeet": ("ParakeetForCTC", "ParakeetCTCConfig", _OUTER | dict(encoder_config=_INNER)),
    "LASR": ("LasrForCTC", "LasrCTCConfig", _OUTER | dict(encoder_config=_INNER)),
    "SeamlessM4T v2": ("SeamlessM4Tv2SpeechEncoder", "SeamlessM4Tv2Config", _SPEECH),
}
_EXTRACTORS = {
    "Wav2Vec2BertForCTC": "SeamlessM4TFeatureExtractor",
    "Wav2Vec2ConformerForCTC": "Wav2Vec2FeatureExtractor",
    "ParakeetForCTC": "ParakeetFeatureExtractor",
    "LasrForCTC": "LasrFeatureExtractor",
    "SeamlessM4Tv2SpeechEncoder": "SeamlessM4TFeatureExtractor",
}


def class_of(kind: str):
    """The class of transformers; not all are where the others are."""
    import transformers
    from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2

    return getattr(transformers, kind, None) or getattr(modeling_seamless_m4t_v2, kind)


def head() -> dict[str, np.ndarray]:
    """The head of an encoder that has none."""
    kernel = np.random.default_rng(1).standard_normal((D, V)) / D**0.5
    return {"kernel": kernel.astype(np.float32), "bias": np.zeros(V, np.float32)}


def publish(family: str, folder: epath.Path) -> None:
    """Writes a folder as a publisher would, with random weights, and converts it into `folder / 'backbone'`."""
    import torch
    import transformers

    from hra_jax.convert.conversion import convert

    kind, config_kind, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = class_of(kind)(getattr(transformers, config_kind)(**settings))
    model.save_pretrained(folder)
    getattr(transformers, _EXTRACTORS[kind])().save_pretrained(folder)
    pieces = [f"<{i}>" for i in range(V - 1)]
    pieces = [*pieces, "<pad>"] if kind in ("ParakeetForCTC", "LasrForCTC") else ["<pad>", *pieces]
    (folder / "vocab.json").write_text(
        json.dumps({piece: number for number, piece in enumerate(pieces)}), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}), encoding="utf-8"
    )
    convert(folder, folder / "backbone")


def batch_of(features) -> dict[str, np.ndarray]:
    """Features of noise, and labels: the same for both sides."""
    rng = np.random.default_rng(0)
    samples = round(SECONDS * features.sample_rate)
    shape = (ROWS, samples) if features.kind == "waveform" else (ROWS, int(features.frames(samples)), features.width)
    return {
        "x": rng.standard_normal(shape).astype(np.float32),
        "labels": rng.integers(1, V - 2, (ROWS, LABELS)).astype(np.int32),
    }


def with_head(encoder):
    """The speech encoder of SeamlessM4T v2 up to the end of its Conformer, and a head with the loss of CTC."""
    import torch
    import transformers

    class Headed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.speech, weights = encoder, head()
            self.lm_head = torch.nn.Linear(D, V)
            self.lm_head.load_state_dict(
                {"weight": torch.from_numpy(weights["kernel"].T), "bias": torch.from_numpy(weights["bias"])}
            )

        def forward(self, input_features, attention_mask, labels=None):
            found = self.speech.encoder(self.speech.feature_projection(input_features), attention_mask=attention_mask)
            logits = self.lm_head(found)
            if labels is None:
                return transformers.modeling_outputs.CausalLMOutput(logits=logits)
            log_probs = torch.log_softmax(logits, dim=-1).transpose(0, 1)
            frames, targets = attention_mask.sum(dim=1), torch.full((len(labels),), labels.shape[1])
            loss = torch.nn.functional.ctc_loss(log_probs, labels, frames, targets)
            return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)

    return Headed()


class TorchSide:
    """transformers, and PEFT."""

    def __init__(self, folder: epath.Path, act: str):
        """`act`: forward or lora."""
        import peft
        import torch

        self._torch = torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        model = class_of(kind).from_pretrained(folder)
        if not kind.endswith("ForCTC"):
            model = with_head(model)
        batch = batch_of(backbone_folder.load(str(folder / "backbone")).features)
        self._x = torch.from_numpy(batch["x"])
        self._labels = torch.from_numpy(batch["labels"]).long()
        mask = torch.ones(self._x.shape[:2], dtype=torch.long)
        name = "input_values" if kind == "Wav2Vec2ConformerForCTC" else "input_features"
        self._inputs = {name: self._x, "attention_mask": mask}
        if act == "lora":
            if hasattr(model, "freeze_feature_encoder"):
                model.freeze_feature_encoder()  # its gradients are computed otherwise, though nothing trains it
            targets = ["q_proj", "v_proj"] if kind in ("ParakeetForCTC", "LasrForCTC") else ["linear_q", "linear_v"]
            model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets))
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            self._optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self._model, self._act = model.train(act == "lora"), act

    def __call__(self):
        """One forward pass, or one step."""
        if self._act == "forward":
            with self._torch.inference_mode():
                return self._model(**self._inputs).logits.sum().item()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._model(**self._inputs, labels=self._labels).loss
        loss.backward()
        self._optimizer.step()
        return loss.item()


class JaxSide:
    """hra_jax."""

    def __init__(self, folder: epath.Path, act: str):
        """`act`: forward, hra or lora."""
        import jax

        from hra_jax.adapters import initial
        from hra_jax.adapters.base import Adapter, unbound
        from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
        from hra_jax.adapters.lora import LowRankAdapter
        from hra_jax.models import backbone_folder
        from hra_jax.training import train_state
        from hra_jax.training.optimizer import OptimizerConfig
        from hra_jax.training.step import make_train_step

        files = backbone_folder.load(str(folder / "backbone"))
        encoder, params = files.encoder, files.params
        if encoder.vocab_size == 1:
            encoder, params = dataclasses.replace(encoder, vocab_size=V), params | {"output": head()}
        adapters = {
            "forward": Adapter(),
            "hra": HierarchicalRecurrentAdapter(width=64),
            "lora": LowRankAdapter(rank=RANK, alpha=2.0 * RANK),
        }
        model = _from_features()(files.features, encoder, adapter=adapters[act], remat="dots")
        batch = batch_of(files.features)
        if files.features.kind == "waveform":
            batch["x"] = batch["x"][..., None]  # one channel after the features
        lengths = np.full(ROWS, batch["x"].shape[1], np.int32)
        self._act, self._frozen = act, jax.device_put(params)
        if act == "forward":
            forward = jax.jit(lambda params, x, n: model.apply({"params": params}, x, n, unbound())[0].sum())
            self._call = lambda: forward(self._frozen, batch["x"], lengths)
            return
        blank = V - 1 if encoder.subsampler in ("conv2d_separable", "conv1d") else 0
        config = OptimizerConfig(steps=10_000)
        weights = initial.new_weights(adapters[act], jax.random.key(0), encoder, ROWS)
        self._state = jax.device_put(train_state.create(weights, config))
        step = make_train_step(model, config, blank_id=blank, seed=0, max_tasks=ROWS)
        self._step = jax.jit(step, donate_argnums=0)
        self._batch = jax.device_put(
            {
                "waveform": batch["x"],
                "num_samples": lengths,
                "labels": batch["labels"],
                "label_lengths": np.full(ROWS, LABELS, np.int32),
                "task": np.arange(ROWS, dtype=np.int32),
                "weight": np.ones(ROWS, np.float32),
            }
        )
        self._hyper = {"seed": np.uint32(0), "learning_rate": np.float32(1e-4)}
        self._call = self._train

    def _train(self):
        self._state, metrics = self._step(self._state, self._frozen, self._batch, self._hyper)
        return metrics["loss"]

    def __call__(self):
        """One forward pass, or one step."""
        return float(self._call())


def _from_features():
    from hra_jax.models.asr import AsrModel

    class FromFeatures(AsrModel):
        """The model after its features, as transformers takes them."""

        def _features(self, waveform, num_samples):
            return waveform, num_samples

    return FromFeatures


def serve(library: str, folder: str, pipe) -> None:
    """The process of one library: answers (act, calls) with seconds per call and the share of other processes."""
    sides = {}
    while (asked := pipe.recv()) is not None:
        act, calls = asked
        if act not in sides:
            sides[act] = {"torch": TorchSide, "jax": JaxSide}[library](epath.Path(folder), act)
        pipe.send(harness.sample(sides[act], calls))


class Remote:
    """A library in a process of its own."""

    def __init__(self, library: str, folder: epath.Path):
        self._pipe, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(library, str(folder), there), daemon=True)
        self._process.start()

    def sample(self, act: str, calls: int) -> tuple[float, float]:
        """Seconds per call, and the share of one core that other processes took."""
        self._pipe.send((act, calls))
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.send(None)
        self._process.join()


def turns(folder: epath.Path) -> dict[str, harness.Timing]:
    """Times all acts of both libraries in turn; 'library act' -> its samples."""
    remotes = {library: Remote(library, folder) for library in _SIDES}
    sides = [(library, act) for library, acts in _SIDES.items() for act in acts]
    timings = {f"{library} {act}": harness.Timing() for library, act in sides}
    for library, act in sides:
        for _ in range(3):
            remotes[library].sample(act, 1)
    start = time.monotonic()
    while any(len(timing.samples) < SAMPLES for timing in timings.values()):
        if time.monotonic() - start > 60 * FLAGS.minutes:
            raise RuntimeError(
                f"other processes keep this machine busy: {SAMPLES} undisturbed samples were not to be had"
            )
        for library, act in sides:
            timing = timings[f"{library} {act}"]
            if len(timing.samples) < SAMPLES:
                seconds, foreign = remotes[library].sample(act, 1)
                if foreign > harness.FOREIGN_SHARE:
                    timing.dropped += 1
                else:
                    timing.samples.append(seconds)
    for remote in remotes.values():
        remote.close()
    return timings


def alone(library: str, act: str, folder: str) -> float:
    """The peak of memory of this process, which does one thing three times: MiB."""
    side = {"torch": TorchSide, "jax": JaxSide}[library](epath.Path(folder), act)
    for _ in range(3):
        side()
    return harness.peak_memory() / 2**20


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("workdir", None, "Where the weights of one family at a time are written.", required=True)
    flags.DEFINE_list("families", list(FAMILIES), "Which ones; without those of the list that are in --json already.")
    flags.DEFINE_float("minutes", 10.0, "The longest that one family may take.")
    flags.DEFINE_list("alone", [], "LIBRARY,ACT: runs it by itself on --workdir and prints its peak of memory.")


def measure(family: str, workdir: epath.Path, program: str) -> dict:
    """The timings of one family as JSON values, and the peaks of memory."""
    folder = workdir / family.replace(" ", "_").replace(",", "")
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    publish(family, folder)
    timings = turns(folder)
    peaks = {}
    for name in timings:
        command = [sys.executable, program, "--alone", name.replace(" ", ","), "--workdir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout.splitlines()[-1])
    shutil.rmtree(folder)
    harness.report(
        family,
        {
            "forward": {name: timings[f"{name} forward"] for name in ("torch", "jax")},
            "step": {name: timings[name] for name in ("torch lora", "jax hra", "jax lora")},
        },
        "",
    )
    print("peak memory: " + ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items()), flush=True)
    return {"timings": {name: timing.to_json() for name, timing in timings.items()}, "peak_mib": peaks}


def main(argv) -> None:
    """Entry point."""
    setup_jax()
    if FLAGS.alone:
        print(alone(*FLAGS.alone, FLAGS.workdir))
        return
    path = epath.Path(FLAGS.json) if FLAGS.json else None
    found = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {"families": {}}
    for family in FLAGS.families:
        if family in found["families"]:
            continue
        print(family, flush=True)
        found["families"][family] = measure(family, epath.Path(FLAGS.workdir), argv[0])
        found |= {"benchmark": "backbones", **harness.environment(packages=("torch", "transformers", "peft"))}
        if path:
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
