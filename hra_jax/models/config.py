"""What defines a backbone: feature settings, encoder geometry, and the named sizes."""

import dataclasses
import math
import typing
from typing import NamedTuple

from hra_jax.errors import UserError
from hra_jax.models import padding

POSITIONS = ("none", "xl", "shaw", "rope_in", "rope_qk")
CONTEXTS = ("full", "window", "chunk")
CONV_PADDINGS = ("same", "causal")
CONV_NORMS = ("layer", "batch", "none")
CONV_MASKS = ("none", "pre_pointwise", "post_glu")
# The ways from features to encoder frames, and the factors by which each can make them fewer.
SUBSAMPLERS = {
    "conv2d": (2, 4),
    "projection": (1,),
    "conv1d": (4,),
    "conv2d_separable": (8,),
    "wave_cnn": (320,),
}
FEATURE_KINDS = ("log_mel", "waveform")
FRAMINGS = ("hop", "inside", "centred")
WINDOWS = ("hann", "hann_symmetric", "povey")
PREEMPHASES = ("frame", "signal")
MEL_SCALES = ("kaldi", "slaney")
FLOORS = ("add", "max")
NORMALIZATIONS = ("none", "utterance", "unbiased", "unbiased_std")


# Fields of FeatureConfig that nothing reads of kind 'waveform'. (The oldest ones are in every file, with any value.)
_SPECTRAL = (
    "framing",
    "window_shape",
    "unit_power",
    "remove_dc",
    "preemphasis",
    "preemphasis_of",
    "mel_scale",
    "mel_area",
    "floor_mode",
    "stack",
)


def _one_of(name: str, value, allowed) -> None:
    if value not in allowed:
        raise UserError(f"{name} = {value!r}: allowed are {', '.join(map(repr, allowed))}")


def _at_least(name: str, value, least) -> None:
    if value < least:
        raise UserError(f"{name} = {value!r}: must be at least {least}")


def _later(default):
    """A field that did not exist when the first backbones were stored.

    It is left out of the JSON while it has its default, so that their fingerprints stay what they are.
    """
    return dataclasses.field(default=default, metadata={"later": True})


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Features: log-mel spectra, or the samples themselves (`kind='waveform'`, for encoders that begin with a CNN).

    With the defaults the waveform is scaled to unit variance first, so `floor` is relative to the loudness of the
    utterance: digital silence and faint noise below it look the same. The other fields are what published encoders
    differ in.
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
    # Over the valid frames, per bin, zero mean and: 'utterance' unit biased variance, 'unbiased' unit unbiased variance
    # (eps is added to the variance), 'unbiased_std' the same with eps added to the standard deviation; or 'none'.
    normalization: str = "utterance"
    normalization_eps: float = _later(1e-5)
    # log_mel | waveform: each sample is a frame of width 1; of the other fields, only the sample rate, scale,
    # unit_variance and normalization act
    kind: str = _later("log_mel")
    scale: float = _later(1.0)  # factor on the samples
    # hop: frame i is centred on the middle of hop i, one frame for every whole hop. inside: frame i begins at sample
    # i hop, as many as lie wholly inside the signal. centred: the transform of frame i is centred on sample i hop, one
    # frame for every whole hop. What lies beyond the signal is zero.
    framing: str = _later("hop")
    window_shape: str = _later("hann")  # hann (periodic) | hann_symmetric | povey (symmetric Hann to the power of 0.85)
    unit_power: bool = _later(True)  # the window scaled so that white noise of unit variance has power 1 in each bin
    remove_dc: bool = _later(False)  # subtract the mean of each frame
    preemphasis: float = _later(0.0)  # x[n] - p x[n - 1]
    preemphasis_of: str = _later("frame")  # frame (x[-1] of a frame is its x[0]) | signal (x[-1] is 0)
    mel_scale: str = _later("kaldi")  # kaldi: 1127 ln(1 + f / 700) | slaney: linear below 1000 Hz
    mel_area: bool = _later(False)  # triangles linear in Hz with area 1, not linear in mel with peak 1
    floor_mode: str = _later("add")  # of the mel power: add `floor` | max(power, floor)
    stack: int = _later(1)  # consecutive frames put side by side; what does not fill a stack is invalid

    def __post_init__(self):
        for name, allowed in (
            ("kind", FEATURE_KINDS),
            ("normalization", NORMALIZATIONS),
            ("framing", FRAMINGS),
            ("window_shape", WINDOWS),
            ("preemphasis_of", PREEMPHASES),
            ("mel_scale", MEL_SCALES),
            ("floor_mode", FLOORS),
        ):
            _one_of(f"features.{name}", getattr(self, name), allowed)
        _at_least("features.stack", self.stack, 1)
        _at_least("features.fft", self.fft, self.window_samples)
        _at_least("features.window", self.window, self.hop)
        if not self.floor > 0:
            raise UserError(f"features.floor = {self.floor}: must be above 0")
        if self.kind == "waveform":
            for field in dataclasses.fields(self):
                if field.name in _SPECTRAL and getattr(self, field.name) != field.default:
                    raise UserError(
                        f"features.{field.name} = {getattr(self, field.name)!r}: is for spectra, and features.kind is "
                        f"'waveform'; leave it at {field.default!r}"
                    )
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

    @property
    def width(self) -> int:
        """Values of one feature frame, F."""
        return 1 if self.kind == "waveform" else self.bins * self.stack

    @property
    def stride(self) -> int:
        """Samples from one feature frame to the next."""
        return 1 if self.kind == "waveform" else self.hop_samples * self.stack

    def spectra(self, num_samples):
        """Valid frames of `num_samples` samples (int or integer array) before they are stacked."""
        if self.kind == "waveform":
            return num_samples
        if self.framing != "inside":
            return num_samples // self.hop_samples
        # Fewer samples than a window: (negative // hop) + 1 is at most 0, and a length is not negative.
        frames = (num_samples - self.window_samples) // self.hop_samples + 1
        return frames * (frames > 0)

    def frames(self, num_samples):
        """Valid feature frames of `num_samples` samples (int or integer array)."""
        return self.spectra(num_samples) // self.stack


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
    # none | xl (Transformer-XL, arXiv 1901.02860) | shaw (arXiv 1803.02155) | rope_qk (arXiv 2104.09864) | rope_in (the
    # same rotation of the input of the query and key projections, cut into heads)
    position: str = "xl"
    rope_base: float = 10000.0
    context: str = "full"  # full | window | chunk
    left_context: int = -1  # window: frames to the left, -1 = all; chunk: whole chunks to the left, -1 = all
    right_context: int = -1  # window: frames to the right, -1 = all
    chunk: int = 0  # chunk: frames
    norm_eps: float = 1e-5
    conv_padding: str = "same"  # same | causal
    # Norm after the depthwise convolution: layer | batch (by stored statistics) | none (folded into the convolution)
    conv_norm: str = "layer"
    conv_mask: str = "post_glu"  # where padded frames are zeroed in the convolution module
    conv_bias: bool = True  # of the pointwise convolutions, and of the depthwise one unless `depthwise_bias` says
    ff_residual: tuple[float, float] = (1.0, 0.5)  # y = a x + b FF(x)
    conv_residual: tuple[float, float] = (1.0, 1.0)
    input_scale: float = 1.0  # factor on the subsampled input
    final_norm: bool = False  # a LayerNorm after the last block
    # From features to encoder frames: conv2d (3 x 3, stride 2) | projection (LayerNorm, projection) | wave_cnn (of
    # samples) | conv2d_separable (3 x 3, the later ones depthwise and pointwise) | conv1d (projections and two
    # convolutions over time)
    subsampler: str = _later("conv2d")
    subsampling_kernel: int = _later(5)  # taps of conv1d
    wave_kernels: tuple[int, ...] = _later((10, 3, 3, 3, 3, 2, 2))  # taps of wave_cnn, layer by layer
    wave_strides: tuple[int, ...] = _later((5, 2, 2, 2, 2, 2, 2))
    shaw_left: int = _later(64)  # shaw: farthest offset to the left that has a row of its own in the table
    shaw_right: int = _later(8)
    depthwise_bias: bool | None = _later(None)  # of the depthwise convolution; None: as conv_bias
    norm_bias: bool = _later(True)  # of the LayerNorms
    attention_bias: bool = _later(True)  # of query, key, value and output
    ff_bias: bool = _later(True)  # of both projections of the feed-forward modules

    def __post_init__(self):
        _one_of("encoder.subsampler", self.subsampler, tuple(SUBSAMPLERS))
        _one_of("encoder.position", self.position, POSITIONS)
        _one_of("encoder.context", self.context, CONTEXTS)
        _one_of("encoder.conv_padding", self.conv_padding, CONV_PADDINGS)
        _one_of("encoder.conv_norm", self.conv_norm, CONV_NORMS)
        _one_of("encoder.conv_mask", self.conv_mask, CONV_MASKS)
        _one_of("encoder.subsampling", self.subsampling, SUBSAMPLERS[self.subsampler])
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "kernel", "vocab_size"):
            _at_least(f"encoder.{name}", getattr(self, name), 1)
        for name in ("shaw_left", "shaw_right"):
            _at_least(f"encoder.{name}", getattr(self, name), 0)
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
    def has_depthwise_bias(self) -> bool:
        """Whether the depthwise convolution has a bias."""
        return self.conv_bias if self.depthwise_bias is None else self.depthwise_bias

    @property
    def subsampling_layers(self) -> tuple[tuple[int, int, int], ...]:
        """(kernel, stride, pad) along time of the strided convolutions, in the order in which they are applied."""
        if self.subsampler == "wave_cnn":
            return tuple(
                (kernel, stride, 0) for kernel, stride in zip(self.wave_kernels, self.wave_strides, strict=True)
            )
        if self.subsampler == "conv1d":
            return ((self.subsampling_kernel, 2, 0),) * 2
        if self.subsampler == "projection":
            return ()
        return ((3, 2, 1),) * int(math.log2(self.subsampling))

    def output_length(self, features: FeatureConfig, num_samples):
        """Encoder frames of `num_samples` samples (int, numpy or jax integers; elementwise)."""
        length = features.frames(num_samples)
        for kernel, stride, pad in self.subsampling_layers:
            length = padding.strided_length(length, kernel=kernel, stride=stride, pad=pad)
        # Less than one kernel gives 0 frames or fewer.
        return length * (length > 0)


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

    def norm(name: str, path: tuple[str, ...], *, bias: bool = config.norm_bias):
        found[name] = AffineMap(path, "norm", d, d, bias)

    def projection(name: str, inputs: int, outputs: int, *, bias: bool = True):
        found[name] = AffineMap(tuple(name.split(".")), "projection", inputs, outputs, bias)

    def feed_forward(name: str):
        norm(f"{name}.norm", (name, "norm"))
        projection(f"{name}.up", d, f, bias=config.ff_bias)
        projection(f"{name}.down", f, d, bias=config.ff_bias)

    feed_forward("ff1")
    norm("attention.norm", ("attention_norm",))
    for name in ("query", "key", "value", "output"):
        projection(f"attention.{name}", d, d, bias=config.attention_bias)
    norm("convolution.norm", ("convolution", "norm"))
    projection("convolution.gated", d, 2 * d, bias=config.conv_bias)
    found["convolution.depthwise"] = AffineMap(
        ("convolution", "depthwise"), "depthwise", d, d, config.has_depthwise_bias
    )
    if config.conv_norm != "none":
        bias = config.norm_bias or config.conv_norm == "batch"
        norm("convolution.depthwise_norm", ("convolution", "depthwise_norm"), bias=bias)
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
    """A configuration dataclass as plain JSON values, without the later fields that have their defaults."""
    later = {f.name: f.default for f in dataclasses.fields(config) if f.metadata.get("later")}
    return {
        name: value for name, value in dataclasses.asdict(config).items() if name not in later or value != later[name]
    }


def from_json(cls, values: dict):
    """The inverse of `to_json`; an unknown or missing field, or a value of another type, is a UserError."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {cls.__name__}: allowed are {', '.join(known)}")
    needed = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in values]
    if needed:
        raise UserError(f"{cls.__name__} lacks the field {needed[0]!r}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        kind = known[name].type
        if not _is_of(value, kind):
            raise UserError(f"{cls.__name__}.{name} = {value!r:.60}: must be {getattr(kind, '__name__', kind)}")
    return cls(**values)


def _is_of(value, kind) -> bool:
    """Whether a value is of an annotated type: a class, a union, or a tuple of numbers."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        sized = inner[-1] is ... or (isinstance(value, tuple) and len(value) == len(inner))
        return isinstance(value, tuple) and sized and all(_is_of(one, inner[0]) for one in value)
    if typing.get_args(kind):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
