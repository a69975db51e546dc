"""Where the task bank lives while it trains: whole on the device, or on the host with the step's rows on the device.

Both do the same arithmetic. A bank in host memory costs the device K rows, however many tasks there are, and the link
between them K rows each way for a step, which it hides: a step's rows are copied back while the next step runs, and a
task of both steps goes from one to the other on the device.

Letters: A rows of the bank, K rows that a step may touch, n rows that are asked for.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters import task_rows
from hra_jax.training import sharding, train_state

BANKS = ("device", "host")  # memory that holds the rows


class NoBank:
    """Of a run that trains the backbone itself: there are no tasks."""

    def __init__(self, train_step: Callable, *, knobs: dict):
        """`train_step` and `knobs` as the two other classes take them."""
        self._step, self._knobs = train_step, knobs
        self._touched: set[int] = set()
        self._stepped = False  # whether the bank differs from what it was made as

    def step(self, state, frozen, batch, tasks: Sequence[int]):
        """One training step.

        Args:
          state: a TrainState; its buffers are donated.
          frozen: the backbone's weights.
          batch: on the device.
          tasks: the tasks of the global batch, ascending, `__base__` left out.

        Returns:
          The new state, and metrics.
        """
        self._touched.update(tasks)
        self._stepped = True
        return self._step(state, frozen, batch, self._knobs)

    def described(self, state) -> dict:
        """All that trains, as a tree of arrays or shapes."""
        return state.trainable

    def as_stepped(self, state):
        """The state as the train step sees it, with the rows that are on the device."""
        return state

    def restart(self, state, before):
        """The state `state`, which has no bank, with the bank as it was before the first step.

        `before` is the state that the bank was last part of. Rows that started as something else than the seed gives
        are in the log, and are put back from there.
        """
        del before
        return state

    def put(self, state, ids, rows: dict):
        """The state with rows `ids` replaced; `rows` is {'tasks', 'mu', 'nu', 'count'}, leaves `[n, ...]`."""
        raise AssertionError("there is no bank")

    def changed(self, state) -> tuple[np.ndarray, dict]:
        """The rows that may have changed since `saved` was last called: their numbers int64 `[n]`, and `rows` of them.

        Rows that this gives once, or that `put` writes, are all that differs from what the seed gives.
        """
        ids = np.array(sorted(self._touched), np.int64)
        return ids, self.rows(state, ids) if len(ids) else {}

    def saved(self) -> None:
        """What has been touched so far is on storage."""
        self._touched.clear()

    def touch(self, ids: Sequence[int]) -> None:
        """Counts rows as changed."""
        self._touched.update(int(number) for number in ids)


class DeviceBank(NoBank):
    """The whole bank is part of the state: leaves `[A, ...]`, split over the mesh along `task`."""

    def __init__(self, train_step: Callable, *, knobs: dict, draw: Callable[[], dict], everywhere=None, places=None):
        """Takes the compiled step.

        Args:
          train_step: from `training.step.make_train_step`, compiled.
          knobs: what every step of the run takes besides: its seed and its peak learning rate.
          draw: gives the parameters of all new tasks, numpy, leaves `[A, ...]`.
          everywhere: the sharding that puts a copy on each device; None leaves it to the compiler.
          places: the shardings of `training.state.bank_of` of the state; None likewise.
        """
        super().__init__(train_step, knobs=knobs)
        self._draw = draw
        self._place = jax.device_put if places is None else functools.partial(sharding.place, shardings=places)
        self._gather = jax.jit(task_rows.gather, out_shardings=everywhere)
        self._mean = jax.jit(_mean_of_first, out_shardings=everywhere)
        self._scatter = jax.jit(task_rows.scatter, donate_argnums=0, out_shardings=places)

    def rows(self, state, ids) -> dict:
        """Rows `ids` as numpy: {'tasks', 'mu', 'nu', 'count'}, leaves `[n, ...]`."""
        taken = jax.device_get(self._padded(train_state.bank_of(state), ids))
        return jax.tree.map(lambda leaf: leaf[: len(ids)], taken)

    def weights(self, state, ids) -> dict:
        """The parameters of the rows `ids`, on the device: leaves `[n, ...]`."""
        return jax.tree.map(lambda leaf: leaf[: len(ids)], self._padded(state.trainable["tasks"], ids))

    def _padded(self, tree, ids):
        return self._gather(tree, _padded_ids(ids))

    def mean(self, state, tasks: int) -> dict:
        """The mean of the parameters of the first `tasks` rows, on the device: leaves without a row axis."""
        return self._mean(state.trainable["tasks"], tasks)

    def restart(self, state, before):
        """As `NoBank.restart`."""
        if not self._stepped:
            return train_state.with_bank(state, train_state.bank_of(before))
        self._stepped = False
        return train_state.with_bank(state, self._place(_untrained(self._draw())))

    def put(self, state, ids, rows: dict):
        """As `NoBank.put`."""
        places = _padded_ids(ids)

        def padded(leaf):
            return np.concatenate([leaf, np.zeros((len(places) - len(leaf), *leaf.shape[1:]), leaf.dtype)])

        self._stepped = True
        rows = jax.tree.map(padded, rows)
        return train_state.with_bank(state, self._scatter(train_state.bank_of(state), places, rows))


class HostBank(NoBank):
    """The bank in this process's memory, as numpy; every process holds the same."""

    def __init__(
        self,
        train_step: Callable,
        tasks: dict,
        *,
        knobs: dict,
        size: int,
        place: Callable,
        draw: Callable[[], dict],
    ):
        """Takes over a bank.

        Args:
          train_step: a compiled `training.step.make_host_rows_step`; it may donate its state and nothing else.
          tasks: the parameters of all tasks, numpy, leaves `[A, ...]`; written in place.
          knobs: as for `DeviceBank`.
          size: K.
          place: puts a tree of numpy arrays on the devices, a copy on each.
          draw: as for `DeviceBank`.
        """
        super().__init__(train_step, knobs=knobs)
        self._size, self._place, self._draw = size, place, draw
        self._rows = _untrained(tasks)
        self._resident = self._nothing()

    def _nothing(self) -> dict:
        ids = np.full(self._size, task_rows.NO_ROW, np.int32)
        rows = jax.tree.map(lambda leaf: np.zeros((self._size, *leaf.shape[1:]), leaf.dtype), self._rows)
        return self._place({"ids": ids, "rows": rows})

    def _incoming(self, tasks: Sequence[int]) -> dict:
        ids = np.full(self._size, task_rows.NO_ROW, np.int32)
        # More tasks than places are counted by the step, as they are with a bank on the device.
        known = [number for number in tasks if number < len(self._rows["count"])][: self._size]
        ids[: len(known)] = known

        def take(leaf):
            rows = np.zeros((self._size, *leaf.shape[1:]), leaf.dtype)
            rows[: len(known)] = leaf[known]
            return rows

        return self._place({"ids": ids, "rows": jax.tree.map(take, self._rows)})

    def step(self, state, frozen, batch, tasks: Sequence[int]):
        """As `NoBank.step`."""
        self._touched.update(tasks)
        self._stepped = True
        before = self._resident
        state, metrics, self._resident = self._step(state, frozen, batch, self._knobs, self._incoming(tasks), before)
        # Waits for the step before, while the device has this one to do.
        self._write(before)
        return state, metrics

    def _write(self, held: dict) -> None:
        ids = np.asarray(held["ids"])
        count = int((ids != task_rows.NO_ROW).sum())
        if not count:
            return

        def store(leaf, rows):
            leaf[ids[:count]] = np.asarray(rows)[:count]

        jax.tree.map(store, self._rows, held["rows"])

    def rows(self, state, ids) -> dict:
        """As `DeviceBank.rows`."""
        del state
        self._write(self._resident)
        return jax.tree.map(lambda leaf: leaf[np.asarray(ids, np.int64)], self._rows)

    def weights(self, state, ids) -> dict:
        """As `DeviceBank.weights`."""
        return self._place(self.rows(state, ids)["tasks"])

    def mean(self, state, tasks: int) -> dict:
        """As `DeviceBank.mean`."""
        del state
        self._write(self._resident)
        return self._place(jax.tree.map(lambda leaf: leaf[:tasks].mean(axis=0), self._rows["tasks"]))

    def described(self, state) -> dict:
        """As `NoBank.described`."""
        return state.trainable | {"tasks": self._rows["tasks"]}

    def as_stepped(self, state):
        """As `NoBank.as_stepped`."""
        return train_state.with_bank(state, self._resident["rows"])

    def restart(self, state, before):
        """As `NoBank.restart`."""
        del before
        if self._stepped:
            self._rows, self._resident, self._stepped = _untrained(self._draw()), self._nothing(), False
        return state

    def put(self, state, ids, rows: dict):
        """As `NoBank.put`."""
        self._write(self._resident)
        self._resident, self._stepped = self._nothing(), True

        def store(leaf, new):
            leaf[np.asarray(ids, np.int64)] = new

        jax.tree.map(store, self._rows, rows)
        return state


def _padded_ids(ids) -> np.ndarray:
    """Row numbers, filled up with places that are no row: few lengths, and so few compiled programs."""
    padded = np.full(1 << max(len(ids) - 1, 0).bit_length(), task_rows.NO_ROW, np.int32)
    padded[: len(ids)] = ids
    return padded


class BestRows:
    """The parameters that single tasks had at steps of their own, in this process's memory: a tree for each row."""

    def __init__(self):
        """Holds nothing."""
        self._rows: dict[int, dict] = {}
        self._touched: set[int] = set()

    def put(self, ids, rows: dict) -> None:
        """Keeps rows `ids`; leaves `[n, ...]`."""
        for place, number in enumerate(map(int, ids)):
            self._rows[number] = jax.tree.map(lambda leaf, at=place: np.array(leaf[at]), rows)
            self._touched.add(number)

    def changed(self) -> tuple[np.ndarray, dict]:
        """What has been put since `saved` was last called: numbers int64 `[n]`, and a tree with leaves `[n, ...]`."""
        return self._stacked(self._touched)

    def _stacked(self, numbers) -> tuple[np.ndarray, dict]:
        ids = np.array(sorted(numbers), np.int64)
        return ids, jax.tree.map(lambda *leaves: np.stack(leaves), *(self._rows[i] for i in ids)) if len(ids) else {}

    def saved(self) -> None:
        """What has been put so far is on storage."""
        self._touched.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._rows.clear()
        self._touched.clear()

    def onto(self, bank: "NoBank", state):
        """The state with these parameters in its bank."""
        ids, tasks = self._stacked(self._rows)
        return bank.put(state, ids, bank.rows(state, ids) | {"tasks": tasks}) if len(ids) else state


def _untrained(tasks: dict) -> dict:
    """{'tasks', 'mu', 'nu', 'count'} of rows that have not trained, numpy."""
    # Zeros that nothing has written cost no memory, so moments are paid for the rows that have trained.
    moments = {name: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tasks) for name in ("mu", "nu")}
    return {"tasks": tasks, **moments, "count": np.zeros(jax.tree.leaves(tasks)[0].shape[0], np.int32)}


def _mean_of_first(tree, tasks):
    def mean(leaf):
        present = (jnp.arange(leaf.shape[0]) < tasks).reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(present, leaf, 0.0).sum(axis=0) / tasks

    return jax.tree.map(mean, tree)
