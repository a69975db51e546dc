"""The table of usable utterances: tasks, labels and lengths as columns, and what was left out, named."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.console import did_you_mean, listed
from hra_jax.data import mixtures
from hra_jax.data.columns import JoinedUtterances, UtteranceColumns, as_columns, blocks
from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.labels import Labeller, Labels
from hra_jax.text.normalization import normalize_texts
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import Vocabulary

BASE_ID = -1
_NO_TAG, _UNSELECTED = -2, -3  # in place of a task
_HASHED = 2**20  # labels that are hashed at a time


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
    values = {value for source in tagged for value in as_columns(source.utterances).tag(task_tag)[1]}
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


class _Part(NamedTuple):
    """What the table holds of one source: the columns of `UtteranceTable`, and the labels, one after the other."""

    rows: np.ndarray
    duration: np.ndarray
    task: np.ndarray
    label_lengths: np.ndarray
    frames_needed: np.ndarray
    labels: np.ndarray


class _Bad:
    """What is wrong with utterances of a source, by number of the utterance."""

    def __init__(self, source: TableSource, columns: UtteranceColumns):
        self._source, self._columns = source, columns
        self._found: list[tuple[int, str, str]] = []

    def add(self, row: int, kind: str, detail: str) -> None:
        self._found.append((row, kind, detail))

    def report(self, report: DataReport) -> None:
        """Names them in their order, so that a strict report names the first."""
        self._found.sort(key=lambda found: found[0])
        rows = np.asarray([row for row, _, _ in self._found], np.int64)
        for (_, kind, detail), utterance in zip(self._found, self._columns.at(rows), strict=True):
            report.add(kind, f"{self._source.name}: {utterance.key}", detail)


def _least_dtype(vocabulary: Vocabulary, own: OwnVocabularies | None) -> np.dtype:
    """The smallest that holds the labels: those of a million utterances are a hundred million."""
    return np.min_scalar_type(max(vocabulary.size, 0 if own is None else own.size))


def _in_order(found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], dtype: np.dtype) -> np.ndarray:
    """The labels of parts of a source, each with its rows and their numbers of labels, in the order of the rows."""
    if not found:
        return np.zeros(0, dtype)
    rows, lengths, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    if (np.diff(rows) > 0).all():
        return labels
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.concatenate([labels[ends[at] - lengths[at] : ends[at]] for at in np.argsort(rows)])


class UtteranceTable:
    """The usable utterances of some sources as columns, and the names of those left out in the report.

    Attributes (N utterances, source after source, in the order of the manifests):
      sources: tuple of TableSource.
      task_names: tuple of str; an utterance's task is an index into it.
      utterances: sequence [N] of Utterance; each is made when it is asked for.
      source: int32 [N], index into `sources`.
      rows: int64 [N], which of the utterances of its source it is.
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
        self._small = _least_dtype(vocabulary, own)
        columns = [as_columns(source.utterances) for source in self.sources]
        parts = [self._read(source, rows) for source, rows in zip(self.sources, columns, strict=True)]
        counts = [len(part.rows) for part in parts]
        if not sum(counts):
            read = sum(len(source.utterances) + len(source.refused) for source in self.sources)
            chosen = f", {self.unselected} of other tasks" if self.unselected else ""
            raise NothingUsable(f"no usable utterance: all {read} were left out ({report.summary()}{chosen})")
        self.source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.rows, self.duration, self.task, self.label_lengths, self.frames_needed, self._labels = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        self._label_starts = np.concatenate([[0], np.cumsum(self.label_lengths, dtype=np.int64)])
        self.utterances: Sequence[Utterance] = JoinedUtterances(columns, self.source, self.rows)
        self.blank_id = self.vocabulary_of(BASE_TASK).blank_id
        self.symbols = None if own is None else np.stack([own.symbols(name) for name in (*self.task_names, BASE_TASK)])

    def _read(self, source: TableSource, columns: UtteranceColumns) -> "_Part":
        """The usable utterances of one source."""
        task = self._tasks_of(source, columns)
        seconds, bad = columns.durations, _Bad(source, columns)
        self.unselected += int(np.count_nonzero(task == _UNSELECTED))
        for row in np.flatnonzero(task == _NO_TAG).tolist():
            bad.add(row, "missing_field", _no_tag(columns[row], self.task_tag))
        for row in np.flatnonzero((task >= BASE_ID) & (seconds > self.max_seconds)).tolist():
            bad.add(row, "too_long", f"{seconds[row]:g} s; the limit is {self.max_seconds:g} s")
        rows = np.flatnonzero((task >= BASE_ID) & (seconds <= self.max_seconds))
        frames = np.asarray(self.output_length(np.rint(seconds * self.sample_rate).astype(np.int64)))
        lengths, needed = np.zeros(len(columns), np.int32), np.zeros(len(columns), np.int32)
        labelled = rows[columns.labelled[rows]]
        found, kept = [], np.zeros(len(columns), bool)
        kept[rows] = True
        for some, labels in self._labels_of(columns, labelled, task[labelled], bad):
            lengths[some], needed[some] = labels.lengths, labels.needed
            fits = np.ones(len(some), bool)
            if self.for_training:
                for row in some[frames[some] < labels.needed].tolist():
                    told = f"{frames[row]} frames of {seconds[row]:g} s; its labels need {needed[row]}"
                    bad.add(row, "too_short", told)
                fits = (frames[some] >= labels.needed) & (labels.lengths > 0)
                kept[some] = fits
            found.append((some[fits], labels.flat[np.repeat(fits, labels.lengths)].astype(self._small)))
        bad.report(self._report)
        rows = np.flatnonzero(kept)
        flat = _in_order([(some, lengths[some], labels) for some, labels in found], self._small)
        return _Part(rows, seconds[rows], task[rows], lengths[rows], needed[rows], flat)

    def _tasks_of(self, source: TableSource, columns: UtteranceColumns) -> np.ndarray:
        """int32 [N]: the task of each utterance of a source, or why it has none."""
        ids = {name: i for i, name in enumerate(self.task_names) if name in self._chosen} | {BASE_TASK: BASE_ID}
        if source.task is not None or not self.task_tag:
            return np.full(len(columns), ids.get(source.task or BASE_TASK, _UNSELECTED), np.int32)
        codes, values = columns.tag(self.task_tag)
        return np.asarray([*(ids.get(value, _UNSELECTED) for value in values), _NO_TAG], np.int32)[codes]

    def _labels_of(
        self, columns: UtteranceColumns, rows: np.ndarray, task: np.ndarray, bad: "_Bad"
    ) -> Iterator[tuple[np.ndarray, Labels]]:
        """Some of `rows` and their labels, again and again, until all are done; tasks of one vocabulary together."""
        key = np.zeros(len(rows), bool)
        if self._own is not None:
            key = task if self._own.shared is None else task == BASE_ID
        order = np.argsort(key, kind="stable")
        names = (*self.task_names, BASE_TASK)  # BASE_ID is the last
        for group in np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(rows) else ():
            vocabulary = self.vocabulary_of(names[task[group[0]]])
            labeller = Labeller(vocabulary)
            for some in blocks(rows[group]):
                texts = columns.texts(some)
                words = normalize_texts(texts, self._normalizer)
                labels = labeller(words)
                for at in np.flatnonzero(labels.dropped | (labels.lengths == 0)).tolist():
                    unknown = vocabulary.unknown_characters(words[at])
                    details = [f"dropped {' '.join(map(repr, sorted(unknown)))}"] if unknown else []
                    if not labels.lengths[at]:
                        details.append(f"nothing is left of {texts[at][:80]!r}")
                    bad.add(int(some[at]), "unknown_text", "; ".join(details))
                yield some, labels

    def vocabulary_of(self, task: str) -> Vocabulary:
        """What a task's labels are made with, and decoded: where tasks have their own, with the blank as id 0."""
        return self._own.in_batch(task) if self._own is not None else self._vocabulary

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
        return len(self.source)

    def digest(self) -> str:
        """A hash of the columns and labels: tables of equal hash give equal batches."""
        found = hashlib.sha256(repr((self.task_names, self.specs())).encode())
        for column in (self.source, self.duration, self.task, self.label_lengths):
            found.update(np.ascontiguousarray(column).tobytes())
        for start in range(0, len(self._labels), _HASHED):
            found.update(self._labels[start : start + _HASHED].astype(np.int32).tobytes())
        return found.hexdigest()

    def labels(self, index: int) -> np.ndarray:
        """int32 [U]: the labels of an utterance."""
        return self._labels[self._label_starts[index] : self._label_starts[index + 1]].astype(np.int32)

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
