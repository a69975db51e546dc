"""Checkpoints of a run, by Orbax.

    DIRECTORY/<step>/state     the state tree: trainable, optimizer state, step
                     position  JSON: where the data stream stands
                     best      JSON: the best-so-far table
                     run       JSON: what the run must agree on (the fingerprint)
                     rows      JSON: for each log of rows the list of its segments that hold the state of this step
                     metrics   JSON: {'wer_macro': ...}, where the step was evaluated
                     checksums JSON: of every array of the state and of every JSON value; shapes, dtypes, metrics
                     files.json  checksums of all these files, on local disks, for hra_jax.verify

Whatever is restored is compared with its checksum, and what differs is a DamagedError: training/checksums.py says how
arrays that are split over processes, and restored on another mesh, have one. Checkpoints of 0.1.0 have none.

A step directory appears under its name only when everything in it is written, so a process killed at any moment leaves
the last complete checkpoint as the last one. The frozen backbone is never in a checkpoint: the fingerprint names it.

    DIRECTORY/<step>.damaged  a checkpoint that was found damaged and passed over; nothing reads it again

    DIRECTORY/rows/<log>/     rows of the task bank (storage/row_log.py): a save writes those that changed since the
                              save before, so its cost does not grow with the tasks that stayed as they were
"""

import contextlib
import dataclasses
import gc
import json
import math
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from hra_jax.config.settings import check_settings, integer, setting
from hra_jax.console import error_line, tell
from hra_jax.errors import UserError
from hra_jax.storage import remote, writing
from hra_jax.storage.checksums import of_json
from hra_jax.storage.files import is_remote, remove_folder, rename_folder, write_file
from hra_jax.storage.json_files import check_fields
from hra_jax.storage.row_log import RowLog
from hra_jax.training import checksums
from hra_jax.training.agreement import agreed, first_alone
from hra_jax.training.listings import Listing
from hra_jax.training.orbax_errors import STORAGE_ERRORS, attempt, bound_retries, half_read, log_less
from hra_jax.training.orbax_manager import Manager, handlers, options, restore_args
from hra_jax.training.stored_checkpoint import (
    CHECKSUMS,
    COMPLETE,
    ITEMS,
    METRIC,
    StoredCheckpoint,
    checksums_of,
    leaf_kinds,
    plain,
    reason,
    unlike_rows,
)

Rows = tuple[np.ndarray, dict[str, Any]]  # numbers of rows [n], and a tree of numpy rows [n, ...]

# Rows of the task bank as they train, those of each task's best step, and the hashes of what was trained on.
LOGS = ("bank", "best", "hashes")


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """The keys `checkpoint.*`."""

    every_steps: int = setting(200, integer(1), "steps; the first checkpoint is always at step 1")
    keep_latest: int = setting(
        2, integer(1), "newest checkpoints that are kept; a run goes on from the one before where the newest is damaged"
    )
    keep_best: int = setting(
        1, integer(0), "checkpoints with the lowest macro word error rate on eval.select_suite that are kept besides"
    )

    def __post_init__(self) -> None:
        check_settings(self, "checkpoint")


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
        finite: bool = False,
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
          finite: whether numbers that are not finite are neither saved nor restored.
          read_only: for a process that reads while a run may be writing, an evaluation: nothing is made or deleted.

        Raises:
          UserError: a number out of range; the directory cannot be made; with `read_only`, it does not exist.
        """
        settings = CheckpointSettings(every_steps=every_steps, keep_latest=keep_latest, keep_best=keep_best)
        path = epath.Path(directory)
        # epath's resolve() would take gs:// for a relative path; TensorStore wants local paths absolute.
        self.directory = path if path.is_absolute() else path.resolve()
        self._every = settings.every_steps
        self._fingerprint = None if fingerprint is None else plain(fingerprint, "fingerprint")
        self._finite, self._read_only = finite, read_only
        self._damaged: set[int] = set()  # checkpoints that are passed over
        self._stored: dict[int, StoredCheckpoint] = {}
        self._tree = ocp.PyTreeCheckpointHandler()
        self._writing: int | None = None
        self._begun = -1  # of storage/writing.py
        self._listing: Listing | None = None  # of the save in flight
        self._segments: dict[int, dict[str, list[str]]] = {}  # by step, of the logs
        self._logs = {name: RowLog(self.directory / "rows" / name, read_only=read_only) for name in LOGS}
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory}: no such directory of checkpoints")
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: checkpoints cannot be kept here, it is a file")
        log_less()
        bound_retries()
        try:
            self._keep_rows()
            self._manager = Manager(
                self.directory,
                options=options(keep_latest, keep_best, read_only=read_only),
                handler_registry=handlers(),
            )
        except OSError as error:
            raise UserError(f"{self.directory}: checkpoints cannot be kept here: {reason(error)}") from error

    def _keep_rows(self) -> None:
        """Tells Orbax that the folder of the logs is whole: in buckets it removes, at the start, what has no mark."""
        if is_remote(self.directory) and not self._read_only and jax.process_index() == 0:
            write_file(self.directory / "rows" / COMPLETE, "")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError as trouble:
            # What is already on its way up is the cause; or one more file for which a full disk has no space.
            full = isinstance(error, OSError) or isinstance(error and error.__cause__, OSError)
            if error is None or (full and remote.unavailable(error) is None):
                raise
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
          UserError: this save or the one before could not be written, or with `finite`, a number is not. Complete
            checkpoints are still there.
        """
        if not (force or self.due(step)) or step in self.all_steps():
            return False
        score = None if metrics is None else float(metrics[METRIC])
        scores = {METRIC: score} if score is not None and math.isfinite(score) else None
        self.wait()
        self._set_aside()
        sums = checksums.of_tree(state)
        self._check_finite(step, sums, rows or {})
        self._begun = writing.begin(patience=writing.Patience.ANY)  # until `wait`
        segments = self._append(step, rows or {})
        # Orbax writes JSON in the background: a copy, so that the caller may go on changing its own.
        items = {"position": position, "best": best, "run": self._fingerprint or {}, "rows": segments}
        items = {name: plain(item, name) for name, item in items.items()}
        items[CHECKSUMS] = checksums_of(step, items, state, sums, metrics=scores)
        self._writing = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    **{name: ocp.args.JsonSave(item) for name, item in items.items()},
                ),
                metrics=scores,
                force=True,
            )
        except STORAGE_ERRORS as error:
            raise self._failure(error) from error
        if jax.process_index() == 0:
            self._listing = Listing(self.directory / str(step))
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
          UserError: there is no such checkpoint, its fingerprint or a leaf's shape or dtype differs.
          DamagedError: it is damaged; every process raises it.
        """
        number = agreed(lambda: self.resolve(step))
        position, best = agreed(lambda: self._look(number, abstract_state, whole=True))
        return self._read_state(number, restore_args(abstract_state)), position, best

    def restore_part(self, step: int | str, abstract_part: dict[str, Any]) -> dict[str, Any]:
        """Restores some leaves only, such as `{'trainable': ...}` for an evaluation without the optimizer state.

        `abstract_part` is a tree of dicts with leaves as for `restore`; the result has its structure. Raises UserError
        like `restore`.
        """
        number = agreed(lambda: self.resolve(step))
        agreed(lambda: self._look(number, abstract_part, whole=False))
        return cast("dict[str, Any]", self._read_state(number, restore_args(abstract_part, partial=True)))

    def pass_over(self, step: int) -> None:
        """Takes a checkpoint for damaged: it is none of those that there are, and the next save renames it."""
        self._damaged.add(step)

    def checksum(self, step: int) -> int | None:
        """One number for all that a checkpoint holds; None where it cannot be compared, as those of 0.1.0 cannot."""
        sums = self._of(step).checksums()
        return None if sums is None else of_json(sums)

    def _set_aside(self) -> None:
        """Renames the checkpoints that were passed over, now that there are newer ones to come; a collective."""
        if not self._damaged:
            return
        first_alone(self._rename_damaged)
        for step in self._damaged:
            self._manager.forget(step)
            self._segments.pop(step, None)
            self._stored.pop(step, None)
        self._damaged.clear()

    def _rename_damaged(self) -> None:
        """Keeps them: what was taken for damaged may yet be worth something to who looks into it."""
        for step in sorted(self._damaged):
            folder, aside = self.directory / str(step), self.directory / f"{step}.damaged"
            try:
                if folder.exists():
                    remove_folder(aside)
                    rename_folder(folder, aside)
            except OSError as error:
                raise UserError(f"{folder}: cannot be renamed to {aside.name}: {reason(error)}") from error

    def _check_finite(self, step: int, sums: Mapping[str, checksums.Checksum], rows: Mapping[str, Rows]) -> None:
        """Refuses what is not finite, before anything is written."""
        if not self._finite:
            return
        names = [name for name, found in sums.items() if not found.finite]
        names += [f"{log}/{name}" for log, (_, tree) in rows.items() if (name := checksums.not_finite(tree))]
        if names:
            latest = self.latest_step()
            left = "there is no earlier one" if latest is None else f"the last complete one is {latest}"
            raise UserError(
                f"{self.directory}: checkpoint {step} was not written: {names[0]} holds NaN or infinite values; {left}"
            )

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
            where = f"{self.directory / str(step) / 'rows' / 'metadata'}"
            found: dict[str, list[str]] = {"hashes": []} | self._of(step).segments()  # older ones have no hashes
            self._segments[step] = check_fields(found, dict.fromkeys(LOGS, list), where=where)
        return self._segments[step]

    def _of(self, step: int) -> StoredCheckpoint:
        if step not in self._stored:
            self._stored[step] = StoredCheckpoint(self.directory / str(step))
        return self._stored[step]

    def rows(
        self, step: int | str, log: str, *, below: int | None = None, like: Mapping[str, Any] | None = None
    ) -> Iterator[Rows]:
        """The rows of a log as they were at a step, each once: (ids [n], tree of numpy rows [n, ...]), part by part.

        Rows that have never changed are in no log.

        Args:
          step: a number, 'last' or 'best'.
          log: one of LOGS.
          below: how many rows there are; None takes all ids.
          like: the tree of all rows, arrays or shapes with leaves [A, ...]; None takes all trees.

        Raises:
          UserError: leaves of other names, shapes or dtypes than those of `like`.
          DamagedError: a file of the log is missing or damaged, or holds a row that there is none of.
        """
        number = self.resolve(step)
        found = self._logs[log].read(self._segments_of(number)[log])
        return self._checked(found, number, log, below=below, like=like)

    def _checked(
        self, found: Iterator[Rows], step: int, log: str, *, below: int | None, like: Mapping[str, Any] | None
    ) -> Iterator[Rows]:
        for ids, rows in found:
            if below is not None and ids[-1] >= below:
                raise self._of(step).damage(f"rows/{log} holds the row {ids[-1]}; there are {below}")
            for path, there, here in unlike_rows(rows, rows if like is None else like):
                raise UserError(
                    f"{self.directory}: checkpoint {step} is of another run: rows/{log}: {path} is {there} there, but "
                    f"{here} here"
                )
            yield ids, rows

    def fingerprint(self, step: int | str) -> dict[str, Any]:
        """The fingerprint that was stored with a checkpoint."""
        return self._of(self.resolve(step)).item("run")

    def resolve(self, step: int | str) -> int:
        """The number of a checkpoint that exists; `step` is a number, 'last' or 'best'.

        Raises:
          UserError: there is none; the message lists those that there are.
        """
        # While a run goes on, a checkpoint that is being read is not looked for again.
        steps = self.all_steps() if self._read_only else []
        if step not in steps:
            steps = self.refresh()
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

    def refresh(self) -> list[int]:
        """Looks again which checkpoints there are, and completes the save in flight; returns `all_steps`."""
        if self._read_only:
            # The run may have gone on, or back.
            self._manager.reload()
            self._stored.clear()
            self._segments.clear()
        else:
            self.wait()
        return self.all_steps()

    def latest_step(self) -> int | None:
        """The newest checkpoint, one being written included; None if there is none."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The checkpoint of lowest `wer_macro`, of equal ones the newer; None if none was evaluated."""
        scores = [(found[METRIC], -step) for step in self.all_steps() if (found := self.metrics(step))]
        return -min(scores)[1] if scores else None

    def all_steps(self) -> list[int]:
        """Steps of all checkpoints, one being written included, ascending, but for those that are passed over."""
        return sorted(set(self._manager.all_steps()) - self._damaged)

    def metrics(self, step: int) -> dict[str, float] | None:
        """What `save` was given as metrics for a step; None if it was not evaluated."""
        return self._manager.metrics(step)

    def wait(self) -> None:
        """Blocks until the save in flight is complete.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except STORAGE_ERRORS as error:
            raise self._failure(error) from error
        finally:
            writing.end(self._begun)
            if self._listing is not None:
                self._listing.finish()
                self._listing = None
        if self._writing is not None and jax.process_index() == 0:
            self._collect()
        self._writing = None

    def _collect(self) -> None:
        """Deletes segments of rows that no checkpoint holds."""
        try:
            # Only now are the checkpoints that this one replaces gone for good.
            kept = [self._segments_of(step) for step in self.all_steps()]
        except UserError as error:
            # Whatever that one held is kept.
            tell(f"{error}; no rows are deleted", to=sys.stderr)
            return
        for name, log in self._logs.items():
            log.collect(segments[name] for segments in kept)

    def close(self) -> None:
        """Completes the save in flight and lets go of all threads. Raises UserError like `wait`."""
        try:
            self.wait()
        finally:
            # Each part of Orbax that waits for a save raises once more what `wait` has told.
            with contextlib.suppress(*STORAGE_ERRORS):
                self._manager.close()

    def _failure(self, error: Exception) -> UserError:
        """What to tell about a save that failed."""
        step, self._writing = self._writing, None
        latest = None
        # Where storage is away the cause is told, and no more.
        with contextlib.suppress(OSError, UserError):
            if self.directory.is_dir():
                # Orbax has forgotten the older checkpoints that this save would have replaced; they still exist.
                self._manager.reload()
                latest = self.latest_step()
        left = "there is no earlier one" if latest is None else f"the last complete one is {latest}"
        return UserError(f"{self.directory}: checkpoint {step} could not be written ({reason(error)}); {left}")

    def _read_state(self, step: int, args: ocp.args.PyTreeRestore) -> Any:
        """Arrays of the state, compared with their checksums; a collective."""
        state = agreed(lambda: self._arrays(step, args))
        # What was finite when it was saved is so where it is the same.
        known = (self._of(step).checksums() or {}).get("finite") is True
        found = checksums.of_tree(state, finite=self._finite and not known)
        agreed(lambda: self._compare(step, found))
        return state

    def _arrays(self, step: int, args: ocp.args.PyTreeRestore) -> Any:
        with half_read():
            # Not through the manager, which waits for processes that found damage and are gone.
            state, error = attempt(lambda: self._tree.restore(self.directory / str(step) / "state", args=args))
            if error is None:
                return state
            failure, away = self._of(step).damage(f"state: {reason(error)}", error=error), remote.unavailable(error)
            del error
            gc.collect()
        raise failure from away

    def _kinds(self, step: int) -> Any:
        """The tree of the state as it is stored, with leaves that have shapes and dtypes."""
        metadata, error = attempt(lambda: self._tree.metadata(self.directory / str(step) / "state"))
        if error is not None:
            raise self._of(step).damage(f"state: {reason(error)}", error=error) from error
        return metadata.tree

    def check(self, step: int) -> bool:
        """Reads all of a checkpoint but its rows, of whatever run it is, and compares it with its own checksums.

        Returns:
          Whether it has any.

        Raises:
          UserError: it cannot be read; DamagedError where it is damaged.
        """
        sums = self._of(step).checksums()
        for name in ITEMS if sums is not None else ():
            self._of(step).item(name)
        tree = self._kinds(step)
        if sums is not None and leaf_kinds(tree) != {name: kind for name, (kind, _) in sums["state"].items()}:
            raise self._of(step).damage("state/_METADATA names other arrays than were saved")
        self._of(step).check_sizes(tree)
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        self._compare(step, checksums.of_tree(self._arrays(step, ocp.args.PyTreeRestore(restore_args=args))))
        return sums is not None

    def _compare(self, step: int, sums: Mapping[str, checksums.Checksum]) -> None:
        """Refuses arrays that are not what was saved, from their checksums."""
        stored = self._of(step).checksums()
        for name, found in sums.items():
            if stored is not None and stored["state"][name][1] != found.value:
                raise self._of(step).damage(f"{name} is not what was saved")
            if self._finite and not found.finite:
                raise self._of(step).damage(f"{name} holds NaN or infinite values")

    def _look(self, step: int, abstract: Any, *, whole: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compares all that is no array with this run; the data position and the best-so-far table, where `whole`."""
        self._check_fingerprint(step)
        self._check_leaves(step, abstract, whole=whole)
        return (self._of(step).item("position"), self._of(step).item("best")) if whole else ({}, {})

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
        sums = self._of(step).checksums()
        if sums is not None:
            stored = {name: kind for name, (kind, _) in sums["state"].items()}
        else:
            stored = leaf_kinds(self._kinds(step))
        wanted = leaf_kinds(abstract)
        names = list(wanted) + ([name for name in stored if name not in wanted] if whole else [])
        for name in names:
            there, here = stored.get(name, "absent"), wanted.get(name, "absent")
            if there != here:
                raise UserError(
                    f"{self.directory}: checkpoint {step} is of another run: {name} is {there} there, but {here} here"
                )
