"""What a run saves and how it goes on: the state through Orbax, rows of the task bank through their logs."""

from hra_jax.adapters.base import no_parameters
from hra_jax.run.preparation import Run
from hra_jax.training import train_state
from hra_jax.training.checkpoints import Checkpoints


def save(run: Run, checkpoints: Checkpoints, step: int, *, position, metrics=None, force: bool = False) -> bool:
    """Saves a step, if it is due; see `Checkpoints.save`. Of the task bank only the rows that have changed are written.

    Returns:
      Whether a save was started.
    """
    if not (force or checkpoints.due(step)) or step in checkpoints.all_steps():
        return False
    rows = {}
    for name, ids, tree in (("bank", *run.bank.changed(run.state)), ("best", *run.best_rows.changed())):
        if len(ids):
            rows[name] = (ids, tree)
    state = train_state.without_bank(run.state)
    saved = checkpoints.save(step, state, position=position, best=run.best, rows=rows, metrics=metrics, force=True)
    run.bank.saved()
    run.best_rows.saved()
    return saved


def restore(run: Run, checkpoints: Checkpoints, step: int | str, *, weights_only: bool = False) -> dict:
    """Puts a checkpoint into the run: `state`, `bank`, `best` and `best_rows`.

    Args:
      run: the run.
      checkpoints: its checkpoints.
      step: a number, 'last' or 'best'.
      weights_only: leaves the optimizer's moments of what tasks share, and `best`, as they are.

    Returns:
      The data position; {} with `weights_only`.
    """
    number, position = checkpoints.resolve(step), {}
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
