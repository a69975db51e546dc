"""Language models in an exported adapter: they are there where somebody has asked for it, and nowhere else.

A language model gives back much of the texts that it was made from. An adapter names the one that its weights were
tuned for; `tasks export --with-lm` puts it there.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.task_records import DECODE, LM, SHARED
from hra_jax.console import listed, printable
from hra_jax.errors import UserError
from hra_jax.run.workdirs import LANGUAGE
from hra_jax.text import ngram
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.vocabularies import vocabulary_from_json

_SHOWN = 12  # characters of a digest


def without(exported: ExportedAdapter) -> ExportedAdapter:
    """The adapter without language models."""
    return dataclasses.replace(exported, records=task_records.without(exported.records, LM))


def with_models(exported: ExportedAdapter, folder: epath.PathLike, files: Sequence[str] = ()) -> ExportedAdapter:
    """The adapter with a language model for each of its tasks.

    Args:
      exported: the adapter; what it has stays.
      folder: where it lies: the models of a run lie in the folder `lm` beside it.
      files: of models, in place of these; of several, each task has the one that its weights were tuned for.

    Raises:
      UserError: a task without a model, or with one of another vocabulary; a file that is none.
    """
    found: dict[str, LanguageModel] = {}
    given = {file: ngram.read(file) for file in files}
    here = _here(exported, folder)
    beside = {} if files or exported.tasks.keys() <= here.keys() else _beside(folder)
    for entry in exported.tasks_json:
        task = entry["name"]
        wanted = _tuned_for(entry)
        if len(given) == 1:
            (model,) = given.values()
        elif given or task not in here:
            others = given or beside
            fitting = [one for one in others.values() if one.digest == wanted.get("digest")]
            if not fitting:
                raise UserError(_missing(task, wanted, folder, others))
            model = fitting[0]
        else:
            model = here[task]
        vocabulary = vocabulary_from_json(entry.get("vocabulary") or exported.config["vocabulary"])
        model.check_vocabulary(vocabulary, where=f"task {task!r}: {printable(model.name) or 'its language model'}")
        found[task] = model
    one = len({model.digest for model in found.values()}) == 1
    models = {SHARED: next(iter(found.values()))} if one else found
    records = {LM: {task: np.frombuffer(ngram.to_bytes(model), np.uint8) for task, model in models.items()}}
    return dataclasses.replace(exported, records=task_records.joined(without(exported).records, records))


def name_of(exported: ExportedAdapter, task: str) -> str:
    """The name and digest of the language model that an adapter has for a task; '' where it has none."""
    models = exported.records.get(LM, {})
    owner = task if task in models else SHARED
    if owner not in models:
        return ""
    model = _read(models[owner], owner, "")
    return f"{printable(model.name, most=80)!r} ({model.digest[:_SHOWN]})"


def _here(exported: ExportedAdapter, folder: epath.PathLike) -> dict[str, LanguageModel]:
    models = exported.records.get(LM, {})
    read = {task: _read(content, task, str(folder)) for task, content in models.items()}
    return {task: read[task if task in read else SHARED] for task in exported.tasks if task in read or SHARED in read}


def _read(content: np.ndarray, task: str, folder: str) -> LanguageModel:
    whose = f"the language model of task {task!r}" if task else "the language model of all tasks"
    return ngram.from_bytes(content.tobytes(), where=f"{folder}: {whose}")


def _beside(folder: epath.PathLike) -> dict[str, LanguageModel]:
    """The models of the run whose adapter lies in a folder, by path."""
    place = epath.Path(folder).parent / LANGUAGE
    if not place.is_dir():
        return {}
    return {str(path): ngram.read(path) for path in sorted(place.iterdir()) if path.suffix == ngram.SUFFIX}


def _tuned_for(entry: Mapping) -> Mapping:
    """The name and the digest of the model that a task was tuned for, as far as they are known."""
    lm = (entry.get(DECODE) or {}).get("lm")
    return lm if isinstance(lm, dict) else {}


def _missing(task: str, wanted: Mapping, folder: epath.PathLike, others: Mapping[str, LanguageModel]) -> str:
    tuned = "it was tuned with none"
    if wanted:
        name, digest = (printable(wanted.get(key, ""), most=80) for key in ("name", "digest"))
        tuned = f"it was tuned with {name!r} ({digest[:_SHOWN]})"
    known = f"; none of {listed(others)} is that" if others else ""
    return f"task {task!r}: {folder} has no language model for it; {tuned}{known}; allowed: its file, as --lm FILE"
