"""The table of usable utterances: tasks, labels and lengths as columns, and what was left out, named."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from hra_jax.adapters.output_kinds import SHARED_VOCABULARIES
from hra_jax.console import did_you_mean, listed
from hra_jax.data import mixtures
from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.models.ctc import augmented_length
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.normalization import normalize_text
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import CharacterVocabulary, SentencePieceVocabulary, Vocabulary

BASE_ID = -1


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
    found: dict[str, list[str]] = {}
    for source in sources:
        for row in source.utterances:
            task = row.tag(task_tag)
            if task is not None and (not tasks or task in tasks):
                found.setdefault(task, []).append(normalize_text(row.text, normalizer))
    vocabularies = {}
    if kind in SHARED_VOCABULARIES:
        if shared is None:
            everything = [words for texts in found.values() for words in texts]
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


def _learnt(kind: str, texts: Sequence[str], base: Vocabulary, pieces: int, *, whose: str) -> Vocabulary:
    """The vocabulary of some normalised texts; without a character in them, when no utterance is usable, the base's."""
    characters = sorted(set().union(*texts))
    if not "".join(characters).strip():
        return CharacterVocabulary(characters) if characters else base
    if "characters" in kind:
        return CharacterVocabulary(characters)
    try:
        return SentencePieceVocabulary.train(texts, pieces, fewer=True)
    except UserError as error:
        raise UserError(f"adapter.output_pieces = {pieces}, {whose}: {error}") from error


def _unknown_task(name: str, known: Sequence[str], *, where: str) -> UserError:
    hint = did_you_mean(name, known)
    return UserError(f"task {name!r} is not {where}; {hint}{hint and ' '}allowed: {listed(known, most=10, show=str)}")


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{what} {twice[0]!r} is given twice; names must be unique")


def _task_names(
    sources: Sequence[TableSource], task_tag: str, tasks: Sequence[str], *, first: Sequence[str], for_training: bool
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The tasks in the order of their ids, and those of which utterances are taken; checked against the sources."""
    fixed = {source.task for source in sources if source.task is not None} - {BASE_TASK}
    tagged = [source for source in sources if source.task is None and task_tag]
    found = {row.tag(task_tag) for source in tagged for row in source.utterances}
    values = {value for value in found if value is not None}
    if BASE_TASK in values or BASE_TASK in tasks:
        raise UserError(f"task name {BASE_TASK!r} is reserved for 'no adapter'; allowed: any other name")
    if not tasks:
        chosen = tuple(sorted(values | fixed))
        return (*first, *(name for name in chosen if name not in first)), frozenset(chosen)
    _check_unique(list(tasks), "task")
    if for_training:
        lost = _lost_tasks(sources, task_tag, values | fixed)
        for name in tasks:
            if name in lost:
                raise UserError(f"{lost_line(name, lost[name])}; mend the manifest, or leave it out of data.tasks")
            if name not in values | fixed:
                where = f"a value of the tag {task_tag!r} in the training sources"
                raise _unknown_task(name, sorted(values | fixed), where=where)
    for name in sorted(fixed):
        if name not in tasks:
            raise _unknown_task(name, [*tasks, BASE_TASK], where="a task of the adapter")
    return (*first, *(name for name in tasks if name not in first)), frozenset(tasks)


def _lost_tasks(sources: Sequence[TableSource], task_tag: str, known: Collection[str]) -> dict[str, list[Refused]]:
    """The lines of tasks that are not among the known ones, by task: of none of these was a line usable."""
    found: dict[str, list[Refused]] = {}
    for source in sources:
        for row in source.refused if source.task is None and task_tag else ():
            task = row.tag(task_tag)
            if task is not None and task not in known:
                found.setdefault(task, []).append(row)
    return found


def lost_line(task: str, rows: Sequence[Refused]) -> str:
    """What an error says of a task of `UtteranceTable.lost`."""
    some = f"such as {rows[0].key} ({rows[0].why})"
    return f"task {task!r}: none of its {len(rows)} training utterances is usable, {some}"


def _no_tag(row: Utterance, tag: str) -> str:
    value = row.tags.get(tag)
    if isinstance(value, list | dict):
        return f"the tag {tag!r} is {value!r:.80}; needed: a text or a number"
    return f"there is {'nothing in the' if tag in row.tags else 'no'} tag {tag!r}"


class NothingUsable(UserError):
    """Every utterance of a table was left out."""


class UtteranceTable:
    """The usable utterances of some sources as columns, and the names of those left out in the report.

    Attributes (N utterances, source after source, in the order of the manifests):
      sources: tuple of TableSource.
      task_names: tuple of str; an utterance's task is an index into it.
      utterances: list [N] of Utterance.
      texts: list [N] of normalised transcripts.
      source: int32 [N], index into `sources`.
      starts: int64 [sources + 1]; source s has the utterances starts[s] to starts[s + 1].
      duration: float64 [N], seconds.
      max_seconds: the longest that an utterance may be.
      task: int32 [N], -1 for `__base__`.
      frames_needed: int32 [N], the fewest encoder frames that CTC can align the labels to.
      label_lengths: int32 [N].
      blank_id: the CTC blank among the labels.
      symbols: int32 [tasks + 1, O], what the outputs of each task's own vocabulary start from, `__base__` last; None
        where all tasks have one vocabulary.
      lost: lines by task, of the tasks that the manifests have and `task_names` has not: none of them could be used.
      unselected: utterances left out because their task is not among `tasks`: a choice, so not in the report.
      sample_rate, output_length, for_training, task_tag: as given.
    """

    def __init__(
        self,
        sources: Sequence[TableSource],
        *,
        vocabulary: Vocabulary,
        normalizer: str,
        task_tag: str,
        tasks: Sequence[str] = (),
        first_tasks: Sequence[str] = (),
        max_seconds: float,
        sample_rate: int,
        output_length: Callable[[np.ndarray], np.ndarray],
        report: DataReport,
        for_training: bool = True,
        own: OwnVocabularies | None = None,
    ):
        """Normalises, tokenises and filters once, without opening any audio.

        Args:
          sources: what the table holds.
          vocabulary: makes the labels; characters outside it are dropped and reported as unknown_text.
          normalizer: a name of text.NORMALIZERS.
          task_tag: the manifest tag that names an utterance's adapter task; '' puts everything on `__base__`.
          tasks: names of the adapter tasks in the order of their ids; () takes every value of the tag, sorted.
          first_tasks: names that have the first ids whether or not they are among `tasks`: those of a bank that is
            there already.
          max_seconds: longer utterances are left out (too_long).
          sample_rate: Hz of the decoded audio.
          output_length: encoder frames of a number of samples, elementwise over an int array.
          report: names what is left out, as 'source: key'.
          for_training: requires every one of `tasks` to occur, and leaves out what CTC cannot learn from (fewer frames
            than the labels need: too_short; no label left: unknown_text). Evaluation keeps those utterances: without
            them the score would improve.
          own: the vocabularies of tasks that have their own; None where all have `vocabulary`.

        Raises:
          UserError: an unknown normalizer or task (near matches are named), a reserved task name, a name given twice,
            or anything bad while the report is strict.
          NothingUsable: nothing usable is left.
        """
        self.sources = tuple(sources)
        self.sample_rate, self.output_length, self.for_training = sample_rate, output_length, for_training
        self.task_tag = task_tag
        self._vocabulary, self._normalizer, self._report, self._own = vocabulary, normalizer, report, own
        self.max_seconds = max_seconds
        _check_unique([source.name for source in self.sources], "source name")
        self.task_names, self._chosen = _task_names(
            self.sources, task_tag, tuple(tasks), first=tuple(first_tasks), for_training=for_training
        )
        self.lost = {} if tasks else _lost_tasks(self.sources, task_tag, self._chosen)
        self.unselected = 0
        self.utterances: list[Utterance] = []
        self.texts: list[str] = []
        self._columns: list[tuple[int, float, int, int]] = []  # source, duration, task, frames needed
        self._rows_of_labels: list[np.ndarray] = []
        for index in range(len(self.sources)):
            self._read(index, task_tag)
        if not self.utterances:
            read = sum(len(source.utterances) + len(source.refused) for source in self.sources)
            chosen = f", {self.unselected} of other tasks" if self.unselected else ""
            raise NothingUsable(f"no usable utterance: all {read} were left out ({report.summary()}{chosen})")
        self._finish()
        self.blank_id = self.vocabulary_of(BASE_TASK).blank_id
        self.symbols = None if own is None else np.stack([own.symbols(name) for name in (*self.task_names, BASE_TASK)])

    def _read(self, index: int, task_tag: str) -> None:
        """Adds the usable utterances of one source."""
        source = self.sources[index]
        ids = {name: i for i, name in enumerate(self.task_names)} | {BASE_TASK: BASE_ID}
        seconds = np.asarray([row.duration for row in source.utterances], np.float64)
        frames = np.asarray(self.output_length(np.rint(seconds * self.sample_rate).astype(np.int64)))
        for row, row_frames in zip(source.utterances, frames.tolist(), strict=True):
            task = source.task
            if task is None:
                task = row.tag(task_tag) if task_tag else BASE_TASK
            if task is None:
                self._report.add("missing_field", f"{source.name}: {row.key}", _no_tag(row, task_tag))
                continue
            if task != BASE_TASK and task not in self._chosen:
                self.unselected += 1
                continue
            words = normalize_text(row.text, self._normalizer) if row.labelled else ""
            labels = self._usable_labels(row, f"{source.name}: {row.key}", task=task, words=words, frames=row_frames)
            if labels is not None:
                self.utterances.append(row)
                self.texts.append(words)
                self._rows_of_labels.append(labels)
                self._columns.append((index, row.duration, ids[task], augmented_length(labels)))

    def vocabulary_of(self, task: str) -> Vocabulary:
        """What a task's labels are made with, and decoded: where tasks have their own, with the blank as id 0."""
        return self._own.in_batch(task) if self._own is not None else self._vocabulary

    def _usable_labels(self, row: Utterance, name: str, *, task: str, words: str, frames: int) -> np.ndarray | None:
        """The labels of an utterance, int32 [U]; None (and an entry in the report) if it cannot be used."""
        if row.duration > self.max_seconds:
            self._report.add("too_long", name, f"{row.duration:g} s; the limit is {self.max_seconds:g} s")
            return None
        if not row.labelled:
            return np.zeros(0, np.int32)
        vocabulary = self.vocabulary_of(task)
        labels = np.asarray(vocabulary.encode(words), np.int32)
        unknown = vocabulary.unknown_characters(words)
        details = [f"dropped {' '.join(map(repr, sorted(unknown)))}"] if unknown else []
        if not labels.size:
            details.append(f"nothing is left of {row.text[:80]!r}")
        if details:
            self._report.add("unknown_text", name, "; ".join(details))
        if not self.for_training:
            return labels
        needed = augmented_length(labels)
        if frames < needed:
            self._report.add("too_short", name, f"{frames} frames of {row.duration:g} s; its labels need {needed}")
            return None
        return labels if labels.size else None

    def _finish(self) -> None:
        """Turns what was collected into columns."""
        source, duration, task, needed = zip(*self._columns, strict=True)
        self.source = np.asarray(source, np.int32)
        self.starts = np.searchsorted(self.source, np.arange(len(self.sources) + 1)).astype(np.int64)
        self.duration = np.asarray(duration, np.float64)
        self.task = np.asarray(task, np.int32)
        self.frames_needed = np.asarray(needed, np.int32)
        self.label_lengths = np.asarray([len(row) for row in self._rows_of_labels], np.int32)
        self._label_starts = np.concatenate([[0], np.cumsum(self.label_lengths, dtype=np.int64)])
        self._labels = np.concatenate(self._rows_of_labels)
        del self._columns, self._rows_of_labels

    @property
    def learning(self) -> np.ndarray:
        """The tasks that have utterances: ids, ascending."""
        return np.unique(self.task[self.task >= 0])

    @property
    def idle(self) -> tuple[str, ...]:
        """The tasks that utterances are taken of and that have no usable one, in the order of their ids."""
        busy = set(self.learning.tolist())
        return tuple(name for i, name in enumerate(self.task_names) if name in self._chosen and i not in busy)

    def __len__(self) -> int:
        """N."""
        return len(self.utterances)

    def digest(self) -> str:
        """A hash of the columns and labels: tables of equal hash give equal batches."""
        found = hashlib.sha256(repr((self.task_names, self.specs())).encode())
        for column in (self.source, self.duration, self.task, self.label_lengths, self._labels):
            found.update(np.ascontiguousarray(column).tobytes())
        return found.hexdigest()

    def labels(self, index: int) -> np.ndarray:
        """int32 [U]: the labels of an utterance."""
        return self._labels[self._label_starts[index] : self._label_starts[index + 1]]

    def name(self, index: int) -> str:
        """What the data report calls an utterance: 'source: key'."""
        return f"{self.sources[self.source[index]].name}: {self.utterances[index].key}"

    def index(self, source: int, row: int) -> int:
        """The utterance that is row `row` of the usable utterances of a source."""
        return int(self.starts[source]) + row

    def place(self, index: int) -> tuple[int, int]:
        """The source and the row of an utterance."""
        source = int(self.source[index])
        return source, index - int(self.starts[source])

    def lookup(self, source: int, row: int) -> tuple[float, int]:
        """Duration (seconds) and task of an utterance by source and row."""
        index = self.index(source, row)
        return float(self.duration[index]), int(self.task[index])

    def specs(self) -> list[mixtures.SourceSpec]:
        """The sources for a ReferenceStream, rows being their usable utterances."""
        rows = np.diff(self.starts).tolist()
        return [mixtures.SourceSpec(s.name, n, s.rate) for s, n in zip(self.sources, rows, strict=True)]
