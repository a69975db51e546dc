"""Whether the tensors of an adapter folder are those of its method: by their shapes, before any of them is read.

What a method needs is what `jax.eval_shape` gives of its initialisation, so that nothing is allocated. Where the
backbone is known, the shapes are those of its geometry. Where it is not, the method is laid out on encoders of several
sizes: an axis that is the same on all of them follows from the settings alone, and the others must be the sizes of one
encoder.

Letters: D width, F width of the feed-forward modules, L adapted layers, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any

from hra_jax.adapters.base import Adapter
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.storage.trees import flatten

Shapes = dict[str, tuple[Any, ...]]  # by dotted path; of an axis its size, or a letter with its factor, or None

_PARTS = ("shared", "task")
# Two encoders whose sizes say which letter an axis is; they have no size in common, and no factor of one gives another.
_SIZES = (
    {"d_model": 2022, "d_ff": 3001, "vocab_size": 5003, "n_layers": 1009, "n_heads": 3, "kernel": 7}
    | {"subsampling": 2, "subsampling_channels": 11, "subsampling_kernel": 13, "shaw_left": 17, "shaw_right": 19},
    {"d_model": 2110, "d_ff": 3011, "vocab_size": 5009, "n_layers": 1021, "n_heads": 5, "kernel": 9}
    | {"subsampling": 4, "subsampling_channels": 23, "subsampling_kernel": 29, "shaw_left": 31, "shaw_right": 37},
)
_LETTERS = {"D": "d_model", "F": "d_ff", "V": "vocab_size", "L": "n_layers"}
_FACTORS = (1, 2)  # a gated projection is twice as wide
_BIASES = ("conv_bias", "depthwise_bias", "norm_bias", "attention_bias", "ff_bias")


def check_declared(
    adapter: Adapter, declared: Mapping[str, Mapping[str, Any]], encoder: EncoderConfig | None = None, *, where: str
) -> None:
    """Checks the tensors that an adapter folder declares against the settings of its method.

    Args:
      adapter: the method with these settings.
      declared: {"shared", "task"} -> {dotted path: {"shape", ...}}, as adapter_config.json has it.
      encoder: the geometry of its backbone; None where that is not known.
      where: the file, for errors.

    Raises:
      UserError: a tensor is missing, is none of the method's, or has another shape; or a setting does not fit the
        encoder.
    """
    found: dict[str, int] = {}
    for part in _PARTS:
        shapes = {path: tuple(entry["shape"]) for path, entry in declared[part].items()}
        try:
            needed, allowed = _needed(adapter, encoder, part)
        except UserError as error:
            raise UserError(f"{where}: method: {error}") from error
        for path in sorted(allowed.keys() | shapes.keys()):
            if path in shapes and path not in allowed:
                raise UserError(f"{where}: tensors.{part}: {path!r} is no tensor of the {adapter.name} settings there")
            if path not in shapes:
                if path in needed:
                    raise UserError(f"{where}: tensors.{part}: lacks {path!r} of the {adapter.name} settings there")
            elif not _fits(shapes[path], allowed[path], found):
                wanted = ", ".join("?" if axis is None else _shown(axis, found) for axis in allowed[path])
                raise UserError(
                    f"{where}: tensors.{part}: {path!r} has the shape {list(shapes[path])}; the {adapter.name} "
                    f"settings there ask for [{wanted}]"
                )


def _fits(shape: tuple[int, ...], wanted: tuple[Any, ...], found: dict[str, int]) -> bool:
    """Whether a shape is as wanted; `found` takes the sizes of the letters that are seen for the first time."""
    if len(shape) != len(wanted):
        return False
    for size, axis in zip(shape, wanted, strict=True):
        if isinstance(axis, int) and size != axis:
            return False
        if isinstance(axis, tuple):
            letter, factor = axis
            if size % factor or found.setdefault(letter, size // factor) != size // factor or not size:
                return False
    return True


def _shown(axis: int | tuple[str, int], found: Mapping[str, int]) -> str:
    if isinstance(axis, int):
        return str(axis)
    letter, factor = axis
    return str(factor * found[letter]) if letter in found else f"{factor if factor > 1 else ''}{letter}"


@functools.lru_cache(maxsize=64)
def _needed(adapter: Adapter, encoder: EncoderConfig | None, part: str) -> tuple[Shapes, Shapes]:
    """The tensors that there must be, and those that there may be."""
    if encoder is not None:
        exact = _shapes(adapter, encoder)[part]
        return exact, exact
    kinds: list[Shapes] = []
    refused: UserError | None = None
    for bare in (False, True):
        try:
            first, second = (_shapes(adapter, _encoder(sizes, bare, adapter))[part] for sizes in _SIZES)
        except UserError as error:  # such as a norm that is read, which some encoders lack
            refused = error
            continue
        kinds.append({path: tuple(map(_axis, first[path], second[path])) for path in first})
    if refused is not None and not kinds:
        raise refused
    return {path: axes for path, axes in kinds[0].items() if all(path in kind for kind in kinds)}, {
        path: axes for kind in kinds for path, axes in kind.items()
    }


def _encoder(sizes: Mapping[str, int], bare: bool, adapter: Adapter) -> EncoderConfig:
    """An encoder with every part that an encoder may have, or with none that it may lack."""
    deepest = max(adapter.layers, default=0) + 1
    lacks: dict[str, Any] = dict.fromkeys(_BIASES, False) | {"conv_norm": "none"} if bare else {}
    settings = {**sizes, "n_layers": max(sizes["n_layers"], deepest), **lacks}
    return EncoderConfig(**settings)


def _axis(first: int, second: int) -> int | tuple[str, int] | None:
    """What an axis is, of its sizes on both encoders; None for what no letter says."""
    if first == second:
        return first
    for letter, field in _LETTERS.items():
        for factor in _FACTORS:
            if (first, second) == tuple(factor * sizes[field] for sizes in _SIZES):
                return letter, factor
    return None


def _shapes(adapter: Adapter, encoder: EncoderConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every tensor of a method on an encoder, by part and dotted path; nothing is computed."""
    import jax  # late: commands that read no adapter need none

    key = jax.eval_shape(lambda: jax.random.key(0))
    trees = (adapter.init_common, adapter.init_task)
    found = (jax.eval_shape(lambda k, init=init: init(k, encoder), key) for init in trees)
    return {
        part: {path: tuple(leaf.shape) for path, leaf in flatten(tree, separator=".").items()}
        for part, tree in zip(_PARTS, found, strict=True)
    }
