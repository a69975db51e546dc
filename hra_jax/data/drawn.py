"""What a mixture was asked to draw, what it drew, and which tasks it has not drawn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hra_jax.data import batching
from hra_jax.data.groups import Part
from hra_jax.data.mixtures import epoch_order
from hra_jax.data.utterance_table import UtteranceTable


class Share(NamedTuple):
    """One part of a mixture.

    Attributes:
      name: of the part.
      utterances: in it.
      asked: its share of all references, as the rates have it: above 0, at most 1.
      drawn: references that were drawn of it.
    """

    name: str
    utterances: int
    asked: float
    drawn: int


def asked(parts: Sequence[Part]) -> np.ndarray:
    """float64 [parts]: the share of each in all references; their sum is 1."""
    weights = np.asarray([part.spec.weight for part in parts], np.float64)
    return weights / weights.sum()


def draw_weights(table: UtteranceTable, parts: Sequence[Part]) -> np.ndarray:
    """float64 [N]: how often each utterance of a table is drawn, by the rates of the parts; 1 where there are none."""
    found = np.zeros(len(table)) if parts else np.ones(len(table))
    for part, share in zip(parts, asked(parts).tolist() if parts else (), strict=True):
        found[part.utterances] += share / len(part.utterances)
    return found


def shares(parts: Sequence[Part], drawn: Sequence[int]) -> list[Share]:
    """What was asked and drawn of each part; `drawn`: references of each."""
    rows = zip(parts, asked(parts).tolist(), drawn, strict=True)
    return [Share(part.spec.name, part.spec.rows, share, count) for part, share, count in rows]


def scalars(found: Sequence[Share]) -> dict[str, float]:
    """The shares for the metrics: {data/asked/NAME: share, data/drawn/NAME: share of what has been drawn}."""
    total = max(sum(share.drawn for share in found), 1)
    wanted = {f"data/asked/{share.name}": share.asked for share in found}
    return wanted | {f"data/drawn/{share.name}": share.drawn / total for share in found}


def to_json(found: Sequence[Share], never: Sequence[str]) -> dict[str, Any]:
    """The shares for the data report, and the tasks that were never drawn."""
    total = sum(share.drawn for share in found)
    parts = [
        {"name": s.name, "utterances": s.utterances, "asked": round(s.asked, 6), "drawn": s.drawn / max(total, 1)}
        | {"references": s.drawn}
        for s in found
    ]
    return {"references": total, "parts": parts, "tasks_never_drawn": list(never)}


def undrawn_tasks(table: UtteranceTable, parts: Sequence[Part], drawn: Sequence[int], *, seed: int) -> list[str]:
    """The tasks that have utterances of which none is among the first references of each part.

    Args:
      table: the training utterances.
      parts: of the mixture.
      drawn: references that were drawn of each part.
      seed: of the stream.

    Returns:
      Their names, in the order of their ids.
    """
    heard = np.zeros(len(table.task_names) + 1, bool)  # the last is for `__base__`, -1
    for part, count in zip(parts, drawn, strict=True):
        rows = part.utterances
        if count < len(rows):
            rows = rows[epoch_order(part.spec, 0, seed=seed)[:count]]
        heard[table.task[rows]] = True
    return [table.task_names[task] for task in table.learning.tolist() if not heard[task]]


def references_in(
    steps: int, table: UtteranceTable, parts: Sequence[Part], *, buckets: Sequence[float], rows: Sequence[int]
) -> float:
    """About how many references so many steps draw: each bucket takes its share of them, in full batches.

    Args:
      steps: batches.
      table: the training utterances.
      parts: of the mixture.
      buckets: the longest utterance of each bucket, seconds, ascending.
      rows: of a batch of each bucket.
    """
    inside = batching.bucket_of(table.duration, buckets)
    batches = 0.0  # for each reference
    for part, share in zip(parts, asked(parts), strict=True):
        counts = np.bincount(inside[part.utterances], minlength=len(buckets))
        batches += share * (counts / part.spec.rows / np.asarray(rows)).sum()
    return steps / batches
