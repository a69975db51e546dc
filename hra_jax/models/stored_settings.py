"""Feature settings and encoder geometry as JSON values, and what a stored backbone that leaves settings out means.

Every setting is written. Folders of format 1 that were stored before a setting existed lack it; `UNSAID` holds what
such a folder means. These values belong to the stored format: they never change, whatever default a class gets later.
"""

import dataclasses
import sys
import typing
from typing import Any, TypeVar

from hra_jax.errors import UserError

# Class -> setting -> its meaning where a folder of format 1 lacks it. Settings that are not named here are in every
# folder. A new setting needs a line here: the value with which the encoder computes what it computed before.
UNSAID: dict[str, dict[str, Any]] = {
    "FeatureConfig": {
        "normalization_eps": 1e-5,
        "kind": "log_mel",
        "scale": 1.0,
        "framing": "hop",
        "window_shape": "hann",
        "unit_power": True,
        "remove_dc": False,
        "preemphasis": 0.0,
        "preemphasis_of": "frame",
        "mel_scale": "kaldi",
        "mel_area": False,
        "floor_mode": "add",
        "stack": 1,
    },
    "EncoderConfig": {
        "subsampler": "conv2d",
        "subsampling_kernel": 5,
        "wave_kernels": (10, 3, 3, 3, 3, 2, 2),
        "wave_strides": (5, 2, 2, 2, 2, 2, 2),
        "shaw_left": 64,
        "shaw_right": 8,
        "depthwise_bias": None,
        "norm_bias": True,
        "attention_bias": True,
        "ff_bias": True,
    },
}

Settings = TypeVar("Settings")


def to_json(config: Any) -> dict[str, Any]:
    """All settings of a configuration dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def fingerprinted(config: Any) -> dict[str, Any]:
    """The settings that enter the fingerprint of a backbone: those of `UNSAID` only where they differ from it.

    So a backbone has the fingerprint that it had before those settings existed, and has it with or without them.
    """
    unsaid = UNSAID[type(config).__name__]
    return {name: value for name, value in to_json(config).items() if name not in unsaid or value != unsaid[name]}


def from_json(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """A configuration from stored values, of which those in `UNSAID` may be missing.

    Args:
      cls: `FeatureConfig` or `EncoderConfig`.
      values: the settings as `to_json` gives them; a list stands for a tuple.

    Raises:
      UserError: an unknown setting, one that is missing, or a value of another type or out of range.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # any of the two dataclasses
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {cls.__name__}: allowed are {', '.join(known)}")
    values = UNSAID[cls.__name__] | values
    missing = [name for name in known if name not in values]
    if missing:
        raise UserError(f"{cls.__name__} lacks the field {missing[0]!r}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        kind = known[name].type
        if not _is_of(value, kind):
            raise UserError(f"{cls.__name__}.{name} = {value!r:.60}: must be {getattr(kind, '__name__', kind)}")
    return cls(**values)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type: a class, a union, or a tuple of numbers."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        sized = inner[-1] is ... or (isinstance(value, tuple) and len(value) == len(inner))
        return isinstance(value, tuple) and sized and all(_is_of(one, inner[0]) for one in value)
    if typing.get_args(kind):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)
