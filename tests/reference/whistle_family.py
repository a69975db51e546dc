"""A family of encoders in one file outside the package.

Its tensors have names of their own, its tokenizer is a file of letters, and PyTorch has no such encoder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hra_jax.convert.family import Architecture, Extractor, Family
from hra_jax.convert.settings import Only, select
from hra_jax.convert.tensor_rules import CONV_2D, POINTWISE, Rule, affine, batch_norm, convolution, head, layers, norm
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.text.vocabularies import CharacterVocabulary

FEATURES = FeatureConfig(bins=16, floor=1e-3)
CHANNELS = 4
_DEFAULTS = {"size": 16, "depth": 2, "act": Only("silu", ("silu",))}


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    config = select(values, _DEFAULTS, where=where)
    return EncoderConfig(
        d_model=config.size,
        n_layers=config.depth,
        n_heads=2,
        d_ff=24,
        kernel=3,
        vocab_size=vocab_size,
        subsampling=2,
        subsampling_channels=CHANNELS,
        position="rope_qk",
        conv_norm="none" if fold else "batch",
    )


def rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    """One rule for each tensor."""
    block = norm("n.5", "final_norm") + norm("n.1", "attention_norm") + norm("n.2", "convolution.norm")
    for number in (1, 2):
        block += norm(f"ff.{number}.n", f"ff{number}.norm")
        block += affine(f"ff.{number}.a", f"ff{number}.up") + affine(f"ff.{number}.b", f"ff{number}.down")
    for name in ("query", "key", "value", "output"):
        block += affine(f"att.{name[0]}", f"attention.{name}")
    block += affine("conv.a", "convolution.gated", POINTWISE) + affine("conv.b", "convolution.output", POINTWISE)
    block += batch_norm("conv.bn", depthwise="conv.d", bias=True, fold=encoder.conv_norm == "none")
    return (
        convolution("in.conv", "subsampling.conv_0", CONV_2D)
        + affine("in.dense", "subsampling.projection")
        + layers("blocks.{n}.", block)
        + head(architecture.head, width=encoder.d_model, vocabulary=encoder.vocab_size)
    )


def _tokenizer(folder: Path, outputs: int, blank: int) -> CharacterVocabulary | None:
    del outputs, blank
    file = folder / "letters.txt"
    return CharacterVocabulary(file.read_text()) if file.exists() else None


PIECES: dict[str, Any] = dict(
    name="Whistle",
    model_type="whistle",
    architectures={"WhistleForCTC": Architecture("", "out")},
    extractor=Extractor("WhistleExtractor", {"bins": Only(16, (16,))}, lambda found: FEATURES),
    encoder=_encoder,
    rules=rules,
    torch=None,
    ignored={"blocks.*.conv.bn.steps": "counts training batches"},
    head_defaults={"vocab_size": 8, "pad_token_id": 0},
    models={"whistle_small": (FEATURES, _encoder({}, FEATURES, 8, True, "the defaults"))},
    tokenizer=_tokenizer,
)
FAMILY = Family(**PIECES)


def _shapes(width: int = 16, ff: int = 24, taps: int = 3, outputs: int = 8) -> dict[str, tuple[int, ...]]:
    """The source tensors and their shapes, written out by hand."""
    found = {"in.conv.weight": (CHANNELS, 1, 3, 3), "in.conv.bias": (CHANNELS,)}
    found |= {"in.dense.weight": (width, 8 * CHANNELS), "in.dense.bias": (width,)}
    found |= {"out.weight": (outputs, width), "out.bias": (outputs,)}
    for layer in range(2):
        block = {f"{name}.{part}": (width,) for name in ("n.1", "n.2", "n.5") for part in ("weight", "bias")}
        for number in (1, 2):
            block |= {f"ff.{number}.n.weight": (width,), f"ff.{number}.n.bias": (width,)}
            block |= {f"ff.{number}.a.weight": (ff, width), f"ff.{number}.a.bias": (ff,)}
            block |= {f"ff.{number}.b.weight": (width, ff), f"ff.{number}.b.bias": (width,)}
        for letter in "qkvo":
            block |= {f"att.{letter}.weight": (width, width), f"att.{letter}.bias": (width,)}
        block |= {"conv.a.weight": (2 * width, width, 1), "conv.a.bias": (2 * width,)}
        block |= {"conv.b.weight": (width, width, 1), "conv.b.bias": (width,)}
        block |= {"conv.d.weight": (width, 1, taps), "conv.d.bias": (width,), "conv.bn.steps": (1,)}
        block |= {f"conv.bn.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        found |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return found


def publish(folder: Path) -> Path:
    """Writes a folder of random weights as this family is published, and returns it."""
    folder.mkdir(parents=True)
    config = {"model_type": "whistle", "architectures": ["WhistleForCTC"], "vocab_size": 8, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "WhistleExtractor"}))
    (folder / "letters.txt").write_text(" abcdef")
    rng = np.random.default_rng(5)
    tensors = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in _shapes().items()}
    tensors = {name: np.abs(value) + 0.5 if name.endswith("running_var") else value for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
