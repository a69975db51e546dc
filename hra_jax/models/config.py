"""What defines a backbone: feature settings, encoder geometry, and the named sizes."""

import dataclasses
import math
from typing import NamedTuple

from hra_jax.errors import UserError
from hra_jax.models import padding

POSITIONS = ("none", "xl", "rope_qk")
CONTEXTS = ("full", "window", "chunk")
CONV_PADDINGS = ("same", "causal")
CONV_NORMS = ("layer", "none")
CONV_MASKS = ("none", "pre_pointwise", "post_glu")
SUBSAMPLINGS = (2, 4)
NORMALIZATIONS = ("none", "utterance")


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise UserError(f"{name} = {value!r}: allowed are {', '.join(map(repr, allowed))}")


def _at_least(name: str, value, least) -> None:
    if value < least:
        raise UserError(f"{name} = {value!r}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features.

    The waveform is scaled to unit variance first (`unit_variance`), so `floor` is relative to the loudness of the
    utterance: digital silence and faint noise below it look the same.
    """

    sample_rate: int = 16000  # Hz; audio at any other rate is resampled before it reaches the model
    window: float = 0.025  # seconds
    hop: float = 0.010  # seconds
    fft: int = 512  # points of the transform
    bins: int = 80  # mel bins
    low_hz: float = 20.0
    high_hz: float = 8000.0
    unit_variance: bool = True  # scale each waveform to unit variance over its valid samples
    floor: float = 1e-4  # added to the mel power (1.0 = white noise of unit variance) before the logarithm
    normalization: str = "utterance"  # 'utterance': zero mean, unit variance per bin over the valid frames; or 'none'

    def __post_init__(self):
        _one_of("features.normalization", self.normalization, NORMALIZATIONS)
        _at_least("features.fft", self.fft, self.window_samples)
        _at_least("features.window", self.window, self.hop)
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise UserError(
                f"features.low_hz = {self.low_hz}, high_hz = {self.high_hz}: "
                f"must rise within 0 and half the sample rate ({self.sample_rate / 2})"
            )

    @property
    def window_samples(self) -> int:
        """Window length in samples."""
        return round(self.window * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Hop length in samples."""
        return round(self.hop * self.sample_rate)

    def frames(self, num_samples):
        """Feature frames of `num_samples` samples (int or integer array): one for every whole hop."""
        return num_samples // self.hop_samples


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Geometry of a Conformer encoder with a CTC head.

    One formulation covers the published open Conformers; each field below is one of the points in which they differ.
    """

    d_model: int  # D
    n_layers: int  # L
    n_heads: int  # N
    d_ff: int  # width of the half-step feed-forward modules
    kernel: int  # depthwise convolution, frames
    vocab_size: int  # V, blank included
    subsampling: int = 4  # feature frames to one encoder frame
    subsampling_channels: int = 128
    position: str = "xl"  # none | xl (Transformer-XL, arXiv 1901.02860) | rope_qk (arXiv 2104.09864)
    rope_base: float = 10000.0
    context: str = "full"  # full | window | chunk
    left_context: int = -1  # window: frames to the left, -1 = all; chunk: whole chunks to the left, -1 = all
    right_context: int = -1  # window: frames to the right, -1 = all
    chunk: int = 0  # chunk: frames
    norm_eps: float = 1e-5
    conv_padding: str = "same"  # same | causal
    conv_norm: str = "layer"  # norm after the depthwise convolution: layer | none (folded at conversion)
    conv_mask: str = "post_glu"  # where padded frames are zeroed in the convolution module
    conv_bias: bool = True
    ff_residual: tuple[float, float] = (1.0, 0.5)  # y = a x + b FF(x)
    conv_residual: tuple[float, float] = (1.0, 1.0)
    input_scale: float = 1.0  # factor on the subsampled input
    final_norm: bool = False  # a LayerNorm after the last block

    def __post_init__(self):
        _one_of("encoder.position", self.position, POSITIONS)
        _one_of("encoder.context", self.context, CONTEXTS)
        _one_of("encoder.conv_padding", self.conv_padding, CONV_PADDINGS)
        _one_of("encoder.conv_norm", self.conv_norm, CONV_NORMS)
        _one_of("encoder.conv_mask", self.conv_mask, CONV_MASKS)
        _one_of("encoder.subsampling", self.subsampling, SUBSAMPLINGS)
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "kernel", "vocab_size"):
            _at_least(f"encoder.{name}", getattr(self, name), 1)
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"encoder.d_model = {self.d_model}: must be a multiple of 2 n_heads = {2 * self.n_heads}")
        if self.context == "chunk":
            _at_least("encoder.chunk", self.chunk, 1)
        # A limit that nothing reads would be taken for one that holds.
        for name, contexts in (("left_context", ("window", "chunk")), ("right_context", ("window",))):
            if getattr(self, name) >= 0 and self.context not in contexts:
                raise UserError(
                    f"encoder.{name} = {getattr(self, name)}: is for context {' and '.join(contexts)}, "
                    f"and encoder.context is {self.context!r}"
                )
        if self.conv_mask == "pre_pointwise" and self.conv_bias:
            raise UserError(
                "encoder.conv_mask = 'pre_pointwise': needs conv_bias False, or padding leaks through the bias"
            )

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def residual_gain(self) -> float:
        """Initial gain of the last projection of each residual branch (there are four in a layer).

        Every block ends in a LayerNorm. With branches of full strength a deep encoder forgets its input before it has
        learnt anything, and CTC training stays on its plateau.
        """
        return (4 * self.n_layers) ** -0.5

    @property
    def subsampling_layers(self) -> int:
        """Number of stride-2 convolutions."""
        return int(math.log2(self.subsampling))

    def output_length(self, features: FeatureConfig, num_samples):
        """Encoder frames of `num_samples` samples (int, numpy or jax integers; elementwise)."""
        length = features.frames(num_samples)
        for _ in range(self.subsampling_layers):
            length = padding.strided_length(length, kernel=3, stride=2, pad=1)
        return length


# Telephone band: any recording can be brought down to 8 kHz, none can be brought up. 20 ms encoder frames keep
# recordings of 0.14 s feasible for CTC.
_TELEPHONE = FeatureConfig(sample_rate=8000, fft=256, bins=64, high_hz=4000.0)
_WIDEBAND = FeatureConfig()
_USM = FeatureConfig(fft=1024, bins=128)  # with 512 points the lowest filters would fall between transform bins

# name -> (features, encoder settings without the vocabulary)
SIZES = {
    "tiny": (
        _TELEPHONE,
        dict(d_model=128, n_layers=8, n_heads=4, d_ff=512, kernel=9, subsampling=2, subsampling_channels=32)
        | dict(position="rope_qk"),
    ),
    "small": (
        _WIDEBAND,
        dict(d_model=256, n_layers=8, n_heads=4, d_ff=1024, kernel=31, subsampling=2, subsampling_channels=64)
        | dict(position="xl"),
    ),
    "base": (
        _WIDEBAND,
        dict(d_model=512, n_layers=18, n_heads=8, d_ff=2048, kernel=9, subsampling=4, subsampling_channels=256)
        | dict(position="xl"),
    ),
    # 32 layers, width 1536, 16 heads, kernel 5: arXiv 2303.01037, Table 2.
    "usm_2b": (
        _USM,
        dict(d_model=1536, n_layers=32, n_heads=16, d_ff=6144, kernel=5, subsampling=4, subsampling_channels=256)
        | dict(position="xl"),
    ),
}


class AffineMap(NamedTuple):
    """An affine map of an encoder layer, as the hooks of adapters name it."""

    path: tuple[str, ...]  # of its weights, in those of a layer
    kind: str  # projection | norm | depthwise
    inputs: int  # width
    outputs: int  # width
    bias: bool  # whether it has one


def affine_maps(config: EncoderConfig) -> dict[str, AffineMap]:
    """The affine maps of one layer by name, in the order in which they are applied."""
    d, f = config.d_model, config.d_ff
    found = {}

    def norm(name: str, path: tuple[str, ...]):
        found[name] = AffineMap(path, "norm", d, d, True)

    def projection(name: str, inputs: int, outputs: int, *, bias: bool = True):
        found[name] = AffineMap(tuple(name.split(".")), "projection", inputs, outputs, bias)

    def feed_forward(name: str):
        norm(f"{name}.norm", (name, "norm"))
        projection(f"{name}.up", d, f)
        projection(f"{name}.down", f, d)

    feed_forward("ff1")
    norm("attention.norm", ("attention_norm",))
    for name in ("query", "key", "value", "output"):
        projection(f"attention.{name}", d, d)
    norm("convolution.norm", ("convolution", "norm"))
    projection("convolution.gated", d, 2 * d, bias=config.conv_bias)
    found["convolution.depthwise"] = AffineMap(("convolution", "depthwise"), "depthwise", d, d, config.conv_bias)
    if config.conv_norm == "layer":
        norm("convolution.depthwise_norm", ("convolution", "depthwise_norm"))
    projection("convolution.output", d, d, bias=config.conv_bias)
    feed_forward("ff2")
    norm("final_norm", ("final_norm",))
    return found


def named_size(name: str, vocab_size: int) -> tuple[FeatureConfig, EncoderConfig]:
    """Feature and encoder settings of a named size with a vocabulary of `vocab_size` (blank included).

    Raises:
      UserError: no size has that name.
    """
    _one_of("size", name, tuple(SIZES))
    features, encoder = SIZES[name]
    return features, EncoderConfig(vocab_size=vocab_size, **encoder)


def to_json(config) -> dict:
    """A configuration dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(cls, values: dict):
    """The inverse of `to_json`; an unknown or missing field is a UserError that names it."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {cls.__name__}: allowed are {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in values]
    if needed:
        raise UserError(f"{cls.__name__} lacks the field {needed[0]!r}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
