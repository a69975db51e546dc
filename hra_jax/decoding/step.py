"""The transcription step: what recognition runs on a device, its batches, and what is refused of its results.

Letters: B utterances, S samples, T encoder frames, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters.base import bind, unbound
from hra_jax.console import listed
from hra_jax.errors import UserError
from hra_jax.models.asr import AsrModel, apply_with_voice
from hra_jax.models.padding import padded_size
from hra_jax.tasks.names import BASE_TASK


def padded(waveforms: Sequence[np.ndarray], *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of few shapes.

    Args:
      waveforms: float32, 1-D.
      least: samples of the shortest batch.

    Returns:
      float32 `[rows, S]` with silence beyond the waveforms, and their lengths, int32 `[rows]`, 0 beyond the last.
    """
    samples = padded_size(max(len(waveform) for waveform in waveforms), least)
    batch = np.zeros((padded_size(len(waveforms), 1), samples), np.float32)
    lengths = np.zeros(len(batch), np.int32)
    for row, waveform in enumerate(waveforms):
        batch[row, : len(waveform)], lengths[row] = waveform, len(waveform)
    return batch, lengths


def check_finite(
    log_probs: np.ndarray, frames: np.ndarray, tasks: Sequence[str], *, backbone: str, adapter: str
) -> None:
    """Refuses what overflowed: the likeliest label of NaN would be the blank, and every text empty.

    Args:
      log_probs: `[B, T, V]`.
      frames: `[B]`, how many frames of each are valid.
      tasks: of each utterance.
      backbone, adapter: where they lie.

    Raises:
      UserError: something is not finite; the line names the tasks, and where what they use lies.
    """
    valid = np.arange(log_probs.shape[1]) < frames[:, None]
    wrong = (valid & ~np.isfinite(log_probs).all(axis=-1)).any(axis=-1)
    if wrong.any():
        names = sorted({task for task, found in zip(tasks, wrong, strict=True) if found})
        own = "" if names == [BASE_TASK] else f"the adapter {adapter!r}, or else of "
        raise UserError(
            f"task {listed(names)}: the log-probabilities are not finite; the weights or settings of {own}the backbone "
            f"{backbone!r}, or the samples, are too large"
        )


def apply_model(
    model: AsrModel,
    params: Mapping[str, Any],
    shared: dict[str, Any],
    rows: dict[str, Any],
    used: jax.Array,
    waveform: jax.Array,
    num_samples: jax.Array,
    task: jax.Array,
    symbols: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The transcription step: log-probabilities `[B, T, V]` and lengths `[B]` of a batch.

    Args:
      model: the encoder with its adapter method.
      params: the backbone's weights.
      shared: the parameters that all tasks of the adapter share.
      rows: the task bank of the adapter, leaves `[A, ...]`, or {} for no adapter.
      used: how many rows of the bank are in use.
      waveform: float32 `[B, S]`.
      num_samples: int32 `[B]`.
      task: int32 `[B]`. Task ids outside the rows in use get no adapter.
      symbols: as `AsrModel` takes them.
    """
    if not rows:
        bound = unbound()
    else:
        count = jax.tree.leaves(rows)[0].shape[0]
        # Rows are read by id straight from the bank; ids beyond its end get no adapter.
        index = jnp.where((task >= 0) & (task < used), task, count)
        bound = bind(model.adapter, model.encoder, shared, rows, index)
    outputs: Any = model.apply({"params": params}, waveform, num_samples, bound, symbols)
    log_probs, lengths = outputs
    return log_probs, lengths


def apply_model_with_voice(
    model: AsrModel,
    params: Mapping[str, Any],
    shared: dict[str, Any],
    rows: dict[str, Any],
    waveform: jax.Array,
    num_samples: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`apply_with_voice` of utterances without a task; arguments as of `apply_model`."""
    count = jax.tree.leaves(rows)[0].shape[0] if jax.tree.leaves(rows) else 1
    # Beyond the bank: what the tasks share runs, and no task's own part does.
    nothing = jnp.full(waveform.shape[:1], count, jnp.int32)
    bound = bind(model.adapter, model.encoder, shared, rows, nothing) if rows else unbound()
    return apply_with_voice(model, params, waveform, num_samples, bound)


ALONE = jax.jit(apply_model, static_argnums=0)
WITH_VOICE = jax.jit(apply_model_with_voice, static_argnums=0)
