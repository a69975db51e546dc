"""Vocabularies that are learnt from the texts of training sources: one for each task, or one for all."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hra_jax.adapters.output_kinds import SHARED_VOCABULARIES
from hra_jax.data.columns import UtteranceColumns, as_columns, blocks
from hra_jax.data.sources import TableSource
from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_texts
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import CharacterVocabulary, SentencePieceVocabulary, Vocabulary


def own_vocabularies(
    sources: Iterable[TableSource],
    *,
    base: Vocabulary,
    task_tag: str,
    normalizer: str,
    size: int,
    tasks: Sequence[str] = (),
    given: Mapping[str, Vocabulary],
    shared: Vocabulary | None = None,
    kind: str = "characters",
    pieces: int = 0,
) -> OwnVocabularies:
    """New vocabularies, learnt from the training texts: one for each task, or one for all of them.

    Args:
      sources: the training sources.
      base: the backbone's vocabulary.
      task_tag: the tag that names an utterance's task.
      normalizer: of the texts.
      size: outputs of the layer, 0 for as many as are needed.
      tasks: those that utterances are taken of; () for all.
      given: vocabularies that tasks have already.
      shared: the vocabulary that all tasks have already.
      kind: one of `adapters.outputs.OWN_VOCABULARIES`.
      pieces: size of a new SentencePiece vocabulary; little text gives a smaller one.

    Raises:
      UserError: a vocabulary that does not fit into `size`, or a SentencePiece one that cannot be learnt.
    """
    found = texts_of_tasks(sources, task_tag, tasks, normalizer)
    vocabularies = {}
    if kind in SHARED_VOCABULARIES:
        if shared is None:
            everything = itertools.chain.from_iterable(found.values())
            shared = _learnt(kind, everything, base, pieces, whose="all tasks")
    else:
        new = {task: texts for task, texts in found.items() if task not in given}
        made = {task: _learnt(kind, texts, base, pieces, whose=f"task {task!r}") for task, texts in new.items()}
        vocabularies = {**made, **given}
    used = [base, *vocabularies.values(), *([] if shared is None else [shared])]
    needed = max(vocabulary.size for vocabulary in used)
    if size and size < needed:
        raise UserError(f"adapter.output_size = {size}: the largest vocabulary needs {needed}, the blank included")
    return OwnVocabularies(base, vocabularies, size or needed, shared)


def texts_of_tasks(
    sources: Iterable[TableSource], task_tag: str, tasks: Sequence[str], normalizer: str
) -> dict[str, Iterable[list[str]]]:
    """The normalised texts of each task, some at a time; tasks and texts as they come first."""
    found: dict[str, list[tuple[UtteranceColumns, np.ndarray]]] = {}
    for source in sources:
        columns = as_columns(source.utterances)
        codes, values = columns.tag(task_tag)
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(values)), side="right")
        starts = np.searchsorted(codes[order], np.arange(len(values)))
        for task, start, end in zip(values, starts.tolist(), ends.tolist(), strict=True):
            if not tasks or task in tasks:
                found.setdefault(task, []).append((columns, order[start:end]))

    def texts(task: str) -> Iterator[list[str]]:
        for columns, rows in found[task]:
            for some in blocks(rows):
                yield normalize_texts(columns.texts(some), normalizer)

    return {task: texts(task) for task in found}


def _learnt(kind: str, texts: Iterable[list[str]], base: Vocabulary, pieces: int, *, whose: str) -> Vocabulary:
    """The vocabulary of some normalised texts; without a character in them, when no utterance is usable, the base's."""
    kept: list[str] = []
    found: set[str] = set()
    for some in texts:
        found.update(*some)
        kept += [] if "characters" in kind else some
    characters = sorted(found)
    if not "".join(characters).strip():
        return CharacterVocabulary(characters) if characters else base
    if "characters" in kind:
        return CharacterVocabulary(characters)
    try:
        return SentencePieceVocabulary.train(kept, pieces, fewer=True)
    except UserError as error:
        raise UserError(f"adapter.output_pieces = {pieces}, {whose}: {error}") from error
