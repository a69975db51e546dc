"""The decoder for an adapter folder, from its small files alone: what is wrong is told before any weight is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from hra_jax.adapters import methods, task_records
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.decoding import language_models
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import DecodeSettings, decode_settings
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK, unknown_task
from hra_jax.text.task_vocabularies import own_vocabularies
from hra_jax.text.vocabularies import Vocabulary, vocabulary_from_json


def decoder_of(
    decode: DecodeSettings | Mapping[str, Any] | None,
    tasks: Iterable[str],
    *,
    backbone: epath.PathLike,
    adapter: epath.PathLike | None = None,
) -> Decoder:
    """The decoder for recordings of some tasks; as `api.Model.decoder`, for folders.

    Args:
      decode: settings, or the keys `decode.*`.
      tasks: names; `__base__` and `__mean__` among them.
      backbone: a folder, or `builtin:NAME`.
      adapter: a folder; None for the backbone alone.

    Raises:
      UserError: no such folders, an unknown task, or as `Decoder`.
    """
    settings = decode_settings(decode)
    base = vocabulary_from_json(backbone_folder.load(backbone, verify=False).vocabulary)
    if adapter is None:
        return Decoder(settings, vocabularies=dict.fromkeys(tasks, base))
    exported = read_adapter(adapter)
    own = None
    if methods.from_folder(exported.config).own_vocabulary:
        own = own_vocabularies(exported.config, exported.tasks_json, base, where=str(adapter))
    by_base = task_records.set_aside(exported.tasks_json) | {BASE_TASK}
    vocabularies: dict[str, Vocabulary] = {}
    for task in tasks:
        if task not in exported.tasks and task not in (BASE_TASK, MEAN_TASK):
            raise unknown_task(task, [*exported.tasks, BASE_TASK, MEAN_TASK])
        if task == MEAN_TASK and own is not None and own.shared is None:
            raise UserError("tasks with vocabularies of their own have no mean; allowed: a task or __base__")
        vocabularies[task] = base if own is None or task in by_base else own.shared or own.of(task)
    held = language_models.held(exported.tasks_json, exported.records, where=str(adapter))
    return Decoder(settings, vocabularies=vocabularies, adapter=held)
