"""The recogniser as a portable program: StableHLO by jax.export, for any batch, length and number of tasks.

Letters: b utterances, s samples, k rows of a bank of tasks, T encoder frames, V vocabulary, O outputs.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.decoding import step
from hra_jax.models.asr import AsrModel
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.storage.trees import unflatten
from hra_jax.text.vocabularies import Vocabulary

PLATFORMS = ("cpu", "cuda", "tpu")
ARGUMENTS = ("backbone", "shared", "rows", "row", "waveform", "num_samples")
SYMBOLS = "symbols"  # the tensor of a row that says where the outputs of a vocabulary of its own start from

# {name: shape and dtype}
Declared = Mapping[str, jax.ShapeDtypeStruct]


def make(
    features: FeatureConfig,
    encoder: EncoderConfig,
    adapter: Adapter,
    *,
    backbone: Declared,
    shared: Declared,
    row: Declared,
) -> export.Exported:
    """The program (backbone, shared, rows, row, waveform, num_samples) -> (log-probabilities, lengths).

    Its arguments are flat dicts of tensors by name, then arrays:

      backbone, shared: the weights of the encoder, and of what all tasks share.
      rows: what tasks own, `[k, ...]` each: a bank of any number of tasks.
      row: int32 `[b]`, the row of each utterance's task in the bank; any other number, such as -1, is no adapter.
      waveform: float32 `[b, s]`, mono; samples after `num_samples` may be anything.
      num_samples: int32 `[b]`.

    It gives float32 `[b, T, V]` (`[b, T, O]` where tasks write in vocabularies of their own) and int32 `[b]` frames.

    Args:
      features, encoder: the geometry of the backbone.
      adapter: the method.
      backbone, shared, row: the tensors of the backbone, of what all tasks share, and of one task. Where tasks write in
        vocabularies of their own, row has 'symbols', int32 `[O]`, and shared those of the backbone alone.
    """
    dtype = next(iter(backbone.values())).dtype
    # Attention takes all queries at once: what suits one platform would be in the program of all.
    model = AsrModel(features, encoder, adapter=adapter, dtype=dtype)

    def recognise(
        backbone: dict[str, jax.Array],
        shared: dict[str, jax.Array],
        rows: dict[str, jax.Array],
        row: jax.Array,
        waveform: jax.Array,
        num_samples: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        count = next(iter(rows.values())).shape[0]
        symbols = None
        if SYMBOLS in shared:
            own = jnp.take(rows[SYMBOLS], row, axis=0, mode="fill", fill_value=0)
            symbols = jnp.where(((row >= 0) & (row < count))[:, None], own, shared[SYMBOLS][None, :])
        params = unflatten(backbone, separator=".")
        used = jnp.int32(count)
        return step.apply_model(model, params, _tree(shared), _tree(rows), used, waveform, num_samples, row, symbols)

    # No batch is shorter: what divides samples into frames then knows that there is one.
    b, k, s = export.symbolic_shape("b, k, s", constraints=[f"s >= {features.sample_rate}"])
    bank = {name: jax.ShapeDtypeStruct((k, *leaf.shape), leaf.dtype) for name, leaf in row.items()}
    numbers = jax.ShapeDtypeStruct((b,), np.int32)
    arguments = (dict(backbone), dict(shared), bank, numbers, jax.ShapeDtypeStruct((b, s), np.float32), numbers)
    with _without_places():
        return export.export(jax.jit(recognise), platforms=PLATFORMS)(*arguments)


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Leaves the paths and lines of the code out of a program, so that the same model gives the same bytes anywhere."""
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _tree(tensors: Mapping[str, jax.Array]) -> dict[str, Any]:
    return no_parameters() | unflatten({n: leaf for n, leaf in tensors.items() if n != SYMBOLS}, separator=".")


def described(program: export.Exported) -> list[dict[str, Any]]:
    """The inputs of a program in their order, as JSON values: argument, name, dtype and shape, with b, k and s."""
    arguments, _ = jax.tree.unflatten(program.in_tree, range(len(program.in_avals)))
    found = []
    for argument, content in zip(ARGUMENTS, arguments, strict=True):
        for name, number in sorted(content.items()) if isinstance(content, dict) else [("", content)]:
            aval = program.in_avals[number]
            shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
            entry = {"argument": argument, "name": name, "dtype": aval.dtype.name, "shape": shape}
            found.append((number, entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def labels(vocabulary: Vocabulary) -> list[str]:
    """What each label adds to a text, '' for the blank and for marks: put together and stripped they are the text.

    Where a published tokenizer cleans the spaces of its texts up, that is left out.
    """
    size, blank = vocabulary.size, vocabulary.blank_id
    letters = (t for t in range(size) if t != blank and vocabulary.decode([t]).strip().isalnum())
    anchor = next(letters, None)  # between two of these a space is seen
    if anchor is None:
        return ["" if t == blank else vocabulary.decode([t]) for t in range(size)]
    before = vocabulary.decode([anchor])
    after = vocabulary.decode([anchor, anchor])[len(before) :]
    found = []
    for token in range(size):
        text = "" if token == blank else vocabulary.decode([anchor, token, anchor])
        found.append(text[len(before) : len(text) - len(after)])
    return found
