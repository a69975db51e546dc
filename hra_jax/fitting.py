"""Training from Python, without files: recordings and their texts in, a model out.

    model = hra_jax.fit(backbone, {"ann": [(waveform, "hello"), ...]}, sample_rate=16000, steps=300)
    model.transcribe([another], sample_rate=16000, tasks=["ann"])

The stages, the compiled step, the optimizer and the batches are those of `hra_jax.train` with `data.draw=tasks`.
Neither seqio nor TensorFlow is needed.
"""

import contextlib
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from hra_jax.adapters import adapter_folder, initial, methods, task_records
from hra_jax.adapters.base import no_parameters
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES
from hra_jax.api import Backbone, Model
from hra_jax.config.files import config_of, near_key
from hra_jax.config.keys import default_config, flatten_config, group, method_groups
from hra_jax.console import listed, tell
from hra_jax.data import audio
from hra_jax.data.learnt_vocabularies import own_vocabularies
from hra_jax.data.loader import TrainLoader
from hra_jax.data.report import DataReport
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.data.sounds import read_sounds
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Recording
from hra_jax.errors import UserError
from hra_jax.models.padding import padded_size
from hra_jax.run.foundation import Foundation
from hra_jax.run.layout import Layout, check_rows
from hra_jax.run.place import start_weights
from hra_jax.run.read import Material
from hra_jax.run.skipped_steps import SkippedSteps
from hra_jax.run.stages import laid_out
from hra_jax.storage import folders
from hra_jax.tasks.names import check_name
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.training import placement, sharding, train_state
from hra_jax.training.progress import Progress
from hra_jax.training.task_bank import TaskBank
from hra_jax.training.train_state import TrainState

Examples = Mapping[str, Sequence[tuple[ArrayLike, str]]]  # by task: waveforms (1-D, mono) and their texts

_SOURCE = "examples"  # what the data report calls them
_LOOK_STEPS = 20  # steps between two looks at the loss, each of which waits for the device
# What `settings` may set: whole groups, and single keys. The rest is about files, or is an argument of `fit`.
_GROUPS = ("adapter", "batch", "augment", "optimizer")
_KEYS = ("seed", "dropout", "remat", "attention_block", "accumulate") + tuple(
    f"data.{name}" for name in ("normalizer", "format_characters", "threads")
)
_NOT = ("adapter.start",)


def fit(
    backbone: Backbone,
    examples: Examples,
    *,
    sample_rate: int | None = None,
    steps: int = 300,
    start: Model | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Model:
    """Trains an adapter on recordings in memory.

    Every task has equally many updates, whatever the number of its recordings. Batches are as large as the recordings
    need, 64 s of audio at most, unless `settings` says otherwise.

    Args:
      backbone: from `hra_jax.load_backbone`; its weights stay as they are.
      examples: {task: [(waveform, text), ...]}; a waveform is 1-D, mono, as for `recognise`.
      sample_rate: of the waveforms, Hz; None for the backbone's own.
      steps: optimizer steps.
      start: the adapter to go on from. Its settings are kept, its tasks are in the result too, and what they share
        stays as it is, so that tasks without examples do not change. None for a new adapter.
      settings: configuration keys, such as {"hra.width": 128, "optimizer.learning_rate": 4e-3, "seed": 1}; those of the
        groups adapter, batch, augment, optimizer and of the method, and seed, dropout, remat, attention_block,
        accumulate, data.normalizer, data.format_characters, data.threads.
      progress: whether to show how it goes.

    Returns:
      A model with the tasks of `start`, then those of `examples`, sorted.

    Raises:
      UserError: no example, a waveform or a text that cannot be used, a task name that is not allowed, an unknown
        setting or one that is not allowed here, an adapter of another backbone, or steps whose loss is not finite.
    """
    recordings = _recordings(examples, backbone.sample_rate if sample_rate is None else sample_rate)
    mesh = _mesh_of(backbone)
    config = _configuration(settings or {}, backbone, start, recordings, steps=steps, mesh=mesh)
    report = DataReport()
    material = _material(backbone, recordings, config, start=start, report=report)
    layout = _laid_out(material, mesh, config, report=report)
    _check_usable(layout, report, show=progress)
    state, bank = start_weights(material, layout, settings=group(config, ""), adapter=group(config, "adapter"))
    hashes = UtteranceHashes(len(layout.table))
    state = _trained(state, bank, layout, config, _frozen(backbone, mesh), hashes, report=report, show=progress)
    rows = bank.rows(state, np.arange(len(layout.tasks)))["tasks"]
    shared = sharding.to_host(state.weights["shared"])
    with_shared = bool(jax.tree.leaves(shared)) and not state.fixed
    seen, numbers = hashes.values, layout.table.task
    found = task_records.hashes_by_task(seen[seen != 0], numbers[seen != 0], layout.tasks, shared=with_shared)
    records = initial.started_from(material.start, layout.tasks, material.new_task, trained=found)
    shared, rows = (jax.tree.map(jnp.asarray, no_parameters() | tree) for tree in (shared, rows))
    aside = frozenset() if start is None else start.set_aside - examples.keys()
    entries = {} if start is None else {task: e for task, e in start.entries.items() if task not in examples}
    more: dict[str, Any] = {"set_aside": aside, "records": records, "entries": entries}
    # A few short recordings do not say what is long for the backbone, which says it itself.
    seconds = 0.0 if start is None else start.trained_seconds
    return Model(backbone, layout.method, shared, rows, layout.tasks, material.own, trained_seconds=seconds, **more)


def _trained(
    state: TrainState,
    bank: TaskBank,
    layout: Layout,
    config: ConfigDict,
    frozen: dict[str, Any],
    hashes: UtteranceHashes,
    *,
    report: DataReport,
    show: bool,
) -> TrainState:
    """The state after the last step; `hashes` gets those of what was trained on."""
    skipped = SkippedSteps(most=config.optimizer.max_skipped_steps, report=report, name_of=layout.table.name)
    with _loader(layout, config, hashes, report=report) as loader, contextlib.ExitStack() as shown:
        progress = shown.enter_context(Progress(config.steps)) if show else None
        for step in range(1, config.steps + 1):
            batch = next(loader)
            state, outputs = bank.step(state, frozen, sharding.shard_batch(batch, layout.mesh), loader.tasks)
            skipped.stepped(step, outputs, batch["utterance"])
            looks = step in (1, config.steps) or step % _LOOK_STEPS == 0
            if looks:
                skipped.look(progress.note if progress else lambda line: None)
            if skipped.too_many:
                raise UserError(
                    f"step {step}: the loss or a gradient of the last {skipped.in_row} steps was not finite "
                    f"(optimizer.max_skipped_steps = {config.optimizer.max_skipped_steps}); allowed: other recordings, "
                    "or settings such as a smaller optimizer.learning_rate"
                )
            if progress:
                loss = float(outputs["loss"]) if looks else None
                progress.update(step, audio_seconds=loader.audio_seconds, loss=loss)
    return state


def save_adapter(model: Model, folder: epath.PathLike) -> None:
    """Writes the adapter of a model to a folder, as a run exports one; in place of an adapter that is there already.

    It holds hashes of what `fit` was given, as runs export them, and what was held for the tasks of a folder that the
    model was loaded from: their hashes, and whether they are set aside.

    Args:
      model: from `fit`, `load_adapter`, or made of these.
      folder: where `hra_jax.load_adapter` and all commands find it.

    Raises:
      UserError: the model has no adapter, or its weights are not finite; or the folder holds something else.
    """
    method, files, own = methods.settings(model.adapter), model.backbone.files, model.own
    weights = {"shared": model.shared, "tasks": model.rows}
    numbers = train_state.accounting(weights, len(model.tasks), train_state.count(model.backbone.params))
    entries: list[dict[str, Any]] = [{"name": name, "row": row} for row, name in enumerate(model.tasks)]
    entries = [
        {**entry, task_records.SET_ASIDE: {}} if entry["name"] in model.set_aside else entry for entry in entries
    ]
    entries = [{**entry, **task_records.measured(model.entries.get(entry["name"], {}))} for entry in entries]
    vocabulary = model.backbone.vocabulary
    if own is not None and own.shared is not None:
        vocabulary = own.shared
    elif own is not None:
        entries = [{**entry, "vocabulary": own.of(entry["name"]).to_json()} for entry in entries]
    place = epath.Path(folder)
    if place.exists() and not (place / adapter_folder.CONFIG_FILE).exists() and any(place.iterdir()):
        raise UserError(f"{str(place)!r} is no adapter folder; allowed: a new folder, or one that holds an adapter")

    def write(fresh: epath.Path) -> None:
        adapter_folder.write_adapter(
            fresh,
            method=method,
            weights=weights,
            tasks=entries,
            backbone={"name": files.info["name"], "fingerprint": files.fingerprint},
            vocabulary=vocabulary.to_json(),
            accounting={name: value for name, value in numbers.items() if name != "tasks"}
            | {"backbone_fingerprint": files.fingerprint},
            trained_seconds=model.trained_seconds,
            records=task_records.kept(model.records, model.tasks),
            durable=False,
        )

    folders.replace_folder(place, write, rewritten=adapter_folder.is_written, last=adapter_folder.CONFIG_FILE)


# --- What was given ---------------------------------------------------------------------------------------------------


def _recordings(examples: Examples, rate: int) -> list[Recording]:
    """The examples as utterances, by task."""
    if not isinstance(rate, numbers.Real) or not 1 <= rate < math.inf:
        raise UserError(f"sample_rate = {rate!r}: allowed are numbers of Hz from 1")
    if not examples:
        raise UserError("examples = {}: allowed is at least one task, {name: [(waveform, text), ...]}")
    found: list[Recording] = []
    for task, pairs in sorted(examples.items()):
        check_name(task, where="examples")
        if not len(pairs):
            raise UserError(f"examples[{task!r}] is empty; allowed is at least one (waveform, text)")
        for number, pair in enumerate(pairs):
            found.append(_recording(pair, f"{task}[{number}]", task=task, rate=rate))
    return found


def _recording(pair: tuple[ArrayLike, str], key: str, *, task: str, rate: int) -> Recording:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
        raise UserError(f"examples: {key} is {type(pair).__name__}; allowed is a pair (waveform, text)")
    samples = audio.from_array(pair[0], what=f"examples: {key}")
    return Recording(
        audio_filepath="",
        duration=len(samples) / rate,
        text=pair[1],
        tags={"task": task},
        key=key,
        source=_SOURCE,
        samples=samples,
        sample_rate=rate,
    )


def _mesh_of(backbone: Backbone) -> Mesh:
    """The mesh that the weights of a backbone lie on; of one device where they lie on one."""
    placed = jax.tree.leaves(backbone.params)[0].sharding
    if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh):
        return placed.mesh
    return sharding.make_mesh(devices=sorted(placed.device_set, key=lambda device: device.id)[:1])


def _frozen(backbone: Backbone, mesh: Mesh) -> dict[str, Any]:
    """The backbone's weights, where a run on the mesh has them."""
    placed: dict[str, Any] = sharding.place(
        backbone.params, placement.backbone_shardings(mesh, backbone.files.features, backbone.files.encoder)
    )
    return placed


def _configuration(
    settings: Mapping[str, Any],
    backbone: Backbone,
    start: Model | None,
    recordings: Sequence[Recording],
    *,
    steps: int,
    mesh: Mesh,
) -> ConfigDict:
    """The configuration that a run of `hra_jax.train` would have."""
    allowed = (*_GROUPS, *method_groups())
    for key in settings:
        if key in _NOT or not (key in _KEYS or key.partition(".")[0] in allowed):
            known = key in flatten_config(default_config())
            also = f"allowed here: {', '.join([*_KEYS, *(f'{name}.*' for name in allowed)])}, but {_NOT[0]}"
            raise UserError(f"settings[{key!r}]: {also if known else f'unknown config key; {near_key(key)}'}")
    multiple = sharding.batch_shards(mesh)
    given: dict[str, Any] = {
        "steps": steps,
        "backbone_dtype": jnp.dtype(backbone.dtype).name,
        "data.draw": "tasks",
        "data.task_tag": "task",
        "batch.multiple": multiple,
    }
    if start is not None:
        given |= methods.config_keys(start.adapter) | {"adapter.train": "tasks"}
    given |= _batches(recordings, settings, multiple=multiple)
    return config_of({**given, **settings}, where="settings")


def _batches(recordings: Sequence[Recording], settings: Mapping[str, Any], *, multiple: int) -> dict[str, Any]:
    """Buckets and size of the batches: one batch that holds everything where that is small, so one compilation."""
    if {"batch.buckets", "batch.seconds"} & settings.keys():
        return {}
    base, longest = group(default_config(), "batch"), max(recordings, key=lambda row: row.duration)
    if longest.duration > base.edges[-1]:
        raise UserError(
            f"examples: {longest.key} has {longest.duration:g} s; allowed are {base.edges[-1]:g} s, or what the last "
            "of settings['batch.buckets'] allows"
        )
    # A few lengths, so that trainings on other recordings share their compiled programs.
    last = padded_size(math.ceil(longest.duration * 1000), 500) / 1000
    everything = last * padded_size(len(recordings), multiple)
    if everything <= base.seconds:
        return {"batch.buckets": (last,), "batch.seconds": everything}
    edges = [
        edge for edge in (0.5, 1.0, *base.edges) if edge < last and any(row.duration <= edge for row in recordings)
    ]
    return {"batch.buckets": (*edges, last), "batch.seconds": max(base.seconds, last * multiple)}


# --- The stages -------------------------------------------------------------------------------------------------------


def _material(
    backbone: Backbone, recordings: Sequence[Recording], config: ConfigDict, *, start: Model | None, report: DataReport
) -> Material:
    """What a run would have read."""
    files = backbone.files
    base = Foundation(
        files.features, files.encoder, backbone.vocabulary, files.info["name"], backbone.fingerprint, files
    )
    sources = [TableSource(_SOURCE, recordings)]
    return Material(
        sources,
        base,
        None if start is None else _exported(start, backbone),
        "" if start is None else "start",
        config.adapter.new_task,
        _vocabularies(backbone, sources, config, start=start),
        None,
        None,
        read_sounds(group(config, "augment"), folder="", sample_rate=files.features.sample_rate, report=report),
    )


def _exported(start: Model, backbone: Backbone) -> adapter_folder.ExportedAdapter:
    """A model as if it had been read from an adapter folder."""
    if start.backbone.fingerprint != backbone.fingerprint:
        raise UserError(
            f"start is an adapter of the backbone {start.backbone.fingerprint[:12]}, this one is "
            f"{backbone.fingerprint[:12]}; allowed: an adapter of this backbone"
        )
    config = {"method": methods.settings(start.adapter), "format_version": adapter_folder.FORMAT_VERSION}
    shared: dict[str, Any] = jax.tree.map(np.asarray, start.shared)
    tasks = {name: start.row(name) for name in start.tasks}
    entries = [{"name": name, "row": row} for row, name in enumerate(start.tasks)]
    return adapter_folder.ExportedAdapter(config, shared, tasks, entries, start.records)


def _vocabularies(
    backbone: Backbone, sources: Sequence[TableSource], config: ConfigDict, *, start: Model | None
) -> OwnVocabularies | None:
    """The vocabularies of tasks that have their own: those of `start`, and new ones of the texts."""
    adapter, data = group(config, "adapter"), group(config, "data")
    if adapter.output not in OWN_VOCABULARIES:
        return None
    own = None if start is None else start.own
    pieces = adapter.output_pieces
    if own is not None:
        pieces = max((vocabulary.size for vocabulary in own.by_task.values()), default=own.size)
    return own_vocabularies(
        sources,
        base=backbone.vocabulary,
        task_tag=data.task_tag,
        normalizer=data.text_normalizer,
        size=adapter.output_size,
        given={} if own is None else own.by_task,
        shared=None if own is None else own.shared,
        kind=adapter.output,
        pieces=pieces,
    )


def _laid_out(material: Material, mesh: Mesh, config: ConfigDict, *, report: DataReport) -> Layout:
    batch = group(config, "batch")
    sharding.check_batch_multiple(mesh, batch.multiple)
    check_rows(batch, sharding.batch_shards(mesh), accumulate=config.accumulate, evaluation=group(config, "eval"))
    return laid_out(material, mesh, config, report)


def _check_usable(layout: Layout, report: DataReport, *, show: bool) -> None:
    """Refuses a task without a usable example, and tells of what is left out."""
    if layout.table.idle:
        raise UserError(
            f"task {listed(layout.table.idle)}: none of its examples can be used; {report.summary()}; allowed is at "
            "least one"
        )
    if show:
        table = layout.table
        seconds = float(table.duration.sum())
        tell(f"{len(table):,} examples of {len(table.learning)} tasks, {seconds:.1f} s; {report.summary()}")


def _loader(layout: Layout, config: ConfigDict, hashes: UtteranceHashes, *, report: DataReport) -> TrainLoader:
    data, batch = group(config, "data"), group(config, "batch")
    return TrainLoader(
        layout.table,
        seed=config.seed,
        batch_seconds=batch.seconds,
        buckets=batch.edges,
        multiple=batch.multiple,
        max_tasks=batch.max_tasks,
        local_rows=functools.partial(sharding.local_rows, layout.mesh),
        threads=data.threads,
        draw=data.draw,
        report=report,
        hashes=hashes,
    )
