"""Any checkpoint of a run as the folder that the run exports, whatever became of its data, its names or its suites.

Everything comes from the work directory and the backbone: no recording is read. Of a pre-training that has exported
nothing yet the manifests are read too: the vocabulary is made of their texts.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import adapter_folder, initial, methods, task_records
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.config.files import config_from_json
from hra_jax.config.keys import group
from hra_jax.console import listed, tell
from hra_jax.data.report import DataReport
from hra_jax.decoding.language_models import NOTHING_HELD
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.augmentation import NO_AUGMENTATION
from hra_jax.run import foundation, layout, own_models, programs
from hra_jax.run.exporting import write_backbone
from hra_jax.run.read import read_material
from hra_jax.run.saving import take
from hra_jax.run.settings import RunSettings
from hra_jax.run.workdirs import BACKBONE, CHECKPOINTS, CONFIG, stored_config
from hra_jax.storage import folders
from hra_jax.storage.json_files import check_fields, read_text
from hra_jax.storage.trees import flatten
from hra_jax.tasks.names import check_name
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import vocabulary_from_json
from hra_jax.training import train_state
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.training.optimizer import OptimizerConfig


def export_checkpoint(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    step: int | str = "last",
    backbone: str | None = None,
    renames: Sequence[str] = (),
) -> tuple[int, list[str]]:
    """Writes the adapter of a checkpoint; the backbone, where the run trained one.

    Args:
      workdir: the work directory of a run.
      output: the folder to write.
      step: a number, 'last' (the newest that is whole) or 'best'.
      backbone: folder of the backbone that the run started from, or builtin:NAME; None takes what the run names.
      renames: 'OLD=NEW' for each task that is to have another name in the adapter.

    Returns:
      The step, and the names of the tasks (none of a backbone). Names that no task may have are changed, with a line
      for each.

    Raises:
      UserError: no run there, no such checkpoint, a damaged one, another backbone, or a rename of no task.
    """
    config = stored_config(workdir)
    settings = group(config, "")
    if settings.method != "adapter" and renames:
        raise UserError(f"--rename={renames[0]!r} has no use with method {settings.method!r}: a backbone has no tasks")
    folder = epath.Path(workdir) / CHECKPOINTS
    with Checkpoints(folder, keep_latest=1, keep_best=0, every_steps=1, finite=True, read_only=True) as checkpoints:

        def write(number: int) -> list[str]:
            if settings.method == "adapter":
                return _export(checkpoints, number, config, settings, epath.Path(output), backbone, renames)
            _export_backbone(checkpoints, number, epath.Path(workdir), epath.Path(output), config, backbone)
            return []

        return take(checkpoints, step, write)


def _export(
    checkpoints: Checkpoints,
    step: int,
    config: ConfigDict,
    settings: RunSettings,
    output: epath.Path,
    backbone: str | None,
    renames: Sequence[str],
) -> list[str]:
    base = foundation.load(backbone or settings.backbone)
    stored = stored_adapter(checkpoints, step, config, base)
    names, entries, own = _renamed(stored.tasks, renames), [], stored.vocabularies
    tuned = NOTHING_HELD
    with contextlib.suppress(UserError):  # damaged ones are left out: what is trained is worth more
        tuned = own_models.held_in(checkpoints.directory.parent)
    for row, (name, given) in enumerate(zip(names, stored.tasks, strict=True)):
        entry = {"name": name, "row": row, "step": step if stored.counts[row] else 0}
        entry |= {task_records.DECODE: dict(found)} if (found := tuned.tuned_for(given)) is not None else {}
        entries.append(entry | ({"vocabulary": own[given]} if own and "shared" not in own else {}))
    records = _records(checkpoints, step, config, stored.facts, shared=bool(jax.tree.leaves(stored.weights["shared"])))
    records = task_records.renamed(records, dict(zip(stored.tasks, names, strict=True)))

    def write(fresh: epath.Path) -> None:
        adapter_folder.write_adapter(
            fresh,
            method=methods.settings(stored.method),
            weights=stored.weights,
            tasks=entries,
            backbone={"name": base.name, "fingerprint": base.fingerprint},
            vocabulary=own.get("shared", base.vocabulary.to_json()),
            accounting=stored.accounting | {"backbone_fingerprint": base.fingerprint},
            records=records,
            trained_seconds=config.data.max_seconds or group(config, "batch").edges[-1],
            durable=False,  # the folder is put on the disk as a whole
        )

    folders.replace_folder(output, write)
    return names


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """The adapter of a checkpoint.

    Attributes:
      facts: what the checkpoint says of its run.
      tasks: their names, as the run has them.
      vocabularies: as JSON values, where tasks do not write in the backbone's: by task, or that of all as "shared".
      method: the adaptation method.
      weights: {'shared', 'tasks'}, the rows of all tasks in numpy.
      counts: int32 [A], how many steps each of the tasks has had.
      accounting: parameter counts.
    """

    facts: dict[str, Any]
    tasks: list[str]
    vocabularies: dict[str, Any]
    method: Adapter
    weights: dict[str, Any]
    counts: np.ndarray
    accounting: dict[str, int]

    def own(self, base: foundation.Foundation) -> OwnVocabularies | None:
        """The vocabularies, where tasks do not write in that of the backbone."""
        if not self.method.own_vocabulary:
            return None
        found = {name: vocabulary_from_json(content) for name, content in self.vocabularies.items()}
        shared = found.pop("shared") if found.keys() == {"shared"} else None
        return OwnVocabularies(base.vocabulary, found, self.method.output_size, shared)


def stored_adapter(
    checkpoints: Checkpoints, step: int, config: ConfigDict, base: foundation.Foundation
) -> StoredAdapter:
    """Reads the adapter of a checkpoint; all processes must call it.

    Args:
      checkpoints: those of a run of method 'adapter'.
      step: which one.
      config: the configuration of the run.
      base: the backbone that it was trained on.

    Raises:
      UserError: a damaged checkpoint, or another backbone.
    """
    where = f"{checkpoints.directory}: {step}"
    facts = {"vocabularies": {}} | check_base(checkpoints, step, base)
    check_fields(facts, {"tasks": list, "vocabularies": dict}, where=where)
    tasks, own = facts["tasks"], facts["vocabularies"]
    if any(type(name) is not str for name in tasks):
        raise UserError(f"{where}: needs 'tasks' (a list of names); got {tasks!r:.80}")
    if own and "shared" not in own and not own.keys() >= set(tasks):
        raise UserError(f"{where}: vocabularies: {', '.join(own)!r:.80}; needed: one for each task, or 'shared'")
    settings, adapter = group(config, ""), group(config, "adapter")
    size = max((vocabulary_from_json(content).size for content in own.values()), default=0)
    method = layout.adapter_method(settings, adapter, own=methods.own_settings(config, adapter.name), output_size=size)
    weights, counts = _weights(checkpoints, step, method, base, settings, adapter, len(tasks))
    numbers = train_state.accounting(
        weights, len(tasks), train_state.count(base.shapes()), train=programs.trained_part(settings, adapter)
    )
    accounting = {name: value for name, value in numbers.items() if name != "tasks"}
    return StoredAdapter(facts, tasks, own, method, weights, counts[: len(tasks)], accounting)


def check_base(checkpoints: Checkpoints, step: int, base: foundation.Foundation) -> dict[str, Any]:
    """What a checkpoint says of its run, which must be one on this backbone. Raises UserError."""
    where = f"{checkpoints.directory}: {step}"
    facts = check_fields(checkpoints.fingerprint(step), {"tasks": list, "backbone": str}, where=where)
    if base.fingerprint != facts["backbone"]:
        raise UserError(
            f"backbone {base.name!r} has the fingerprint {base.fingerprint[:12]}; checkpoint {step} was trained on "
            f"{facts['backbone'][:12]}"
        )
    return facts


def _records(
    checkpoints: Checkpoints, step: int, config: ConfigDict, facts: dict[str, Any], *, shared: bool
) -> task_records.Records:
    """What is held for each task, by the names that the run has for them; `shared`: whether tasks share anything."""
    start = None
    if facts.get("start"):
        start = _start(config.adapter.start, facts["start"])
    shared = shared and config.adapter.train == "all"
    if not config.export.hashes:
        found = {} if start is None else task_records.without_hashes(start.records)
    else:
        trained = _hashes(checkpoints, step, facts["tasks"], shared=shared)
        found = initial.started_from(start, facts["tasks"], config.adapter.new_task, trained=trained)
    # Where what all tasks share has moved, none sounds as it did.
    return task_records.without_voices(found) if shared else found


def _start(folder: str, content_hash: object) -> adapter_folder.ExportedAdapter | None:
    """The adapter that the run started from, whose weights are not needed; None, said, where it is there no more."""
    try:
        if initial.content_hash(folder) == content_hash:
            return adapter_folder.read_adapter(folder, shapes=False)
        why = "holds other weights now"
    except UserError as error:
        why = f"cannot be read ({error})"
    tell(f"adapter.start = {folder!r} {why}: what it holds for its tasks beside their weights is not exported")
    return None


def stored_hashes(checkpoints: Checkpoints, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of what was trained on up to a checkpoint, and the tasks (int32) of each."""
    found = [rows for _, rows in checkpoints.rows(step, "hashes")]
    values = np.concatenate([rows["hash"] for rows in found] or [np.zeros(0, np.uint64)])
    return values, np.concatenate([rows["task"] for rows in found] or [np.zeros(0, np.int32)])


def _hashes(checkpoints: Checkpoints, step: int, tasks: Sequence[str], *, shared: bool) -> task_records.Records:
    """The hashes of what was trained on up to a checkpoint."""
    values, numbers = stored_hashes(checkpoints, step)
    return task_records.hashes_by_task(values, numbers, tasks, shared=shared)


def _export_backbone(
    checkpoints: Checkpoints,
    step: int,
    workdir: epath.Path,
    output: epath.Path,
    config: ConfigDict,
    backbone: str | None,
) -> None:
    if config.method == "full":
        base = foundation.load(backbone or config.backbone)
        check_base(checkpoints, step, base)
    elif backbone is not None:
        raise UserError(f"--backbone={backbone!r} has no use with method {config.method!r}, which starts from none")
    else:
        base = new_base(workdir, config)
    part = checkpoints.restore_part(step, {"trainable": {"backbone": base.shapes()}})
    weights = flatten(part["trainable"]["backbone"], separator=".")
    begun = config_from_json(read_text(workdir / CONFIG), notify=False)
    write_backbone(
        output,
        lambda name: np.asarray(weights[name]),
        base=base,
        config=begun,
        dtype=config.export.dtype,
        step=step,
        trained=_hashes(checkpoints, step, (), shared=True) if config.export.hashes else {},
    )


def new_base(workdir: epath.Path, config: ConfigDict) -> foundation.Foundation:
    """What a run of method 'pretrain' has laid out: as it was exported already, or made of the texts again."""
    if (workdir / BACKBONE / backbone_folder.SETTINGS).exists():
        return foundation.load(str(workdir / BACKBONE))
    settings, data, adapter, pretrain, evaluation = (
        group(config, name) for name in ("", "data", "adapter", "pretrain", "eval")
    )
    return read_material(
        settings,
        data=data,
        adapter=adapter,
        pretrain=pretrain,
        augment=NO_AUGMENTATION,  # nothing is trained
        evaluation=evaluation,
        report=DataReport(),
        render=False,
    ).base


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
    like = train_state.bank_like(drawn["tasks"])
    for ids, rows in checkpoints.rows(step, "bank", below=len(counts), like=like):
        counts[ids] = rows["count"]
        for leaf, new in zip(
            jax.tree.leaves(drawn["tasks"]), jax.tree.leaves(no_parameters() | rows["tasks"]), strict=True
        ):
            leaf[ids] = new
    bank = jax.tree.map(lambda leaf: leaf[:tasks], drawn["tasks"])
    return {"shared": jax.tree.map(jnp.asarray, shared), "tasks": bank}, counts


def _renamed(tasks: list[str], renames: Sequence[str]) -> list[str]:
    """The names that tasks have in the adapter: those that `renames` gives, and else those that they may have."""
    found = _allowed_names(tasks)
    for text in renames:
        ends = [at for at, character in enumerate(text) if character == "=" and text[:at] in (*tasks, *found)]
        if not ends:
            raise UserError(f"--rename={text!r}; allowed: OLD=NEW, where OLD is one of {listed(found)}")
        old, new = text[: ends[-1]], text[ends[-1] + 1 :]
        row = found.index(old) if old in found else tasks.index(old)
        check_name(new, [name for other, name in enumerate(found) if other != row])
        found[row] = new
    return found


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
