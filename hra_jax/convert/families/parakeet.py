"""Parakeet CTC (NeMo's Fast Conformer): `ParakeetForCTC`, 0.6b and 1.1b."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

from hra_jax.convert.families.wav2vec2_bert import check_odd
from hra_jax.convert.family import Architecture, Extractor, Family, TorchEncoder
from hra_jax.convert.settings import SILU, Only, select
from hra_jax.convert.tensor_rules import (
    CONV_2D,
    POINTWISE,
    POINTWISE_2D,
    Rule,
    affine,
    batch_norm,
    convolution,
    frequency_major,
    head,
    layers,
    norm,
    one,
    under,
)
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

# As NeMo computes them.
FEATURES = FeatureConfig(
    low_hz=0.0,
    unit_variance=False,
    framing="centred",
    window_shape="hann_symmetric",
    unit_power=False,
    preemphasis=0.97,
    preemphasis_of="signal",
    mel_scale="slaney",
    mel_area=True,
    floor=2.0**-24,
    normalization="unbiased_std",
)
SPECTRA = {"hop_length": 160, "n_fft": 512, "win_length": 400}


def spectral_settings(found: SimpleNamespace) -> dict[str, Any]:
    """The fields of FeatureConfig that `SPECTRA` and feature_size say."""
    return {
        "bins": found.feature_size,
        "hop": found.hop_length / found.sampling_rate,
        "window": found.win_length / found.sampling_rate,
        "fft": found.n_fft,
    }


_EXTRACTOR = Extractor(
    "ParakeetFeatureExtractor",
    SPECTRA | {"feature_size": 80, "preemphasis": 0.97},
    lambda found: dataclasses.replace(FEATURES, preemphasis=float(found.preemphasis), **spectral_settings(found)),
)

# The published geometry. BatchNorm is folded into the depthwise convolution.
_GEOMETRY: dict[str, Any] = dict(
    d_model=1024,
    n_heads=8,
    d_ff=4096,
    kernel=9,
    vocab_size=1025,
    subsampler="conv2d_separable",
    subsampling=8,
    subsampling_channels=256,
    position="xl",
    conv_norm="none",
    depthwise_bias=True,
    input_scale=32.0,
)

_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": None,
    "intermediate_size": 4096,
    "hidden_act": Only("silu", SILU),
    "attention_bias": True,
    "convolution_bias": True,
    "conv_kernel_size": 9,
    "subsampling_factor": Only(8, (8,)),
    "subsampling_conv_channels": 256,
    "num_mel_bins": 80,
    "subsampling_conv_kernel_size": Only(3, (3,)),
    "subsampling_conv_stride": Only(2, (2,)),
    "scale_input": True,
}


def encoder_settings(values: dict, defaults: dict, features: FeatureConfig, where: str) -> SimpleNamespace:
    """The settings under `encoder_config`, checked against the features.

    Args:
      values: the object in config.json.
      defaults: as `settings.select` takes them.
      features: the feature settings.
      where: the file, for errors.
    """
    inner = values.get("encoder_config")
    if inner is not None and not isinstance(inner, dict):
        raise UserError(f"{where}: encoder_config must be an object, not {type(inner).__name__}")
    config = select(inner or {}, defaults, where=f"{where}: encoder_config")
    if config.num_key_value_heads not in (None, config.num_attention_heads):
        raise UserError(
            f"{where}: encoder_config: num_key_value_heads is {config.num_key_value_heads}; "
            f"supported: as many as num_attention_heads ({config.num_attention_heads})"
        )
    if config.num_mel_bins != features.width:
        raise UserError(
            f"{where}: encoder_config: num_mel_bins is {config.num_mel_bins}; "
            f"its feature extractor gives {features.width} values a frame"
        )
    return config


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    config = encoder_settings(values, _DEFAULTS, features, where)
    check_odd("conv_kernel_size", config.conv_kernel_size, f"{where}: encoder_config")
    return EncoderConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_ff=config.intermediate_size,
        kernel=config.conv_kernel_size,
        vocab_size=vocab_size,
        subsampler="conv2d_separable",
        subsampling=8,
        subsampling_channels=config.subsampling_conv_channels,
        position="xl",
        norm_eps=1e-5,
        conv_norm="none" if fold else "batch",
        conv_mask="post_glu",
        conv_bias=config.convolution_bias,
        depthwise_bias=True if fold else None,
        attention_bias=config.attention_bias,
        ff_bias=config.attention_bias,
        input_scale=math.sqrt(config.hidden_size) if config.scale_input else 1.0,
    )


def block_rules(encoder: EncoderConfig) -> tuple[Rule, ...]:
    """Rules of a block without its position term."""
    bias, norm_bias = encoder.attention_bias, encoder.norm_bias
    found = (
        norm("norm_feed_forward1", "ff1.norm", bias=norm_bias)
        + norm("norm_self_att", "attention_norm", bias=norm_bias)
        + norm("norm_conv", "convolution.norm", bias=norm_bias)
        + norm("norm_feed_forward2", "ff2.norm", bias=norm_bias)
        + norm("norm_out", "final_norm", bias=norm_bias)
    )
    for number in (1, 2):
        found += affine(f"feed_forward{number}.linear1", f"ff{number}.up", bias=encoder.ff_bias)
        found += affine(f"feed_forward{number}.linear2", f"ff{number}.down", bias=encoder.ff_bias)
    for letter, name in zip("qkvo", ("query", "key", "value", "output"), strict=True):
        found += affine(f"self_attn.{letter}_proj", f"attention.{name}", bias=bias)
    return (
        found
        + affine("conv.pointwise_conv1", "convolution.gated", POINTWISE, bias=encoder.conv_bias)
        + affine("conv.pointwise_conv2", "convolution.output", POINTWISE, bias=encoder.conv_bias)
        + batch_norm(
            "conv.norm", depthwise="conv.depthwise_conv", bias=encoder.conv_bias, fold=encoder.conv_norm == "none"
        )
    )


_POSITION = (
    affine("self_attn.relative_k_proj", "attention.position", bias=False)
    + one("self_attn.bias_u", "attention.content_bias")
    + one("self_attn.bias_v", "attention.position_bias")
)


def _rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    # The numbers between are those of the activations.
    source = "subsampling.layers"
    subsampling = (
        convolution(f"{source}.0", "subsampling.conv_0", CONV_2D)
        + convolution(f"{source}.2", "subsampling.depthwise_1", CONV_2D)
        + affine(f"{source}.3", "subsampling.pointwise_1", POINTWISE_2D)
        + convolution(f"{source}.5", "subsampling.depthwise_2", CONV_2D)
        + affine(f"{source}.6", "subsampling.pointwise_2", POINTWISE_2D)
        + affine("subsampling.linear", "subsampling.projection", frequency_major(encoder.subsampling_channels))
    )
    prefix = architecture.prefix
    return (
        under(prefix, subsampling)
        + layers(f"{prefix}layers.{{n}}.", block_rules(encoder) + _POSITION)
        + head(architecture.head, width=encoder.d_model, vocabulary=encoder.vocab_size, transform=POINTWISE)
    )


COUNTERS = {"{prefix}layers.*.conv.norm.num_batches_tracked": "counts training batches"}

FAMILY = Family(
    name="Parakeet CTC",
    model_type="parakeet_ctc",
    architectures={"ParakeetForCTC": Architecture("encoder.", "ctc_head")},
    extractor=_EXTRACTOR,
    encoder=_encoder,
    rules=_rules,
    torch=TorchEncoder("ParakeetEncoderBlock", frames="_get_subsampling_output_length"),
    ignored=COUNTERS,
    head_defaults={"vocab_size": 1025, "pad_token_id": 1024},
    models={
        "parakeet_ctc_0.6b": (FEATURES, EncoderConfig(**_GEOMETRY, n_layers=24)),
        "parakeet_ctc_1.1b": (FEATURES, EncoderConfig(**_GEOMETRY, n_layers=42)),
    },
)
