"""Held-out tasks of a suite: the heads of a system are trained when its weights are first needed, in one run.

The run has a work directory of its own, R/<suite>.heads/<system>, so one that was stopped goes on where it was.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from hra_jax.console import listed, tell
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation import leaks, shots
from hra_jax.evaluation.shots import Head
from hra_jax.evaluation.suites import Suite
from hra_jax.models import backbone_folder
from hra_jax.models.backbone_folder import BackboneFiles
from hra_jax.run import systems
from hra_jax.run.evaluating import BaseTexts
from hra_jax.run.systems import System
from hra_jax.run.workdirs import ADAPTER
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.tasks import few_shot
from hra_jax.tasks.names import FEW_TASK
from hra_jax.training.agreement import agreed, first_alone

_START = "start"  # the adapter of a checkpoint that heads are trained on, in the work directory


class HeldOut(NamedTuple):
    """A suite with held-out tasks on a system that has never seen them.

    Attributes:
      suite: with a task for every head.
      system: with a row for every head.
      heads: what is trained.
      workdir: where.
    """

    suite: Suite
    system: System
    heads: tuple[Head, ...]
    workdir: epath.Path


def plan(suite: Suite, system: System, *, output: epath.Path, report: DataReport) -> HeldOut | None:
    """What is to be trained for a suite on a system; None where that is nothing. Nothing is trained yet.

    Args:
      suite: as it was loaded.
      system: as it was read.
      output: R.
      report: where bad lines of the support go.

    Raises:
      UserError: no task of the suite is new to the system, its tasks write in vocabularies of their own, the support
        does not have what the suite asks for, or heads of other utterances were trained there.
    """
    asked = shots.few_tasks(suite)
    if not asked or not system.is_adapter:
        return None
    held_out = [task for task in asked if task.name not in system.tasks]
    where = f"suite {suite.name!r} on system {system.name!r}"
    if not held_out:
        raise UserError(
            f"{where}: {listed([task.name for task in asked])} are tasks of the adapter; allowed: an adapter that has "
            "not been trained on at least one of them"
        )
    if system.own is not None and system.own.shared is None:
        raise UserError(
            f"{where}: its tasks write in vocabularies of their own, which a few utterances do not give; allowed: "
            "adapters whose tasks share one"
        )
    heads = tuple(shots.draw_heads(suite, held_out, seed=int(suite.few.get("seed", 0)), report=report))
    if jax.process_index() == 0:
        tell(
            f"{where}: held out are {listed([task.name for task in held_out])}; {len(heads)} heads on "
            f"{listed([str(k) for k in suite.shots if k], show=str)} utterances, {suite.draws} draws each"
        )
    workdir = output / f"{suite.name}.heads" / system.name
    few_shot.check_same_heads(workdir, heads)
    scored = shots.scored_suite(suite, held_out, heads, has_mean=bool(system.tasks))
    return HeldOut(scored, _with_heads(system, heads, suite.few, workdir), heads, workdir)


def _with_heads(system: System, heads: Sequence[Head], settings: Mapping[str, Any], workdir: epath.Path) -> System:
    """The system with a row for every head, which is trained when the weights are asked for."""
    facts = {
        "system": system.digest,
        "few": {key: repr(value) for key, value in settings.items()},
        "support": [(head.name, [(row.key, row.text, row.duration) for row in head.support]) for head in heads],
    }
    return dataclasses.replace(
        system,
        # `data.tasks=()` of the training takes them sorted, after those of the adapter.
        tasks=(*system.tasks, *sorted(head.name for head in heads)),
        averaged=len(system.tasks),
        digest=sha256_of_json(facts),
        weights=functools.cache(functools.partial(_trained, system, heads, settings, workdir)),
    )


def _trained(
    system: System, heads: Sequence[Head], settings: Mapping[str, Any], workdir: epath.Path, mesh: Mesh
) -> dict[str, Any]:
    """The weights of a system with those of its heads, after training them; a collective.

    Raises:
      SystemExit: the training was stopped by a signal; everything is saved.
    """
    assert system.folder is not None and system.base.files is not None, "an adapter on a backbone that is read"
    start = str(system.folder(workdir / _START))
    status = few_shot.train_heads(start, heads, workdir, backbone=_location(system.base.files), settings=settings)
    if status:
        raise SystemExit(status)
    found = agreed(lambda: systems.of_adapter(system.name, workdir / ADAPTER, system.base))
    return found.weights(mesh)


def _location(files: BackboneFiles) -> str:
    """Where a backbone lies: `builtin:NAME` for one of ours, which is elsewhere in another installation."""
    named = f"{backbone_folder.BUILTIN}{files.info['name']}"
    with contextlib.suppress(UserError):
        if backbone_folder.resolve(named) == files.folder:
            return named
    return str(files.folder)


def support_hashes(found: HeldOut) -> dict[str, np.ndarray]:
    """Hashes of the utterances that heads are trained on, sorted, as `System.trained_on` has them."""
    rows = {row.key: row for head in found.heads for row in head.support}
    hashes = np.unique(leaks.hashes_of(list(rows.values())))
    return {"a head of its held-out tasks": hashes[hashes != 0]}


def kept_texts(texts: BaseTexts, suite: Suite) -> BaseTexts:
    """What the base recognises, for the tasks of heads as well."""
    return texts._replace(texts=_with_heads_texts(texts.texts, suite), greedy=_with_heads_texts(texts.greedy, suite))


def _with_heads_texts(texts: Mapping[tuple[str, str], str], suite: Suite) -> dict[tuple[str, str], str]:
    by_task: dict[str, dict[str, str]] = {}
    for (task, key), text in texts.items():
        by_task.setdefault(task, {})[key] = text
    more = {
        (name, key): text for name, (task, _, _) in suite.heads.items() for key, text in by_task.get(task, {}).items()
    }
    return {**texts, **more}


def check_keep(keep: epath.PathLike | None, held_out: Sequence[HeldOut]) -> None:
    """Refuses to keep heads that there are not, or that two suites train on one system."""
    if keep is None:
        return
    names = [one.system.name for one in held_out]
    if not names:
        raise UserError(f"--keep={str(keep)!r}: no suite trains heads; needed: one with the adapter task {FEW_TASK!r}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--keep={str(keep)!r}: several suites train heads on {name!r}; allowed is one of them")


def keep(found: Sequence[HeldOut], folder: epath.PathLike, *, mesh: Mesh) -> None:
    """Keeps the heads as adapters: DIR, or DIR/<system> where there are several; a collective."""
    for one in found:
        one.system.weights(mesh)  # results that were there already did not need them
        place = epath.Path(folder) / one.system.name if len(found) > 1 else epath.Path(folder)
        keeping: Callable[[], None] = functools.partial(few_shot.keep_heads, one.workdir, one.heads, place)
        first_alone(keeping)
