"""Heads of held-out tasks: all shots, draws and tasks are rows of one run, with equally many updates for each of them.

What the tasks of the adapter share stays as it is, and so do their own rows.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters.adapter_folder import ExportedAdapter, read_adapter
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.config.files import near_key, validate_config
from hra_jax.config.keys import flatten_config, group
from hra_jax.data import batching
from hra_jax.data.report import DataReport
from hra_jax.data.turns import Turns, batches_of_rounds
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.evaluation.shots import Head
from hra_jax.run import stages, workdirs
from hra_jax.storage import locks
from hra_jax.storage.files import make_folder, write_file
from hra_jax.storage.json_files import Kind, read_lines
from hra_jax.tasks import library
from hra_jax.tasks.adding import TASK_TAG, task_config
from hra_jax.training.agreement import first_alone

UPDATES = 300  # of every head, where a suite says nothing
_SOURCE = "support"
_LINE: dict[str, Kind] = {"audio_filepath": str, "text": str, TASK_TAG: str}
_ROWS = 8  # every batch has a multiple of so many


def has_mean(exported: ExportedAdapter) -> bool:
    """Whether the tasks of an adapter have a mean: there are some, and they do not write in different vocabularies."""
    output = exported.config["method"]["output"]
    return bool(exported.tasks) and (output not in OWN_VOCABULARIES or output in SHARED_VOCABULARIES)


def train_heads(
    adapter: str, heads: Sequence[Head], workdir: epath.PathLike, *, backbone: str, settings: Mapping[str, Any]
) -> int:
    """Trains heads; the same call again goes on where it was stopped. A collective.

    A head starts as the mean of the adapter's heads, where they have one. W/adapter then has the rows of the adapter,
    bit for bit, and those of the heads.

    Args:
      adapter: the folder of an exported adapter.
      heads: from `shots.draw_heads`.
      workdir: W.
      backbone: folder of the adapter's backbone, or builtin:NAME.
      settings: configuration keys in place of those of `tasks add`; `steps` is the number of updates of every head.

    Returns:
      The exit status of the training: 0; 75 or 130 where it was stopped.

    Raises:
      UserError: as `hra_jax.train.train`.
    """
    from hra_jax import train  # late: it takes seconds

    folder = workdirs.named(workdir)
    config = _config(read_adapter(adapter), settings)
    with config.unlocked():
        config.backbone, config.adapter.start = backbone, adapter
        config.data.sources = ((_SOURCE, str(folder / workdirs.MANIFEST), "proportional"),)
    with contextlib.ExitStack() as stack:
        first_alone(lambda: _begin(stack, folder, heads))
        _, layout = stages.survey(config, folder, DataReport())
        with config.unlocked():
            config.steps = steps_of(layout.table, config)
        return train.train(config, folder)


def _begin(stack: contextlib.ExitStack, folder: epath.Path, heads: Iterable[Head]) -> None:
    workdirs.check_ours(folder)
    make_folder(folder)
    stack.enter_context(locks.hold(folder, "few shots"))
    write_file(folder / workdirs.MANIFEST, manifest_of(heads))


def manifest_of(heads: Iterable[Head]) -> str:
    """The support of all heads as a manifest: an utterance has a line for each head that is trained on it."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(heads))


def _rows(heads: Iterable[Head]) -> Iterator[dict[str, Any]]:
    for head in heads:
        for found in head.support:
            yield {**found.tags, **found.as_line(), TASK_TAG: head.name}


def check_same_heads(workdir: epath.PathLike, heads: Iterable[Head]) -> None:
    """Refuses a work directory in which heads of other utterances were trained, wherever their files lie.

    Args:
      workdir: W of `train_heads`, which may be absent.
      heads: what would be trained in it.

    Raises:
      UserError: it holds others; or its manifest is damaged.
    """
    folder = epath.Path(workdir)
    path = folder / workdirs.MANIFEST
    if not (folder / workdirs.CONFIG).exists() or not path.exists():
        return
    before = [row for _, row in read_lines(path, _LINE, what="the utterances that heads were trained on")]
    now = list(_rows(heads))
    for row in (*before, *now):
        row["audio_filepath"] = row["audio_filepath"].rsplit("/", 1)[-1]
    if before != now:
        raise UserError(
            f"{str(folder)!r} holds heads that were trained on other utterances; remove it, or give another --output"
        )


def _config(exported: ExportedAdapter, settings: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a run that trains heads, without its data; `steps` counts updates of every head."""
    config = task_config(exported, steps=UPDATES, learning_rate=None)
    config.export.voices = False  # heads of draws are looked up by their names alone
    # The same batches on 1, 2, 4 and 8 devices.
    multiple = math.lcm(_ROWS, config.batch.multiple)
    given = {
        "batch.multiple": multiple,
        "batch.max_tasks": 32,
        "data.draw": "tasks",
        "adapter.new_task": "mean" if has_mean(exported) else "zero",
    }
    known = flatten_config(config)
    for key, value in {**given, **settings}.items():
        if key not in known:
            raise UserError(f"few: unknown config key {key!r}; {near_key(key)}")
        *groups, name = key.split(".")
        node = config
        for part in groups:
            node = node[part]
        with node.unlocked(), node.ignore_type():
            node[name] = tuple(value) if isinstance(value, list) else value
    with config.unlocked():
        config.batch.seconds = max(config.batch.seconds, config.batch.multiple * group(config, "batch").edges[-1])
    validate_config(config)
    return config


def steps_of(table: UtteranceTable, config: ConfigDict) -> int:
    """The steps in which every task of a table has exactly `config.steps` updates."""
    batch = group(config, "batch")
    turns = Turns(
        table.duration,
        table.task,
        names=table.task_names,
        buckets=batch.edges,
        rows=batching.bucket_rows(batch.edges, batch_seconds=batch.seconds, multiple=batch.multiple),
        max_tasks=batch.max_tasks,
        seed=config.seed,
    )
    return batches_of_rounds(turns, config.steps)


def keep_heads(workdir: epath.PathLike, heads: Iterable[Head], folder: epath.PathLike) -> None:
    """Writes the trained heads of W as an adapter of their own, in this process.

    Args:
      workdir: W of `train_heads`.
      heads: which.
      folder: of the adapter, new or an adapter folder.
    """

    trained = read_adapter(epath.Path(workdir) / workdirs.ADAPTER)
    library.write(folder, library.picked(trained, [head.name for head in heads]))
