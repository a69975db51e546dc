"""Words and phrases that are likelier than elsewhere, as an automaton that gives a bonus for them.

A phrase counts where it stands whole: from the beginning of a word to the end of one. Its bonus is its weight for each
of its tokens, because what a language model and the sounds hold against a rare word grows with its length as well. It
is given token by token, so that a beam keeps a phrase that has only begun, and is taken back where the phrase does not
become whole: what a whole text gets is the sum over the phrases in it, wherever they overlap, and nothing else.

The automaton is that of Aho and Corasick (Communications of the ACM 18(6), 1975) over the tokens of a vocabulary, with
the boundaries of words as part of each phrase.
"""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hra_jax.console import listed, printable
from hra_jax.errors import UserError
from hra_jax.storage.files import check_regular
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.text.automaton import ROOT, Automaton
from hra_jax.text.normalization import normalize_text
from hra_jax.text.vocabularies import Vocabulary

MOST_PHRASES = 1000
MOST_CHARACTERS = 100  # of a phrase
MOST_WEIGHT = 100.0
MOST_STATES = 2**15
MOST_ARCS = 2**21
_MOST_BYTES = 2**20  # of a file of phrases
_ALLOWED_LINES = "allowed: UTF-8, with a phrase in each line, and a weight after a tab where it has one"


class Weighted(NamedTuple):
    """A phrase and the factor of its bonus, 1 unless something else is given."""

    text: str
    weight: float


# --- What is given ----------------------------------------------------------------------------------------------------


def is_phrase(value: Any) -> bool:
    """Whether a value is a text, or a text and a number: what `weighted` may take."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return isinstance(value[0], str) and type(value[1]) in (int, float)
    return isinstance(value, str)


def weighted(phrases: Iterable[Any], *, where: str = "phrases") -> tuple[Weighted, ...]:
    """Phrases with their weights, checked as far as that needs no vocabulary.

    Args:
      phrases: each a text, or a pair of a text and its weight.
      where: what an error calls them.

    Raises:
      UserError: no list; a phrase that is no text, empty or too long; a weight that is not finite or too large; too
        many phrases.
    """
    if isinstance(phrases, str) or not isinstance(phrases, Iterable):
        raise UserError(f"{where}: {printable(repr(phrases), most=80)} is not a list of phrases")
    found = []
    for given in phrases:
        if not is_phrase(given):
            shown = printable(repr(given), most=80)
            raise UserError(f"{where}: {shown} is not a phrase; allowed: a text, or a text and its weight")
        text, weight = (given, 1.0) if isinstance(given, str) else given
        if not text.strip():
            raise UserError(
                f"{where}: an empty phrase, {printable(repr(text), most=80)}; allowed: at least a character"
            )
        if len(text) > MOST_CHARACTERS:
            shown = printable(repr(text), most=80)
            raise UserError(f"{where}: {shown}: {len(text):,} characters; allowed: at most {MOST_CHARACTERS}")
        if not -MOST_WEIGHT <= weight <= MOST_WEIGHT:
            allowed = f"finite numbers from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
            raise UserError(f"{where}: {printable(repr(text))}: a weight of {weight!r}; allowed: {allowed}")
        found.append(Weighted(text, float(weight)))
        if len(found) > MOST_PHRASES:
            raise UserError(f"{where}: more than {MOST_PHRASES:,} phrases; allowed: at most {MOST_PHRASES:,}")
    return tuple(found)


def read_phrases(path: epath.PathLike) -> tuple[Weighted, ...]:
    """The phrases of a file: one in each line, with a weight after a tab where it has one; `#` begins a comment line.

    Raises:
      UserError: no such file, one that is too large or not UTF-8, or as `weighted`; the line is named.
    """
    where = os.fspath(path)
    try:
        check_regular(path)
        with epath.Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except StorageUnavailable:
        raise
    except OSError as error:
        needed = f"a file with a phrase in each line; phrases themselves are a tuple, ({where!r},)"
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); needed is {needed}") from error
    if len(content) > _MOST_BYTES:
        raise UserError(f"{where}: more than {_MOST_BYTES:,} bytes; allowed: {_MOST_BYTES:,} of phrases")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start:,}; {_ALLOWED_LINES}") from error
    found: list[Weighted] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        text, tab, weight = line.partition("\t")
        at = f"{where}:{number}"
        found += weighted([(text, _number(weight, where=at)) if tab else text], where=at)
    return weighted(found, where=where)


def _number(text: str, *, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{where}: a weight of {printable(repr(text), most=80)}; allowed: finite numbers") from error


FIELD = "phrases"  # of a line of a manifest


def why_no_phrases(value: Any) -> str | None:
    """Why the field `phrases` of a line of a manifest, a JSON value, holds none; None where it does, or is null."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(phrase, str) for phrase in value):
        return f"{FIELD} is {printable(repr(value), most=80)}; needed: a list of texts"
    try:
        weighted(value, where=FIELD)
    except UserError as error:
        return str(error)
    return None


def of_line(tags: Mapping[str, Any]) -> tuple[Weighted, ...]:
    """The phrases of an utterance, of the tags that its line in a manifest has."""
    return weighted(tags.get(FIELD) or (), where=FIELD)


# --- How a vocabulary writes them -------------------------------------------------------------------------------------


class Boundaries(NamedTuple):
    """How a vocabulary writes where words begin and end.

    Attributes:
      space: the token that stands between two words, None where there is none: the first token of a word begins it.
      begins: bool [V]: tokens that a word before them has ended at. None where words have no boundaries at all, as in
        a vocabulary of Chinese characters without a space: a phrase is whole wherever it stands.
      silent: bool [V]: tokens that write nothing, such as marks around a text.
    """

    space: int | None
    begins: np.ndarray | None
    silent: np.ndarray


def boundaries(vocabulary: Vocabulary, word: str) -> Boundaries:
    """How a vocabulary writes the boundaries of words, from what it makes of a word that it can write.

    Raises:
      UserError: it writes a word in the middle of a text unlike one at its beginning.
    """
    size = vocabulary.size
    framed = vocabulary.encode(word)
    written = vocabulary.decode(framed)
    plain = vocabulary.decode([*framed, *framed])
    between = [
        "" if token == vocabulary.blank_id else vocabulary.decode([*framed, token, *framed]) for token in range(size)
    ]
    silent = np.array([text in ("", plain) for text in between])
    own = [token for token in framed if not silent[token]]
    begins = np.array([text[len(written) :][:1].isspace() for text in between]) & ~silent
    marks = silent.copy()  # such as the end of a text
    marks[vocabulary.blank_id] = False
    pair = f"{written} {written}"
    if plain == pair:  # each word begins with a token that says so
        begins[own[0]] = True
        found = Boundaries(None, begins | marks, silent)
        twice = [*own, *own]
    else:
        spaces = [token for token, text in enumerate(between) if text == pair]
        if not spaces and not begins.any():
            return Boundaries(None, None, silent)
        found = Boundaries(spaces[0] if spaces else None, begins | marks, silent)
        twice = [*own, *spaces[:1], *own]
    if [token for token in vocabulary.encode(f"{word} {word}") if not silent[token]] != twice:
        raise UserError(
            f"phrases: the vocabulary writes {printable(repr(word))} in the middle of a text unlike at its beginning; "
            "allowed: one that writes a word the same wherever it stands"
        )
    return found


def spelled(text: str, vocabulary: Vocabulary, *, normalizer: str | None = None, where: str = "phrases") -> str:
    """A phrase as the texts of a vocabulary are written.

    Args:
      text: as somebody wrote it.
      vocabulary: that of the task.
      normalizer: that of the task's texts; None: the phrase stays as it is where the vocabulary can write it so, and
        else is what `basic` makes of it.
      where: what an error calls the phrases.

    Raises:
      UserError: nothing of it is left, or the vocabulary lacks some of its characters; the line names them.
    """
    found = " ".join(text.split())
    if normalizer is not None:
        found = " ".join(normalize_text(found, normalizer).split())
    elif vocabulary.unknown_characters(found):
        found = " ".join(normalize_text(found, "basic").split())
    unknown = sorted(vocabulary.unknown_characters(found))
    if unknown:
        raise UserError(
            f"{where}: {printable(repr(text))} cannot be written: the vocabulary lacks {listed(unknown)}; allowed: its "
            "characters"
        )
    if not found or not vocabulary.encode(found):
        raise UserError(f"{where}: nothing is left of {printable(repr(text))} as the vocabulary writes texts")
    return found


# --- The automaton ----------------------------------------------------------------------------------------------------


def automaton_of(
    phrases: Iterable[Any], vocabulary: Vocabulary, *, normalizer: str | None = None, where: str = "phrases"
) -> Automaton:
    """The automaton that gives each phrase its bonus: its weight for each token, as the vocabulary encodes it.

    Args:
      phrases: as `weighted` takes them; of one that is given again, the last weight counts.
      vocabulary: that of the task: ids, and where words begin.
      normalizer: as `spelled` has it.
      where: what an error calls them.

    Raises:
      UserError: as `weighted`, `spelled` and `boundaries`, or more states than are allowed.
    """
    texts = {
        spelled(text, vocabulary, normalizer=normalizer, where=where): weight
        for text, weight in weighted(phrases, where=where)
    }
    if not texts:
        return _Trie(vocabulary.size, Boundaries(None, None, np.zeros(vocabulary.size, bool))).automaton()
    known = boundaries(vocabulary, next(iter(texts)).split()[0])
    trie = _Trie(vocabulary.size, known)
    for text, weight in texts.items():
        tokens = [token for token in vocabulary.encode(text) if not known.silent[token]]
        trie.add(tokens, weight)
        if len(trie.arcs) > MOST_STATES:
            allowed = f"at most {MOST_STATES:,} tokens that do not begin two phrases"
            raise UserError(f"{where}: {len(texts):,} phrases are too long together; allowed: {allowed}")
    return trie.automaton(where=where)


class _Trie:
    """The phrases as a tree of their tokens, and the automaton of it.

    `given[s]` is what the state s has been given for a phrase that is not whole yet: it is taken back on every arc that
    leads elsewhere, so that scores along a path add up to what its whole phrases get, and to `given` of its last state.
    """

    def __init__(self, size: int, known: Boundaries):
        self._size, self._known = size, known
        self.arcs: list[dict[int, int]] = [{}]
        self._given = [0.0]
        self._bonus = [0.0]  # of the phrase that ends here
        self._start = ROOT
        if known.space is not None:  # a text begins as if there were a space before it
            self._start = self._child(ROOT, known.space)

    def _child(self, state: int, token: int) -> int:
        if token not in self.arcs[state]:
            self.arcs[state][token] = len(self.arcs)
            self.arcs.append({})
            self._given.append(0.0)
            self._bonus.append(0.0)
        return self.arcs[state][token]

    def add(self, tokens: Sequence[int], weight: float) -> None:
        """Adds a phrase."""
        state = self._start
        for count, token in enumerate(tokens, 1):
            state = self._child(state, token)
            self._given[state] = max(self._given[state], weight * count)
        self._bonus[state] = weight * len(tokens)

    def automaton(self, *, where: str = "phrases") -> Automaton:
        """The automaton of the phrases so far."""
        backoff, whole = self._links()
        immediate = self._known.begins is None
        rows: list[dict[int, tuple[float, int]]] = []
        for state, children in enumerate(self.arcs):
            rows.append({})
            for token, child in children.items():
                closed = whole[child] if immediate else (whole[state] if self._closes(token) else 0.0)
                rows[state][token] = (self._given[child] - self._given[state] + closed, child)
        space = self._known.space
        for children in [] if space is None else self.arcs:
            if space in children:
                rows[children[space]][space] = (0.0, children[space])  # two spaces are one
        scores = [self._given[to] - given for to, given in zip(backoff, self._given, strict=True)]
        final = [(0.0 if immediate else w) - given for w, given in zip(whole, self._given, strict=True)]
        if not immediate:
            self._close(rows, backoff, scores, final, where=where)
        flat = [(token, *row[token]) for row in rows for token in sorted(row)]
        return Automaton(
            first=np.cumsum([0, *map(len, rows)]).astype(np.int32),
            tokens=np.array([token for token, _, _ in flat], np.int32),
            scores=np.array([score for _, score, _ in flat], np.float32),
            targets=np.array([target for _, _, target in flat], np.int32),
            backoff=np.array(backoff, np.int32),
            backoff_scores=np.array(scores, np.float32),
            missing=np.zeros(self._size, np.float32),
            final=np.array(final, np.float32),
            start=self._start,
        )

    def _closes(self, token: int) -> bool:
        return self._known.begins is not None and bool(self._known.begins[token])

    def _links(self) -> tuple[list[int], list[float]]:
        """Of each state the longest one at its own end, and the bonuses of all phrases that end where it does."""
        backoff, whole = [ROOT] * len(self.arcs), list(self._bonus)
        left = collections.deque([ROOT])
        while left:
            state = left.popleft()
            for token, child in self.arcs[state].items():
                to = backoff[state]
                while to != ROOT and token not in self.arcs[to]:
                    to = backoff[to]
                backoff[child] = self.arcs[to].get(token, ROOT) if state != ROOT else ROOT
                whole[child] += whole[backoff[child]]
                left.append(child)
        return backoff, whole

    def _close(
        self,
        rows: list[dict[int, tuple[float, int]]],
        backoff: list[int],
        scores: list[float],
        final: list[float],
        *,
        where: str,
    ) -> None:
        """Gives whole phrases their bonus where what follows is the beginning of a word and has no arc.

        A state at the end of a phrase backs off to one that has an arc for each such token, with the bonus on it, and
        backs off for the others, which take back what was given. States with the same bonus and back-off share it.
        """
        assert self._known.begins is not None
        begins = np.flatnonzero(self._known.begins).tolist()
        closing: dict[tuple[float, int], int] = {}
        # Those near the root first: what follows a shorter phrase is part of what follows a longer one that ends in it.
        ends = [state for state, bonus in enumerate(self._bonus) if bonus]
        for state in sorted(ends, key=lambda state: _depth(state, backoff)):
            key = (self._bonus[state], backoff[state])
            if key not in closing:
                closing[key] = len(rows)
                after = {}
                for token in begins:
                    score, target = _step(rows, backoff, scores, key[1], token)
                    after[token] = (key[0] + score, target)
                rows.append(after)
                backoff.append(key[1])
                scores.append(0.0)
                final.append(0.0)
                if len(closing) * len(begins) > MOST_ARCS:
                    raise UserError(
                        f"{where}: phrases of {len(closing):,} different bonuses on {len(begins):,} tokens that begin "
                        f"words; allowed: a product of at most {MOST_ARCS:,}; give fewer different weights"
                    )
            backoff[state] = closing[key]


def _depth(state: int, backoff: Sequence[int]) -> int:
    depth = 0
    while state != ROOT:
        state, depth = backoff[state], depth + 1
    return depth


def _step(
    rows: Sequence[dict[int, tuple[float, int]]],
    backoff: Sequence[int],
    scores: Sequence[float],
    state: int,
    token: int,
) -> tuple[float, int]:
    """What a token adds after a state, and the state after it; as `Automaton.step`."""
    total = 0.0
    while token not in rows[state]:
        if state == ROOT:
            return total, ROOT
        total += scores[state]
        state = backoff[state]
    return total + rows[state][token][0], rows[state][token][1]
