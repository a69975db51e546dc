"""Vocabularies of published tokenizers: their ids, their texts, their case, and folders that contradict themselves."""

import json
import random
import tracemalloc

import pytest

from hra_jax.errors import UserError
from hra_jax.text import vocabularies
from hra_jax.text.normalization import normalize_text
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary
from hra_jax.text.tokenizer_files import vocabulary_from_folder

UPPER = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"EATOHLWRD'"])}
SENTENCES = [
    "turn the kitchen light on",
    "don't call anna before nine",
    "the train leaves on the third of may",
    "what is the weather like in the morning",
]


def write(folder, **files):
    """Writes JSON files; `vocab` is vocab.json. Returns the folder."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def bpe(folder, *, size=60, blank="<pad>"):
    """A folder as Parakeet has it: BPE pieces that mark the start of a word, the blank behind them. Returns V."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if blank:
        tokenizer.add_special_tokens([AddedToken(blank, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, tokenizer_config={"tokenizer_class": "ParakeetTokenizer", "pad_token": "<pad>", "unk_token": "<unk>"})
    return tokenizer.get_vocab_size() + (0 if blank else 1)


def unigram(folder):
    """A folder as LASR has it: the unknown piece has the id of the space, and a mark ends every text. Returns V."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(set("".join(SENTENCES)) - {" "})
    words = ["▁the", "▁on", "in", "ing"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -1.5) for word in words] + [(letter, -3.0) for letter in letters] + [("<extra_id_0>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    metaspace = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    tokenizer.decoder = decoders.Metaspace(**metaspace)
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, tokenizer_config={"tokenizer_class": "LasrTokenizer", "pad_token": "<pad>", "eos_token": "</s>"})
    return len(pieces)


def restored(vocabulary):
    """The vocabulary after a trip through JSON."""
    return vocabularies.vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json())))


# --- Symbols ----------------------------------------------------------------------------------------------------------


def test_an_upper_case_vocabulary_keeps_every_letter_of_lower_case_text(tmp_path):
    vocabulary = vocabulary_from_folder(write(tmp_path, vocab=UPPER), len(UPPER), 0)
    assert isinstance(vocabulary, CtcTokenVocabulary) and isinstance(vocabulary, vocabularies.Vocabulary)
    assert vocabulary.case == "upper" and vocabulary.blank_id == 0 and vocabulary.size == len(UPPER)
    assert vocabulary.encode("hello world") == [UPPER[c] for c in "HELLO|WORLD"] == vocabulary.encode("HELLO WORLD")
    assert vocabulary.unknown_characters("hello world") == set()
    assert vocabulary.decode([0, 1, *vocabulary.encode("hello world"), 3, 0, 2]) == "HELLO WORLD"
    assert normalize_text(vocabulary.decode(vocabulary.encode("the older")), "basic") == "the older"


def test_a_letter_is_written_in_its_other_case_only_where_its_own_is_missing(tmp_path):
    tokens = {token: number for number, token in enumerate(["<pad>", "|", *"aABé"])} | {"<unk>": 6, "<s>": 7, "</s>": 8}
    vocabulary = vocabulary_from_folder(write(tmp_path, vocab=tokens), 9, 0)
    assert vocabulary.case == "as is"
    assert vocabulary.decode(vocabulary.encode("a A b B é É q Q")) == "a A B B é é"
    assert vocabulary.unknown_characters("a A b B é É q Q") == {"q", "Q"}


def test_special_tokens_written_in_a_text_are_not_labels(tmp_path):
    vocabulary = vocabulary_from_folder(write(tmp_path, vocab=UPPER), len(UPPER), 0)
    assert not {0, 1, 2, 3} & set(vocabulary.encode("a <s> <pad> </s> <unk> h"))
    assert {"<", ">", "/"} <= vocabulary.unknown_characters("a <s> </s>")


def test_settings_of_the_tokenizer_are_kept_through_json(tmp_path):
    tokens = {"h": 0, "i": 1, "_": 2, "[UNK]": 3, "[PAD]": 4, "ng": 5}
    settings = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}, "word_delimiter_token": "_"}
    settings |= {"replace_word_delimiter_char": "-", "do_lower_case": True, "bos_token": None, "eos_token": None}
    write(tmp_path, vocab=tokens, tokenizer_config={"tokenizer_class": "Wav2Vec2CTCTokenizer", **settings})
    vocabulary = vocabulary_from_folder(tmp_path, 6, 4)
    assert vocabulary.encode("hi nghi hi") == [0, 1, 5, 0, 1, 2, 0, 1]  # a symbol of two letters takes the space
    assert vocabulary.unknown_characters("Hi ng g") == {"g"}
    for form in (vocabulary, restored(vocabulary)):
        assert form.blank_id == 4 and form.size == 6
        assert form.decode([4, 0, 1, 2, 3, 5, 4]) == "hi-ng"
        assert form.to_json() == vocabulary.to_json()


def test_special_tokens_beside_the_symbols_may_have_outputs_or_not(tmp_path):
    tokens = {"a": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, vocab=tokens, special_tokens_map=settings, added_tokens={"<s>": 4, "</s>": 5})
    for size in (4, 6):
        vocabulary = vocabulary_from_folder(tmp_path, size, 3)
        assert vocabulary.size == size
        assert vocabulary.decode(range(size)) == "a"
    (tmp_path / "added_tokens.json").unlink()  # the tokenizer then adds them itself, behind the others
    assert vocabulary_from_folder(tmp_path, 6, 3).tokens[4:] == ("<s>", "</s>")


def test_a_delimiter_that_the_tokenizer_added_behind_the_outputs_is_fine(tmp_path):
    added = {"3": {"content": "|", "special": False}}
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "bos_token": None, "eos_token": None, "unk_token": None}
    settings |= {"pad_token": "[PAD]", "word_delimiter_token": "|", "added_tokens_decoder": added}
    write(tmp_path, vocab={"[PAD]": 0, "你": 1, "好": 2}, tokenizer_config=settings)
    vocabulary = vocabulary_from_folder(tmp_path, 3, 0)
    assert vocabulary.encode("你 好") == [1, 2] and vocabulary.decode([1, 0, 2]) == "你好"
    added["3"]["content"] = "吗"
    write(tmp_path, tokenizer_config=settings)
    with pytest.raises(UserError, match="'吗' has the id 3; allowed: 0 to 2, the model's outputs"):
        vocabulary_from_folder(tmp_path, 3, 0)


def test_one_language_of_many_is_chosen_by_name(tmp_path):
    tokens = {"eng": UPPER, "deu": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "ü": 5}}
    write(tmp_path, vocab=tokens, tokenizer_config={"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "deu"})
    assert vocabulary_from_folder(tmp_path, 6, 0).encode("ü ü") == [5, 4, 5]
    write(tmp_path, tokenizer_config={"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "fra"})
    with pytest.raises(UserError, match="target_lang in tokenizer_config.json is 'fra'; allowed: deu, eng"):
        vocabulary_from_folder(tmp_path, 6, 0)


def test_a_folder_without_a_tokenizer_has_no_vocabulary(tmp_path):
    write(tmp_path, config={"vocab_size": None}, tokenizer_config={"pad_token": "<pad>"})
    assert vocabulary_from_folder(tmp_path, 32, 0) is None


@pytest.mark.parametrize(
    "files, size, blank, message",
    [
        ({}, 12, 0, "has the id 12; allowed: 0 to 11"),
        ({}, 20, 0, "no symbol has the id 15, but the model has 20 outputs"),
        ({}, 15, 15, "is 15; allowed: 0 to 14"),
        ({}, 15, None, "is None; allowed"),
        ({}, 15, 3, "calls '<unk>'; allowed: the id of its pad token '<pad>'"),
        ({"vocab": UPPER | {"X": 5}}, 15, 0, "'E' and 'X' have the same id 5"),
        ({"vocab": '{"a": 1, "a": 2}'}, 15, 0, "the key 'a' is given twice"),
        ({"vocab": UPPER | {"E": "5"}}, 15, 0, "'E' has the id '5'; allowed: whole numbers"),
        ({"vocab": [1]}, 15, 0, r"must be a JSON object; got \[1\]"),
        ({"vocab": "{"}, 15, 0, "not JSON"),
        ({"tokenizer_config": {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}}, 15, 0, "'Wav2Vec2Phoneme"),
        ({"tokenizer_config": {"tokenizer_class": "XTokenizer"}, "tokenizer": {}}, 15, 0, "is not a tokenizer"),
    ],
)
def test_a_folder_that_contradicts_itself_is_one_clear_line(tmp_path, files, size, blank, message):
    write(tmp_path, **({"vocab": UPPER} | files))
    with pytest.raises(UserError, match=message) as caught:
        vocabulary_from_folder(tmp_path, size, blank)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["<pad>", None])
def test_pieces_keep_their_ids_and_the_blank_is_the_last_one(tmp_path, blank):
    size = bpe(tmp_path, blank=blank)
    vocabulary = vocabulary_from_folder(tmp_path, size, size - 1)
    assert isinstance(vocabulary, TokenizerVocabulary) and isinstance(vocabulary, vocabularies.Vocabulary)
    for form in (vocabulary, restored(vocabulary)):
        assert form.size == size and form.blank_id == size - 1 and form.case == "lower"
        for sentence in [*SENTENCES, "a new line"]:
            labels = form.encode(sentence)
            assert len(labels) < len(sentence) and size - 1 not in labels and 0 not in labels
            assert form.decode([size - 1, *labels, size - 1]) == sentence
            assert form.encode(sentence.upper()) == labels


@pytest.mark.parametrize("make, blank", [(bpe, -1), (unigram, 0)])
def test_what_pieces_do_not_know_is_dropped_and_named(tmp_path, make, blank):
    size = make(tmp_path)
    vocabulary = vocabulary_from_folder(tmp_path, size, blank % size)
    assert vocabulary.unknown_characters("turn \u00e9 the 5t\u00e9") == {"\u00e9", "5"}
    assert vocabulary.decode(vocabulary.encode("turn \u00e9 th5e \u00e9t")).split() == ["turn", "the", "t"]
    assert vocabulary.unknown_characters("turn on the light") == set()
    assert vocabulary.encode("\u00e9") == vocabulary.encode("") == vocabulary.encode(" ") == []
    assert blank % size not in vocabulary.encode("the <pad> train")


def test_the_mark_at_the_end_is_a_label_and_no_text(tmp_path):
    size = unigram(tmp_path)
    vocabulary = vocabulary_from_folder(tmp_path, size, 0)
    labels = vocabulary.encode("the train")
    assert labels[-1] == 1 and labels[0] == 4 and 3 in labels  # </s>, a word, and a space that is a piece
    assert vocabulary.decode([0, *labels, size - 1]) == "the train"


def test_a_tokenizer_without_an_unknown_piece_still_names_what_it_drops():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "b": 2, "▁a": 3}, merges=[("▁", "a")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    vocabulary = TokenizerVocabulary(json.loads(tokenizer.to_str()), size=5, blank_id=4)
    assert vocabulary.unknown_characters("ab \u00e9a") == {"\u00e9"}
    assert vocabulary.decode(vocabulary.encode("AB \u00e9a")) == "ab a"


@pytest.mark.parametrize(
    "size, blank, message",
    [
        (59, 5, "calls '.*'; allowed: the id of its pad token '<pad>'"),
        (3, 3, "is 3; allowed: 0 to 2"),
        (1, 1, "is 1; allowed: 0 to 0"),
        (100, -1, "has no piece for the id"),
        (0, 5, "calls '.*'; allowed: the id of its pad token '<pad>'"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_model_is_one_clear_line(tmp_path, size, blank, message):
    size = size or bpe(tmp_path)
    bpe(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        vocabulary_from_folder(tmp_path, size, blank if blank >= 0 else size - 1)
    assert "\n" not in str(caught.value)


def test_a_piece_of_text_is_neither_beyond_the_outputs_nor_the_blank(tmp_path):
    size = bpe(tmp_path, blank=None)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="has the id 40; allowed: 0 to 39"):
        TokenizerVocabulary(content, size=40, blank_id=0)
    write(tmp_path, tokenizer_config={"tokenizer_class": "ParakeetTokenizer"})  # which names no pad token
    assert vocabulary_from_folder(tmp_path, size, size - 1).blank_id == size - 1
    with pytest.raises(UserError, match="is 7, which the tokenizer calls '.*'; allowed: the id of its pad token"):
        vocabulary_from_folder(tmp_path, size - 1, 7)


def test_a_damaged_tokenizer_is_one_clear_line(tmp_path):
    write(tmp_path, tokenizer={"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}})
    with pytest.raises(UserError, match="tokenizer.json cannot be read") as caught:
        vocabulary_from_folder(tmp_path, 2, 1)
    assert "\n" not in str(caught.value)


# --- Against transformers ---------------------------------------------------------------------------------------------


def random_texts(characters, count=300):
    """Random strings of words without spaces at their ends."""
    rng = random.Random(5)
    words = ("".join(rng.choices(characters, k=rng.randint(1, 6))) for _ in range(100_000))
    return [" ".join(next(words) for _ in range(rng.randint(1, 6))) for _ in range(count)]


def check_equal(vocabulary, published, texts):
    """Ids and decoded texts, of the texts and of random ids, are those of the published tokenizer."""
    rng = random.Random(6)
    for sentence in texts:
        labels = vocabulary.encode(sentence)
        assert labels == published(sentence).input_ids
        for ids in (labels, [rng.randrange(vocabulary.size) for _ in range(12)]):
            assert vocabulary.decode(ids) == published.decode(ids, skip_special_tokens=True, group_tokens=False)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"do_lower_case": True}, {"word_delimiter_token": "_"}, {"clean": True}])
def test_symbols_equal_the_published_tokenizer(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    settings = {"word_delimiter_token": "|"} | changes
    clean = settings.pop("clean", False)
    tokens = {
        t: n for n, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", settings["word_delimiter_token"], *"ABC'.", "NG"])
    }
    write(tmp_path, vocab=tokens)
    published = transformers.Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), clean_up_tokenization_spaces=clean, **settings
    )
    published.save_pretrained(tmp_path / "saved")
    vocabulary = restored(vocabulary_from_folder(tmp_path / "saved", len(tokens), published.pad_token_id))
    texts = random_texts([*("abcABC'." if changes.get("do_lower_case") else "ABC'."), "NG"])
    check_equal(vocabulary, published, texts)


@pytest.mark.slow
@pytest.mark.parametrize("make, blank, name", [(bpe, -1, "ParakeetTokenizer"), (unigram, 0, "PreTrainedTokenizerFast")])
def test_pieces_equal_the_published_tokenizer(tmp_path, make, blank, name):
    transformers = pytest.importorskip("transformers")
    size = make(tmp_path)
    cls = getattr(transformers, name)
    published = cls(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>", unk_token="<unk>")
    published.save_pretrained(tmp_path / "saved")
    vocabulary = restored(vocabulary_from_folder(tmp_path / "saved", size, blank % size))
    letters = sorted(set("".join(SENTENCES)) - {" "})
    check_equal(vocabulary, published, random_texts(letters) + SENTENCES)


def test_a_vocabulary_of_any_size_is_refused_before_anything_is_made_for_it(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "<pad>": 1}')
    message = "a vocabulary of 1,000,000,000 symbols; allowed: at most 1,048,576"
    tracemalloc.start()
    for make in (
        lambda: vocabulary_from_folder(tmp_path, 10**9, 1),
        lambda: TokenizerVocabulary({}, size=10**9, blank_id=0),
        lambda: vocabularies.vocabulary_from_json(
            {"type": "tokenizer", "content": {}, "size": 10**9, "blank_id": 0, "special_ids": [], "clean": False}
        ),
    ):
        with pytest.raises(UserError, match=message):
            make()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
