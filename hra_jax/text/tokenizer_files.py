"""Tokenizer files as encoders are published with: `tokenizer.json`, or `vocab.json` and its settings.

vocab.json                symbols and their ids; or one such object for each language
tokenizer_config.json     tokenizer_class, special tokens, word_delimiter_token, target_lang, ...
special_tokens_map.json   special tokens, in older folders
added_tokens.json         symbols and ids beside those of vocab.json, in older folders
tokenizer.json            a whole tokenizer of the `tokenizers` package
"""

from typing import Any

from etils import epath

from hra_jax.errors import UserError
from hra_jax.storage.json_files import read_object
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary, check_symbols

FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
_CTC_CLASS = "Wav2Vec2CTCTokenizer"
# Special tokens that a CTC tokenizer has where its files name none, in the order in which it would add them.
_DEFAULT_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _read(folder: epath.Path, name: str) -> dict:
    """The JSON object in a file; {} where there is no such file."""
    path = folder / name
    if not path.exists():
        return {}
    return read_object(path)


def _token(value: Any) -> str | None:
    """A token as settings write it: a string, or an object with its 'content'."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _special_tokens(settings: dict, defaults: dict) -> dict[str, str]:
    """Special tokens by their role, the word delimiter left out."""
    known = dict(defaults)
    for role in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        if role in settings:
            known[role] = _token(settings[role])
    more = settings.get("additional_special_tokens", settings.get("extra_special_tokens"))
    more = list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    known |= {f"additional {number}": _token(value) for number, value in enumerate(more)}
    delimiter = _token(settings.get("word_delimiter_token"))
    return {role: token for role, token in known.items() if token is not None and token != delimiter}


def _checked_ids(name: str, symbols: dict) -> dict[str, int]:
    """Symbols and ids, which must be whole numbers and different."""
    owners: dict[int, str] = {}
    for token, number in symbols.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise UserError(f"{name}: {token!r} has the id {number!r}; allowed: whole numbers from 0")
        if owners.setdefault(number, token) != token:
            raise UserError(f"{name}: {owners[number]!r} and {token!r} have the same id {number}; allowed: different")
    return dict(symbols)


def _of_language(path: epath.Path, symbols: dict, language: Any) -> dict:
    """The symbols of the chosen language where there is one object for each."""
    if not any(isinstance(value, dict) for value in symbols.values()):
        return symbols
    if not isinstance(language, str) or not isinstance(symbols.get(language), dict):
        known = ", ".join(sorted(symbols)[:8]) + (", ..." if len(symbols) > 8 else "")
        raise UserError(
            f"{path}: holds a vocabulary for each language; target_lang in tokenizer_config.json is {language!r}; "
            f"allowed: {known}"
        )
    return symbols[language]


def _check_blank(folder: epath.Path, blank_id: int, vocab_size: int, owner: str | None, special: dict) -> None:
    """The tokenizer's pad token is the blank, and must be where the model has it; `owner` is the token of that id."""
    if isinstance(blank_id, bool) or not isinstance(blank_id, int) or not 0 <= blank_id < vocab_size:
        raise UserError(f"{folder}: the blank's id (pad_token_id) is {blank_id!r}; allowed: 0 to {vocab_size - 1}")
    allowed = [special["pad_token"]] if "pad_token" in special else list(special.values())
    if owner is not None and owner not in allowed:
        raise UserError(
            f"{folder}: the model's blank (pad_token_id) is {blank_id}, which the tokenizer calls {owner!r}; "
            f"allowed: the id of its pad token {special.get('pad_token', 'or of another special token')!r}"
        )


def _added_tokens(folder: epath.Path, settings: dict) -> tuple[dict[str, int], set[str]]:
    """Symbols beside those of vocab.json with their ids, and which of them are special."""
    added = _checked_ids(str(folder / "added_tokens.json"), _read(folder, "added_tokens.json"))
    special = set()
    entries = settings.get("added_tokens_decoder", {})
    for number, entry in entries.items() if isinstance(entries, dict) else ():
        token = _token(entry)
        if token is not None and str(number).isdecimal():
            added.setdefault(token, int(number))
            if isinstance(entry, dict) and entry.get("special"):
                special.add(token)
    return added, special


def _from_symbols(folder: epath.Path, settings: dict, vocab_size: int, blank_id: int) -> CtcTokenVocabulary:
    path = folder / "vocab.json"
    symbols = _of_language(path, _read(folder, "vocab.json"), settings.get("target_lang"))
    symbols = _checked_ids(str(path), symbols)
    special = _special_tokens(settings, _DEFAULT_SPECIAL)
    added, marked = _added_tokens(folder, settings)
    # In a vocabulary of one language of many the added tokens are those of another one.
    taken = set(symbols.values())
    for token, number in added.items():
        if number not in taken:
            symbols.setdefault(token, number)
    for token in special.values():
        symbols.setdefault(token, max(symbols.values(), default=-1) + 1)
    delimiter = _token(settings.get("word_delimiter_token", "|")) or "|"
    no_text = ({*special.values(), *marked} & set(symbols)) - {delimiter}
    by_id = {number: token for token, number in _checked_ids(str(path), symbols).items()}
    _check_blank(folder, blank_id, vocab_size, by_id.get(blank_id), special)
    # A delimiter that the model cannot write was added by the tokenizer.
    text = (number for number, token in by_id.items() if token not in no_text and token != delimiter)
    beyond = sorted(number for number in text if number >= vocab_size)
    if beyond:
        raise UserError(
            f"{path}: {by_id[beyond[0]]!r} has the id {beyond[0]}; allowed: 0 to {vocab_size - 1}, the model's outputs"
        )
    holes = sorted(set(range(vocab_size)) - set(by_id))
    if holes:
        raise UserError(
            f"{path}: no symbol has the id {holes[0]}, but the model has {vocab_size} outputs; allowed: one for each"
        )
    space = settings.get("replace_word_delimiter_char", " ")
    return CtcTokenVocabulary(
        [by_id[number] for number in range(vocab_size)],
        blank_id=blank_id,
        special_ids=[symbols[token] for token in no_text if symbols[token] < vocab_size],
        word_delimiter=delimiter,
        space=space if isinstance(space, str) else " ",
        lower=settings.get("do_lower_case") is True,
        clean=settings.get("clean_up_tokenization_spaces") is True,
    )


def _from_tokenizer(folder: epath.Path, settings: dict, vocab_size: int, blank_id: int) -> TokenizerVocabulary:
    content = _read(folder, "tokenizer.json")
    model = content.get("model")
    if not isinstance(model, dict):
        raise UserError(f"{folder / 'tokenizer.json'}: has no object 'model'; it is not a tokenizer")
    entries = content.get("added_tokens")
    added = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    words = model.get("vocab")
    if isinstance(words, dict):
        ids = _checked_ids(str(folder / "tokenizer.json"), words)
    else:
        pairs = words if isinstance(words, list) else []
        tokens = [pair[0] if isinstance(pair, list) and pair else None for pair in pairs]
        ids = {token: number for number, token in enumerate(tokens) if isinstance(token, str)}
    ids |= {token: entry["id"] for entry in added if (token := _token(entry)) and isinstance(entry.get("id"), int)}
    special = _special_tokens(settings, {})
    marked = {f"marked {number}": _token(entry) for number, entry in enumerate(added) if entry.get("special")}
    owner = next((token for token, number in ids.items() if number == blank_id), None)
    _check_blank(folder, blank_id, vocab_size, owner, {**marked, **special})
    try:
        return TokenizerVocabulary(
            content,
            size=vocab_size,
            blank_id=blank_id,
            special_ids=[ids[token] for token in special.values() if ids.get(token, vocab_size) < vocab_size],
            # The pieces of BPE hold their spaces; transformers does not clean them either.
            clean=settings.get("clean_up_tokenization_spaces") is True and model.get("type") != "BPE",
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def vocabulary_from_folder(
    folder: epath.PathLike, vocab_size: int, blank_id: int
) -> CtcTokenVocabulary | TokenizerVocabulary | None:
    """The vocabulary of the tokenizer files in a published model folder.

    Args:
      folder: the folder.
      vocab_size: V, the outputs of the model's CTC layer.
      blank_id: the model's blank (its `pad_token_id`).

    Returns:
      The vocabulary, which holds all of the files that it needs; None where the folder has no tokenizer.

    Raises:
      UserError: a damaged file, a tokenizer of another kind, ids that are given twice, that are missing below V or that
        are beyond it, or a blank that is not the tokenizer's pad token.
    """
    folder = epath.Path(folder)
    try:
        check_symbols(vocab_size)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    has_symbols, has_tokenizer = ((folder / name).exists() for name in ("vocab.json", "tokenizer.json"))
    if not has_symbols and not has_tokenizer:
        return None
    settings = {**_read(folder, "special_tokens_map.json"), **_read(folder, "tokenizer_config.json")}
    kind = settings.get("tokenizer_class")
    if has_symbols and (kind == _CTC_CLASS or (kind is None and not has_tokenizer)):
        return _from_symbols(folder, settings, vocab_size, blank_id)
    if not has_tokenizer:
        raise UserError(
            f"{folder}: tokenizer_class is {kind!r} and there is no tokenizer.json; allowed: {_CTC_CLASS}, or any "
            "class with a tokenizer.json"
        )
    return _from_tokenizer(folder, settings, vocab_size, blank_id)
