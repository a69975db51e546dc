"""Which language model serves which task, and with which weights.

A model may give back the texts that it was made from. So an exported adapter has none, unless somebody has put it
there: it has the name and the digest of the model that its weights were tuned for.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from hra_jax.adapters import task_records
from hra_jax.adapters.task_records import DECODE, LM, SHARED
from hra_jax.console import listed, printable
from hra_jax.decoding.settings import ADAPTER, DEFAULT_WEIGHTS, TRAIN, TUNED, DecodeSettings, decode_settings
from hra_jax.errors import UserError
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.storage.files import stamp
from hra_jax.text import ngram
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.vocabularies import Vocabulary

_SHOWN = 12  # characters of a digest that errors show
# The models of files, by path and `stamp`, as long as anybody has them: many systems are decoded with the same.
_OPEN: weakref.WeakValueDictionary[tuple[str, Any], LanguageModel] = weakref.WeakValueDictionary()


class TaskWeights(NamedTuple):
    """What the scores of a task are multiplied with, and what each of its tokens adds."""

    lm_weight: float
    token_bonus: float
    phrase_weight: float


class Held(NamedTuple):
    """What an adapter holds of decoding.

    Attributes:
      tuned: of each task, the field `decode` of tasks.json.
      records: of the adapter; of them the language models are read.
      where: the adapter folder, for errors.
    """

    tuned: Mapping[str, Mapping[str, Any]]
    records: task_records.Records
    where: str

    def tuned_for(self, task: str) -> Mapping[str, Any] | None:
        """What was tuned for a task: what all tasks have in common is that of a mean of them and of a new one too."""
        for name in (task, SHARED):
            if name in self.tuned:
                return self.tuned[name]
        every = list(self.tuned.values())
        return every[0] if every and all(same_decoding(other, every[0]) for other in every) else None


def same_decoding(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries decode alike, whatever their error rates are, and whatever their models are called."""
    alike = all(one.get(name) == other.get(name) for name in ("beam", *DEFAULT_WEIGHTS))
    return alike and _digest_of(one) == _digest_of(other)


def search_digest(entry: Mapping[str, Any]) -> str:
    """A hash of the language model and the weights that a search goes by: of what is likely, by its scores.

    Neither the beam nor phrases are part of it.

    Args:
      entry: `lm`, `lm_weight` and `token_bonus`, as tasks.json and results have them; without a model there is no
        weight of one.
    """
    lm = _digest_of(entry)
    weight, bonus = (
        float(entry.get(name, DEFAULT_WEIGHTS[name] if lm else 0.0)) for name in ("lm_weight", "token_bonus")
    )
    return sha256_of_json([lm, weight if lm else 0.0, bonus])[:16]


def _digest_of(entry: Mapping[str, Any] | None) -> str:
    """Of the language model that an entry was tuned for; '' for none."""
    lm = (entry or {}).get("lm")
    return str(lm.get("digest", "")) if isinstance(lm, dict) else ""


NOTHING_HELD = Held({}, {}, "")


def held(entries: Iterable[Mapping[str, Any]], records: task_records.Records, *, where: str) -> Held:
    """What an adapter holds of decoding, from the entries of its tasks.json and its records."""
    found = {entry["name"]: entry[DECODE] for entry in entries if entry.get(DECODE) is not None}
    return Held(found, records, where)


def chosen(
    settings: DecodeSettings,
    vocabularies: Mapping[str, Vocabulary],
    *,
    adapter: Held = NOTHING_HELD,
    train: Callable[[str], LanguageModel] | None = None,
) -> dict[str, LanguageModel]:
    """The language model of each task that has one.

    Args:
      settings: of decoding.
      vocabularies: of each task that will be decoded.
      adapter: what `decode.lm='adapter'` and the weights are taken from.
      train: gives the model that `decode.lm='train'` stands for, by task; None where there is no run.

    Raises:
      UserError: a model that is not there, one that cannot be read or of another vocabulary than the task's; a task
        that is not among those whose models are given.
    """
    files: dict[str, LanguageModel] = {}
    fitting: set[tuple[int, int]] = set()  # models and vocabularies that were compared: most tasks share both
    found = {}
    for task, vocabulary in vocabularies.items():
        given = settings.model_of(task)
        if given is None:
            raise UserError(
                f"decode.lm has no language model for task {task!r}, but for {listed(settings.tasks_with_models)}; "
                "allowed: one for each task that is recognised, or '' for none"
            )
        if given == "":
            continue
        if isinstance(given, LanguageModel):
            model, name = given, printable(given.name) or "a language model"
        elif given == ADAPTER:
            model, name = _of_adapter(task, adapter, files), f"that of {adapter.where}"
        elif given == TRAIN:
            if train is None:
                raise UserError(
                    f"decode.lm = {TRAIN!r}: there is no run here whose training texts are known; allowed: a file of "
                    f"python -m hra_jax.lm, {ADAPTER!r}, or '' for none"
                )
            model, name = train(task), "that of the training texts"
        else:
            if given not in files:
                files[given] = _of_file(given)
            model, name = files[given], given
        if (id(model), id(vocabulary)) not in fitting:
            model.check_vocabulary(vocabulary, where=f"decode.lm, task {task!r}: {name}")
            fitting.add((id(model), id(vocabulary)))
        found[task] = model
    return found


def _of_file(path: str) -> LanguageModel:
    """The model of a file, which is not read again as long as some decoder has it and it is not written again."""
    written = stamp(path)
    model = _OPEN.get((path, written))
    if model is None:
        try:
            model = ngram.read(path)
        except UserError as error:
            raise UserError(f"decode.lm: {error}") from error
        if written is not None:
            _OPEN[path, written] = model
    return model


def _of_adapter(task: str, adapter: Held, read: dict[str, LanguageModel]) -> LanguageModel:
    """The model that an adapter holds for a task, or for all; `read` keeps those that were read."""
    models = adapter.records.get(LM, {})
    owner = task if task in models else SHARED
    if owner not in models:
        lm = (adapter.tuned_for(task) or {}).get("lm")
        known = ""
        if isinstance(lm, dict):
            name, digest = (printable(lm.get(key, ""), most=80) for key in ("name", "digest"))
            known = f"; its weights were tuned with {name!r} ({digest[:_SHOWN]})"
        where = adapter.where or "the backbone alone"
        raise UserError(
            f"decode.lm = {ADAPTER!r}: {where} holds no language model for task {task!r}{known}; allowed: the file of "
            "a language model, an adapter that python -m hra_jax.tasks export --with-lm has written, or pairs (task, "
            "model) with '' for tasks without one"
        )
    key = f"{ADAPTER} {owner}"
    if key not in read:
        whose = f"the language model of task {owner!r}" if owner else "the language model of all tasks"
        read[key] = ngram.from_bytes(models[owner].tobytes(), where=f"{adapter.where}: {whose}")
    return read[key]


def weights_of(
    settings: DecodeSettings, model: LanguageModel | None, stored: Mapping[str, Any] | None = None, *, task: str = ""
) -> TaskWeights:
    """The weights of a task: as given, else as tuned for its model, else the defaults.

    Args:
      settings: of decoding.
      model: of the task; None for none.
      stored: the field `decode` of the task's entry in tasks.json.
      task: its name, for errors.

    Raises:
      UserError: what is stored is no weight.
    """
    found = {}
    for name, default in DEFAULT_WEIGHTS.items():
        value = getattr(settings, name)
        if value == TUNED:
            value = _tuned(name, TUNED, model, stored, task=task)
        if value == TUNED:
            # Without a model nothing is held against tokens that a bonus could make up for.
            value = 0.0 if name == "token_bonus" and model is None else default
        found[name] = float(value)
    return TaskWeights(**found)


def width_of(
    settings: DecodeSettings, model: LanguageModel | None, stored: Mapping[str, Any] | None = None, *, task: str = ""
) -> int:
    """Hypotheses that a search for a task keeps: as given, else as tuned for its model, else the default.

    Args, Raises: as `weights_of`.
    """
    return settings.width(phrases=True, tuned=settings.beam or _tuned("beam", 0, model, stored, task=task))


def _tuned(
    name: str, otherwise: Any, model: LanguageModel | None, stored: Mapping[str, Any] | None, *, task: str
) -> Any:
    """What is stored under a key of decoding, where that was tuned for this model, or for none as here."""
    if stored is None or name not in stored or _digest_of(stored) != ("" if model is None else model.digest):
        return otherwise
    return getattr(decode_settings({name: stored[name]}, where=f"tasks.json, task {task!r}, decode"), name)
