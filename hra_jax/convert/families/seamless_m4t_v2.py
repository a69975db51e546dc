"""The speech encoder of SeamlessM4T v2: the Conformer in it with the norm after its last block, and no more."""

from typing import Any

from hra_jax.convert.families import wav2vec2_bert
from hra_jax.convert.family import Architecture, Family, TorchEncoder
from hra_jax.convert.settings import SILU, Count, Only, select
from hra_jax.convert.tensor_rules import Rule, head, norm
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

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


def _context(values: dict, where: str) -> dict[str, Any]:
    """The fields of EncoderConfig that say which frames a frame sees."""
    if values.get("speech_encoder_chunk_size", 0) is None:
        return {"context": "full"}
    config = select(values, _CHUNKS, where=where)
    left = max(config.speech_encoder_left_chunk_num, -1)  # any negative number: all before it
    return {"context": "chunk", "chunk": config.speech_encoder_chunk_size, "left_context": left}


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    del fold  # there is no BatchNorm
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


def _rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    prefix = architecture.prefix
    return (
        wav2vec2_bert.encoder_rules(encoder, prefix)
        + norm(f"{prefix}encoder.layer_norm", "encoder.final_norm")
        + head(None, width=encoder.d_model, vocabulary=encoder.vocab_size)
    )


_AFTER = "comes after the Conformer and is no part of the backbone"
_TRANSLATION = "part of the translation model, not of its speech encoder"
_WHOLE = Architecture("speech_encoder.")

FAMILY = Family(
    name="SeamlessM4T v2 speech encoder",
    model_type="seamless_m4t_v2",
    architectures={
        "SeamlessM4Tv2Model": _WHOLE,
        "SeamlessM4Tv2ForSpeechToText": _WHOLE,
        "SeamlessM4Tv2ForSpeechToSpeech": _WHOLE,
        "SeamlessM4Tv2SpeechEncoder": Architecture(""),
    },
    extractor=wav2vec2_bert.EXTRACTOR,
    encoder=_encoder,
    rules=_rules,
    torch=TorchEncoder("SeamlessM4Tv2ConformerEncoderLayer"),
    ignored={
        "{prefix}intermediate_ffn.*": _AFTER,
        "{prefix}adapter.*": _AFTER,
        "{prefix}inner_layer_norm.*": _AFTER,
        "text_encoder.*": _TRANSLATION,
        "text_decoder.*": _TRANSLATION,
        "lm_head.*": _TRANSLATION,
        "shared.*": _TRANSLATION,
        "t2u_model.*": _TRANSLATION,
        "vocoder.*": _TRANSLATION,
    },
    models={
        "seamless_m4t_v2": (
            wav2vec2_bert.FEATURES,
            EncoderConfig(**wav2vec2_bert.GEOMETRY, context="chunk", chunk=20000, left_context=128, final_norm=True),
        ),
    },
)
