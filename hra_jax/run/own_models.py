"""W/lm: the language models of what a run trains on, and the weights that were tuned for them.

There is one model for each vocabulary that tasks write in: `train.lm` where that is one for all. It is made once from
the training texts, and read from then on. `tuned.json` has weights by task, as tasks.json of an adapter has them; those
of the task '' are of all that it does not name.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from hra_jax.console import listed, tell
from hra_jax.data.columns import texts_of
from hra_jax.data.learnt_vocabularies import texts_of_tasks
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.language_models import Held
from hra_jax.decoding.settings import TRAIN
from hra_jax.errors import UserError
from hra_jax.run.workdirs import LANGUAGE, check_links
from hra_jax.storage.files import make_folder, write_file
from hra_jax.storage.json_files import json_text, read_object
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text import ngram
from hra_jax.text.labels import Labeller, joined
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.normalization import normalize_texts
from hra_jax.text.task_vocabularies import BlankFirst, OwnVocabularies
from hra_jax.text.vocabularies import Vocabulary
from hra_jax.training.agreement import agreed, first_alone

TUNED_FILE = "tuned.json"
_NAME = "train"  # of the models


def models_of(
    workdir: epath.PathLike,
    trained: Callable[[], Sequence[Sequence[Utterance]]],
    vocabularies: Mapping[str, Vocabulary],
    *,
    task_tag: str,
    normalizer: str,
) -> Callable[[str], LanguageModel]:
    """Gives the model of a task, which is read, or made where there is none; a collective.

    Args:
      workdir: the work directory.
      trained: gives the utterances that are trained on, by source, where a model is to be made.
      vocabularies: of all tasks of the run that may be recognised.
      task_tag: the tag that names an utterance's task.
      normalizer: of the training texts.

    Raises:
      UserError: a model cannot be made or read, or the one that is there is of another vocabulary.
    """
    folder, groups = epath.Path(workdir) / LANGUAGE, _by_vocabulary(vocabularies)
    found: dict[str, LanguageModel] = {}
    for digest, tasks in groups.items():
        path = folder / (f"{_NAME}.lm" if len(groups) == 1 else f"{_NAME}-{digest[:12]}.lm")
        vocabulary = vocabularies[tasks[0]]

        def made(path: epath.Path = path, vocabulary: Vocabulary = vocabulary, tasks: Sequence[str] = tasks) -> None:
            if not path.exists():
                some = None if len(groups) == 1 else tasks
                _make(path, _texts(trained(), some, task_tag, normalizer), vocabulary)

        check_links(workdir, [LANGUAGE])
        first_alone(made)
        model = agreed(functools.partial(ngram.read, path))
        model.check_vocabulary(vocabulary, where=str(path))
        found |= dict.fromkeys(tasks, model)

    def model_of(task: str) -> LanguageModel:
        if task in found or len(groups) == 1:
            return found.get(task) or next(iter(found.values()))
        raise UserError(
            f"decode.lm = {TRAIN!r}: there are no training texts of the task {task!r}; there are of: {listed(found)}"
        )

    return model_of


def vocabularies_of(base: Vocabulary, own: OwnVocabularies | None, tasks: Iterable[str]) -> dict[str, Vocabulary]:
    """The vocabularies that the tasks of a run write in, for `models_of`; that of the backbone where they have none."""
    if own is None:
        return {BASE_TASK: base}
    return {task: own.of(task) for task in tasks}


def _by_vocabulary(vocabularies: Mapping[str, Vocabulary]) -> dict[str, list[str]]:
    """The tasks that write in each vocabulary, by its digest."""
    groups: dict[str, list[str]] = {}
    for task, vocabulary in vocabularies.items():
        groups.setdefault(ngram.vocabulary_digest(vocabulary), []).append(task)
    return groups


def _texts(
    trained: Sequence[Sequence[Utterance]], tasks: Sequence[str] | None, task_tag: str, normalizer: str
) -> Iterator[list[str]]:
    """The normalised texts of some tasks, or of everything, some at a time."""
    if tasks is None:
        yield from (normalize_texts(texts, normalizer) for texts in texts_of(trained))
        return
    sources = [TableSource(_NAME, utterances) for utterances in trained]
    for texts in texts_of_tasks(sources, task_tag, tasks, normalizer).values():
        yield from texts


def _make(path: epath.Path, texts: Iterable[list[str]], vocabulary: Vocabulary) -> None:
    own = vocabulary.original if isinstance(vocabulary, BlankFirst) else vocabulary
    labeller = Labeller(own)
    model = ngram.train(joined(map(labeller, texts)), own, name=_NAME)
    make_folder(path.parent)
    ngram.write(path, model)
    tell(f"{path}: a language model of {model.texts:,} training texts, {sum(model.ngrams):,} n-grams of {model.order}")


# --- Weights ----------------------------------------------------------------------------------------------------------


def read_tuned(workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """The weights that were tuned in a work directory, by task; {} for none.

    Raises:
      UserError: they are damaged.
    """
    path = epath.Path(workdir) / LANGUAGE / TUNED_FILE
    if not path.exists():
        return {}
    found = read_object(path, {"tasks": dict})["tasks"]
    if not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError(f"{path}: 'tasks' must hold an object for each task")
    return dict(found)


def write_tuned(workdir: epath.PathLike, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the weights by task."""
    folder = epath.Path(workdir) / LANGUAGE
    make_folder(folder)
    write_file(folder / TUNED_FILE, json_text({"tasks": dict(entries)}))


def held_in(workdir: epath.PathLike) -> Held:
    """What a work directory holds of decoding; its models are those of `models_of`."""
    return Held(read_tuned(workdir), {}, str(workdir))
