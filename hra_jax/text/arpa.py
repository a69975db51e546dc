r"""Language models as ARPA files: the text format that SRILM, KenLM, NeMo and others exchange.

    \data\
    ngram 1=30
    ngram 2=310

    \1-grams:
    -1.2041	e	-0.4771

    \2-grams:
    -0.3010	t h

    \end\

Numbers are logarithms to base 10: of the probability of the last token, and of what backing off from the n-gram gives.
The words of such a file are the tokens of a vocabulary as it spells them, one by one (`words`): a space is written as
U+2581, as SentencePiece writes it, other white space, a backslash and what cannot be seen as `\uXXXX`, and so is the
first character of a token that is called `<s>`, `</s>` or `<unk>`. `<s>` and `</s>` are the start and the end of a
text, and `<unk>` has the probability of each token that the file does not name. Somebody who makes a file with another
program gives it texts in which these words stand apart.
"""

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.console import listed
from hra_jax.errors import UserError, printable
from hra_jax.text.automaton import ROOT, Automaton
from hra_jax.text.ngram import MOST_ORDER, NEVER, LanguageModel, vocabulary_digest
from hra_jax.text.ngram_automaton import Grams, assemble, contexts
from hra_jax.text.ngram_counts import end_mark, start_mark
from hra_jax.text.vocabularies import Vocabulary

SUFFIX = ".arpa"
MOST_BYTES = 2**32  # of a file that is read

_LN10 = math.log(10)
_START, _END, _UNKNOWN, _ALSO_UNKNOWN = "<s>", "</s>", "<unk>", "<UNK>"
_SPACE = "\u2581"
_MOST_REST = 99  # of the logarithm for backing off, to base 10
_COUNT = re.compile(rb"ngram\s+(\d{1,3})\s*=\s*(\d{1,12})")
_SECTION = re.compile(rb"\\(\d{1,3})-grams:")


def words(vocabulary: Vocabulary) -> tuple[str, ...]:
    """What each token is called in an ARPA file, in the order of their ids; the blank is not asked for."""
    tokens = vocabulary.tokens
    spaced = any(" " in token for token in tokens)
    return tuple(_word(token, spaced=spaced) for token in tokens)


def _word(token: str, *, spaced: bool) -> str:
    if token in (_START, _END, _UNKNOWN, _ALSO_UNKNOWN):
        return _escaped(token[0]) + token[1:]
    found = ""
    for character in token:
        if character == " ":
            found += _SPACE
        elif character == "\\" or not character.isprintable() or (character == _SPACE and spaced):
            found += _escaped(character)
        else:
            found += character
    return found


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


# --- Out --------------------------------------------------------------------------------------------------------------


def to_text(model: LanguageModel, vocabulary: Vocabulary) -> Iterator[str]:
    """A model as an ARPA file, in parts.

    Raises:
      UserError: the model is of another vocabulary.
    """
    model.check_vocabulary(vocabulary, where=model.name or "the language model")
    sections = _sections(model.automaton, vocabulary)
    yield "\\data\\\n" + "".join(f"ngram {n}={len(lines)}\n" for n, lines in enumerate(sections, start=1))
    for n, lines in enumerate(sections, start=1):
        yield f"\n\\{n}-grams:\n" + "".join(lines)
    yield "\n\\end\\\n"


def _sections(automaton: Automaton, vocabulary: Vocabulary) -> list[list[str]]:
    """The lines of each order."""
    names = dict(enumerate(words(vocabulary))) | {end_mark(vocabulary.size): _END, start_mark(vocabulary.size): _START}
    found = contexts(automaton)
    states = {tokens: state for state, tokens in found.items()}
    backed_off = automaton.backoff_scores + automaton.final[automaton.backoff]
    lines: list[list[str]] = [[] for _ in range(max(map(len, found.values())) + 1)]

    def add(tokens: tuple[int, ...], score: float) -> None:
        rest = float(automaton.backoff_scores[states[tokens]]) if tokens in states else 0.0
        more = f"\t{rest / _LN10:.12g}" if rest else ""
        lines[len(tokens) - 1].append(f"{score / _LN10:.12g}\t{' '.join(names[token] for token in tokens)}{more}\n")

    add((end_mark(vocabulary.size),), float(automaton.final[ROOT]))
    add((start_mark(vocabulary.size),), NEVER)
    # What the root gives tokens without an arc of their own is that of unknown ones, for all if it is the same for all.
    own = {*automaton.tokens[: automaton.first[1]].tolist(), vocabulary.blank_id}
    missing = dict(enumerate(automaton.missing.tolist()))
    del missing[vocabulary.blank_id]
    common = min(missing.values(), default=NEVER)
    lines[0].append(f"{common / _LN10:.12g}\t{_UNKNOWN}\n")
    for token in missing.keys() - own:
        if missing[token] != common:
            add((token,), missing[token])
    for state, tokens in found.items():
        for arc in range(automaton.first[state], automaton.first[state + 1]):
            add((*tokens, int(automaton.tokens[arc])), float(automaton.scores[arc]))
        if tokens and automaton.final[state] != backed_off[state]:
            add((*tokens, end_mark(vocabulary.size)), float(automaton.final[state]))
    return [section for n, section in enumerate(lines) if section or n == 0]


# --- In ---------------------------------------------------------------------------------------------------------------


class _Section(NamedTuple):
    """The n-grams of one order as a file has them: where they stand, K of them.

    Attributes:
      lines: int64 [K], numbers of lines.
      tokens: int64 [K, n].
      scores, rest: float64 [K], logarithms to base 10.
    """

    lines: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray
    rest: np.ndarray


class _Table(NamedTuple):
    """The n-grams of one order, sorted: where each begins in the list of all, and what it is found by."""

    low: int
    keys: np.ndarray


def from_bytes(content: bytes, vocabulary: Vocabulary, *, where: str, name: str = "") -> LanguageModel:
    """The model of an ARPA file.

    Args:
      content: of the file.
      vocabulary: whose tokens its words are.
      where: the name of the file, for errors.
      name: of the model, for people.

    Raises:
      UserError: no ARPA file; counts that are wrong, a section or the end missing; a word that is no token, of a
        vocabulary that has too many or too few; a probability above 1 or that is no number; an n-gram twice, or
        without its context; no probability of the end of a text.
    """
    sections = _read(content, vocabulary, where=where)
    unknown = _take_unknown(sections, vocabulary, where=where)
    grams = _grams(sections, vocabulary, where=where)
    missing = np.full(vocabulary.size, unknown, np.float32)
    missing[vocabulary.blank_id] = NEVER
    return LanguageModel(
        automaton=assemble(grams, missing=missing),
        vocabulary_digest=vocabulary_digest(vocabulary),
        order=len(sections),
        name=name,
        smoothing="arpa",
        ngrams=tuple(len(section.lines) for section in sections),
        left_out=(0,) * len(sections),
        least_counts=(),
    )


def _read(content: bytes, vocabulary: Vocabulary, *, where: str) -> list[_Section]:
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    counts, at = _read_counts(lines, where=where)
    ids = _ids(vocabulary)
    sections: list[_Section] = []
    for n, count in enumerate(counts, start=1):
        found = _SECTION.fullmatch(lines[at].strip()) if at < len(lines) else None
        if found is None or int(found[1]) != n:
            said = printable(lines[at].decode("utf-8", "replace").strip(), most=40) if at < len(lines) else ""
            raise UserError(f"{where}:{at + 1}: {said!r}; needed here: \\{n}-grams:")
        section, at = _read_section(lines, at + 1, n, ids, where=where)
        if len(section.lines) != count:
            raise UserError(f"{where}: has {len(section.lines):,} n-grams of order {n}, and says {count:,}")
        sections.append(section)
    if at >= len(lines) or lines[at].strip() != b"\\end\\":
        raise UserError(f"{where}: ends without a line \\end\\")
    return sections


def _read_counts(lines: Sequence[bytes], *, where: str) -> tuple[list[int], int]:
    """How many n-grams of each order there are to be, and the line after that."""
    at = next((i for i, line in enumerate(lines, start=1) if line.strip() == b"\\data\\"), None)
    if at is None:
        raise UserError(f"{where}: no ARPA file, it has no line \\data\\")
    counts: list[int] = []
    while at < len(lines):
        line = lines[at].strip()
        found = _COUNT.fullmatch(line)
        if found is not None:
            counts.append(int(found[2]))
            if int(found[1]) != len(counts):
                raise UserError(f"{where}:{at + 1}: the count of order {int(found[1])}; needed here: {len(counts)}")
        elif line:
            break
        at += 1
    if not 1 <= len(counts) <= MOST_ORDER:
        raise UserError(f"{where}: n-grams of {len(counts)} orders; allowed: 1 to {MOST_ORDER}")
    return counts, at


def _ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The token of each word of a file, and the marks; -1 for <unk>."""
    found = {word.encode(): token for token, word in enumerate(words(vocabulary)) if token != vocabulary.blank_id}
    return found | {
        _START.encode(): start_mark(vocabulary.size),
        _END.encode(): end_mark(vocabulary.size),
        _UNKNOWN.encode(): -1,
        _ALSO_UNKNOWN.encode(): -1,
    }


def _read_section(
    lines: Sequence[bytes], at: int, n: int, ids: dict[bytes, int], *, where: str
) -> tuple[_Section, int]:
    """The n-grams of order n from a line on, and the line after them."""
    numbers: list[int] = []
    tokens: list[int] = []
    values: list[tuple[float, float]] = []
    unknown: dict[bytes, int] = {}
    while at < len(lines):
        parts = lines[at].split()
        at += 1
        if not parts:
            continue
        if len(parts) == 1 and parts[0].startswith(b"\\"):
            at -= 1
            break
        if len(parts) not in (n + 1, n + 2):
            raise UserError(f"{where}:{at}: {len(parts)} columns; allowed: {n + 1} or {n + 2}, an n-gram of order {n}")
        try:
            score, rest = float(parts[0]), float(parts[n + 1]) if len(parts) == n + 2 else 0.0
        except ValueError:
            raise UserError(f"{where}:{at}: a logarithm that is no number; allowed: such as -1.25") from None
        # Of what is no number, no comparison holds.
        if not score <= 0:
            raise UserError(f"{where}:{at}: the logarithm of a probability is {score}; allowed: 0 or less")
        if not -math.inf <= rest <= _MOST_REST:
            raise UserError(f"{where}:{at}: the logarithm for backing off is {rest}; allowed: {_MOST_REST} or less")
        for word in parts[1 : n + 1]:
            if word not in ids:
                unknown.setdefault(word, at)
            else:
                tokens.append(ids[word])
        numbers.append(at)
        values.append((score, rest))
    if unknown:
        first = next(iter(unknown.values()))
        shown = listed((word.decode("utf-8", "replace") for word in unknown), most=3)
        what = "a word that is no token" if len(unknown) == 1 else f"{len(unknown):,} words that are no tokens"
        raise UserError(f"{where}:{first}: {what} of the vocabulary: {shown}")
    found = np.array(values, np.float64).reshape(-1, 2)
    return _Section(np.array(numbers, np.int64), np.array(tokens, np.int64).reshape(-1, n), *found.T), at


def _take_unknown(sections: list[_Section], vocabulary: Vocabulary, *, where: str) -> float:
    """ln p of a token that the file does not name; takes <unk> out of the first section."""
    for section in sections[1:]:
        (wrong,) = np.nonzero((section.tokens < 0).any(axis=1))
        if len(wrong):
            raise UserError(f"{where}:{section.lines[wrong[0]]}: {_UNKNOWN} in an n-gram; allowed: by itself")
    single = sections[0]
    inside = single.tokens[:, 0] >= 0
    others = single.scores[~inside]
    if len(others) > 1:
        raise UserError(f"{where}:{single.lines[~inside][1]}: {_UNKNOWN} is there twice")
    sections[0] = _Section(*(array[inside] for array in single))
    if end_mark(vocabulary.size) not in sections[0].tokens:
        raise UserError(f"{where}: has no probability of {_END}, the end of a text")
    return float(max(others[0] * _LN10, NEVER)) if len(others) else NEVER


def _grams(sections: Sequence[_Section], vocabulary: Vocabulary, *, where: str) -> Grams:
    symbols = vocabulary.size + 2
    tables = [_Table(0, np.zeros(1, np.int64))]
    context, token, scores, rest = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.zeros(1)], [np.zeros(1)]
    rows: list[np.ndarray] = []
    for n, section in enumerate(sections, start=1):
        before = _find(tables, section.tokens[:, :-1], symbols)
        (lost,) = np.nonzero(before < 0)
        if len(lost):
            raise UserError(
                f"{where}:{section.lines[lost[0]]}: an n-gram of order {n} without its first {n - 1} tokens"
            )
        keys = before * symbols + section.tokens[:, -1]
        order = np.argsort(keys, kind="stable")
        (twice,) = np.nonzero(np.diff(keys[order]) == 0)
        if len(twice):
            raise UserError(f"{where}:{section.lines[order[twice[0] + 1]]}: an n-gram that is there before")
        tables.append(_Table(tables[-1].low + len(tables[-1].keys), keys[order]))
        context.append(before[order])
        token.append(section.tokens[order, -1])
        scores.append(np.maximum(section.scores[order] * _LN10, NEVER))
        rest.append(np.maximum(section.rest[order] * _LN10, NEVER))
        rows.append(section.tokens[order])
    states = np.concatenate(rest) != 0
    states[np.concatenate(context[1:])] = True
    states[-len(rows[-1]) or len(states) :] = False  # nothing is longer
    states[ROOT] = True
    suffix = np.concatenate([np.zeros(1, np.int64), *(_suffixes(tables, found, symbols) for found in rows)])
    all_tokens = np.concatenate(token)
    kept = all_tokens != start_mark(vocabulary.size)
    orders = [len(table.keys) for table in tables]
    return Grams(
        orders, np.concatenate(context), all_tokens, suffix, np.concatenate(scores), np.concatenate(rest), kept, states
    )


def _find(tables: Sequence[_Table], tokens: np.ndarray, symbols: int) -> np.ndarray:
    """Which n-gram of all each row of tokens is, int64 `[K]`, -1 where it is none."""
    found = np.zeros(len(tokens), np.int64)
    for table, column in zip(tables[1:], tokens.T, strict=False):
        keys = found * symbols + column
        at = np.minimum(np.searchsorted(table.keys, keys), max(len(table.keys) - 1, 0))
        same = (found >= 0) & (table.keys[at] == keys) if len(table.keys) else np.zeros(len(keys), bool)
        found = np.where(same, table.low + at, -1)
    return found


def _suffixes(tables: Sequence[_Table], tokens: np.ndarray, symbols: int) -> np.ndarray:
    """The longest n-gram at the end of each row of tokens that begins later; the empty one where there is no other."""
    found = np.zeros(len(tokens), np.int64)
    left = np.arange(len(tokens))
    for begin in range(1, tokens.shape[1]):
        places = _find(tables, tokens[left, begin:], symbols)
        found[left[places >= 0]] = places[places >= 0]
        left = left[places < 0]
    return found
