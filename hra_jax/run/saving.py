"""Which parts of a run a checkpoint gets, and how a run takes them back; training/checkpoints.py stores them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from hra_jax.adapters import initial
from hra_jax.adapters.base import no_parameters
from hra_jax.console import tell
from hra_jax.errors import DamagedError, UserError
from hra_jax.run.place import Run
from hra_jax.run.workdirs import CHECKPOINTS
from hra_jax.storage import locks
from hra_jax.training import checksums, train_state
from hra_jax.training.agreement import agreed, check_agreement, gather
from hra_jax.training.checkpoints import Checkpoints, CheckpointSettings, Rows

_T = TypeVar("_T")

_MOST_TRIED = 20  # checkpoints: a run may delete them faster than they are read


def fingerprint(run: Run) -> dict[str, Any]:
    """What a checkpoint and this run must agree on."""
    material, tasks = run.material, run.layout.tasks
    facts: dict[str, Any] = {"method": run.settings.method, "backbone": material.base.fingerprint, "tasks": list(tasks)}
    if material.start is not None:
        facts["start"] = initial.content_hash(material.start_folder)
    if material.own is not None:
        # They are made from texts, and an edited text would give the outputs other meanings.
        facts["vocabularies"] = material.own.facts(tasks)
    return facts


def open_checkpoints(run: Run, settings: CheckpointSettings, *, read_only: bool = False) -> Checkpoints:
    """Opens W/checkpoints; `read_only` is for who looks on while a run may be writing."""
    return Checkpoints(
        run.workdir / CHECKPOINTS,
        keep_latest=settings.keep_latest,
        keep_best=settings.keep_best,
        every_steps=settings.every_steps,
        fingerprint=fingerprint(run),
        finite=True,
        read_only=read_only,
    )


def save(
    run: Run,
    checkpoints: Checkpoints,
    step: int,
    *,
    position: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    force: bool = False,
) -> bool:
    """Saves a step, if it is due; see `Checkpoints.save`. Of the task bank only the rows that have changed are written.

    Returns:
      Whether a save was started.
    """
    if not (force or checkpoints.due(step)) or step in checkpoints.all_steps():
        return False
    locks.check_held(run.workdir)
    rows = {}
    gather_hashes(run)
    new = (("bank", *run.bank.changed(run.state)), ("best", *run.best_rows.changed()), ("hashes", *_new_hashes(run)))
    for name, ids, tree in new:
        if len(ids):
            rows[name] = (ids, tree)
    state = train_state.without_bank(run.state)
    saved = checkpoints.save(step, state, position=position, best=run.best, rows=rows, metrics=metrics, force=True)
    _all_saved(run)
    return saved


def gather_hashes(run: Run) -> None:
    """Brings the hashes of the utterances that any process was given to all of them; a collective."""
    if run.hashes is not None:
        for ids, values in gather([part.tolist() for part in run.hashes.unsaved()]):
            run.hashes.put(np.array(ids, np.int64), np.array(values, np.uint64))


def _new_hashes(run: Run) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The hashes since the save before, as rows: with their tasks, which nobody could tell without the manifests."""
    if run.hashes is None:
        return np.zeros(0, np.int64), {}
    ids, values = run.hashes.unsaved()
    return ids, {"hash": values, "task": run.layout.table.task[ids]}


def _restore_hashes(run: Run, checkpoints: Checkpoints, step: int) -> None:
    if run.hashes is None:
        return
    run.hashes.clear()
    for ids, rows in agreed(lambda: list(checkpoints.rows(step, "hashes"))):
        run.hashes.grow(int(ids[-1]) + 1)  # manifests that have lost lines are evaluated all the same
        run.hashes.put(ids, rows["hash"])
    if step and not run.hashes.values.any():
        _say(f"checkpoint {step} does not say what it was trained on: only what follows can be found in evaluations")


def _all_saved(run: Run) -> None:
    run.bank.saved()
    run.best_rows.saved()
    if run.hashes is not None:
        run.hashes.saved()


def restore(run: Run, checkpoints: Checkpoints, number: int, *, weights_only: bool = False) -> dict[str, Any]:
    """Puts a checkpoint into the run: `state`, `bank`, `best`, `best_rows` and `hashes`.

    Args:
      run: the run.
      checkpoints: its checkpoints.
      number: of one of them, the same in every process.
      weights_only: leaves the optimizer's moments of what tasks share, and `best`, as they are.

    Returns:
      The data position; {} with `weights_only`.

    Raises:
      UserError: it is of another run.
      DamagedError: it is damaged or gone, or holds what is not finite; the run must then take another one or be given
        up. Every process raises what one of them does: they never go on from different checkpoints.
    """
    checksum = agreed(lambda: checkpoints.checksum(number))
    check_agreement({"checkpoint": str(number), "content of the checkpoint": str(checksum)})
    if checksum is None:
        _say(f"checkpoint {number} has no checksums, as it is of an earlier version: it is used as it is")
    position: dict[str, Any] = {}
    state = train_state.without_bank(run.state)
    if weights_only:
        part = checkpoints.restore_part(number, {"trainable": state.trainable, "fixed": state.fixed})
        state = state.replace(**part)
    else:
        state, position, run.best = checkpoints.restore(number, state)
    run.state = run.bank.restart(state, run.state)
    bank, tasks = run.layout.programs.bank_rows, run.layout.programs.weights.get("tasks", {})
    for ids, rows in _finite_rows(checkpoints, number, "bank", below=bank, like=train_state.bank_like(tasks)):
        whole = {name: no_parameters() | rows[name] for name in ("tasks", "mu", "nu")}
        run.state = run.bank.put(run.state, ids, whole | {"count": rows["count"]})
    run.best_rows.clear()
    for ids, rows in _finite_rows(checkpoints, number, "best", below=bank, like=tasks):
        run.best_rows.put(ids, no_parameters() | rows)
    _restore_hashes(run, checkpoints, number)
    _all_saved(run)
    return position


def restore_step(
    run: Run, checkpoints: Checkpoints, step: int | str = "last", *, weights_only: bool = False
) -> tuple[int, dict[str, Any]]:
    """Puts a checkpoint into the run, of the last ones the newest that is whole: `take` of `restore`.

    Returns:
      (its step, its data position).
    """
    return take(checkpoints, step, lambda number: restore(run, checkpoints, number, weights_only=weights_only))


def take(checkpoints: Checkpoints, step: int | str, act: Callable[[int], _T]) -> tuple[int, _T]:
    """Does something with a checkpoint; a collective.

    Args:
      checkpoints: those of the run.
      step: a number, 'best' or 'last'. Of the last ones each that is damaged, or that a run deletes while it is read,
        is told of and passed over, and the newest that there is then is taken; the next save renames the damaged ones.
      act: is given the number of the checkpoint; where it raises DamagedError, it does so in every process.

    Returns:
      The number of the checkpoint, and what `act` gives.

    Raises:
      UserError: there is no such checkpoint, or none of the last ones could be read.
      DamagedError: the checkpoint that `step` names is damaged.
    """
    # What process 0 sees counts: another one may look when a run has saved again.
    number = gather(agreed(lambda: checkpoints.resolve(step)))[0]
    for left in reversed(range(_MOST_TRIED)):
        try:
            return number, act(number)
        except DamagedError as error:
            if step != "last":
                raise
            checkpoints.pass_over(number)
            steps = gather(agreed(checkpoints.refresh))[0]
            if not (steps and left):
                others = f"{_MOST_TRIED} checkpoints were tried" if steps else "there is no other checkpoint"
                raise UserError(f"{error}; {others}") from error
            number = steps[-1]
            _say(f"{error}; taking checkpoint {number}")
    raise AssertionError("the last try returns or raises")


def _finite_rows(
    checkpoints: Checkpoints, step: int, log: str, *, below: int, like: Mapping[str, Any]
) -> Iterator[Rows]:
    """The rows of a log, part by part; a collective, as what is done with each part may be one."""
    parts = agreed(lambda: checkpoints.rows(step, log, below=below, like=like))

    def following() -> Rows | None:
        part = next(parts, None)
        name = None if part is None else checksums.not_finite(part[1])
        if name is not None:
            raise DamagedError(f"{checkpoints.directory}: checkpoint {step}: {log}/{name} holds NaN or infinite values")
        return part

    while (part := agreed(following)) is not None:
        yield part


def _say(line: str) -> None:
    if jax.process_index() == 0:
        tell(line)
