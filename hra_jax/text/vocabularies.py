"""Vocabularies: what turns a transcript into CTC labels, and labels into text.

The vocabularies made here keep id 0 for the CTC blank, and the symbols of the text have the ids 1 .. V-1; those of
published encoders (`published_vocabularies`) have the blank where the publisher put it. `encode` drops characters that
a vocabulary does not have; `unknown_characters` names them, so that a caller can count them.
"""

import base64
import binascii
import collections
import io
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from hra_jax.errors import UserError
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary, check_ids, check_symbols

LEARNT_VOCABULARIES = ("characters", "sentencepiece")  # kinds that are made from texts

BLANK_ID = 0
ENGLISH_CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"


@runtime_checkable
class Vocabulary(Protocol):
    """What turns text into label ids and back; `size` is V, the blank included."""

    @property
    def size(self) -> int:
        """V: the number of outputs of the CTC layer, the blank included."""

    @property
    def blank_id(self) -> int:
        """The id of the CTC blank, which `encode` never gives."""

    @property
    def by_character(self) -> bool:
        """Whether `encode` and `unknown_characters` of a text are always those of its characters, put together."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The V symbols in the order of their ids, each another one; what stands for the blank varies."""

    def encode(self, text: str) -> list[int]:
        """Label ids in [0, V) of a text, never the blank; characters outside the vocabulary are dropped."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of label ids (already collapsed); blanks are skipped. ValueError for an id outside [0, V)."""

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that `encode` drops."""

    def to_json(self) -> dict:
        """A dict that `json.dump` writes and `vocabulary_from_json` reads back."""


class CharacterVocabulary:
    """One label per character: id 0 is the blank, `characters[i]` has the id i + 1."""

    def __init__(self, characters: Iterable[str] = ENGLISH_CHARACTERS):
        """Takes the characters in the order of their ids.

        Raises:
          UserError: nothing given, an entry that is not a single character, or a character given twice.
        """
        self._characters = tuple(characters)
        check_symbols(len(self._characters))
        if not self._characters:
            raise UserError("a character vocabulary needs at least one character; none given")
        for character in self._characters:
            if not isinstance(character, str) or len(character) != 1:
                raise UserError(f"{character!r:.80} is not a single character of a character vocabulary")
        self._ids = {character: i + 1 for i, character in enumerate(self._characters)}
        if len(self._ids) != len(self._characters):
            twice = sorted(c for c, times in collections.Counter(self._characters).items() if times > 1)
            raise UserError(f"character vocabulary names {twice[0]!r} more than once; each character is allowed once")

    @property
    def characters(self) -> tuple[str, ...]:
        """The characters in the order of their ids (the first has id 1)."""
        return self._characters

    @property
    def size(self) -> int:
        """V: the number of characters and the blank."""
        return len(self._characters) + 1

    @property
    def blank_id(self) -> int:
        """0."""
        return BLANK_ID

    @property
    def by_character(self) -> bool:
        """True."""
        return True

    @property
    def tokens(self) -> tuple[str, ...]:
        """'' for the blank, and the characters."""
        return ("", *self._characters)

    def encode(self, text: str) -> list[int]:
        """One id in [1, V) for every character of the vocabulary in `text`; the others are dropped."""
        return [self._ids[c] for c in text if c in self._ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of the ids, blanks skipped. ValueError for an id outside [0, V)."""
        return "".join(self._characters[i - 1] for i in check_ids(ids, self.size) if i != BLANK_ID)

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that the vocabulary does not have."""
        return set(text).difference(self._ids)

    def to_json(self) -> dict:
        """{"type": "characters", "characters": [in the order of their ids]}."""
        return {"type": "characters", "characters": list(self._characters)}


class SentencePieceVocabulary:
    """Labels are SentencePiece pieces: id 0 is the blank, piece p of the model has the id p + 1.

    The model's own `unk` piece keeps its id but is never given by `encode`: characters that the
    model does not know are dropped first.
    """

    def __init__(self, model: bytes):
        """Takes a serialized SentencePiece model (the content of a `.model` file).

        Raises:
          UserError: the bytes are not a SentencePiece model.
        """
        import sentencepiece

        self._model = bytes(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{len(self._model)} bytes are not a SentencePiece model: {error}") from error
        if not self._processor.GetPieceSize():
            raise UserError(f"{len(self._model)} bytes are not a SentencePiece model: it has no pieces")
        self._known: set[str] = set()  # characters that were asked for
        self._unknown: set[str] = set()

    @classmethod
    def train(cls, texts: Iterable[str], size: int, *, fewer: bool = False) -> "SentencePieceVocabulary":
        """A unigram model of the given texts, in which every character of the texts is known.

        Args:
          texts: normalised transcripts, one text each.
          size: V, the blank and the model's unknown piece included.
          fewer: whether texts that cannot give so many pieces may give fewer.

        Raises:
          UserError: no text, or a size that these texts cannot give.
        """
        import sentencepiece

        texts = [text for text in texts if text.strip()]
        if not texts:
            raise UserError("a SentencePiece vocabulary cannot be trained: no text given")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                vocab_size=size - 1,
                hard_vocab_limit=not fewer,
                model_type="unigram",
                character_coverage=1.0,
                # The texts are normalised by then, and no sentence marks are wanted among CTC labels.
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                # One thread: the order of floating-point sums, hence the model, must not vary.
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"a SentencePiece vocabulary of size {size} cannot be trained: {reason}") from error
        return cls(written.getvalue())

    @property
    def size(self) -> int:
        """V: the number of pieces and the blank."""
        return self._processor.GetPieceSize() + 1

    @property
    def blank_id(self) -> int:
        """0."""
        return BLANK_ID

    @property
    def by_character(self) -> bool:
        """False."""
        return False

    @property
    def tokens(self) -> tuple[str, ...]:
        """'' for the blank, and the pieces as the model spells them."""
        return ("", *map(self._processor.IdToPiece, range(self._processor.GetPieceSize())))

    def encode(self, text: str) -> list[int]:
        """Ids in [1, V) of the pieces of `text`; characters that the model does not know are dropped first."""
        dropped = self.unknown_characters(text)
        pieces = self._processor.EncodeAsIds("".join(c for c in text if c not in dropped) if dropped else text)
        unknown = self._processor.unk_id()
        return [piece + 1 for piece in pieces if piece != unknown]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the pieces, blanks and the unknown piece skipped. ValueError for an id outside [0, V)."""
        unknown = self._processor.unk_id()
        ids = check_ids(ids, self.size)
        return self._processor.DecodeIds([i - 1 for i in ids if i != BLANK_ID and i - 1 != unknown])

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that the model does not know."""
        characters = set(text)
        for character in characters.difference(self._known, self._unknown):
            unknown = self._processor.unk_id() in self._processor.EncodeAsIds(character)
            (self._unknown if unknown else self._known).add(character)
        return characters.difference(self._known)

    def to_json(self) -> dict:
        """{"type": "sentencepiece", "model": the serialized model in base64}."""
        return {"type": "sentencepiece", "model": base64.b64encode(self._model).decode("ascii")}


class BlankVocabulary:
    """The vocabulary of an encoder that comes without an output layer of its own: the blank, and no text."""

    @property
    def size(self) -> int:
        """1."""
        return 1

    @property
    def blank_id(self) -> int:
        """0."""
        return BLANK_ID

    @property
    def by_character(self) -> bool:
        """True."""
        return True

    @property
    def tokens(self) -> tuple[str, ...]:
        """('',)."""
        return ("",)

    def encode(self, text: str) -> list[int]:
        """[]: every character is dropped."""
        del text
        return []

    def decode(self, ids: Iterable[int]) -> str:
        """'', as there is nothing but the blank. ValueError for an id that is not 0."""
        check_ids(ids, self.size)
        return ""

    def unknown_characters(self, text: str) -> set[str]:
        """All the characters of `text`."""
        return set(text)

    def to_json(self) -> dict:
        """{"type": "blank"}."""
        return {"type": "blank"}


def _sentencepiece(content: dict) -> SentencePieceVocabulary:
    try:
        model = base64.b64decode(content["model"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"the model of a SentencePiece vocabulary is not base64: {error}") from error
    return SentencePieceVocabulary(model)


def _characters(content: dict) -> CharacterVocabulary:
    value = content["characters"]
    if not isinstance(value, list | tuple | str):
        raise UserError(f"the characters of a vocabulary must be a list; got {type(value).__name__}")
    return CharacterVocabulary(value)


# How each type of vocabulary is read, and the fields that it must have with their types (None: checked by the reader).
_TYPES: dict[str, tuple[Callable[[dict], Vocabulary], dict[str, type | None]]] = {
    "blank": (lambda content: BlankVocabulary(), {}),
    "characters": (_characters, {"characters": None}),
    "ctc_tokens": (
        lambda content: CtcTokenVocabulary(**content),
        {
            "tokens": list,
            "blank_id": int,
            "special_ids": list,
            "word_delimiter": str,
            "space": str,
            "lower": bool,
            "clean": bool,
        },
    ),
    "sentencepiece": (_sentencepiece, {"model": None}),
    "tokenizer": (
        lambda content: TokenizerVocabulary(**content),
        {"content": dict, "size": int, "blank_id": int, "special_ids": list, "clean": bool},
    ),
}


def vocabulary_from_json(content: dict) -> Vocabulary:
    """The vocabulary that `to_json` described.

    Raises:
      UserError: not an object of a known type, a missing field, or a field that holds something else.
    """
    if not isinstance(content, dict) or "type" not in content:
        raise UserError(f"a vocabulary must be a JSON object with a 'type'; got {str(content)[:80]!r}")
    kind = content["type"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise UserError(f"vocabulary type {kind!r} is unknown; allowed: {', '.join(_TYPES)}")
    read, fields = _TYPES[kind]
    for field, wanted in fields.items():
        if field not in content:
            raise UserError(f"a vocabulary of type {kind!r} needs the field {field!r}; got {sorted(content)}")
        # True is an int in Python, not in JSON.
        if wanted is not None and type(content[field]) is not wanted:
            got = type(content[field]).__name__
            raise UserError(f"the field {field!r} of a vocabulary must be a {wanted.__name__}; got {got}")
    return read({field: content[field] for field in fields})


def vocabulary_of_outputs(content: dict, outputs: int, *, where: str) -> Vocabulary:
    """The stored vocabulary of an output layer, which must have a symbol for each of its outputs.

    Args:
      content: as `vocabulary_from_json` takes it.
      outputs: of the layer, the blank included.
      where: the folder that it comes from, for errors.

    Raises:
      UserError: as `vocabulary_from_json`, or another number of symbols.
    """
    try:
        vocabulary = vocabulary_from_json(content)
    except UserError as error:
        raise UserError(f"{where}: vocabulary: {error}") from error
    if vocabulary.size != outputs:
        raise UserError(f"{where}: vocabulary: {vocabulary.size:,} symbols; allowed: {outputs:,}, the outputs")
    return vocabulary
