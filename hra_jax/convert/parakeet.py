"""Parakeet CTC (NeMo's Fast Conformer): `ParakeetForCTC`, 0.6b and 1.1b. LASR has the names of its block too."""

import math

from hra_jax.convert import tensor_rules
from hra_jax.convert.family import Architecture, Family
from hra_jax.convert.settings import SILU, Only, select
from hra_jax.convert.wav2vec2_bert import check_odd
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig

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


def encoder_settings(values: dict, defaults: dict, features, where: str):
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


def _encoder(values, features, vocab_size, fold, where) -> EncoderConfig:
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


def block_rules(encoder: EncoderConfig):
    """Rules of a block without its position term."""
    bias, norm_bias = encoder.attention_bias, encoder.norm_bias
    found = (
        tensor_rules.norm("norm_feed_forward1", "ff1.norm", bias=norm_bias)
        + tensor_rules.norm("norm_self_att", "attention_norm", bias=norm_bias)
        + tensor_rules.norm("norm_conv", "convolution.norm", bias=norm_bias)
        + tensor_rules.norm("norm_feed_forward2", "ff2.norm", bias=norm_bias)
        + tensor_rules.norm("norm_out", "final_norm", bias=norm_bias)
    )
    for number in (1, 2):
        found += tensor_rules.affine(f"feed_forward{number}.linear1", f"ff{number}.up", bias=encoder.ff_bias)
        found += tensor_rules.affine(f"feed_forward{number}.linear2", f"ff{number}.down", bias=encoder.ff_bias)
    for letter, name in zip("qkvo", ("query", "key", "value", "output"), strict=True):
        found += tensor_rules.affine(f"self_attn.{letter}_proj", f"attention.{name}", bias=bias)
    return (
        found
        + tensor_rules.affine(
            "conv.pointwise_conv1", "convolution.gated", tensor_rules.POINTWISE, bias=encoder.conv_bias
        )
        + tensor_rules.affine(
            "conv.pointwise_conv2", "convolution.output", tensor_rules.POINTWISE, bias=encoder.conv_bias
        )
        + tensor_rules.batch_norm(
            "conv.norm", depthwise="conv.depthwise_conv", bias=encoder.conv_bias, fold=encoder.conv_norm == "none"
        )
    )


_POSITION = (
    tensor_rules.affine("self_attn.relative_k_proj", "attention.position", bias=False)
    + tensor_rules.one("self_attn.bias_u", "attention.content_bias")
    + tensor_rules.one("self_attn.bias_v", "attention.position_bias")
)


def _rules(encoder: EncoderConfig, architecture: Architecture):
    # The places between are those of the activations.
    layers = "subsampling.layers"
    subsampling = (
        tensor_rules.convolution(f"{layers}.0", "subsampling.conv_0", tensor_rules.CONV_2D)
        + tensor_rules.convolution(f"{layers}.2", "subsampling.depthwise_1", tensor_rules.CONV_2D)
        + tensor_rules.affine(f"{layers}.3", "subsampling.pointwise_1", tensor_rules.POINTWISE_2D)
        + tensor_rules.convolution(f"{layers}.5", "subsampling.depthwise_2", tensor_rules.CONV_2D)
        + tensor_rules.affine(f"{layers}.6", "subsampling.pointwise_2", tensor_rules.POINTWISE_2D)
        + tensor_rules.affine(
            "subsampling.linear", "subsampling.projection", tensor_rules.frequency_major(encoder.subsampling_channels)
        )
    )
    prefix = architecture.prefix
    return (
        tensor_rules.under(prefix, subsampling)
        + tensor_rules.layers(f"{prefix}layers.{{n}}.", block_rules(encoder) + _POSITION)
        + tensor_rules.affine(architecture.head, "output", tensor_rules.POINTWISE)
    )


COUNTERS = {"{prefix}layers.*.conv.norm.num_batches_tracked": "counts training batches"}

FAMILY = Family(
    name="Parakeet CTC",
    architectures={"ParakeetForCTC": Architecture("encoder.", "ctc_head")},
    extractor="ParakeetFeatureExtractor",
    encoder=_encoder,
    rules=_rules,
    ignored=COUNTERS,
    head_defaults={"vocab_size": 1025, "pad_token_id": 1024},
)
