"""Checkpoints of a run. The only module that knows Orbax.

    DIRECTORY/<step>/state     the state tree: trainable, optimizer state, step
                     position  JSON: where the data stream stands
                     best      JSON: the best-so-far table
                     run       JSON: what the run must agree on (the fingerprint)
                     rows      JSON: for each log of rows the list of its segments that hold the state of this step
                     metrics   JSON: {'wer_macro': ...}, where the step was evaluated

A step directory appears under its name only when everything in it is written, so a process killed at any moment leaves
the last complete checkpoint as the last one. The frozen backbone is never in a checkpoint: the fingerprint names it.

    DIRECTORY/rows/<log>/     rows of the task bank (storage/row_log.py): a save writes those that changed since the
                              save before, so its cost does not grow with the tasks that stayed as they were
"""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from hra_jax.config.settings import check_settings, integer, setting
from hra_jax.console import error_line
from hra_jax.errors import UserError
from hra_jax.storage import writing
from hra_jax.storage.json_files import check_fields, parse_json
from hra_jax.storage.row_log import RowLog
from hra_jax.training.sharding import leaf_name

Rows = tuple[np.ndarray, dict[str, Any]]  # numbers of rows [n], and a tree of numpy rows [n, ...]

METRIC = "wer_macro"  # the lower the better
LOGS = ("bank", "best")  # rows of the task bank as they train, and those of each task's best step

# What Orbax and TensorStore raise when storage fails; TensorStore reports I/O errors as ValueError.
_STORAGE_ERRORS = (OSError, ValueError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """The keys `checkpoint.*`."""

    every_steps: int = setting(200, integer(1), "steps; the first checkpoint is always at step 1")
    keep_latest: int = setting(1, integer(1), "newest checkpoints that are kept")
    keep_best: int = setting(
        1, integer(0), "checkpoints with the lowest macro word error rate on eval.select_suite that are kept besides"
    )

    def __post_init__(self) -> None:
        check_settings(self, "checkpoint")


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # Orbax has no types
    def reached_preemption(self, step: int) -> bool:
        # Orbax also asks from its background thread, with the older step that it is writing. That would turn back the
        # step counter on which the processes agree where to stop (training/preemption.py). Here only the guard asks.
        return False


class _AlreadyRaised(logging.Filter):
    """Drops what Orbax logs about things that reach the caller anyway, or that are as they should be."""

    def filter(self, record: logging.LogRecord) -> bool:
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        # A failed save is logged as up to three tracebacks before it is raised. Most steps have no metric.
        return not record.exc_info and "tracked_metric" not in str(record.msg)


class Checkpoints:
    """The checkpoints of one run. Every process of the run makes one and calls the same methods in the same order.

    Saves are asynchronous, but for rows: `save` returns when changed rows are written and all other arrays are copied
    off the devices, so they may be donated at once.
    Trouble with a save is raised by the next `save`, `wait` or `close`.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int,
        keep_best: int,
        every_steps: int,
        fingerprint: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        """Opens the directory, makes it if need be, and clears away what a killed process left half-written.

        Args:
          directory: any path that epath takes, `gs://` included.
          keep_latest: number of newest checkpoints to keep, at least 1.
          keep_best: number of checkpoints of lowest `wer_macro` to keep besides, at least 0.
          every_steps: steps from one checkpoint to the next, at least 1.
          fingerprint: what a checkpoint and this run must agree on, JSON: stored with each checkpoint and compared
            before anything is restored. None stores an empty one and compares nothing.
          read_only: for a process that reads while a run may be writing, an evaluation: nothing is made or deleted.

        Raises:
          UserError: a number out of range; the directory cannot be made; with `read_only`, it does not exist.
        """
        settings = CheckpointSettings(every_steps=every_steps, keep_latest=keep_latest, keep_best=keep_best)
        path = epath.Path(directory)
        # epath's resolve() would take gs:// for a relative path; TensorStore wants local paths absolute.
        self.directory = path if path.is_absolute() else path.resolve()
        self._every = settings.every_steps
        self._fingerprint = None if fingerprint is None else _plain(fingerprint, "fingerprint")
        self._read_only = read_only
        self._writing: int | None = None
        self._begun = -1  # of storage/writing.py
        self._segments: dict[int, dict[str, list[str]]] = {}  # by step, of the logs
        self._logs = {name: RowLog(self.directory / "rows" / name, read_only=read_only) for name in LOGS}
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory}: no such directory of checkpoints")
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: checkpoints cannot be kept here, it is a file")
        logger = absl_logging.get_absl_logger()
        if not any(isinstance(known, _AlreadyRaised) for known in logger.filters):
            logger.addFilter(_AlreadyRaised())
        try:
            self._manager = _Manager(
                self.directory,
                options=_options(keep_latest, keep_best, read_only=read_only),
                handler_registry=_handlers(),
            )
        except OSError as error:
            raise UserError(f"{self.directory}: checkpoints cannot be kept here: {_reason(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError as trouble:
            if error is None:
                raise
            # What is already on its way up is the cause.
            error_line(trouble)

    def due(self, step: int) -> bool:
        """Whether `save` saves this step unforced: step 1, so that storage trouble shows at once, then every N."""
        return step == 1 or step % self._every == 0

    def save(
        self,
        step: int,
        state: Any,
        *,
        position: Mapping[str, Any],
        best: Mapping[str, Any],
        rows: Mapping[str, Rows] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts to save a step, if it is due and not saved yet.

        Args:
          step: steps done.
          state: tree of jax.Array, without the rows of the task bank.
          position: data position, JSON.
          best: best-so-far table, JSON.
          rows: {name of LOGS: (ids [n], tree of numpy rows [n, ...])}, what changed since the save before.
          metrics: {'wer_macro': x} if the state of this step was evaluated: the lowest are kept, of equal ones the
            newer. A number that is not finite counts as not evaluated.
          force: saves a step that is not due.

        Returns:
          Whether a save was started.

        Raises:
          UserError: this save or the one before could not be written. Complete checkpoints are still there.
        """
        if not (force or self.due(step)) or step in self.all_steps():
            return False
        score = None if metrics is None else float(metrics[METRIC])
        self.wait()
        self._begun = writing.begin(patience=writing.Patience.ANY)  # until `wait`
        segments = self._append(step, rows or {})
        items = {"position": position, "best": best, "run": self._fingerprint or {}, "rows": segments}
        # Orbax writes JSON in the background: a copy, so that the caller may go on changing its own.
        items = {name: ocp.args.JsonSave(_plain(item, name)) for name, item in items.items()}
        self._writing = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), **items),
                metrics={METRIC: score} if score is not None and math.isfinite(score) else None,
                force=True,
            )
        except _STORAGE_ERRORS as error:
            raise self._failure(error) from error
        return True

    def restore(self, step: int | str, abstract_state: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Restores a checkpoint, bit for bit, on whatever mesh.

        Args:
          step: a number, 'last' or 'best'.
          abstract_state: the state's tree with `jax.ShapeDtypeStruct` leaves that carry shardings (or arrays, whose
            shapes and shardings are taken). A leaf without a sharding goes to the first local device.

        Returns:
          (state, position, best): state has the structure of `abstract_state`; position and best as JSON gives them
          back (tuples are lists, keys are strings).

        Raises:
          UserError: there is no such checkpoint, its fingerprint or a leaf's shape or dtype differs, or it is damaged.
        """
        number = self.resolve(step)
        self._check_fingerprint(number)
        self._check_leaves(number, abstract_state, whole=True)
        restored = self._read(
            number,
            state=_restore_args(abstract_state),
            position=ocp.args.JsonRestore(),
            best=ocp.args.JsonRestore(),
        )
        return restored.state, restored.position, restored.best

    def restore_part(self, step: int | str, abstract_part: dict[str, Any]) -> dict[str, Any]:
        """Restores some leaves only, such as `{'trainable': ...}` for an evaluation without the optimizer state.

        `abstract_part` is a tree of dicts with leaves as for `restore`; the result has its structure. Raises UserError
        like `restore`.
        """
        number = self.resolve(step)
        self._check_fingerprint(number)
        self._check_leaves(number, abstract_part, whole=False)
        return cast("dict[str, Any]", self._read(number, state=_restore_args(abstract_part, partial=True)).state)

    def _append(self, step: int, rows: Mapping[str, Rows]) -> dict[str, list[str]]:
        """Writes changed rows; the lists of segments that hold the state of this step, by log."""
        if jax.process_index() != 0:
            # Every process has the same rows: one writes them, and the others read its lists where they need them.
            return {}
        latest = self.latest_step()
        segments: dict[str, list[str]] = {name: [] for name in LOGS} if latest is None else self._segments_of(latest)
        for name, (ids, tree) in rows.items():
            segments = segments | {name: self._logs[name].append(f"{step}", ids, tree, after=segments[name])}
        self._segments[step] = segments
        return segments

    def _segments_of(self, step: int) -> dict[str, list[str]]:
        if step not in self._segments:
            # Not through Orbax, where all processes would have to ask at once.
            file = self.directory / str(step) / "rows" / "metadata"
            try:
                stored = parse_json(file.read_bytes(), where=str(file))
                self._segments[step] = check_fields(stored, dict.fromkeys(LOGS, list), where=str(file))
            except (OSError, ValueError) as error:
                raise UserError(f"{self.directory}: checkpoint {step} cannot be read: {_reason(error)}") from error
        return self._segments[step]

    def rows(self, step: int | str, log: str) -> Iterator[Rows]:
        """The rows of a log as they were at a step, each once: (ids [n], tree of numpy rows [n, ...]), part by part.

        Rows that have never changed are in no log. Raises UserError where a file of the log is missing or damaged.
        """
        return self._logs[log].read(self._segments_of(self.resolve(step))[log])

    def fingerprint(self, step: int | str) -> dict[str, Any]:
        """The fingerprint that was stored with a checkpoint."""
        return cast("dict[str, Any]", self._read(self.resolve(step), run=ocp.args.JsonRestore()).run)

    def resolve(self, step: int | str) -> int:
        """The number of a checkpoint that exists; `step` is a number, 'last' or 'best'.

        Raises:
          UserError: there is none; the message lists those that there are.
        """
        if self._read_only:
            self._manager.reload()  # the run may have gone on
        else:
            self.wait()
        steps = self.all_steps()
        if not steps:
            raise UserError(f"{self.directory}: there is no checkpoint")
        if step == "last":
            return steps[-1]
        if step == "best":
            number = self.best_step()
            if number is None:
                raise UserError(f"{self.directory}: no checkpoint was evaluated, so none is the best one")
            return number
        if step not in steps:
            known = ", ".join(map(str, steps))
            raise UserError(f"{self.directory}: there is no checkpoint {step!r}; allowed are last, best, {known}")
        return int(step)

    def latest_step(self) -> int | None:
        """The newest checkpoint, one being written included; None if there is none."""
        return cast("int | None", self._manager.latest_step())

    def best_step(self) -> int | None:
        """The checkpoint of lowest `wer_macro`; None if none was evaluated."""
        return cast("int | None", self._manager.best_step())

    def all_steps(self) -> list[int]:
        """Steps of all checkpoints, one being written included, ascending."""
        return sorted(self._manager.all_steps())

    def metrics(self, step: int) -> dict[str, float] | None:
        """What `save` was given as metrics for a step; None if it was not evaluated."""
        return cast("dict[str, float] | None", self._manager.metrics(step))

    def wait(self) -> None:
        """Blocks until the save in flight is complete.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except _STORAGE_ERRORS as error:
            raise self._failure(error) from error
        finally:
            writing.end(self._begun)
        if self._writing is not None and jax.process_index() == 0:
            # Only now are the checkpoints that this one replaces gone for good.
            kept = [self._segments_of(step) for step in self.all_steps()]
            for name, log in self._logs.items():
                log.collect(segments[name] for segments in kept)
        self._writing = None

    def close(self) -> None:
        """Completes the save in flight and lets go of all threads. Raises UserError like `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _failure(self, error: Exception) -> UserError:
        """What to tell about a save that failed."""
        step, self._writing = self._writing, None
        latest = None
        if self.directory.is_dir():
            # Orbax has already forgotten the older checkpoints that this save would have replaced; they still exist.
            self._manager.reload()
            latest = self.latest_step()
        left = "there is no earlier one" if latest is None else f"the last complete one is {latest}"
        return UserError(f"{self.directory}: checkpoint {step} could not be written ({_reason(error)}); {left}")

    def _read(self, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (*_STORAGE_ERRORS, KeyError) as error:
            raise UserError(f"{self.directory}: checkpoint {step} cannot be read: {_reason(error)}") from error

    def _check_fingerprint(self, step: int) -> None:
        if self._fingerprint is None:
            return
        stored = self.fingerprint(step)
        for name in sorted(stored.keys() | self._fingerprint.keys()):
            there, here = (json.dumps(side[name]) if name in side else "absent" for side in (stored, self._fingerprint))
            if there != here:
                raise UserError(f"{self.directory}: {name} is {there} in checkpoint {step}, but {here} in this run")

    def _check_leaves(self, step: int, abstract: Any, *, whole: bool) -> None:
        """Compares names, shapes and dtypes first: Orbax would cast dtypes without a word."""
        try:
            stored = _leaves(self._manager.item_metadata(step)["state"].tree)
        except (*_STORAGE_ERRORS, KeyError, AttributeError) as error:
            raise UserError(f"{self.directory}: checkpoint {step} cannot be read: {_reason(error)}") from error
        wanted = _leaves(abstract)
        names = list(wanted) + ([name for name in stored if name not in wanted] if whole else [])
        for name in names:
            there, here = stored.get(name, "absent"), wanted.get(name, "absent")
            if there != here:
                raise UserError(
                    f"{self.directory}: checkpoint {step} is of another run: {name} is {there} there, but {here} here"
                )


def _options(keep_latest: int, keep_best: int, *, read_only: bool) -> ocp.CheckpointManagerOptions:
    # Orbax's own best_fn with max_to_keep deletes the newest checkpoints when the metric worsens, and keeps checkpoints
    # without a metric for ever unless told otherwise. best_fn is set all the same: without it no metric is written.
    def score(metrics: Mapping[str, float]) -> float:
        return metrics[METRIC]

    best = policies.BestN(get_metric_fn=score, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_latest), best]),
        best_fn=score,
        best_mode="min",
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,
        enable_async_checkpointing=True,
    )


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    tree, text = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", args, tree)
    for name in ("position", "best", "run", "rows"):
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add(name, args, text)
    return registry


def _restore_args(abstract: Any, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    item = jax.tree.map(struct, abstract)
    args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=partial)


def _leaves(tree: Any) -> dict[str, str]:
    """{'trainable/tasks/kernel': 'float32[6, 64, 144]'} of a tree of arrays, shapes or Orbax's metadata."""
    # Orbax gives dicts and lists for whatever containers were saved; the names along the path stay the same.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def _plain(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy through JSON."""
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(value)))
    except TypeError as error:
        raise TypeError(f"{name} must be JSON: {error}") from error


def _reason(error: Exception) -> str:
    """The cause of a storage error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    # TensorStore nests paths and operations around the one thing that helps.
    number = re.search(r"os_error_code='(\d+)'", text)
    if number:
        return os.strerror(int(number.group(1)))
    return (text.splitlines() or [type(error).__name__])[0][:300]
