"""w2v-BERT 2.0: `Wav2Vec2BertModel` (self-supervised, without a head) and its CTC fine-tunes `Wav2Vec2BertForCTC`.

The block is that of the speech encoder of SeamlessM4T v2 too.
"""

from hra_jax.convert import tensor_rules
from hra_jax.convert.family import Architecture, Family
from hra_jax.convert.settings import SILU, Count, Only, select
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig

POSITIONS = {"relative_key": "shaw", "relative": "xl", "rotary": "rope_in", None: "none"}
SPEC_AUGMENT = "stands in for masked frames in training only"

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


def position_settings(config) -> dict:
    """The fields of EncoderConfig that say how positions enter; those of other kinds keep their defaults."""
    position = POSITIONS[config.position_embeddings_type]
    found = {"position": position}
    if position == "shaw":
        found |= {"shaw_left": config.left_max_position_embeddings, "shaw_right": config.right_max_position_embeddings}
    if position == "rope_in":
        found["rope_base"] = float(config.rotary_embedding_base)
    return found


def check_width(config, features, where: str) -> None:
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


def _encoder(values, features, vocab_size, fold, where) -> EncoderConfig:
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


def attention(position: str):
    """Rules of the self-attention of a block; also those of wav2vec2-conformer."""
    found = (
        tensor_rules.norm("self_attn_layer_norm", "attention_norm")
        + tensor_rules.affine("self_attn.linear_q", "attention.query")
        + tensor_rules.affine("self_attn.linear_k", "attention.key")
        + tensor_rules.affine("self_attn.linear_v", "attention.value")
        + tensor_rules.affine("self_attn.linear_out", "attention.output")
    )
    if position == "xl":
        found += (
            tensor_rules.affine("self_attn.linear_pos", "attention.position", bias=False)
            + tensor_rules.one("self_attn.pos_bias_u", "attention.content_bias")
            + tensor_rules.one("self_attn.pos_bias_v", "attention.position_bias")
        )
    if position == "shaw":
        found += tensor_rules.one("self_attn.distance_embedding.weight", "attention.distance")
    return found


FEED_FORWARD = (
    tensor_rules.norm("ffn1_layer_norm", "ff1.norm")
    + tensor_rules.affine("ffn1.intermediate_dense", "ff1.up")
    + tensor_rules.affine("ffn1.output_dense", "ff1.down")
    + tensor_rules.norm("ffn2_layer_norm", "ff2.norm")
    + tensor_rules.affine("ffn2.intermediate_dense", "ff2.up")
    + tensor_rules.affine("ffn2.output_dense", "ff2.down")
    + tensor_rules.norm("final_layer_norm", "final_norm")
)
POINTWISE = (
    tensor_rules.norm("conv_module.layer_norm", "convolution.norm")
    + tensor_rules.affine("conv_module.pointwise_conv1", "convolution.gated", tensor_rules.POINTWISE, bias=False)
    + tensor_rules.affine("conv_module.pointwise_conv2", "convolution.output", tensor_rules.POINTWISE, bias=False)
)
_DEPTHWISE = tensor_rules.affine(
    "conv_module.depthwise_conv", "convolution.depthwise", tensor_rules.DEPTHWISE, bias=False
) + tensor_rules.norm("conv_module.depthwise_layer_norm", "convolution.depthwise_norm")
INPUT = tensor_rules.norm("feature_projection.layer_norm", "subsampling.norm") + tensor_rules.affine(
    "feature_projection.projection", "subsampling.projection"
)


def encoder_rules(encoder: EncoderConfig, prefix: str):
    """Rules of input and blocks."""
    block = FEED_FORWARD + attention(encoder.position) + POINTWISE + _DEPTHWISE
    return tensor_rules.under(prefix, INPUT) + tensor_rules.layers(f"{prefix}encoder.layers.{{n}}.", block)


def head_rules(encoder: EncoderConfig, architecture: Architecture):
    """Rules of the output layer."""
    if architecture.head is None:
        return tensor_rules.no_head(encoder.d_model, encoder.vocab_size)
    return tensor_rules.affine(architecture.head, "output")


FAMILY = Family(
    name="w2v-BERT",
    architectures={
        "Wav2Vec2BertModel": Architecture(""),
        "Wav2Vec2BertForCTC": Architecture("wav2vec2_bert.", "lm_head"),
    },
    extractor="SeamlessM4TFeatureExtractor",
    encoder=_encoder,
    rules=lambda encoder, architecture: encoder_rules(encoder, architecture.prefix) + head_rules(encoder, architecture),
    ignored={"{prefix}masked_spec_embed": SPEC_AUGMENT},
    head_defaults={"vocab_size": None, "pad_token_id": 0},
)
