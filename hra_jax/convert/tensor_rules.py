"""Rules: which source tensors become which tensor of the backbone, and how.

Letters: D width, I inputs, O outputs, K taps, C channels, F mel bins (after striding), N heads, H head width. A source
key with `{n}` names one layer; its target lies under `encoder.layers.` and has a leading axis of layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hra_jax.models.encoder_config import BATCH_NORM_EPS

LAYERS = "encoder.layers."


class Transform(NamedTuple):
    """How source tensors become a tensor of the backbone.

    `apply` takes the source tensors (float arrays, in the order of the rule) and gives the tensor; `shapes` takes the
    shape of the tensor and gives those of the source tensors.
    """

    apply: Callable[..., np.ndarray]
    shapes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], ...]]


class Rule(NamedTuple):
    """One tensor of the backbone (without the axis of layers), and what it is made of."""

    target: str
    sources: tuple[str, ...]
    transform: Transform


# --- Transforms -------------------------------------------------------------------------------------------------------

AS_IS = Transform(lambda w: w, lambda s: (s,))
LINEAR = Transform(lambda w: w.T, lambda s: (s[::-1],))  # [O, I] -> [I, O]
POINTWISE = Transform(lambda w: w[:, :, 0].T, lambda s: ((s[1], s[0], 1),))  # [O, I, 1] -> [I, O]
POINTWISE_2D = Transform(lambda w: w[:, :, 0, 0].T, lambda s: ((s[1], s[0], 1, 1),))  # [O, I, 1, 1] -> [I, O]
CONV_1D = Transform(lambda w: w.transpose(2, 1, 0), lambda s: (s[::-1],))  # [O, I, K] -> [K, I, O]
CONV_2D = Transform(  # [O, I, K, K'] -> [K, K', I, O]; of a depthwise convolution too, with I = 1
    lambda w: w.transpose(2, 3, 1, 0), lambda s: ((s[3], s[2], s[0], s[1]),)
)
DEPTHWISE = Transform(lambda w: w[:, 0, :].T, lambda s: ((s[1], 1, s[0]),))  # [C, 1, K] -> [K, C]


def zeros(shape: tuple[int, ...]) -> Transform:
    """No source: zeros of that shape."""
    return Transform(lambda: np.zeros(shape, np.float32), lambda s: ())


def frequency_major(channels: int) -> Transform:
    """A projection `[O, C F]` of frames flattened channel by channel -> `[F C, O]`, of frames flattened bin by bin."""

    def apply(w: np.ndarray) -> np.ndarray:
        w = w.reshape(w.shape[0], channels, -1)  # [O, C, F]
        return w.transpose(2, 1, 0).reshape(-1, w.shape[0])

    return Transform(apply, lambda s: (s[::-1],))


def _gain(scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPS)


def _folded_kernel(w: np.ndarray, scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return (w[:, 0, :].T * _gain(scale, variance)).astype(np.float32)


def _folded_bias(
    scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, convolution: np.ndarray | None = None
) -> np.ndarray:
    # At the borders too: the zeros beyond the signal enter the convolution, not the norm.
    offset = (0.0 if convolution is None else convolution.astype(np.float64)) - mean.astype(np.float64)
    return (offset * _gain(scale, variance) + bias.astype(np.float64)).astype(np.float32)


FOLDED_KERNEL = Transform(_folded_kernel, lambda s: ((s[1], 1, s[0]), s[1:], s[1:]))
FOLDED_BIAS = Transform(_folded_bias, lambda s: (s,) * 4)
FOLDED_BIASES = Transform(_folded_bias, lambda s: (s,) * 5)


# --- Groups of rules --------------------------------------------------------------------------------------------------


def one(source: str, target: str, transform: Transform = AS_IS) -> tuple[Rule, ...]:
    """One tensor from one source tensor."""
    return (Rule(target, (source,), transform),)


def affine(source: str, target: str, transform: Transform = LINEAR, *, bias: bool = True) -> tuple[Rule, ...]:
    """`{source}.weight` and, with `bias`, `{source}.bias` -> `{target}.kernel` and `{target}.bias`."""
    rules = one(f"{source}.weight", f"{target}.kernel", transform)
    return rules + one(f"{source}.bias", f"{target}.bias") if bias else rules


def convolution(source: str, target: str, transform: Transform) -> tuple[Rule, ...]:
    """`{source}.weight` and `{source}.bias` -> `{target}_kernel` and `{target}_bias`."""
    return one(f"{source}.weight", f"{target}_kernel", transform) + one(f"{source}.bias", f"{target}_bias")


def norm(source: str, target: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """`{source}.weight` and, with `bias`, `{source}.bias` -> `{target}.scale` and `{target}.bias`."""
    rules = one(f"{source}.weight", f"{target}.scale")
    return rules + one(f"{source}.bias", f"{target}.bias") if bias else rules


def batch_norm(source: str, *, depthwise: str, bias: bool, fold: bool) -> tuple[Rule, ...]:
    """A depthwise convolution and the BatchNorm after it.

    Args:
      source: of the norm: weight, bias, running_mean, running_var.
      depthwise: of the convolution: weight and, with `bias`, bias.
      bias: whether the published convolution has a bias.
      fold: whether the norm goes into kernel and bias of the convolution (in float64), or stays beside them.
    """
    scale, shift, mean, variance = (f"{source}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    target = "convolution.depthwise"
    if not fold:
        kept = (
            one(scale, f"{target}_norm.scale")
            + one(shift, f"{target}_norm.bias")
            + one(mean, f"{target}_norm.mean")
            + one(variance, f"{target}_norm.variance")
        )
        return affine(depthwise, target, DEPTHWISE, bias=bias) + kept
    sources = (scale, shift, mean, variance) + ((f"{depthwise}.bias",) if bias else ())
    return (
        Rule(f"{target}.kernel", (f"{depthwise}.weight", scale, variance), FOLDED_KERNEL),
        Rule(f"{target}.bias", sources, FOLDED_BIASES if bias else FOLDED_BIAS),
    )


def head(source: str | None, *, width: int, vocabulary: int, transform: Transform = LINEAR) -> tuple[Rule, ...]:
    """The output layer; zeros where the encoder was published without one (`source` is None).

    Args:
      source: of the layer: weight and bias.
      width: of the encoder.
      vocabulary: number of outputs.
      transform: of the weight.
    """
    if source is not None:
        return affine(source, "output", transform)
    return (
        Rule("output.kernel", (), zeros((width, vocabulary))),
        Rule("output.bias", (), zeros((vocabulary,))),
    )


def under(prefix: str, rules: tuple[Rule, ...], *, target: str = "") -> tuple[Rule, ...]:
    """The same rules with a prefix before their source keys, and one before their targets."""
    return tuple(
        Rule(target + rule.target, tuple(prefix + source for source in rule.sources), rule.transform) for rule in rules
    )


def layers(prefix: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of a block as rules of all layers; `prefix` names a layer with `{n}`."""
    assert "{n}" in prefix, prefix
    return under(prefix, rules, target=LAYERS)
