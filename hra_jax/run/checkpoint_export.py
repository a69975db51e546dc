"""Any checkpoint of a run as an adapter folder, whatever became of the data, the names or the suites of the run.

Everything comes from the work directory and the backbone: no recording and no manifest is read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.config.files import config_from_json, validate_config
from hra_jax.config.keys import group
from hra_jax.console import tell
from hra_jax.errors import DamagedError, UserError
from hra_jax.run import foundation, layout, programs, workdirs
from hra_jax.run.settings import RunSettings
from hra_jax.storage import folders
from hra_jax.storage.json_files import check_fields, read_text
from hra_jax.storage.trees import flatten
from hra_jax.tasks.names import check_name
from hra_jax.text.vocabularies import vocabulary_from_json
from hra_jax.training import train_state
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.training.optimizer import OptimizerConfig


def export_checkpoint(
    workdir: epath.PathLike, output: epath.PathLike, *, step: int | str = "last", backbone: str | None = None
) -> tuple[int, list[str]]:
    """Writes the adapter of a checkpoint.

    Args:
      workdir: the work directory of a run of method 'adapter'.
      output: the folder to write.
      step: a number, 'last' (the newest that is whole) or 'best'.
      backbone: folder of the backbone, or builtin:NAME; None takes what the run names.

    Returns:
      The step, and the names of the tasks. Names that no task may have are changed, with a line for each.

    Raises:
      UserError: no run there, no such checkpoint, a damaged one, another method or another backbone.
    """
    config = _configuration(epath.Path(workdir))
    settings, adapter = group(config, ""), group(config, "adapter")
    if settings.method != "adapter":
        raise UserError(f"{workdir}: method {settings.method!r}; allowed: adapter, whose checkpoints are adapters")
    folder = epath.Path(workdir) / workdirs.CHECKPOINTS
    with Checkpoints(folder, keep_latest=1, keep_best=0, every_steps=1, finite=True, read_only=True) as checkpoints:
        number = checkpoints.resolve(step)
        while True:
            try:
                return number, _export(checkpoints, number, config, settings, adapter, epath.Path(output), backbone)
            except DamagedError as error:
                if step != "last" or len(checkpoints.all_steps()) == 1:
                    raise
                checkpoints.pass_over(number)
                number = checkpoints.resolve("last")
                tell(f"{error}; taking checkpoint {number}")


def _configuration(workdir: epath.Path) -> ConfigDict:
    path = workdir / workdirs.CONFIG
    if not path.exists():
        raise UserError(f"workdir = {str(workdir)!r}: holds no {workdirs.CONFIG}, so no run was started there")
    text = read_text(path)
    try:
        config = config_from_json(text)
        with config.unlocked():
            config.eval.suite = config.eval.select_suite = ""
            config.export.step = "last"
        validate_config(config, stored=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no configuration of a run: it lacks the keys of eval or export") from error
    return config


def _export(
    checkpoints: Checkpoints,
    step: int,
    config: ConfigDict,
    settings: RunSettings,
    adapter: AdapterSettings,
    output: epath.Path,
    backbone: str | None,
) -> list[str]:
    where = f"{checkpoints.directory}: {step}"
    facts = check_fields(
        {"vocabularies": {}} | checkpoints.fingerprint(step),
        {"tasks": list, "backbone": str, "vocabularies": dict},
        where=where,
    )
    if any(type(name) is not str for name in facts["tasks"]):
        raise UserError(f"{where}: needs 'tasks' (a list of names); got {facts['tasks']!r:.80}")
    base = foundation.load(backbone or settings.backbone)
    if base.fingerprint != facts["backbone"]:
        raise UserError(
            f"backbone {base.name!r} has the fingerprint {base.fingerprint[:12]}; checkpoint {step} was trained on "
            f"{facts['backbone'][:12]}"
        )
    own = facts["vocabularies"]
    size = max((vocabulary_from_json(content).size for content in own.values()), default=0)
    method = layout.adapter_method(settings, adapter, own=methods.own_settings(config, adapter.name), output_size=size)
    tasks = facts["tasks"]
    if own and "shared" not in own and not own.keys() >= set(tasks):
        raise UserError(f"{where}: vocabularies: {', '.join(own)!r:.80}; needed: one for each task, or 'shared'")
    weights, counts = _weights(checkpoints, step, method, base, settings, adapter, len(tasks))
    names = _allowed_names(tasks)
    entries = []
    for row, (name, given) in enumerate(zip(names, tasks, strict=True)):
        entry = {"name": name, "row": row, "step": step if counts[row] else 0}
        entries.append(entry | ({"vocabulary": own[given]} if own and "shared" not in own else {}))
    numbers = train_state.accounting(
        weights, len(tasks), train_state.count(base.shapes()), train=programs.trained_part(settings, adapter)
    )
    accounting = {name: value for name, value in numbers.items() if name != "tasks"}

    def write(fresh: epath.Path) -> None:
        adapter_folder.write_adapter(
            fresh,
            method=methods.settings(method),
            weights=weights,
            tasks=entries,
            backbone={"name": base.name, "fingerprint": base.fingerprint},
            vocabulary=own.get("shared", base.vocabulary.to_json()),
            accounting=accounting | {"backbone_fingerprint": base.fingerprint},
            durable=False,  # the folder is put on the disk as a whole
        )

    folders.replace_folder(output, write)
    return names


def _weights(
    checkpoints: Checkpoints,
    step: int,
    method: Adapter,
    base: foundation.Foundation,
    settings: RunSettings,
    adapter: AdapterSettings,
    tasks: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """{'shared', 'tasks'} as numpy, and how many steps each row has had."""
    drawn = initial.new_weights_on_host(
        method, jax.random.key(settings.seed), base.encoder, programs.bank_rows(adapter, tasks)
    )
    state = jax.eval_shape(
        lambda tree: train_state.create(tree, OptimizerConfig(steps=1), train=programs.trained_part(settings, adapter)),
        {"shared": drawn["shared"]},
    )
    part = checkpoints.restore_part(step, {"trainable": state.trainable, "fixed": state.fixed})
    shared = (part["trainable"] | part["fixed"])["shared"]
    counts = np.zeros(len(jax.tree.leaves(drawn["tasks"])[0]) if jax.tree.leaves(drawn["tasks"]) else tasks, np.int32)
    # Rows in no log are as the seed gives them.
    for ids, rows in checkpoints.rows(step, "bank", below=len(counts)):
        _check_rows(rows, {"tasks": drawn["tasks"], "count": counts}, where=f"{checkpoints.directory}: {step}")
        counts[ids] = rows["count"]
        for leaf, new in zip(
            jax.tree.leaves(drawn["tasks"]), jax.tree.leaves(no_parameters() | rows["tasks"]), strict=True
        ):
            leaf[ids] = new
    bank = jax.tree.map(lambda leaf: leaf[:tasks], drawn["tasks"])
    return {"shared": jax.tree.map(jnp.asarray, shared), "tasks": bank}, counts


def _check_rows(rows: dict[str, Any], like: dict[str, Any], *, where: str) -> None:
    """Refuses rows that are not of the method of the run."""
    there, here = (
        {path: f"{leaf.dtype.name}{list(leaf.shape[1:])}" for path, leaf in flatten(tree).items()}
        for tree in ({name: rows[name] for name in like if name in rows}, like)
    )
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            found, wanted = (side.get(path, "absent") for side in (there, here))
            raise UserError(f"{where}: rows are of another run: {path} is {found} there; the settings ask for {wanted}")


def _allowed_names(tasks: list[str]) -> list[str]:
    """The names of tasks, those changed that none may have."""
    found: list[str] = []
    for row, name in enumerate(tasks):
        try:
            check_name(name, found)
        except UserError as error:
            name = "".join(character if character.isprintable() else " " for character in name).strip()
            name = name if name and name not in (*found, *tasks) and not name.startswith("__") else f"task-{row}"
            tell(f"{error}; it is called {name!r} in the adapter")
        found.append(name)
    return found
