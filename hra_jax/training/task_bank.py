"""Where the task bank lives while it trains: whole on the device, or on the host with the step's rows on the device.

Both do the same arithmetic. A bank in host memory costs the device K rows, however many tasks there are, and the bus
between host and device K rows each way for a step. Training hides that: a step's rows are copied back while the next
step runs, and a task of both steps goes from one to the other on the device.

Letters: A rows of the bank, K rows that a step may touch, n rows that are asked for.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters import task_rows
from hra_jax.training import sharding, train_state
from hra_jax.training.step import make_host_rows_step
from hra_jax.training.train_state import TrainState

Tree = dict[str, Any]
Step = Callable[..., Any]
Metrics = dict[str, jax.Array]
Ids = Sequence[int] | np.ndarray  # numbers of rows


@dataclasses.dataclass(frozen=True)
class BankSetup:
    """What a bank is made of.

    Attributes:
      train_step: from `TaskBank.compiled`.
      tasks: the parameters of all tasks, numpy, leaves `[A, ...]`; the bank may keep them and write to them.
      hyper: seed (uint32) and peak learning rate (float32) as arguments of every step, on the devices:
        {'seed', 'learning_rate'}, and `step.SOUNDS` where augmentation draws from recordings.
      max_tasks: K.
      draw: gives the parameters of all new tasks, numpy, leaves `[A, ...]`.
      replicated: the sharding that puts a copy on each device.
      state_shardings: of the state on the devices.
    """

    train_step: Step
    tasks: Tree
    hyper: Tree
    max_tasks: int
    draw: Callable[[], Tree]
    replicated: jax.sharding.Sharding
    state_shardings: TrainState


class TaskBank(abc.ABC):
    """The rows of all tasks of a run, and the step that advances them.

    Attributes:
      in_state: whether the rows are part of the TrainState that is on the devices.
      hyper: of `BankSetup`.
    """

    in_state: ClassVar[bool] = True

    def __init__(self, train_step: Step, *, hyper: Tree):
        """Takes over a step of `compiled`, and `hyper` of `BankSetup`."""
        self._step, self.hyper = train_step, hyper
        self._touched: set[int] = set()
        self._stepped = False  # whether the bank differs from what it was made as

    @staticmethod
    def compiled(train_step: Step, state_shardings: TrainState, replicated: jax.sharding.Sharding) -> Any:
        """The jitted step of this kind of bank; it donates its state.

        Args:
          train_step: from `training.step.make_train_step`.
          state_shardings: of the state that the step takes and returns.
          replicated: the sharding that puts a copy on each device.
        """
        return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, replicated))

    @staticmethod
    def more_arguments(bank: Tree, max_tasks: int, struct: Callable[[tuple[int, ...], Any], Any]) -> tuple[Any, ...]:
        """What the compiled step takes after state, frozen weights, batch and `hyper`, as shapes.

        Args:
          bank: shapes of the whole bank, as `train_state.bank_of` gives them.
          max_tasks: K.
          struct: makes the shape of a replicated array of (shape, dtype).
        """
        del bank, max_tasks, struct
        return ()

    @classmethod
    @abc.abstractmethod
    def make(cls, setup: BankSetup) -> Self:
        """A bank that has not trained."""

    @abc.abstractmethod
    def step(self, state: TrainState, frozen: Tree | None, batch: Tree, tasks: Ids) -> tuple[TrainState, Metrics]:
        """Does one training step.

        Args:
          state: its buffers are donated.
          frozen: the backbone's weights; None where they are part of the state.
          batch: on the device.
          tasks: the tasks of the global batch, ascending, `__base__` left out.

        Returns:
          The new state, and metrics.
        """

    @abc.abstractmethod
    def rows(self, state: TrainState, ids: Ids) -> Tree:
        """Rows `ids` as numpy: {'tasks', 'mu', 'nu', 'count'}, leaves `[n, ...]`."""

    @abc.abstractmethod
    def counts(self, state: TrainState) -> np.ndarray[Any, np.dtype[np.int32]]:
        """How many steps each row has had, int32 `[A]`, in numpy; a collective."""

    @abc.abstractmethod
    def weights(self, state: TrainState, ids: Ids) -> Tree:
        """The parameters of the rows `ids`, on the device: leaves `[n, ...]`."""

    @abc.abstractmethod
    def mean(self, state: TrainState, tasks: int) -> Tree:
        """The mean of the parameters of the first `tasks` rows, on the device: leaves without a row axis."""

    @abc.abstractmethod
    def restart(self, state: TrainState, before: TrainState) -> TrainState:
        """The state `state`, which has no bank, with the bank as it was before the first step.

        `before` is the state that the bank was last part of. Rows that started as something else than the seed gives
        are in the log, and are put back from there.
        """

    @abc.abstractmethod
    def put(self, state: TrainState, ids: Ids, rows: Tree) -> TrainState:
        """The state with rows `ids` replaced; `rows` is {'tasks', 'mu', 'nu', 'count'}, leaves `[n, ...]`."""

    def described(self, state: TrainState) -> Tree:
        """All that trains, as a tree of arrays or shapes."""
        return dict(state.trainable)

    def as_stepped(self, state: TrainState) -> TrainState:
        """The state as the train step sees it, with the rows that are on the device."""
        return state

    def changed(self, state: TrainState) -> tuple[np.ndarray, Tree]:
        """The rows that may have changed since `saved` was last called: their numbers int64 `[n]`, and `rows` of them.

        Rows that this gives once, or that `put` writes, are all that differs from what the seed gives.
        """
        ids = np.array(sorted(self._touched), np.int64)
        return ids, self.rows(state, ids) if len(ids) else {}

    def saved(self) -> None:
        """Notes that what has been touched so far is on storage."""
        self._touched.clear()

    def touch(self, ids: Iterable[int]) -> None:
        """Counts rows as changed."""
        self._touched.update(map(int, ids))


class NoBank(TaskBank):
    """Of a run that trains the backbone itself: a bank without rows."""

    @classmethod
    def make(cls, setup: BankSetup) -> Self:
        return cls(setup.train_step, hyper=setup.hyper)

    def step(self, state: TrainState, frozen: Tree | None, batch: Tree, tasks: Ids) -> tuple[TrainState, Metrics]:
        """As `TaskBank.step`; the tasks of the batch change nothing."""
        del tasks
        new, metrics = self._step(state, frozen, batch, self.hyper)
        return new, metrics

    def rows(self, state: TrainState, ids: Ids) -> Tree:
        """As `TaskBank.rows`, of no rows."""
        del state
        _check_none(ids)
        return {"tasks": {}, "mu": {}, "nu": {}, "count": np.zeros(0, np.int32)}

    def counts(self, state: TrainState) -> np.ndarray[Any, np.dtype[np.int32]]:
        """As `TaskBank.counts`, of no rows."""
        del state
        return np.zeros(0, np.int32)

    def weights(self, state: TrainState, ids: Ids) -> Tree:
        """As `TaskBank.weights`, of no rows."""
        return dict(self.rows(state, ids)["tasks"])

    def mean(self, state: TrainState, tasks: int) -> Tree:
        """As `TaskBank.mean`, of no rows."""
        return self.weights(state, range(tasks))

    def restart(self, state: TrainState, before: TrainState) -> TrainState:
        del before
        return state

    def put(self, state: TrainState, ids: Ids, rows: Tree) -> TrainState:
        """As `TaskBank.put`, of no rows."""
        del rows
        _check_none(ids)
        return state

    def touch(self, ids: Iterable[int]) -> None:
        """As `TaskBank.touch`, of no rows."""
        _check_none(list(ids))


def _check_none(ids: Ids) -> None:
    if len(ids):
        raise ValueError(f"rows {list(ids)}: a run that trains the backbone has no task rows")


class DeviceBank(TaskBank):
    """The whole bank is part of the state: leaves `[A, ...]`, split over the mesh along `task`."""

    def __init__(
        self,
        train_step: Step,
        *,
        hyper: Tree,
        draw: Callable[[], Tree],
        replicated: jax.sharding.Sharding | None = None,
        shardings: Tree | None = None,
    ):
        """Takes over the compiled step.

        Args:
          train_step, hyper, draw: as for `BankSetup`.
          replicated: the sharding that puts a copy on each device; None leaves it to the compiler.
          shardings: of `train_state.bank_of` of the state; None likewise.
        """
        super().__init__(train_step, hyper=hyper)
        self._draw = draw
        self._place: Callable[[Tree], Tree] = (
            jax.device_put if shardings is None else functools.partial(sharding.place, shardings=shardings)
        )
        self._gather = jax.jit(task_rows.gather, out_shardings=replicated)
        self._mean = jax.jit(_mean_of_first, out_shardings=replicated)
        self._scatter = jax.jit(task_rows.scatter, donate_argnums=0, out_shardings=shardings)

    @classmethod
    def make(cls, setup: BankSetup) -> Self:
        # The parameters are those of the state.
        shardings = train_state.bank_of(setup.state_shardings)
        return cls(
            setup.train_step, hyper=setup.hyper, draw=setup.draw, replicated=setup.replicated, shardings=shardings
        )

    def step(self, state: TrainState, frozen: Tree | None, batch: Tree, tasks: Ids) -> tuple[TrainState, Metrics]:
        self._touched.update(tasks)
        self._stepped = True
        new, metrics = self._step(state, frozen, batch, self.hyper)
        return new, metrics

    def rows(self, state: TrainState, ids: Ids) -> Tree:
        taken: Tree = jax.device_get(self._padded(train_state.bank_of(state), ids))
        return _first(taken, len(ids))

    def counts(self, state: TrainState) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.asarray(sharding.to_host(state.optimizer["tasks"]["count"]))

    def weights(self, state: TrainState, ids: Ids) -> Tree:
        return _first(self._padded(state.trainable["tasks"], ids), len(ids))

    def _padded(self, tree: Tree, ids: Ids) -> Tree:
        gathered: Tree = self._gather(tree, _padded_ids(ids))
        return gathered

    def mean(self, state: TrainState, tasks: int) -> Tree:
        mean: Tree = self._mean(state.trainable["tasks"], tasks)
        return mean

    def restart(self, state: TrainState, before: TrainState) -> TrainState:
        if not self._stepped:
            return train_state.with_bank(state, train_state.bank_of(before))
        self._stepped = False
        return train_state.with_bank(state, self._place(_untrained(self._draw())))

    def put(self, state: TrainState, ids: Ids, rows: Tree) -> TrainState:
        slots = _padded_ids(ids)

        def padded(leaf: np.ndarray) -> np.ndarray:
            return np.concatenate([leaf, np.zeros((len(slots) - len(leaf), *leaf.shape[1:]), leaf.dtype)])

        self._stepped = True
        rows = jax.tree.map(padded, rows)
        return train_state.with_bank(state, self._scatter(train_state.bank_of(state), slots, rows))


class HostBank(TaskBank):
    """The bank in this process's memory, as numpy; every process holds the same."""

    in_state: ClassVar[bool] = False

    def __init__(
        self,
        train_step: Step,
        tasks: Tree,
        *,
        hyper: Tree,
        max_tasks: int,
        place: Callable[[Tree], Tree],
        draw: Callable[[], Tree],
    ):
        """Takes over a bank.

        Args:
          train_step: a compiled `training.step.make_host_rows_step`; it may donate its state and nothing else.
          tasks: the parameters of all tasks, numpy, leaves `[A, ...]`; written in place.
          hyper, max_tasks, draw: as for `BankSetup`.
          place: puts a tree of numpy arrays on the devices, a copy on each.
        """
        super().__init__(train_step, hyper=hyper)
        self._size, self._place, self._draw = max_tasks, place, draw
        self._rows = _untrained(tasks)
        self._resident = self._nothing()

    @staticmethod
    def compiled(train_step: Step, state_shardings: TrainState, replicated: jax.sharding.Sharding) -> Any:
        """As `TaskBank.compiled`; the rows of a step come and go beside the state, a copy on each device."""
        outputs = (state_shardings, replicated, replicated)
        return jax.jit(make_host_rows_step(train_step), donate_argnums=0, out_shardings=outputs)

    @staticmethod
    def more_arguments(bank: Tree, max_tasks: int, struct: Callable[[tuple[int, ...], Any], Any]) -> tuple[Any, ...]:
        """As `TaskBank.more_arguments`: `incoming` and `resident` of `training.step.make_host_rows_step`."""
        rows = jax.tree.map(lambda leaf: struct((max_tasks, *leaf.shape[1:]), leaf.dtype), bank)
        held = {"ids": struct((max_tasks,), jnp.int32), "rows": rows}
        return (held, held)

    @classmethod
    def make(cls, setup: BankSetup) -> Self:
        return cls(
            setup.train_step,
            setup.tasks,
            hyper=setup.hyper,
            max_tasks=setup.max_tasks,
            place=functools.partial(sharding.place, shardings=setup.replicated),
            draw=setup.draw,
        )

    def _nothing(self) -> Tree:
        ids = np.full(self._size, task_rows.NO_ROW, np.int32)
        rows = jax.tree.map(lambda leaf: np.zeros((self._size, *leaf.shape[1:]), leaf.dtype), self._rows)
        return self._place({"ids": ids, "rows": rows})

    def _incoming(self, tasks: Ids) -> Tree:
        ids = np.full(self._size, task_rows.NO_ROW, np.int32)
        # More tasks than slots are counted by the step, as they are with a bank on the device.
        known = [number for number in tasks if number < len(self._rows["count"])][: self._size]
        ids[: len(known)] = known

        def take(leaf: np.ndarray) -> np.ndarray:
            rows = np.zeros((self._size, *leaf.shape[1:]), leaf.dtype)
            rows[: len(known)] = leaf[known]
            return rows

        return self._place({"ids": ids, "rows": jax.tree.map(take, self._rows)})

    def step(self, state: TrainState, frozen: Tree | None, batch: Tree, tasks: Ids) -> tuple[TrainState, Metrics]:
        self._touched.update(tasks)
        self._stepped = True
        before = self._resident
        new, metrics, self._resident = self._step(state, frozen, batch, self.hyper, self._incoming(tasks), before)
        # Waits for the step before, while the device has this one to do.
        self._write(before)
        return new, metrics

    def _write(self, held: Tree) -> None:
        ids = np.asarray(held["ids"])
        count = int((ids != task_rows.NO_ROW).sum())
        if not count:
            return

        def store(leaf: np.ndarray, rows: jax.Array) -> None:
            leaf[ids[:count]] = np.asarray(rows)[:count]

        jax.tree.map(store, self._rows, held["rows"])

    def rows(self, state: TrainState, ids: Ids) -> Tree:
        del state
        self._write(self._resident)
        rows: Tree = jax.tree.map(lambda leaf: leaf[np.asarray(ids, np.int64)], self._rows)
        return rows

    def counts(self, state: TrainState) -> np.ndarray[Any, np.dtype[np.int32]]:
        del state
        self._write(self._resident)
        counts: np.ndarray[Any, np.dtype[np.int32]] = self._rows["count"].copy()
        return counts

    def weights(self, state: TrainState, ids: Ids) -> Tree:
        return self._place(self.rows(state, ids)["tasks"])

    def mean(self, state: TrainState, tasks: int) -> Tree:
        del state
        self._write(self._resident)
        return self._place(jax.tree.map(lambda leaf: leaf[:tasks].mean(axis=0), self._rows["tasks"]))

    def described(self, state: TrainState) -> Tree:
        return dict(state.trainable) | {"tasks": self._rows["tasks"]}

    def as_stepped(self, state: TrainState) -> TrainState:
        """As `TaskBank.as_stepped`: with the rows of the step before."""
        return train_state.with_bank(state, self._resident["rows"])

    def restart(self, state: TrainState, before: TrainState) -> TrainState:
        del before
        if self._stepped:
            self._rows, self._resident, self._stepped = _untrained(self._draw()), self._nothing(), False
        return state

    def put(self, state: TrainState, ids: Ids, rows: Tree) -> TrainState:
        self._write(self._resident)
        self._resident, self._stepped = self._nothing(), True

        def store(leaf: np.ndarray, new: np.ndarray) -> None:
            leaf[np.asarray(ids, np.int64)] = new

        jax.tree.map(store, self._rows, rows)
        return state


BANKS: dict[str, type[TaskBank]] = {"device": DeviceBank, "host": HostBank}  # what `adapter.bank` allows


def _first(tree: Tree, count: int) -> Tree:
    rows: Tree = jax.tree.map(lambda leaf: leaf[:count], tree)
    return rows


def _padded_ids(ids: Ids) -> np.ndarray:
    """Row numbers, filled up with slots that are no row: few lengths, and so few compiled programs."""
    padded = np.full(1 << max(len(ids) - 1, 0).bit_length(), task_rows.NO_ROW, np.int32)
    padded[: len(ids)] = ids
    return padded


def _untrained(tasks: Tree) -> Tree:
    """{'tasks', 'mu', 'nu', 'count'} of rows that have not trained, numpy."""
    # Zeros that nothing has written cost no memory, so moments are paid for the rows that have trained.
    moments = {name: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tasks) for name in ("mu", "nu")}
    return {"tasks": tasks, **moments, "count": np.zeros(jax.tree.leaves(tasks)[0].shape[0], np.int32)}


def _mean_of_first(tree: Tree, tasks: int | jax.Array) -> Tree:
    def mean(leaf: jax.Array) -> jax.Array:
        present = (jnp.arange(leaf.shape[0]) < tasks).reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(present, leaf, 0.0).sum(axis=0) / tasks

    means: Tree = jax.tree.map(mean, tree)
    return means
