"""Connectionist temporal classification: loss and greedy decoding.

Letters: B batch, T frames, V vocabulary, U labels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from hra_jax.models import padding


def augmented_length(labels: ArrayLike) -> int:
    """The fewest frames that can carry `labels` (1-D): the labels, and a blank between equal neighbours."""
    labels = np.asarray(labels)
    return int(labels.size + np.count_nonzero(labels[1:] == labels[:-1]))


def ctc_loss(
    log_probs: jax.Array, lengths: jax.Array, labels: jax.Array, label_lengths: jax.Array, blank_id: int
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each label sequence.

    Args:
      log_probs: `[B, T, V]`; log-probabilities or logits, taken to float32.
      lengths: int32 `[B]`, frames.
      labels: int32 `[B, U]`.
      label_lengths: int32 `[B]`.
      blank_id: id of the blank.

    Returns:
      loss: float32 `[B]`, in nats; 0 where infeasible.
      feasible: bool `[B]`; False where the frames cannot carry the labels (fewer than labels plus repeats, or none).
    """
    label_valid = padding.valid_mask(label_lengths, labels.shape[1])
    repeats = (labels[:, 1:] == labels[:, :-1]) & label_valid[:, 1:]
    feasible = (lengths > 0) & (label_lengths + repeats.sum(axis=1) <= lengths)
    # An infeasible row is given no labels: its loss is then finite with a finite gradient, and is masked below.
    label_valid &= feasible[:, None]
    labels = jnp.where(label_valid, labels, blank_id)
    frame_valid = padding.valid_mask(lengths, log_probs.shape[1])
    logits = padding.zero_invalid(log_probs.astype(jnp.float32), frame_valid)
    loss = optax.ctc_loss(
        logits,
        (~frame_valid).astype(jnp.float32),
        labels,
        (~label_valid).astype(jnp.float32),
        blank_id=blank_id,
    )
    return jnp.where(feasible, loss, 0.0), feasible


def greedy_decode(log_probs: ArrayLike, lengths: ArrayLike, blank_id: ArrayLike) -> list[list[int]]:
    """Best path: argmax per frame, repeats merged, blanks dropped.

    Args:
      log_probs: `[B, T, V]`, or the ids `[B, T]` of an argmax taken before.
      lengths: `[B]`, frames.
      blank_id: id of the blank, or `[B]` where the rows have different ones.

    Returns:
      B lists of label ids.
    """
    paths = np.asarray(log_probs)
    if paths.ndim == 3:
        paths = paths.argmax(axis=-1)
    decoded = []
    blanks = np.broadcast_to(blank_id, len(paths))
    for path, length, blank in zip(paths, np.asarray(lengths), blanks, strict=True):
        decoded.append(labels_of_path(path[:length], int(blank)))
    return decoded


def labels_of_path(path: np.ndarray, blank_id: int) -> list[int]:
    """The labels that a path says, int `[T]`: repeats merged, blanks dropped."""
    starts = np.concatenate([[True], path[1:] != path[:-1]])[: path.size]
    return [int(label) for label in path[starts] if label != blank_id]
