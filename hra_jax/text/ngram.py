"""N-gram language models over the tokens of a vocabulary: made from texts, stored in one file, asked as automata.

A model gives ln p(token | the tokens before), and ln p(end) at the end of a text. It is an `Automaton`, which is the
model exactly: what `ngram_counts` and `smoothing` find, rounded to float32. It holds for one vocabulary, whose digest
it names. Its n-grams are pieces of the texts that it was made from: whoever has the model can read much of them.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from hra_jax.console import size
from hra_jax.errors import UserError
from hra_jax.storage import safetensors
from hra_jax.storage.files import read_bytes, write_file
from hra_jax.storage.json_files import COUNT, Kind, check_fields, check_shown, parse_json
from hra_jax.text.automaton import ARRAYS, ROOT, Automaton
from hra_jax.text.labels import Labels
from hra_jax.text.ngram_automaton import Grams, assemble
from hra_jax.text.ngram_counts import Level, count, end_mark, most_frequent_extension
from hra_jax.text.smoothing import SMOOTHINGS, Smoothed, smoothed
from hra_jax.text.vocabularies import Vocabulary

ORDER = 6
MOST_ORDER = 10
MOST_BYTES = 2**27  # of a model, unless another bound is given
SUFFIX = ".lm"
NEVER = -99 * float(np.log(10))  # ln p of what a model never gives; ARPA files have the same

_LONGEST_DRAWN = 300  # tokens of a text
_TOGETHER = 4096  # texts that are scored at a time
_ARPA_START = 1000  # bytes, in which an ARPA file says that it is one
_FORMAT = 1
_MOST_FILE_BYTES = 2**33
_DESCRIPTION = "description"  # the tensor that holds everything but the automaton, as JSON
_FIELDS: dict[str, Kind] = {
    "format": COUNT,
    "vocabulary": str,
    "order": COUNT,
    "name": str,
    "smoothing": str,
    "ngrams": list,
    "left_out": list,
    "least_counts": list,
    "one_discount": list,
    "texts": COUNT,
    "tokens": COUNT,
}


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model of one vocabulary.

    Attributes:
      automaton: scores are natural logarithms; its tokens are the ids that `Vocabulary.encode` gives.
      vocabulary_digest: of the vocabulary, see `vocabulary_digest`.
      order: tokens of the longest n-gram.
      name: for people.
      smoothing: one of `SMOOTHINGS`, or 'arpa' where it was read from such a file.
      ngrams: how many n-grams of each order it has, those that end a text included.
      left_out: how many of each order were left out, to keep to a size.
      least_counts: for each order, how often an n-gram had to occur.
      one_discount: the orders for which modified Kneser-Ney could not estimate three discounts.
      texts, tokens: what it was made from; 0 where that is not known.
    """

    automaton: Automaton
    vocabulary_digest: str
    order: int
    name: str = ""
    smoothing: str = ""
    ngrams: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    least_counts: tuple[int, ...] = ()
    one_discount: tuple[int, ...] = ()
    texts: int = 0
    tokens: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what the model gives and for which vocabulary; its name does not matter."""
        found = hashlib.sha256(f"{self.vocabulary_digest} {self.automaton.start}".encode())
        for name in ARRAYS:
            array = getattr(self.automaton, name)
            found.update(f" {name} {len(array)} ".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def check_vocabulary(self, vocabulary: Vocabulary, *, where: str) -> None:
        """Refuses, with a UserError, a vocabulary that the model was not made for; `where` names the model."""
        wanted = vocabulary_digest(vocabulary)
        if wanted != self.vocabulary_digest or vocabulary.size != self.automaton.vocabulary_size:
            mine, other = (digest[:12] for digest in (self.vocabulary_digest, wanted))
            raise UserError(
                f"{where}: a language model of the vocabulary {mine} with {self.automaton.vocabulary_size:,} tokens; "
                f"needed is one of the vocabulary {other} with {vocabulary.size:,}"
            )


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """SHA-256 of a vocabulary as it is stored: the same where every token has the same id."""
    content = json.dumps(vocabulary.to_json(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


# --- Making -----------------------------------------------------------------------------------------------------------


def train(
    token_sequences: Iterable[Sequence[int]] | Labels,
    vocabulary: Vocabulary,
    *,
    order: int = ORDER,
    smoothing: str = SMOOTHINGS[0],
    most_bytes: int = MOST_BYTES,
    name: str = "",
) -> LanguageModel:
    """A model of some texts.

    Args:
      token_sequences: the tokens of each text, as `vocabulary.encode` gives them; texts without one are passed over.
      vocabulary: the vocabulary itself, with its blank where it has it.
      order: tokens of the longest n-gram, 1 to `MOST_ORDER`.
      smoothing: 'kneser_ney' (modified Kneser-Ney) or 'absolute' (absolute discounting), both interpolated.
      most_bytes: of the model as it is stored. Where all n-grams take more, the rarest are left out: those that occur
        once, first of the largest order and then of each below, then those that occur twice, and so on.
      name: for people.

    Raises:
      UserError: no token, an order or a smoothing that is not allowed, or too few bytes for the single tokens.
    """
    check_settings(order=order, smoothing=smoothing)
    flat, lengths = _flattened(token_sequences)
    if not len(flat):
        raise UserError("a language model cannot be made: the texts have no token of the vocabulary")
    symbols = vocabulary.size
    wrong = flat[(flat < 0) | (flat >= symbols) | (flat == vocabulary.blank_id)]
    if len(wrong):
        raise UserError(f"token {wrong[0]} of a text; allowed: 0 to {symbols - 1}, but for the blank")
    levels = count(flat, lengths, vocabulary_size=symbols, order=order)
    least_counts = _least_counts(levels, symbols, most_bytes)
    found = smoothed(levels, vocabulary_size=symbols, smoothing=smoothing, least_counts=least_counts)
    kept = tuple(int((level.counts >= max(least, 1)).sum()) for level, least in zip(levels, least_counts, strict=True))
    return LanguageModel(
        automaton=_compiled(levels, found, least_counts, vocabulary_size=symbols, blank_id=vocabulary.blank_id),
        vocabulary_digest=vocabulary_digest(vocabulary),
        order=order,
        name=name,
        smoothing=smoothing,
        ngrams=kept,
        left_out=tuple(int((level.counts > 0).sum()) - k for level, k in zip(levels, kept, strict=True)),
        least_counts=tuple(least_counts),
        one_discount=tuple(
            n for n, level in enumerate(found, start=1) if smoothing == "kneser_ney" and len({*level.discounts}) == 1
        ),
        texts=len(lengths),
        tokens=len(flat),
    )


def check_settings(*, order: int, smoothing: str) -> None:
    """Refuses, with a UserError, an order or a smoothing that `train` does not take."""
    if not 1 <= order <= MOST_ORDER:
        raise UserError(f"a language model of order {order}; allowed: 1 to {MOST_ORDER}")
    if smoothing not in SMOOTHINGS:
        raise UserError(f"smoothing {smoothing!r}; allowed: {', '.join(SMOOTHINGS)}")


def _flattened(sequences: Iterable[Sequence[int]] | Labels) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all texts that have one, int64, and how many each has."""
    if isinstance(sequences, Labels):
        flat, lengths = sequences.flat, sequences.lengths
    else:
        rows = [row for row in sequences if len(row)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return flat, lengths[lengths > 0]


def _least_counts(levels: Sequence[Level], vocabulary_size: int, most_bytes: int) -> list[int]:
    """How often an n-gram of each order must occur to be kept, so that the model has at most so many bytes."""
    end, orders = end_mark(vocabulary_size), len(levels)
    arcs = [np.sort(level.counts[level.token < end]) for level in levels]
    contexts = [
        np.sort(most_frequent_extension(above, len(level.counts))) for level, above in itertools.pairwise(levels)
    ]

    def at(step: int) -> list[int]:
        # With each step one more order needs one occurrence more, beginning at the largest.
        return [1, *(1 + (step + n) // (orders - 1) for n in range(orders - 1))]

    def bytes_at(step: int) -> int:
        least = at(step)
        kept = sum(len(counts) - int(np.searchsorted(counts, few)) for counts, few in zip(arcs, least, strict=True))
        states = 1 + sum(
            len(most) - int(np.searchsorted(most, few)) for most, few in zip(contexts, least[1:], strict=True)
        )
        return 4 * (3 * kept + 4 * states + 1 + vocabulary_size)

    steps = range(1 + (orders - 1) * int(max(level.counts.max(initial=0) for level in levels)))
    step = bisect.bisect_left(steps, True, key=lambda step: bytes_at(step) <= most_bytes)
    if step == len(steps):
        needed = size(bytes_at(steps[-1]))
        raise UserError(f"a language model of at most {size(most_bytes)}; allowed: {needed} or more, for single tokens")
    return at(step)


def _compiled(
    levels: Sequence[Level],
    found: Sequence[Smoothed],
    least_counts: Sequence[int],
    *,
    vocabulary_size: int,
    blank_id: int,
) -> Automaton:
    """The automaton of smoothed n-grams: a state for each context after which an n-gram is kept.

    What is kept occurs no less often than what it is a part of, so that what is kept has its context and its suffix.
    """
    empty = np.zeros(1, np.int64)
    before = np.cumsum([0, 1, *(len(level.counts) for level in levels[:-1])])  # n-grams of lower orders, by order
    extended = [
        most_frequent_extension(above, len(level.counts)) >= least
        for level, above, least in zip(levels[:-1], levels[1:], least_counts[1:], strict=True)
    ]
    none = np.zeros(len(levels[-1].counts))
    probabilities = np.concatenate([[1.0], *(level.probabilities for level in found)])
    grams = Grams(
        orders=[1, *(len(level.counts) for level in levels)],
        context=np.concatenate([empty, *(level.context + low for level, low in zip(levels, before, strict=False))]),
        token=np.concatenate([empty, *(level.token for level in levels)]),
        suffix=np.concatenate([empty, *(level.suffix + low for level, low in zip(levels, before, strict=False))]),
        scores=np.log(np.maximum(probabilities, np.exp(NEVER))),
        rest=np.concatenate([[0.0], *(np.log(level.rest) for level in found[1:]), none]),
        kept=np.concatenate([[True], *(lv.counts >= least for lv, least in zip(levels, least_counts, strict=True))]),
        states=np.concatenate([[True], *extended, none > 0]),
    )
    missing = np.full(vocabulary_size, np.log(found[0].rest[ROOT] / vocabulary_size), np.float32)
    missing[blank_id] = NEVER
    return assemble(grams, missing=missing)


# --- Asking -----------------------------------------------------------------------------------------------------------


def scores(model: LanguageModel, token_sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """float64 [N]: ln p of each of N texts, its end included."""
    order = sorted(range(len(token_sequences)), key=lambda i: len(token_sequences[i]))
    found = np.empty(len(order))
    for start in range(0, len(order), _TOGETHER):
        some = order[start : start + _TOGETHER]
        found[some] = _scores([token_sequences[i] for i in reversed(some)], model.automaton)[::-1]
    return found


def _scores(rows: Sequence[Sequence[int]], automaton: Automaton) -> np.ndarray:
    """float64 [N], of texts of which the longest comes first."""
    lengths = np.array([len(row) for row in rows])
    tokens = np.array(list(itertools.zip_longest(*rows, fillvalue=0)), np.int64)
    totals, states = np.zeros(len(rows)), np.full(len(rows), automaton.start, np.int64)
    for at, column in enumerate(tokens):
        going = int((lengths > at).sum())
        added, states[:going] = automaton.steps(states[:going], column[:going])
        totals[:going] += added
    return totals + automaton.final[states]


def perplexity(model: LanguageModel, token_sequences: Sequence[Sequence[int]]) -> float:
    """exp of the mean of -ln p over the tokens and ends of texts; at least one text."""
    symbols = sum(map(len, token_sequences)) + len(token_sequences)
    return float(np.exp(-scores(model, token_sequences).sum() / symbols))


def drawn_texts(model: LanguageModel, *, blank_id: int, count: int = 5, seed: int = 0) -> list[list[int]]:
    """The tokens of texts that are drawn from a model, each of them as often as the model finds it likely."""
    automaton, rng = model.automaton, np.random.default_rng(seed)
    tokens = np.delete(np.arange(automaton.vocabulary_size), blank_id)
    found: list[list[int]] = []
    for _ in range(count):
        text, state = list[int](), automaton.start
        while len(text) < _LONGEST_DRAWN:
            added, after = automaton.steps(np.full(len(tokens), state), tokens)
            odds = np.exp([*added, float(automaton.final[state])])
            chosen = int(rng.choice(len(odds), p=odds / odds.sum()))
            if chosen == len(tokens):
                break
            text.append(int(tokens[chosen]))
            state = int(after[chosen])
        found.append(text)
    return found


# --- Files ------------------------------------------------------------------------------------------------------------


def to_bytes(model: LanguageModel) -> bytes:
    """The content of a `.lm` file."""
    described = {
        "format": _FORMAT,
        "vocabulary": model.vocabulary_digest,
        **{name: getattr(model, name) for name in _FIELDS if name not in ("format", "vocabulary")},
    }
    content = np.frombuffer(json.dumps(described, sort_keys=True).encode(), np.uint8)
    arrays = {name: getattr(model.automaton, name) for name in ARRAYS}
    return safetensors.to_bytes(arrays | {"start": np.array([model.automaton.start], np.int32), _DESCRIPTION: content})


def from_bytes(content: bytes, *, where: str) -> LanguageModel:
    """The model that `to_bytes` wrote.

    Args:
      content: of the file.
      where: its name, for errors.

    Raises:
      UserError: it is no such file, or damaged.
    """
    if b"\\data\\" in content[:_ARPA_START]:
        raise UserError(f"{where}: an ARPA file; python -m hra_jax.lm make --arpa makes a language model of it")
    arrays = safetensors.from_bytes(content, where=where)
    lacking = sorted({*ARRAYS, "start", _DESCRIPTION} - arrays.keys())
    if lacking or arrays[_DESCRIPTION].dtype != np.uint8 or arrays["start"].shape != (1,):
        raise UserError(f"{where}: not a language model of hra_jax; python -m hra_jax.lm make makes them")
    described = check_fields(
        parse_json(arrays[_DESCRIPTION].tobytes(), where=f"{where}: {_DESCRIPTION}"), _FIELDS, where=where
    )
    check_shown(described["name"], where=f"{where}: the name")
    if described["format"] != _FORMAT:
        raise UserError(f"{where}: a language model of format {described['format']}; allowed: {_FORMAT}")
    settings: dict[str, Any] = {name: described[name] for name in _FIELDS if name not in ("format", "vocabulary")}
    for name, value in settings.items():
        if isinstance(value, list):
            if not all(type(number) is int for number in value):
                raise UserError(f"{where}: {name!r} must be a list of integers; got {value!r:.80}")
            settings[name] = tuple(value)
    try:
        automaton = Automaton(**{name: arrays[name] for name in ARRAYS}, start=int(arrays["start"][0]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return LanguageModel(automaton, described["vocabulary"], **settings)


def write(path: epath.PathLike, model: LanguageModel) -> None:
    """Writes a `.lm` file, whole or not at all."""
    write_file(path, to_bytes(model))


def read(path: epath.PathLike) -> LanguageModel:
    """Reads a `.lm` file.

    Raises:
      UserError: there is none, it cannot be read, or it holds something else.
    """
    needed = f"a language model ({SUFFIX}), which python -m hra_jax.lm make makes"
    return from_bytes(read_bytes(path, what=needed, most_bytes=_MOST_FILE_BYTES), where=str(path))
