"""A tiny model with every parameter drawn at random, and batches of random sound, for tests."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters import initial, task_rows
from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.output import OutputAdapter
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.training.step import forward

FEATURES = FeatureConfig(sample_rate=1000, fft=32, bins=8, high_hz=500.0)  # hop 10 samples, window 25
ENCODER = EncoderConfig(
    d_model=16,
    n_layers=3,
    n_heads=2,
    d_ff=24,
    kernel=3,
    vocab_size=6,
    subsampling=2,
    subsampling_channels=4,
    position="rope_qk",
)
TASKS = 5
ADAPTERS = {
    "linear": HierarchicalRecurrentAdapter(width=6),
    "ffn": HierarchicalRecurrentAdapter(width=6, head="ffn", head_width=4),
}
# Every method, with settings that are not its defaults.
METHODS = {
    "hra": HierarchicalRecurrentAdapter(
        width=6, recurrence="gru", activation="tanh", reads="attention.output", head="ffn", head_width=4
    ),
    "hra per layer": HierarchicalRecurrentAdapter(
        width=6,
        recurrence="lstm",
        activation="silu",
        reads="input",
        head="lowrank",
        head_width=3,
        head_per_layer=True,
        layers=(2, 0),
    ),
    "residual": ResidualAdapter(width=5),
    "lora": LowRankAdapter(projections=("attention.query", "ff1.up", "convolution.gated"), rank=3, alpha=4.5),
    "lora and output": LowRankAdapter(
        projections=("attention.value", "ff2.down"), rank=2, alpha=3.0, layers=(2, 0), output="task"
    ),
    "bitfit": BiasAdapter(),
    "output": OutputAdapter(),
}


@functools.lru_cache(maxsize=32)
def _backbone_shapes(features: FeatureConfig, encoder: EncoderConfig) -> dict:
    return backbone_folder.flatten(nn.unbox(backbone_folder.abstract_params(features, encoder)), separator=".")


def random_params(features: FeatureConfig, encoder: EncoderConfig, *, seed: int = 0) -> dict:
    """Backbone parameters: projections that keep the scale, norms and biases well away from 1 and 0."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, leaf in _backbone_shapes(features, encoder).items():
        shape = leaf.shape[1:] if name.startswith("encoder.layers.") else leaf.shape
        value = rng.standard_normal(leaf.shape).astype(np.float32)
        if name.endswith("kernel"):
            flat[name] = value / np.sqrt(np.prod(shape[:-1], dtype=np.float32))
        elif name.endswith("variance"):
            flat[name] = 0.5 + np.abs(value)
        else:
            flat[name] = 0.3 * value + np.float32(name.endswith("scale"))
    return backbone_folder.unflatten(flat, separator=".")


def new_trainable(adapter, encoder: EncoderConfig = ENCODER, *, tasks: int = TASKS) -> dict:
    """An adapter as a run starts with it, as numpy."""
    return jax.device_get(initial.new_weights(adapter, jax.random.key(7), encoder, tasks))


def random_trainable(adapter, encoder: EncoderConfig = ENCODER, *, tasks: int = TASKS, seed: int = 1) -> dict:
    """An adapter with no zero left in it, as after training."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: initial.new_weights(adapter, jax.random.key(7), encoder, tasks))
    return jax.tree.map(lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def one_task(trainable: dict, task: int) -> tuple[dict, dict]:
    """Controller, and head of a task."""
    head = jax.tree.map(lambda leaf: leaf[task], trainable["tasks"]["all_layers"]["head"])
    return trainable["shared"]["all_layers"]["controller"], head


def row_of(trainable: dict, task: int) -> dict:
    """All that a task owns."""
    return jax.tree.map(lambda leaf: leaf[task], trainable["tasks"])


def random_batch(lengths, *, size: int, tasks, labels: int = 3, seed: int = 2, filler: float = 0.0) -> dict:
    """A batch of random sound: `lengths` samples per row of `size`, with `filler` behind them."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    waveform = np.full((rows, size), filler, np.float32)
    for row, length in enumerate(lengths):
        # Slow and fast parts of different strength, so that frames and bins differ.
        time = np.arange(length)
        tone = np.sin(0.001 * (row + 1) * time**1.5) * (1.5 + np.sin(time / 40))
        waveform[row, :length] = tone + 0.3 * rng.standard_normal(length)
    return {
        "waveform": waveform,
        "num_samples": np.asarray(lengths, np.int32),
        "labels": rng.integers(1, ENCODER.vocab_size, (rows, labels)).astype(np.int32),
        "label_lengths": rng.integers(1, labels + 1, rows).astype(np.int32),
        "task": np.asarray(tasks, np.int32),
        "weight": np.ones(rows, np.float32),
        "utterance": np.arange(100, 100 + rows),
    }


def rows_of(batch: dict, order) -> dict:
    """The rows of a batch in another order."""
    return {name: value[np.asarray(order)] for name, value in batch.items()}


@functools.lru_cache(maxsize=32)
def compiled_forward(encoder: EncoderConfig = ENCODER, head: str = "linear", max_tasks: int = 8, *, adapter=None):
    """`f(backbone, trainable, batch) -> (log_probs, lengths)`, through the bank as training and evaluation do it.

    The method is `adapter`, or where that is None the one of ADAPTERS that `head` names.
    """
    model = AsrModel(FEATURES, encoder, adapter=adapter or ADAPTERS[head])

    def run(backbone, trainable, batch):
        tasks = jax.tree.leaves(trainable["tasks"])[0].shape[0]
        ids, index = task_rows.active_rows(batch["task"], max_tasks, tasks)
        rows = task_rows.gather(trainable["tasks"], ids)
        return forward(model, backbone, trainable["shared"], rows, index, batch)

    return jax.jit(run)


@functools.lru_cache(maxsize=8)
def compiled_base(encoder: EncoderConfig = ENCODER):
    """`f(backbone, batch) -> (log_probs, lengths)` of a model that knows of no adapter."""
    model = AsrModel(FEATURES, encoder)
    return jax.jit(lambda backbone, batch: forward(model, backbone, None, None, jnp.zeros_like(batch["task"]), batch))
