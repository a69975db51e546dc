"""Which parts of a run a checkpoint gets, and how a run takes them back; training/checkpoints.py stores them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from hra_jax.adapters import initial
from hra_jax.adapters.base import no_parameters
from hra_jax.console import tell
from hra_jax.errors import DamagedError, UserError
from hra_jax.run.place import Run
from hra_jax.run.workdirs import CHECKPOINTS
from hra_jax.storage import locks
from hra_jax.training import checksums, train_state
from hra_jax.training.agreement import agreed, check_agreement
from hra_jax.training.checkpoints import Checkpoints, CheckpointSettings, Rows


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
    for name, ids, tree in (("bank", *run.bank.changed(run.state)), ("best", *run.best_rows.changed())):
        if len(ids):
            rows[name] = (ids, tree)
    state = train_state.without_bank(run.state)
    saved = checkpoints.save(step, state, position=position, best=run.best, rows=rows, metrics=metrics, force=True)
    run.bank.saved()
    run.best_rows.saved()
    return saved


def restore(run: Run, checkpoints: Checkpoints, step: int | str, *, weights_only: bool = False) -> dict[str, Any]:
    """Puts a checkpoint into the run: `state`, `bank`, `best` and `best_rows`.

    Args:
      run: the run.
      checkpoints: its checkpoints.
      step: a number, 'last' or 'best'.
      weights_only: leaves the optimizer's moments of what tasks share, and `best`, as they are.

    Returns:
      The data position; {} with `weights_only`.

    Raises:
      UserError: there is no such checkpoint, or it is of another run.
      DamagedError: it is damaged, or holds what is not finite; the run must then take another one or be given up.
        Every process raises what one of them does: they never go on from different checkpoints.
    """
    number = agreed(lambda: checkpoints.resolve(step))
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
    run.bank.saved()
    run.best_rows.saved()
    return position


def restore_step(
    run: Run, checkpoints: Checkpoints, step: int | str, *, weights_only: bool = False
) -> tuple[int, dict[str, Any]]:
    """`restore_newest` for the step 'last', and `restore` for all others; returns what `restore_newest` does."""
    if step == "last":
        return restore_newest(run, checkpoints, weights_only=weights_only)
    number = agreed(lambda: checkpoints.resolve(step))
    return number, restore(run, checkpoints, number, weights_only=weights_only)


def restore_newest(run: Run, checkpoints: Checkpoints, *, weights_only: bool = False) -> tuple[int, dict[str, Any]]:
    """Puts the newest checkpoint that is whole into the run; those that are damaged are told of and passed over.

    Args:
      run: the run.
      checkpoints: its checkpoints; the next save renames those that were passed over.
      weights_only: as for `restore`.

    Returns:
      (its step, its data position).

    Raises:
      UserError: there is no checkpoint, all of them are damaged, or it is of another run.
    """
    while True:
        number = agreed(lambda: checkpoints.resolve("last"))
        try:
            return number, restore(run, checkpoints, number, weights_only=weights_only)
        except DamagedError as error:
            older = [step for step in checkpoints.all_steps() if step < number]
            if not older:
                raise UserError(f"{error}; there is no other checkpoint") from error
            checkpoints.pass_over(number)
            _say(f"{error}; going on from checkpoint {older[-1]}")


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
