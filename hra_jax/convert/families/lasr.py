"""LASR CTC, of which MedASR is one: `LasrForCTC`."""

import dataclasses
from types import SimpleNamespace

from hra_jax.convert.families import parakeet
from hra_jax.convert.family import Architecture, Extractor, Family, TorchEncoder
from hra_jax.convert.settings import SILU, Only, select
from hra_jax.convert.tensor_rules import CONV_1D, POINTWISE, Rule, affine, convolution, head, layers, norm, under
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

FEATURES = FeatureConfig(
    bins=128,
    low_hz=125.0,
    high_hz=7500.0,
    unit_variance=False,
    framing="inside",
    window_shape="hann_symmetric",
    unit_power=False,
    floor=1e-5,
    floor_mode="max",
    normalization="none",
)
_EXTRACTOR = Extractor(
    "LasrFeatureExtractor",
    parakeet.SPECTRA | {"feature_size": 128},
    lambda found: dataclasses.replace(FEATURES, **parakeet.spectral_settings(found)),
)

# The published geometry. BatchNorm is folded into the depthwise convolution, which gets a bias by that.
_MEDASR = EncoderConfig(
    d_model=512,
    n_layers=17,
    n_heads=8,
    d_ff=2048,
    kernel=32,
    vocab_size=512,
    subsampler="conv1d",
    subsampling=4,
    subsampling_channels=256,
    position="rope_qk",
    norm_eps=1e-6,
    norm_bias=False,
    attention_bias=False,
    ff_bias=False,
    conv_bias=False,
    conv_norm="none",
    depthwise_bias=True,
    ff_residual=(1.5, 0.5),
    conv_residual=(2.0, 1.0),
    final_norm=True,
)

_DEFAULTS = {
    "hidden_size": 512,
    "num_hidden_layers": 17,
    "num_attention_heads": 8,
    "num_key_value_heads": None,
    "intermediate_size": 2048,
    "hidden_act": Only("silu", SILU),
    "attention_bias": False,
    "convolution_bias": False,
    "conv_kernel_size": 32,
    "subsampling_conv_channels": 256,
    "num_mel_bins": 128,
    "subsampling_conv_kernel_size": 5,
    "subsampling_conv_stride": Only(2, (2,)),
    "layer_norm_eps": 1e-6,
    "feed_forward_residual_weights": (1.5, 0.5),
    "conv_residual_weights": (2.0, 1.0),
}
_ROPE = {"rope_theta": 10000.0, "rope_type": Only("default", ("default",))}


def _pair(config: SimpleNamespace, name: str, where: str) -> tuple[float, float]:
    value = getattr(config, name)
    if len(value) != 2:
        raise UserError(f"{where}: encoder_config: {name} is {list(value)}; it must be two numbers")
    return float(value[0]), float(value[1])


def _rope(inner: dict, where: str) -> SimpleNamespace:
    """The settings of the rotation: under `rope_parameters`, in older files beside it."""
    rope = inner.get("rope_parameters", inner.get("rope_scaling")) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: rope_parameters must be an object, not {type(rope).__name__}")
    older = {"rope_theta": inner["rope_theta"]} if "rope_theta" in inner else {}
    return select(older | rope, _ROPE, where=f"{where}: rope_parameters")


def _encoder(values: dict, features: FeatureConfig, vocab_size: int, fold: bool, where: str) -> EncoderConfig:
    config = parakeet.encoder_settings(values, _DEFAULTS, features, where)
    rope = _rope(values.get("encoder_config") or {}, f"{where}: encoder_config")
    return EncoderConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_ff=config.intermediate_size,
        kernel=config.conv_kernel_size,
        vocab_size=vocab_size,
        subsampler="conv1d",
        subsampling=4,
        subsampling_channels=config.subsampling_conv_channels,
        subsampling_kernel=config.subsampling_conv_kernel_size,
        position="rope_qk",
        rope_base=float(rope.rope_theta),
        norm_eps=float(config.layer_norm_eps),
        norm_bias=False,
        conv_norm="none" if fold else "batch",
        conv_mask="post_glu",
        conv_bias=config.convolution_bias,
        depthwise_bias=True if fold else None,
        attention_bias=config.attention_bias,
        ff_bias=config.attention_bias,
        ff_residual=_pair(config, "feed_forward_residual_weights", where),
        conv_residual=_pair(config, "conv_residual_weights", where),
        final_norm=True,
    )


_SUBSAMPLING = (
    affine("subsampler.dense_0", "subsampling.input")
    + convolution("subsampler.conv_0", "subsampling.conv_0", CONV_1D)
    + convolution("subsampler.conv_1", "subsampling.conv_1", CONV_1D)
    + affine("subsampler.dense_1", "subsampling.projection")
)


def _rules(encoder: EncoderConfig, architecture: Architecture) -> tuple[Rule, ...]:
    prefix = architecture.prefix
    return (
        under(prefix, _SUBSAMPLING + norm("out_norm", "encoder.final_norm", bias=False))
        + layers(f"{prefix}layers.{{n}}.", parakeet.block_rules(encoder))
        + head(architecture.head, width=encoder.d_model, vocabulary=encoder.vocab_size, transform=POINTWISE)
    )


FAMILY = Family(
    name="LASR CTC",
    model_type="lasr_ctc",
    architectures={"LasrForCTC": Architecture("encoder.", "ctc_head")},
    extractor=_EXTRACTOR,
    encoder=_encoder,
    rules=_rules,
    torch=TorchEncoder("LasrEncoderBlock", frames="_get_subsampling_output_length"),
    ignored=parakeet.COUNTERS,
    head_defaults={"vocab_size": 512, "pad_token_id": 0},
    models={"medasr": (FEATURES, _MEDASR)},
)
