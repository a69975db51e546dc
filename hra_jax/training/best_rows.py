"""The parameters of each task at the step where it was best, kept beside the task bank."""

from collections.abc import Iterable

import jax
import numpy as np

from hra_jax.training.task_bank import TaskBank, Tree
from hra_jax.training.train_state import TrainState


class BestRows:
    """The parameters that single tasks had at steps of their own, in this process's memory: a tree for each row."""

    def __init__(self) -> None:
        """Holds nothing."""
        self._rows: dict[int, Tree] = {}
        self._touched: set[int] = set()

    def put(self, ids: Iterable[int], rows: Tree) -> None:
        """Keeps rows `ids`; leaves `[n, ...]`."""
        for position, number in enumerate(map(int, ids)):
            self._rows[number] = jax.tree.map(lambda leaf, at=position: np.array(leaf[at]), rows)
            self._touched.add(number)

    def changed(self) -> tuple[np.ndarray, Tree]:
        """What has been put since `saved` was last called: numbers int64 `[n]`, and a tree with leaves `[n, ...]`."""
        return self._stacked(self._touched)

    def _stacked(self, numbers: Iterable[int]) -> tuple[np.ndarray, Tree]:
        ids = np.array(sorted(numbers), np.int64)
        return ids, jax.tree.map(lambda *leaves: np.stack(leaves), *(self._rows[i] for i in ids)) if len(ids) else {}

    def saved(self) -> None:
        """Notes that what has been put so far is on storage."""
        self._touched.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._rows.clear()
        self._touched.clear()

    def onto(self, bank: TaskBank, state: TrainState) -> TrainState:
        """The state with these parameters in its bank."""
        ids, tasks = self._stacked(self._rows)
        return bank.put(state, ids, bank.rows(state, ids) | {"tasks": tasks}) if len(ids) else state
