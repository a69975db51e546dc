"""The decoder: log-probabilities of a batch to the path of each row, with what its task and the row itself bring.

A path has a label, or the blank, for each frame: what is likeliest frame by frame where decoding is greedy, and else
the likeliest path of the tokens that the search has found. So everything after it is the same for both.
"""

import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.console import listed
from hra_jax.decoding import language_models
from hra_jax.decoding import phrases as phrase_lists
from hra_jax.decoding.language_models import NOTHING_HELD, Held, TaskWeights, chosen, weights_of, width_of
from hra_jax.decoding.phrases import Weighted
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.errors import UserError
from hra_jax.models import alignment, beam
from hra_jax.models.padding import padded_size
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.text import ngram
from hra_jax.text.automaton import Automaton
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.task_vocabularies import BlankFirst, outputs_in_order
from hra_jax.text.vocabularies import Vocabulary

_LEAST_FRAMES, _LEAST_TOKENS = 64, 16  # of a batch that is searched, padded: few compiled shapes
_ONE_TABLE_BYTES = 2**28  # of all models, with arcs; beyond it only those of a batch are put into its table
_LISTS, _TABLES = 1024, 4  # lists of phrases, and batches of them, that are kept
_KEEPING = threading.Lock()  # phrases are checked in the threads that decode audio
_Value = TypeVar("_Value")


class Alternative(NamedTuple):
    """A hypothesis.

    Attributes:
      text: what it says.
      score: log of the sum over its alignments, with what model, phrases and bonus gave.
      ctc: without them.
    """

    text: str
    score: float
    ctc: float


class Decoded(NamedTuple):
    """What became of a batch.

    Attributes:
      paths: of each row, int32 `[frames]`, in the ids of its task's vocabulary.
      scores: of each row that of its best hypothesis; where decoding is greedy, the log-probability of the path.
      alternatives: of each row the `n_best` hypotheses, best first; () where decoding is greedy.
      rivals: the same, as many as were asked for.
    """

    paths: list[np.ndarray]
    scores: list[float]
    alternatives: list[tuple[Alternative, ...]]
    rivals: list[tuple[Alternative, ...]]


class _Task(NamedTuple):
    """What a task brings: `columns` says where the ids of its own vocabulary lie in a batch that has them in order.

    `width` is the number of hypotheses that are kept, where it is searched for.
    """

    vocabulary: Vocabulary
    model: LanguageModel | None
    weights: TaskWeights
    width: int
    phrases: tuple[Weighted, ...]
    columns: np.ndarray | None


class Decoder:
    """Settings with all that they name, for some tasks; nothing given is greedy decoding.

    Args:
      settings: how to decode; None for the defaults.
      vocabularies: of each task that will be decoded. Column i of the log-probabilities of its rows is id i.
      adapter: what an adapter holds of language models and weights.
      train: gives the language model that `decode.lm='train'` stands for, by task; None where there is no run.
      like: another decoder for the same vocabularies, with which it shares what was made of phrases; None for none.

    Raises:
      UserError: a language model that is not there, or of another vocabulary; phrases that the vocabulary of a task
        cannot write, or that cannot be read.
    """

    def __init__(
        self,
        settings: DecodeSettings | None = None,
        *,
        vocabularies: Mapping[str, Vocabulary],
        adapter: Held = NOTHING_HELD,
        train: Callable[[str], LanguageModel] | None = None,
        like: "Decoder | None" = None,
    ):
        self.settings = settings or DecodeSettings()
        models = chosen(self.settings, vocabularies, adapter=adapter, train=train)
        read = functools.cache(_read)  # a file that is for all tasks is read once
        self._tasks: dict[str, _Task] = {}
        for name, vocabulary in vocabularies.items():
            model, tuned = models.get(name), adapter.tuned_for(name)
            self._tasks[name] = _Task(
                vocabulary,
                model,
                weights_of(self.settings, model, tuned, task=name),
                width_of(self.settings, model, tuned, task=name),
                read(self.settings.phrases_of(name)),
                _columns(vocabulary),
            )
        self._lists: dict[Hashable, Automaton] = {} if like is None else like._lists
        self._phrase_tables: dict[Hashable, Any] = {} if like is None else like._phrase_tables
        for task in self._tasks.values():
            if task.phrases:
                self._automaton(task, task.phrases, where="decode.phrases")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that it decodes."""
        return tuple(self._tasks)

    def check_phrases(self, task: str, phrases: Sequence[Any], *, where: str = "phrases") -> None:
        """Refuses phrases of an utterance of a task, before anything is recognised.

        Raises:
          UserError: a task that the decoder was not made for, or as `phrases.automaton_of`.
        """
        if task not in self._tasks:
            raise UserError(f"a decoder of the tasks {listed(self._tasks)} has none for {task!r}; allowed: one of them")
        if phrases:
            self._automaton(self._tasks[task], self._phrases(task, phrases, where=where), where=where)

    def phrases(self) -> dict[str, tuple[Weighted, ...]]:
        """The phrases of each task that has any."""
        return {name: task.phrases for name, task in self._tasks.items() if task.phrases}

    def searches(self, task: str, phrases: Sequence[Any] = ()) -> bool:
        """Whether an utterance of a task is searched for, and not decoded greedily."""
        found = self._tasks[task]
        return bool(self._asks_for_a_beam or found.model is not None or found.phrases or phrases)

    @property
    def _asks_for_a_beam(self) -> bool:
        return self.settings.beam > 0 or self.settings.n_best > 1

    def paths(
        self,
        log_probs: np.ndarray | jax.Array,
        lengths: np.ndarray | jax.Array,
        tasks: Sequence[str],
        *,
        phrases: Sequence[Sequence[Any]] | None = None,
        rivals: int = 1,
    ) -> Decoded:
        """Decodes a batch.

        What a row gets depends on no other row and on no padding.

        Args:
          log_probs: float `[B, T, V]`; what a task's vocabulary does not have must be impossible.
          lengths: int `[B]`, frames.
          tasks: of each row.
          phrases: of each row, beside those of its task; None for none.
          rivals: how many hypotheses are wanted to compare with, if so many are kept.

        Raises:
          UserError: phrases that cannot be written.
        """
        lengths = np.asarray(lengths, np.int32)
        given = [()] * len(tasks) if phrases is None else phrases
        asked = [self._phrases(task, own) for task, own in zip(tasks, given, strict=True)]
        searched = [self.searches(task, own) for task, own in zip(tasks, asked, strict=True)]
        found = self._search(log_probs, lengths, tasks, asked, searched, rivals=rivals) if any(searched) else None
        if found is not None and all(searched):
            return found
        greedy = _greedy(log_probs, lengths)
        if found is None:
            return greedy
        return Decoded(
            _either(searched, found.paths, greedy.paths),
            _either(searched, found.scores, greedy.scores),
            _either(searched, found.alternatives, greedy.alternatives),
            _either(searched, found.rivals, greedy.rivals),
        )

    def facts(self, *, phrases: bool = False) -> dict[str, Any]:
        """What decodes, as results have it, by task what differs; with `phrases`, an utterance that has one more."""
        tasks = {name: self.facts_of(name, ("",) if phrases else ()) for name in self._tasks}
        keys = list(dict.fromkeys(key for facts in tasks.values() for key in facts))
        merged: dict[str, Any] = {}
        for key in keys:
            values = [facts.get(key) for facts in tasks.values()]
            same = all(value == values[0] for value in values)
            merged[key] = values[0] if same else {name: facts[key] for name, facts in tasks.items() if key in facts}
        return merged or {"method": "greedy"}

    @functools.cached_property
    def digest(self) -> str:
        """A hash of everything but what rows bring: with another one other paths may be found."""
        tasks = {
            name: [
                self.facts_of(name),
                task.weights,
                task.width,  # an utterance may bring phrases
                task.phrases,
                ngram.vocabulary_digest(task.vocabulary),
            ]
            for name, task in self._tasks.items()
        }
        return sha256_of_json(tasks)

    def search_digest(self, name: str) -> str:
        """That of `language_models.search_digest` for a task, whether it is searched for by itself or not."""
        model, weights = self._tasks[name].model, self._tasks[name].weights
        lm = {} if model is None else {"lm": {"digest": model.digest}}
        return language_models.search_digest({**lm, **weights._asdict()})

    def facts_of(self, name: str, phrases: Sequence[Any] = ()) -> dict[str, Any]:
        """What decodes an utterance of a task that has phrases of its own, or none."""
        task = self._tasks[name]
        if not self.searches(name, phrases):
            return {"method": "greedy"}
        count = len(task.phrases) + len(phrases)
        facts: dict[str, Any] = {"method": "beam", "beam": task.width}
        if task.model is not None:
            facts |= {
                "lm": {"name": task.model.name, "digest": task.model.digest},
                "lm_weight": task.weights.lm_weight,
            }
        facts["token_bonus"] = task.weights.token_bonus
        if count:
            facts |= {"phrase_weight": task.weights.phrase_weight, "phrases": count}
        return facts

    # --- The search ---------------------------------------------------------------------------------------------------

    def _search(
        self,
        log_probs: np.ndarray | jax.Array,
        lengths: np.ndarray,
        tasks: Sequence[str],
        phrases: Sequence[tuple[Weighted, ...]],
        searched: Sequence[bool],
        *,
        rivals: int,
    ) -> Decoded:
        rows = [self._tasks[task] for task in tasks]
        count, frames, size = log_probs.shape
        log_probs = _in_own_order(log_probs, rows)
        more, longer = padded_size(count, 1) - count, padded_size(frames, _LEAST_FRAMES) - frames
        if more or longer:
            pad = np.pad if isinstance(log_probs, np.ndarray) else jnp.pad
            log_probs = pad(log_probs, ((0, more), (0, longer), (0, 0)))
        log_probs = jnp.asarray(log_probs)

        def column(values: Iterable[Any], dtype: Any, rest: int = 0) -> np.ndarray:
            return np.array([*values, *[rest] * more], dtype)

        padded_lengths = column(lengths, np.int32)
        blanks = column((_own(row.vocabulary).blank_id for row in rows), np.int32)
        model, model_start = self._model_table(rows, size)
        table, phrase_start = self._phrase_table(rows, phrases, size)
        weights = beam.Weights(
            *(column((getattr(row.weights, name) for row in rows), np.float32) for name in beam.Weights._fields)
        )

        def hypotheses(width: int) -> beam.Hypotheses:
            found = beam.search(
                log_probs,
                padded_lengths,
                blanks,
                width=width,
                n_best=max(self.settings.n_best, min(rivals, width)),
                model=model,
                model_start=None if model is None else column(model_start, np.int32, -1),
                phrases=table,
                phrase_start=None if table is None else column(phrase_start, np.int32, -1),
                weights=weights,
            )
            return beam.Hypotheses(*map(np.asarray, found))

        # A search has one width. Where tasks differ in it, the whole batch is searched with each: so there is one
        # program for each width, however many rows have it, and a row gets what it gets alone.
        widths = sorted({row.width for row, asked in zip(rows, searched, strict=True) if asked})
        found = {width: hypotheses(width) for width in widths}
        # What becomes of rows that are not searched, and of padding, nobody asks.
        own = [found.get(row.width, found[widths[0]]) for row in rows] + [found[widths[0]]] * more
        tokens = np.stack([one.tokens[at, 0] for at, one in enumerate(own)])
        counts = np.array([one.lengths[at, 0] for at, one in enumerate(own)], np.int32)
        most = padded_size(int(counts.max(initial=1)), _LEAST_TOKENS)
        paths, _ = alignment.viterbi(log_probs, padded_lengths, tokens[:, :most], counts, blanks)
        decoded = Decoded([], [], [], [])
        for at, (row, path) in enumerate(zip(rows, np.asarray(paths), strict=False)):
            path = path[: lengths[at]]
            decoded.paths.append(path if row.columns is None else row.columns[path])
            decoded.scores.append(float(own[at].scores[at, 0]))
            decoded.rivals.append(_alternatives(own[at], at, _own(row.vocabulary)))
            decoded.alternatives.append(decoded.rivals[-1][: self.settings.n_best])
        return decoded

    def _model_table(self, rows: Sequence[_Task], size: int) -> tuple[Any, list[int]]:
        """The table of the language models, and the state that each row starts in; None where no row has one."""
        used = [row.model for row in rows if row.model is not None]
        if not used:
            return None, []
        every = (task.model for task in self._tasks.values() if task.model is not None)
        # One table for all batches, unless there are so many models that their table would be large.
        known = {model.digest: model for model in every if model.automaton.vocabulary_size <= size}
        if sum(model.automaton.sparse_bytes for model in known.values()) > _ONE_TABLE_BYTES:
            known = {model.digest: model for model in used}
        table, starts = _table_of_models(tuple(_ByDigest(known[digest]) for digest in sorted(known)), size)
        at = dict(zip(sorted(known), starts.tolist(), strict=True))
        return table, [-1 if row.model is None else at[row.model.digest] for row in rows]

    def _phrases(self, task: str, own: Sequence[Any], *, where: str = "phrases") -> tuple[Weighted, ...]:
        """The phrases of a task and those of an utterance together."""
        return (
            (*self._tasks[task].phrases, *phrase_lists.weighted(own, where=where)) if own else self._tasks[task].phrases
        )

    def _automaton(self, task: _Task, phrases: tuple[Weighted, ...], *, where: str = "phrases") -> Automaton:
        key = (id(task.vocabulary), phrases)
        return kept(
            self._lists,
            key,
            lambda: phrase_lists.automaton_of(phrases, _own(task.vocabulary), where=where),
            most=_LISTS,
        )

    def _phrase_table(
        self, rows: Sequence[_Task], phrases: Sequence[tuple[Weighted, ...]], size: int
    ) -> tuple[Any, list[int]]:
        """The table of the phrases, and the state that each row starts in; None where no row has any."""
        keys = [(id(row.vocabulary), own) for row, own in zip(rows, phrases, strict=True)]
        automata = {key: self._automaton(row, own) for key, row, own in zip(keys, rows, phrases, strict=True) if own}
        if not automata:
            return None, []

        def made() -> tuple[Any, dict[Hashable, int]]:
            table, starts = beam.tables(list(automata.values()), vocabulary_size=size)
            return table, dict(zip(automata, starts.tolist(), strict=True))

        table, at = kept(self._phrase_tables, (frozenset(automata), size), made, most=_TABLES)
        return table, [at.get(key, -1) for key in keys]


class _ByDigest(NamedTuple):
    """A language model, as the key of its table: equal where it says the same."""

    model: LanguageModel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByDigest) and self.model.digest == other.model.digest

    def __hash__(self) -> int:
        return hash(self.model.digest)


@functools.lru_cache(maxsize=4)
def _table_of_models(models: tuple[_ByDigest, ...], size: int) -> tuple[Any, np.ndarray]:
    """The table of language models, which stays on the device between batches, and their start states."""
    return beam.tables([entry.model.automaton for entry in models], vocabulary_size=size)


def kept(store: dict[Hashable, _Value], key: Hashable, make: Callable[[], _Value], *, most: int) -> _Value:
    """What is stored under a key, made where it is not; what was not asked for the longest goes."""
    with _KEEPING:
        found = store.pop(key, None)
    if found is None:
        found = make()
    with _KEEPING:
        store[key] = found
        while len(store) > most:
            del store[next(iter(store))]
    return found


def _read(given: str | tuple[Any, ...]) -> tuple[Weighted, ...]:
    if given == "":
        return ()
    if isinstance(given, str):
        try:
            return phrase_lists.read_phrases(given)
        except UserError as error:
            raise UserError(f"decode.phrases: {error}") from error
    return phrase_lists.weighted(given, where="decode.phrases")


def _own(vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary with the ids that its language models and phrases have."""
    return vocabulary.original if isinstance(vocabulary, BlankFirst) else vocabulary


def _columns(vocabulary: Vocabulary) -> np.ndarray | None:
    """Where the ids of a vocabulary lie in a batch that has its blank first, int32 `[V]`; None where they are those."""
    if not isinstance(vocabulary, BlankFirst):
        return None
    return np.argsort(outputs_in_order(vocabulary.original)).astype(np.int32)


def _in_own_order(log_probs: np.ndarray | jax.Array, rows: Sequence[_Task]) -> np.ndarray | jax.Array:
    """Log-probabilities in which the columns of every row are the ids of its own vocabulary."""
    if all(row.columns is None for row in rows):
        return log_probs
    size = log_probs.shape[-1]
    columns = np.tile(np.arange(size), (len(rows), 1))
    for at, row in enumerate(rows):
        if row.columns is not None:
            columns[at, : len(row.columns)] = row.columns
    take = np.take_along_axis if isinstance(log_probs, np.ndarray) else jnp.take_along_axis
    return take(log_probs, columns[:, None, :], axis=2)


def _alternatives(found: beam.Hypotheses, at: int, vocabulary: Vocabulary) -> tuple[Alternative, ...]:
    """The hypotheses of a row, best first."""
    every = zip(found.tokens[at], found.lengths[at], found.scores[at], found.ctc[at], strict=True)
    return tuple(
        Alternative(vocabulary.decode(tokens[:length].tolist()), float(score), float(ctc))
        for tokens, length, score, ctc in every
        if np.isfinite(score)
    )


def _either(searched: Sequence[bool], found: list[_Value], greedy: list[_Value]) -> list[_Value]:
    return [ours if take else plain for take, ours, plain in zip(searched, found, greedy, strict=True)]


def _greedy(log_probs: np.ndarray | jax.Array, lengths: np.ndarray) -> Decoded:
    paths, best = np.asarray(log_probs.argmax(axis=-1)).astype(np.int32), np.asarray(log_probs.max(axis=-1), np.float64)
    return Decoded(
        [path[:length] for path, length in zip(paths, lengths, strict=True)],
        [float(scores[:length].sum()) for scores, length in zip(best, lengths, strict=True)],
        [() for _ in paths],
        [() for _ in paths],
    )
