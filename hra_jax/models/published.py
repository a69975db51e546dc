"""Feature settings of the published encoders that `hra_jax.convert` reads."""

from hra_jax.models.config import FeatureConfig

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
