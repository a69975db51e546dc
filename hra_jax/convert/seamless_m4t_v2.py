"""The speech encoder of SeamlessM4T v2: the Conformer in it with the norm after its last block, and no more."""

from hra_jax.convert import tensor_rules, wav2vec2_bert
from hra_jax.convert.family import Architecture, Family
from hra_jax.convert.settings import SILU, Count, Only, select
from hra_jax.models.encoder_config import EncoderConfig

_DEFAULTS = {
    "hidden_size": 1024,
    "speech_encoder_layers": 24,
    "speech_encoder_attention_heads": 16,
    "speech_encoder_intermediate_size": 4096,
    "feature_projection_input_dim": 160,
    "speech_encoder_hidden_act": Only("swish", SILU),
    # The blocks take torch's default whatever the setting says.
    "layer_norm_eps": Only(1e-5, (1e-5,)),
    "position_embeddings_type": Only("relative_key", ("relative_key", None)),
    "left_max_position_embeddings": Count(64, 0),
    "right_max_position_embeddings": Count(8, 0),
    "conv_depthwise_kernel_size": 31,
}
_CHUNKS = {"speech_encoder_chunk_size": 20000, "speech_encoder_left_chunk_num": Count(128, None)}


def _context(values: dict, where: str) -> dict:
    """The fields of EncoderConfig that say which frames a frame sees."""
    if values.get("speech_encoder_chunk_size", 0) is None:
        return {"context": "full"}
    config = select(values, _CHUNKS, where=where)
    left = max(config.speech_encoder_left_chunk_num, -1)  # any negative number: all before it
    return {"context": "chunk", "chunk": config.speech_encoder_chunk_size, "left_context": left}


def _encoder(values, features, vocab_size, fold, where) -> EncoderConfig:
    config = select(values, _DEFAULTS, where=where)
    wav2vec2_bert.check_width(config, features, where)
    wav2vec2_bert.check_odd("conv_depthwise_kernel_size", config.conv_depthwise_kernel_size, where)
    return EncoderConfig(
        d_model=config.hidden_size,
        n_layers=config.speech_encoder_layers,
        n_heads=config.speech_encoder_attention_heads,
        d_ff=config.speech_encoder_intermediate_size,
        kernel=config.conv_depthwise_kernel_size,
        vocab_size=vocab_size,
        subsampler="projection",
        subsampling=1,
        norm_eps=1e-5,
        conv_padding="causal",
        conv_norm="layer",
        conv_mask="pre_pointwise",
        conv_bias=False,
        final_norm=True,
        **_context(values, where),
        **wav2vec2_bert.position_settings(config),
    )


def _rules(encoder: EncoderConfig, architecture: Architecture):
    prefix = architecture.prefix
    return (
        wav2vec2_bert.encoder_rules(encoder, prefix)
        + tensor_rules.norm(f"{prefix}encoder.layer_norm", "encoder.final_norm")
        + wav2vec2_bert.head_rules(encoder, architecture)
    )


_BEHIND = "comes after the Conformer and is no part of the backbone"
_TRANSLATION = "part of the translation model, not of its speech encoder"
_WHOLE = Architecture("speech_encoder.")

FAMILY = Family(
    name="SeamlessM4T v2 speech encoder",
    architectures={
        "SeamlessM4Tv2Model": _WHOLE,
        "SeamlessM4Tv2ForSpeechToText": _WHOLE,
        "SeamlessM4Tv2ForSpeechToSpeech": _WHOLE,
        "SeamlessM4Tv2SpeechEncoder": Architecture(""),
    },
    extractor="SeamlessM4TFeatureExtractor",
    encoder=_encoder,
    rules=_rules,
    ignored={
        "{prefix}intermediate_ffn.*": _BEHIND,
        "{prefix}adapter.*": _BEHIND,
        "{prefix}inner_layer_norm.*": _BEHIND,
        "text_encoder.*": _TRANSLATION,
        "text_decoder.*": _TRANSLATION,
        "lm_head.*": _TRANSLATION,
        "shared.*": _TRANSLATION,
        "t2u_model.*": _TRANSLATION,
        "vocoder.*": _TRANSLATION,
    },
    head_defaults={},
)
