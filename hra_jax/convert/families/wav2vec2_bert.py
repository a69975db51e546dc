"""w2v-BERT 2.0: `Wav2Vec2BertModel` (self-supervised, without a head) and its CTC fine-tunes `Wav2Vec2BertForCTC`.

The block is that of the speech encoder of SeamlessM4T v2 too.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

from hra_jax.convert.family import Architecture, Extractor, Family, TorchEncoder
from hra_jax.convert.settings import SILU, Count, Only, select
from hra_jax.convert.tensor_rules import DEPTHWISE, POINTWISE, Rule, affine, head, layers, norm, one, under
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

POSITIONS: dict[str | None, str] = {"relative_key": "shaw", "relative": "xl", "rotary": "rope_in", None: "none"}
SPEC_AUGMENT = "stands in for masked frames in training only"

# Kaldi filter banks of 16-bit samples, two frames side by side; those of SeamlessM4T too.
FEATURES = FeatureConfig(
    unit_variance=False,
    scale=2.0**15,
    framing="inside",
    window_shape="povey",
    unit_power=False,
    remove_dc=True,
    preemphasis=0.97,
    floor=2.0**-23,
    floor_mode="max",
    normalization="unbiased",
    normalization_eps=1e-7,
    stack=2,
)
EXTRACTOR = Extractor(
    "SeamlessM4TFeatureExtractor",
    {"num_mel_bins": 80, "stride": 2},
    lambda found: dataclasses.replace(FEATURES, bins=found.num_mel_bins, stack=found.stride),
)

# The published geometry: Shaw's term, causal convolutions, and no output layer but the blank.
GEOMETRY: dict[str, Any] = dict(
    d_model=1024,
    n_layers=24,
    n_heads=16,
    d_ff=4096,
    kernel=31,
    vocab_size=1,
    subsampler="projection",
    subsampling=1,
    position="shaw",
    conv_padding="causal",
    conv_mask="pre_pointwise",
    conv_bias=False,
)

_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feature_projection_input_dim": 160,
    "hidden_act": Only("swish", SILU),
    "layer_norm_eps": 1e-5,
    "add_adapter": Only(False, (False,)),
    "use_intermediate_ffn_before_adapter": Only(False, (False,)),
    "position_embeddings_type": Only("relative_key", tuple(POSITIONS)),
    "rotary_embedding_base": 10000,
    "left_max_position_embeddings": Count(64, 0),
    "right_max_position_embeddings": Count(8, 0),
    "conv_depthwise_kernel_size": 31,
}


def position_settings(config: SimpleNamespace) -> dict[str, Any]:
    """The fields of EncoderConfig that say how positions enter; those of other kinds keep their defaults."""
    position = POSITIONS[config.position_embeddings_type]
    found: dict[str, Any] = {"position": position}
    if position == "shaw":
        found |= {"shaw_left": config.left_max_position_embeddings, "shaw_right": config.right_max_position_embeddings}
    if position == "rope_in":
        found["rope_base"] = float(config.rotary_embedding_base)
    return found


def check_width(config: SimpleNamespace, features: FeatureConfig, where: str) -> None:
    """Refuses an input width that is not that of the features."""
    if config.feature_projection_input_dim != features.width:
        raise UserError(
            f"{where}: feature_projection_input_dim is {config.feature_projection_input_dim}; "
            f"its feature extractor gives {features.width} values a frame"
        )


def check_odd(name: str, kernel: int, where: str) -> None:
    """Refuses a depthwise convolution with an even number of taps."""
    if kernel % 2 == 0:
        raise UserError(f"{where}: {name} is {kernel}; it must be odd")


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    del fold  # there is no BatchNorm
    config = select(values, _DEFAULTS, where=where)
    check_width(config, features, where)
    check_odd("conv_depthwise_kernel_size", config.conv_depthwise_kernel_size, where)
    return EncoderConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_ff=config.intermediate_size,
        kernel=config.conv_depthwise_kernel_size,
        vocab_size=vocab_size,
        subsampler="projection",
        subsampling=1,
        norm_eps=float(config.layer_norm_eps),
        conv_padding="causal",
        conv_norm="layer",
        conv_mask="pre_pointwise",
        conv_bias=False,
        **position_settings(config),
    )


def attention(position: str) -> tuple[Rule, ...]:
    """Rules of the self-attention of a block; also those of wav2vec2-conformer."""
    found = (
        norm("self_attn_layer_norm", "attention_norm")
        + affine("self_attn.linear_q", "attention.query")
        + affine("self_attn.linear_k", "attention.key")
        + affine("self_attn.linear_v", "attention.value")
        + affine("self_attn.linear_out", "attention.output")
    )
    if position == "xl":
        found += (
            affine("self_attn.linear_pos", "attention.position", bias=False)
            + one("self_attn.pos_bias_u", "attention.content_bias")
            + one("self_attn.pos_bias_v", "attention.position_bias")
        )
    if position == "shaw":
        found += one("self_attn.distance_embedding.weight", "attention.distance")
    return found


FEED_FORWARD = (
    norm("ffn1_layer_norm", "ff1.norm")
    + affine("ffn1.intermediate_dense", "ff1.up")
    + affine("ffn1.output_dense", "ff1.down")
    + norm("ffn2_layer_norm", "ff2.norm")
    + affine("ffn2.intermediate_dense", "ff2.up")
    + affine("ffn2.output_dense", "ff2.down")
    + norm("final_layer_norm", "final_norm")
)
POINTWISE_CONVOLUTIONS = (
    norm("conv_module.layer_norm", "convolution.norm")
    + affine("conv_module.pointwise_conv1", "convolution.gated", POINTWISE, bias=False)
    + affine("conv_module.pointwise_conv2", "convolution.output", POINTWISE, bias=False)
)
_DEPTHWISE = affine("conv_module.depthwise_conv", "convolution.depthwise", DEPTHWISE, bias=False) + norm(
    "conv_module.depthwise_layer_norm", "convolution.depthwise_norm"
)
INPUT = norm("feature_projection.layer_norm", "subsampling.norm") + affine(
    "feature_projection.projection", "subsampling.projection"
)


def encoder_rules(encoder: EncoderConfig, prefix: str) -> tuple[Rule, ...]:
    """Rules of input and blocks."""
    block = FEED_FORWARD + attention(encoder.position) + POINTWISE_CONVOLUTIONS + _DEPTHWISE
    return under(prefix, INPUT) + layers(f"{prefix}encoder.layers.{{n}}.", block)


def _rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    output = head(architecture.head, width=encoder.d_model, vocabulary=encoder.vocab_size)
    return encoder_rules(encoder, architecture.prefix) + output


FAMILY = Family(
    name="w2v-BERT",
    model_type="wav2vec2-bert",
    architectures={
        "Wav2Vec2BertModel": Architecture(""),
        "Wav2Vec2BertForCTC": Architecture("wav2vec2_bert.", "lm_head"),
    },
    extractor=EXTRACTOR,
    encoder=_encoder,
    rules=_rules,
    torch=TorchEncoder("Wav2Vec2BertEncoderLayer"),
    ignored={"{prefix}masked_spec_embed": SPEC_AUGMENT},
    head_defaults={"vocab_size": None, "pad_token_id": 0},
    models={"w2v_bert_2.0": (FEATURES, EncoderConfig(**GEOMETRY))},
)
