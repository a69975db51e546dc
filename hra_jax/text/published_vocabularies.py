"""The vocabularies of published CTC encoders: symbols with a word delimiter, and a `tokenizer.json`.

Both give the ids that the published tokenizer gives and the text that it decodes, special tokens skipped. The blank is
where the publisher put it. A letter that the tokenizer knows in the other case only is written in that case: published
vocabularies are often upper case, and normalised transcripts lower case. What is unknown in both cases is dropped by
`encode` and named by `unknown_characters`.
"""

import abc
import collections
import json
import re
from collections.abc import Callable, Iterable, Sequence

from hra_jax.errors import UserError

MOST_SYMBOLS = 2**20  # of a vocabulary
_MOST_SEARCHED = 2**20  # characters of all symbols that are looked for in a text
_CASES: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "as is": str}
# What transformers does to a decoded text where the tokenizer's settings ask for clean spaces.
_CLEAN = tuple((f" {end}", end) for end in (".", "?", "!", ",")) + ((" ' ", "'"),)
_CLEAN += tuple((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re"))
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def check_ids(ids: Iterable[int], size: int) -> list[int]:
    """The ids as a list of int; ValueError for one outside [0, size)."""
    ids = [int(i) for i in ids]
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        raise ValueError(f"label id {wrong[0]} is outside the vocabulary of {size} symbols")
    return ids


def check_symbols(size: int) -> None:
    """Refuses, with a UserError, a vocabulary of more symbols than any encoder has outputs for."""
    if size > MOST_SYMBOLS:
        raise UserError(f"a vocabulary of {size:,} symbols; allowed: at most {MOST_SYMBOLS:,}")


def case_of(symbols: Iterable[str]) -> str:
    """'upper' or 'lower' where the letters of the symbols have one case alone; else 'as is'."""
    text = "".join(symbols)
    upper, lower = any(map(str.isupper, text)), any(map(str.islower, text))
    return "as is" if upper == lower else ("upper" if upper else "lower")


def _cleaned(text: str) -> str:
    for old, new in _CLEAN:
        text = text.replace(old, new)
    return text


def _check_numbers(size: int, blank_id: int, special_ids: Sequence[int]) -> None:
    for what, value in (("blank_id", blank_id), *(("special_ids", value) for value in special_ids)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise UserError(f"{what} {value!r} of a vocabulary of {size} symbols; allowed: 0 to {size - 1}")


class _Cased(abc.ABC):
    """Writes a text with the characters that a vocabulary knows, in the case in which it knows them."""

    def __init__(self, symbols: Iterable[str]):
        self._case = case_of(symbols)
        self._spelled: dict[str, str] = {}

    @property
    def case(self) -> str:
        """The case that texts are written in: 'upper', 'lower', or 'as is' where the tokenizer has both or none."""
        return self._case

    @abc.abstractmethod
    def _knows(self, text: str) -> bool:
        """Whether the text is not empty, and each of its characters has a symbol."""

    def _spelling(self, character: str) -> str:
        """How the vocabulary writes a character; '' if it cannot."""
        if character not in self._spelled:
            forms = (_CASES[self._case](character), character, character.upper(), character.lower())
            self._spelled[character] = next((form for form in forms if self._knows(form)), "")
        return self._spelled[character]


class CtcTokenVocabulary(_Cased):
    """One label for each symbol of a list, spaces being a symbol too, as `Wav2Vec2CTCTokenizer` has it.

    Symbols of several characters are found before single characters, the longest first, and take the spaces beside
    them: so does the published tokenizer.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        blank_id: int,
        special_ids: Iterable[int] = (),
        word_delimiter: str = "|",
        space: str = " ",
        lower: bool = False,
        clean: bool = False,
    ):
        """Takes the symbols in the order of their ids.

        Args:
          tokens: V symbols, the blank's among them.
          blank_id: of the CTC blank.
          special_ids: of symbols that are no text, which `encode` never gives and `decode` skips.
          word_delimiter: the symbol that stands for a space.
          space: what `decode` writes for it.
          lower: whether `decode` gives lower case.
          clean: whether `decode` takes spaces before punctuation away.

        Raises:
          UserError: no symbol, one that is no string, empty or given twice, or an id outside [0, V).
        """
        self._tokens = tuple(tokens)
        check_symbols(len(self._tokens))
        for token in self._tokens:
            if not isinstance(token, str) or not token:
                raise UserError(f"{token!r:.80} is not a symbol of a vocabulary; allowed: strings that are not empty")
        ids = {token: number for number, token in enumerate(self._tokens)}
        if not ids or len(ids) < len(self._tokens):
            twice = sorted(token for token, times in collections.Counter(self._tokens).items() if times > 1)
            what = f"names {twice[0]!r:.80} more than once" if twice else "has no symbols"
            raise UserError(f"a vocabulary of tokens {what}; each symbol is allowed once, and one is needed")
        special = sorted(set(special_ids))
        _check_numbers(len(ids), blank_id, special)
        self._blank_id, self._special = blank_id, frozenset((*special, blank_id))
        self._delimiter, self._space, self._lower, self._clean = word_delimiter, space, lower, clean
        self._ids = {token: number for token, number in ids.items() if number not in self._special}
        long = sorted((token for token in self._ids if len(token) > 1 and token != word_delimiter), key=len)
        searched = sum(map(len, long))
        if searched > _MOST_SEARCHED:
            raise UserError(f"symbols of {searched:,} characters together; allowed: at most {_MOST_SEARCHED:,}")
        self._long = re.compile("|".join(map(re.escape, reversed(long)))) if long else None
        super().__init__(token for token in self._ids if token != word_delimiter)

    @property
    def size(self) -> int:
        """V: the number of symbols, the blank and the special ones included."""
        return len(self._tokens)

    @property
    def blank_id(self) -> int:
        """The id of the blank, as published."""
        return self._blank_id

    @property
    def tokens(self) -> tuple[str, ...]:
        """The symbols in the order of their ids."""
        return self._tokens

    def _symbol(self, character: str) -> str:
        return self._delimiter if character == " " else character

    def _knows(self, text: str) -> bool:
        return bool(text) and all(self._symbol(character) in self._ids for character in text)

    def _pieces(self, text: str) -> list[tuple[int, str, bool]]:
        """The text cut into symbols of several characters (True) and what is between them (False), with starts."""
        if self._long is None:
            return [(0, text, False)]
        # In the vocabulary's case as long as every character stays one, so that positions are those of the text.
        cased = (_CASES[self._case](character) for character in text)
        text = "".join(new if len(new) == 1 else old for new, old in zip(cased, text, strict=True))
        found, end = [], 0
        for match in self._long.finditer(text):
            found += [(end, text[end : match.start()], False), (match.start(), match.group(), True)]
            end = match.end()
        found.append((end, text[end:], False))
        # Spaces beside such a symbol are its own; those at the ends of the whole text are not.
        last = len(found) - 1
        for number, (start, piece, long) in enumerate(found):
            if not long:
                kept = piece.lstrip() if number else piece
                start += len(piece) - len(kept)
                found[number] = (start, kept.rstrip() if number < last else kept, False)
        return found

    @property
    def by_character(self) -> bool:
        """Whether no symbol has several characters."""
        return self._long is None

    def encode(self, text: str) -> list[int]:
        """Ids of the symbols of a text; characters outside the vocabulary are dropped."""
        ids = []
        for _, piece, long in self._pieces(text):
            if long:
                ids.append(self._ids[piece])
            else:
                ids += [self._ids[self._symbol(form)] for character in piece for form in self._spelling(character)]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; blanks and special symbols are skipped. ValueError for an id outside [0, V)."""
        symbols = [self._tokens[i] for i in check_ids(ids, self.size) if i not in self._special]
        text = "".join(self._space if symbol == self._delimiter else symbol for symbol in symbols).strip()
        text = text.lower() if self._lower else text
        return _cleaned(text) if self._clean else text

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that `encode` drops."""
        pieces = [(start, piece) for start, piece, long in self._pieces(text) if not long]
        return {text[i] for start, piece in pieces for i, c in enumerate(piece, start) if not self._spelling(c)}

    def to_json(self) -> dict:
        """{"type": "ctc_tokens", ...} with the arguments of the constructor."""
        return {
            "type": "ctc_tokens",
            "tokens": list(self._tokens),
            "blank_id": self._blank_id,
            "special_ids": sorted(self._special - {self._blank_id}),
            "word_delimiter": self._delimiter,
            "space": self._space,
            "lower": self._lower,
            "clean": self._clean,
        }


class TokenizerVocabulary(_Cased):
    """Labels are the pieces of a `tokenizer.json`, read by the `tokenizers` package."""

    def __init__(
        self, content: dict, *, size: int, blank_id: int, special_ids: Iterable[int] = (), clean: bool = False
    ):
        """Takes the content of the file.

        Args:
          content: the JSON object.
          size: V; the tokenizer has a piece for every id below V, but for the blank's, which may be missing.
          blank_id: of the CTC blank.
          special_ids: of pieces that are no text beside those that the file calls special.
          clean: whether `decode` takes spaces before punctuation away.

        Raises:
          UserError: not a tokenizer, an id below V without a piece, or a piece of text beyond.
        """
        import tokenizers

        check_symbols(size)
        try:
            # `from_buffer` is the reader whose errors have a type of their own.
            self._tokenizer = tokenizers.Tokenizer.from_buffer(json.dumps(content).encode())
        except (ValueError, TypeError) as error:
            raise UserError(f"tokenizer.json cannot be read: {' '.join(str(error).split())}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._content, self._size, self._blank_id, self._clean = content, size, blank_id, clean
        given = sorted(set(special_ids))
        _check_numbers(size, blank_id, given)
        added = self._tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        self._given = tuple(given)
        self._special = frozenset((*special, *given, blank_id))
        pieces = {number: piece for piece, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self._check_pieces(pieces)
        self._pieces = pieces
        self._unknown = content["model"].get("unk_token")
        text = (piece for number, piece in pieces.items() if number not in self._special and not _BYTE.fullmatch(piece))
        super().__init__(text)

    def _check_pieces(self, pieces: dict[int, str]) -> None:
        holes = sorted(set(range(self._size)) - set(pieces) - {self._blank_id})
        if holes:
            raise UserError(f"tokenizer.json has no piece for the id {holes[0]} of the {self._size} outputs")
        beyond = sorted(number for number in pieces if number >= self._size and number not in self._special)
        if beyond:
            where = f"{pieces[beyond[0]]!r} has the id {beyond[0]}"
            raise UserError(f"tokenizer.json: {where}; allowed: 0 to {self._size - 1}, the outputs")

    @property
    def size(self) -> int:
        """V: the number of pieces, the blank and the special ones included."""
        return self._size

    @property
    def blank_id(self) -> int:
        """The id of the blank, as published."""
        return self._blank_id

    def _encoding(self, text: str) -> list[tuple[int, tuple[int, int], bool]]:
        """For each piece of a text its id, the characters it covers, and whether the tokenizer knows them."""
        encoding = self._tokenizer.encode(text)
        found = []
        for number, piece, span in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
            # A unigram model gives unknown characters as they are under the unknown piece's id, which may be that of a
            # piece of text too (LASR: that of a space).
            found.append((number, span, piece != self._unknown and piece == self._pieces[number]))
        return found

    def _knows(self, text: str) -> bool:
        pieces = self._encoding(text)
        if not text or not all(known for _, _, known in pieces):
            return False
        # Without an unknown piece the tokenizer leaves out what it does not know.
        return text.isspace() or bool(self.decode([number for number, _, _ in pieces if number < self._size]).strip())

    def _spelled_text(self, text: str) -> str:
        return "".join(map(self._spelling, text))

    def _is_label(self, number: int, span: tuple[int, int]) -> bool:
        # A special piece that covers text was written in the text, and is none there; others frame the labels.
        return number != self._blank_id and number < self._size and (number not in self._special or span[0] == span[1])

    @property
    def by_character(self) -> bool:
        """False."""
        return False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The pieces as the file spells them; '' for a blank without one."""
        return tuple(self._pieces.get(number, "") for number in range(self._size))

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of a text, with the marks that the tokenizer frames it with; [] where nothing is known."""
        text = self._spelled_text(text)
        pieces = [] if text.isspace() else self._encoding(text)
        ids = [number for number, span, known in pieces if known and self._is_label(number, span)]
        return [] if self._special.issuperset(ids) else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the pieces; blanks and special pieces are skipped. ValueError for an id outside [0, V)."""
        ids = [i for i in check_ids(ids, self.size) if i not in self._special]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return _cleaned(text) if self._clean else text

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that `encode` drops."""
        unknown = {character for character in text if not self._spelling(character)}
        # Some are known at the start of a word only.
        origin = [character for character in text for _ in self._spelling(character)]
        for number, (start, end), known in self._encoding(self._spelled_text(text)):
            if start < end and not (known and self._is_label(number, (start, end))):
                unknown.update(character for character in origin[start:end] if not character.isspace())
        return unknown

    def to_json(self) -> dict:
        """{"type": "tokenizer", "content": the JSON object, ...} with the arguments of the constructor."""
        return {
            "type": "tokenizer",
            "content": self._content,
            "size": self._size,
            "blank_id": self._blank_id,
            "special_ids": list(self._given),
            "clean": self._clean,
        }
