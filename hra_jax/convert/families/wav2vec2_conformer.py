"""wav2vec2-conformer with relative positions (rel-pos) and rotary ones (rope): CTC fine-tunes, and without a head."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from hra_jax.convert.families import wav2vec2_bert
from hra_jax.convert.family import Architecture, Extractor, Family, TorchEncoder
from hra_jax.convert.settings import SILU, Only, select
from hra_jax.convert.tensor_rules import CONV_1D, Rule, batch_norm, convolution, head, layers, norm, under
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import SUBSAMPLERS, EncoderConfig
from hra_jax.models.features import FeatureConfig

# The samples, with zero mean and unit variance.
FEATURES = FeatureConfig(kind="waveform", unit_variance=False, normalization_eps=1e-7)


def _features(found: SimpleNamespace) -> FeatureConfig:
    return FEATURES if found.do_normalize else dataclasses.replace(FEATURES, normalization="none")


_EXTRACTOR = Extractor("Wav2Vec2FeatureExtractor", {"feature_size": Only(1, (1,)), "do_normalize": True}, _features)

# The published geometry. BatchNorm is folded into the depthwise convolution, which gets a bias by that.
_GEOMETRY: dict[str, Any] = dict(
    d_model=1024,
    n_layers=24,
    n_heads=16,
    d_ff=4096,
    kernel=31,
    vocab_size=32,
    subsampler="wave_cnn",
    subsampling=320,
    subsampling_channels=512,
    conv_norm="none",
    conv_bias=False,
    depthwise_bias=True,
    final_norm=True,
)

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": Only("gelu", SILU),
    # The blocks take torch's default whatever the setting says.
    "layer_norm_eps": Only(1e-5, (1e-5,)),
    "feat_extract_norm": Only("group", ("layer",)),
    "feat_extract_activation": Only("gelu", ("gelu",)),
    "conv_bias": Only(False, (True,)),
    "conv_dim": (512,) * 7,
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "add_adapter": Only(False, (False,)),
    "position_embeddings_type": Only("relative", ("relative", "rotary", None)),
    "rotary_embedding_base": 10000,
    "conv_depthwise_kernel_size": 31,
}


def _check_waves(config: SimpleNamespace, where: str) -> None:
    layers = {len(config.conv_dim), len(config.conv_stride), len(config.conv_kernel)}
    if len(layers) > 1:
        raise UserError(f"{where}: conv_dim, conv_stride and conv_kernel have different lengths: {sorted(layers)}")
    if len(set(config.conv_dim)) > 1:
        raise UserError(f"{where}: conv_dim is {list(config.conv_dim)}; supported: the same width in every layer")
    allowed = SUBSAMPLERS["wave_cnn"]
    if math.prod(config.conv_stride) not in allowed:
        raise UserError(
            f"{where}: conv_stride is {list(config.conv_stride)}, {math.prod(config.conv_stride)} samples a frame; "
            f"supported: {', '.join(map(str, allowed))}"
        )


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    del features  # one setting of samples is as another
    config = select(values, _DEFAULTS, where=where)
    _check_waves(config, where)
    wav2vec2_bert.check_odd("conv_depthwise_kernel_size", config.conv_depthwise_kernel_size, where)
    return EncoderConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_ff=config.intermediate_size,
        kernel=config.conv_depthwise_kernel_size,
        vocab_size=vocab_size,
        subsampler="wave_cnn",
        subsampling=math.prod(config.conv_stride),
        subsampling_channels=config.conv_dim[0],
        wave_kernels=config.conv_kernel,
        wave_strides=config.conv_stride,
        norm_eps=1e-5,
        conv_norm="none" if fold else "batch",
        # Published without a mask, which lets padding into what is beside it; alone an utterance has none.
        conv_mask="post_glu",
        conv_bias=False,
        depthwise_bias=True if fold else None,
        final_norm=True,
        **wav2vec2_bert.position_settings(config),
    )


def _rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    prefix = architecture.prefix
    waves: tuple[Rule, ...] = ()
    for index in range(len(encoder.wave_kernels)):
        layer = f"feature_extractor.conv_layers.{index}"
        waves += convolution(f"{layer}.conv", f"subsampling.conv_{index}", CONV_1D)
        waves += norm(f"{layer}.layer_norm", f"subsampling.norm_{index}")
    depthwise = batch_norm(
        "conv_module.batch_norm", depthwise="conv_module.depthwise_conv", bias=False, fold=encoder.conv_norm == "none"
    )
    bert = wav2vec2_bert.FEED_FORWARD + wav2vec2_bert.attention(encoder.position) + wav2vec2_bert.POINTWISE_CONVOLUTIONS
    return (
        under(prefix, waves + wav2vec2_bert.INPUT + norm("encoder.layer_norm", "encoder.final_norm"))
        + layers(f"{prefix}encoder.layers.{{n}}.", bert + depthwise)
        + head(architecture.head, width=encoder.d_model, vocabulary=encoder.vocab_size)
    )


def _rates(encoder: EncoderConfig) -> np.ndarray:
    """Radians a frame of every pair of a head."""
    return encoder.rope_base ** -(np.arange(0, encoder.d_head, 2) / encoder.d_head)


_PRETRAINING = "serves pre-training only"

FAMILY = Family(
    name="wav2vec2-conformer",
    model_type="wav2vec2-conformer",
    architectures={
        "Wav2Vec2ConformerModel": Architecture(""),
        "Wav2Vec2ConformerForCTC": Architecture("wav2vec2_conformer.", "lm_head"),
        "Wav2Vec2ConformerForPreTraining": Architecture("wav2vec2_conformer."),
    },
    extractor=_EXTRACTOR,
    encoder=_encoder,
    rules=_rules,
    torch=TorchEncoder(
        "Wav2Vec2ConformerEncoderLayer", frames="_get_feat_extract_output_lengths", masks_convolutions=False
    ),
    ignored={
        "{prefix}masked_spec_embed": wav2vec2_bert.SPEC_AUGMENT,
        "{prefix}encoder.pos_conv_embed.*": "in the files, but the published forward pass does not use it",
        "{prefix}encoder.embed_positions.*": "computed from the settings",
        "{prefix}encoder.layers.*.batch_norm.num_batches_tracked": "counts training batches",
        "quantizer.*": _PRETRAINING,
        "project_q.*": _PRETRAINING,
        "project_hid.*": _PRETRAINING,
    },
    head_defaults={"vocab_size": None, "pad_token_id": 0},
    models={
        "wav2vec2_conformer_rel_pos": (FEATURES, EncoderConfig(**_GEOMETRY, position="xl")),
        "wav2vec2_conformer_rope": (FEATURES, EncoderConfig(**_GEOMETRY, position="rope_in")),
    },
    computed={"{prefix}encoder.embed_positions.inv_freq": _rates},
)
