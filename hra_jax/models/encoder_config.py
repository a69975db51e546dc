"""The geometry of an encoder: what each setting may be, the named sizes, and the affine maps of a layer.

Nothing here needs JAX until lengths are computed.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from hra_jax.errors import UserError
from hra_jax.models.features import FeatureConfig
from hra_jax.models.setting_checks import at_least, one_of, within

BATCH_NORM_EPS = 1e-5  # in all published encoders, whatever the epsilon of their LayerNorms
POSITIONS = ("none", "xl", "shaw", "rope_in", "rope_qk")
MOST_TRAINED_SECONDS = 3600  # no encoder is trained on utterances that are longer
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
MOST_LAYERS = 2048
_MOST_WAVE_LAYERS = 32
# What each number may be. The limits are far beyond every published encoder: a stored backbone, which may be a
# stranger's, is laid out before its settings are compared with its weights, and no setting may make that take long.
_LIMITS: dict[str, tuple[float, float]] = {
    "d_model": (1, 2**16),
    "n_layers": (1, MOST_LAYERS),
    "n_heads": (1, 2**12),
    "d_ff": (1, 2**18),
    "kernel": (1, 2**9),
    "vocab_size": (1, 2**20),
    "subsampling_channels": (1, 2**15),
    "subsampling_kernel": (1, 2**10),
    "wave_kernels": (1, 2**12),
    "wave_strides": (1, 2**10),
    "shaw_left": (0, 2**13),
    "shaw_right": (0, 2**13),
    "left_context": (-1, 2**20),
    "right_context": (-1, 2**20),
    "chunk": (0, 2**20),
    "rope_base": (1e-6, 1e12),
    "norm_eps": (0, 1),
    "ff_residual": (-1e6, 1e6),
    "conv_residual": (-1e6, 1e6),
    "input_scale": (-1e6, 1e6),
}


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
    subsampler: str = "conv2d"
    subsampling_kernel: int = 5  # taps of conv1d
    wave_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)  # taps of wave_cnn, layer by layer
    wave_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    shaw_left: int = 64  # shaw: farthest offset to the left that has a row of its own in the table
    shaw_right: int = 8
    depthwise_bias: bool | None = None  # of the depthwise convolution; None: as conv_bias
    norm_bias: bool = True  # of the LayerNorms
    attention_bias: bool = True  # of query, key, value and output
    ff_bias: bool = True  # of both projections of the feed-forward modules

    def __post_init__(self) -> None:
        one_of("encoder.subsampler", self.subsampler, SUBSAMPLERS)
        one_of("encoder.position", self.position, POSITIONS)
        one_of("encoder.context", self.context, CONTEXTS)
        one_of("encoder.conv_padding", self.conv_padding, CONV_PADDINGS)
        one_of("encoder.conv_norm", self.conv_norm, CONV_NORMS)
        one_of("encoder.conv_mask", self.conv_mask, CONV_MASKS)
        one_of("encoder.subsampling", self.subsampling, SUBSAMPLERS[self.subsampler])
        for name, (least, most) in _LIMITS.items():
            within(f"encoder.{name}", getattr(self, name), least, most)
        if not 0 < len(self.wave_kernels) == len(self.wave_strides) <= _MOST_WAVE_LAYERS:
            raise UserError(
                f"encoder.wave_kernels = {self.wave_kernels!r:.80}, wave_strides = {self.wave_strides!r:.80}: must be "
                f"1 to {_MOST_WAVE_LAYERS} numbers, as many of each"
            )
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"encoder.d_model = {self.d_model}: must be a multiple of 2 n_heads = {2 * self.n_heads}")
        if self.context == "chunk":
            at_least("encoder.chunk", self.chunk, 1)
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

    def output_length(self, features: FeatureConfig, num_samples: Any) -> Any:
        """Encoder frames of `num_samples` samples (int, numpy or jax integers; elementwise)."""
        from hra_jax.models import padding  # imports JAX, which nobody who only reads settings needs

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
SIZES: dict[str, tuple[FeatureConfig, dict[str, Any]]] = {
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
    found: dict[str, AffineMap] = {}

    def norm(name: str, path: tuple[str, ...], *, bias: bool = config.norm_bias) -> None:
        found[name] = AffineMap(path, "norm", d, d, bias)

    def projection(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        found[name] = AffineMap(tuple(name.split(".")), "projection", inputs, outputs, bias)

    def feed_forward(name: str) -> None:
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
    one_of("size", name, SIZES)
    features, encoder = SIZES[name]
    return features, EncoderConfig(vocab_size=vocab_size, **encoder)
