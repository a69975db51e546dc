"""Feature settings and geometry of the published encoders that `hra_jax.convert` reads."""

from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

# Kaldi filter banks of 16-bit samples, two frames side by side (w2v-BERT 2.0, SeamlessM4T).
W2V_BERT = FeatureConfig(
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

# Parakeet, as NeMo computes it.
PARAKEET = FeatureConfig(
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

# LASR (MedASR).
LASR = FeatureConfig(
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

# The samples, with zero mean and unit variance (wav2vec 2.0 and its Conformer).
WAV2VEC2 = FeatureConfig(kind="waveform", unit_variance=False, normalization_eps=1e-7)

_LARGE = dict(d_model=1024, n_layers=24, d_ff=4096)
_META = _LARGE | dict(n_heads=16, kernel=31, conv_bias=False)
# Shaw's term, causal convolutions, and no output layer but the blank.
_W2V_BERT = _META | dict(
    subsampler="projection",
    subsampling=1,
    vocab_size=1,
    position="shaw",
    conv_padding="causal",
    conv_mask="pre_pointwise",
)
# BatchNorm is folded into the depthwise convolution, which gets a bias by that.
_FOLDED = dict(conv_norm="none", depthwise_bias=True)
_WAV2VEC2 = (
    _META
    | _FOLDED
    | dict(
        subsampler="wave_cnn",
        subsampling=320,
        subsampling_channels=512,
        vocab_size=32,
        final_norm=True,
    )
)
_PARAKEET = (
    _LARGE
    | _FOLDED
    | dict(n_heads=8, kernel=9, vocab_size=1025, position="xl", input_scale=32.0)
    | dict(subsampler="conv2d_separable", subsampling=8, subsampling_channels=256)
)
_MEDASR = _FOLDED | dict(
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
    ff_residual=(1.5, 0.5),
    conv_residual=(2.0, 1.0),
    final_norm=True,
)

# name -> (features, geometry) of the published weights, as `hra_jax.convert` gives them.
MODELS = {
    "w2v_bert_2.0": (W2V_BERT, EncoderConfig(**_W2V_BERT)),
    "wav2vec2_conformer_rel_pos": (WAV2VEC2, EncoderConfig(**_WAV2VEC2, position="xl")),
    "wav2vec2_conformer_rope": (WAV2VEC2, EncoderConfig(**_WAV2VEC2, position="rope_in")),
    "parakeet_ctc_0.6b": (PARAKEET, EncoderConfig(**_PARAKEET)),
    "parakeet_ctc_1.1b": (PARAKEET, EncoderConfig(**_PARAKEET | dict(n_layers=42))),
    "medasr": (LASR, EncoderConfig(**_MEDASR)),
    "seamless_m4t_v2": (
        W2V_BERT,
        EncoderConfig(**_W2V_BERT, context="chunk", chunk=20000, left_context=128, final_norm=True),
    ),
}
