"""Which parts of a run a checkpoint gets, and how a run takes them back; training/checkpoints.py stores them."""

from collections.abc import Mapping
from typing import Any

from hra_jax.adapters import initial
from hra_jax.adapters.base import no_parameters
from hra_jax.run.place import Run
from hra_jax.storage import locks
from hra_jax.training import train_state
from hra_jax.training.checkpoints import Checkpoints, CheckpointSettings


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
        run.workdir / "checkpoints",
        keep_latest=settings.keep_latest,
        keep_best=settings.keep_best,
        every_steps=settings.every_steps,
        fingerprint=fingerprint(run),
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
    """
    number = checkpoints.resolve(step)
    position: dict[str, Any] = {}
    state = train_state.without_bank(run.state)
    if weights_only:
        part = checkpoints.restore_part(number, {"trainable": state.trainable, "fixed": state.fixed})
        state = state.replace(**part)
    else:
        state, position, run.best = checkpoints.restore(number, state)
    run.state = run.bank.restart(state, run.state)
    for ids, rows in checkpoints.rows(number, "bank"):
        whole = {name: no_parameters() | rows[name] for name in ("tasks", "mu", "nu")}
        run.state = run.bank.put(run.state, ids, whole | {"count": rows["count"]})
    run.best_rows.clear()
    for ids, rows in checkpoints.rows(number, "best"):
        run.best_rows.put(ids, no_parameters() | rows)
    run.bank.saved()
    run.best_rows.saved()
    return position
