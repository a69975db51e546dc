"""Words with times and confidences: what each label writes, where words meet, and what long audio does to both."""

import itertools
import json

import numpy as np
import pytest

from hra_jax.data import pauses
from hra_jax.decoding import words
from hra_jax.decoding.words import Calibration
from hra_jax.errors import UserError
from hra_jax.text.published_vocabularies import CtcTokenVocabulary, TokenizerVocabulary
from hra_jax.text.vocabularies import CharacterVocabulary, SentencePieceVocabulary

CHARACTERS = CharacterVocabulary()
SENTENCES = ["the train leaves at nine", "turn the light on", "an inn on the hill", "nine trains turn"] * 3


def pieces_of_bytes():
    """A vocabulary in which three labels write one character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "▁", "a", "b", "▁ab", *(f"<0x{number:02X}>" for number in "€".encode())]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], byte_fallback=True, unk_token="<pad>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return TokenizerVocabulary(json.loads(tokenizer.to_str()), size=len(tokens), blank_id=0)


def path_of(text, *, lengths, vocabulary=CHARACTERS, first=0):
    """A path that gives each label `lengths` frames (label, blanks after it) by turns."""
    path = [vocabulary.blank_id] * first
    for label, (held, after) in zip(vocabulary.encode(text), itertools.cycle(lengths), strict=False):
        path += [label] * held + [vocabulary.blank_id] * after
    return np.array(path, np.int32)


def texts_of(labels, vocabulary):
    """What each word of some labels is written with, as text."""
    return [
        vocabulary.decode(labels[span.first : span.last + 1]).strip() for span in words.word_labels(labels, vocabulary)
    ]


@pytest.mark.parametrize(
    "vocabulary",
    [
        CHARACTERS,
        SentencePieceVocabulary.train(SENTENCES, 40, fewer=True),
        CtcTokenVocabulary(["<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"], blank_id=0, lower=True, clean=True),
        CtcTokenVocabulary([*"abcdefghijklmnopqrstuvwxyz", "the", " ", "#"], blank_id=28, word_delimiter=" "),
    ],
    ids=["characters", "pieces", "published symbols", "symbols of several characters"],
)
def test_the_labels_of_a_word_write_that_word(vocabulary):
    for text in [*SENTENCES[:4], " ".join(SENTENCES * 5), "a", ""]:
        labels = vocabulary.encode(text)
        spans = words.word_labels(labels, vocabulary)
        assert [span.text for span in spans] == vocabulary.decode(labels).split()
        assert texts_of(labels, vocabulary) == [span.text for span in spans]
        assert all(before.last < after.first for before, after in itertools.pairwise(spans))


def test_several_labels_that_write_one_character_are_of_its_word_also_across_blocks():
    vocabulary = pieces_of_bytes()
    euro = [5, 6, 7]
    assert vocabulary.decode([4, 1, *euro, 2]) == "ab €a"
    for before in range(words._BLOCK - 4, words._BLOCK + 2):
        labels = [2] * before + [1, *euro, 2, 4]
        first, second, third = words.word_labels(labels, vocabulary)
        assert (first.first, first.last, second.text, third.text) == (0, before - 1, "€a", "ab")
        assert second.first in range(before + 1, before + 4)
        assert second.last == before + 4


def test_words_without_a_pause_meet_in_the_middle_of_the_gap_between_their_labels():
    path = path_of("no one", lengths=[(1, 0), (2, 3), (1, 5), (1, 1), (2, 2), (1, 9)], first=4)
    no, one = words.words_of(path, np.zeros(path.size), CHARACTERS, frame_seconds=0.02, offset=10.0)
    # "o" ends after frame 7, the space is in frame 10, and the second "o" begins with frame 16.
    assert (no.text, one.text) == ("no", "one")
    assert no.end == one.start == pytest.approx(10 + 0.02 * (7 + 16) / 2)
    # Beside silence a word reaches a little further than its labels.
    assert no.start == pytest.approx(10 + 0.02 * 4 - 0.05)
    assert one.end == pytest.approx(10 + 0.02 * 23 + 0.05)
    late = words.words_of(
        path, np.zeros(path.size), CHARACTERS, frame_seconds=0.02, calibration=Calibration(1.0, lag_seconds=0.04)
    )
    assert late[0].end == late[1].start == pytest.approx(0.02 * 11.5 - 0.04)


def test_words_do_not_reach_into_a_pause_nor_out_of_the_recording():
    path = path_of("a b", lengths=[(1, 20), (1, 20), (1, 0)])
    a, b = words.words_of(path, np.zeros(path.size), CHARACTERS, frame_seconds=0.02)
    assert (a.start, a.end) == (0.0, pytest.approx(0.07))
    assert (b.start, b.end) == (pytest.approx(0.02 * 42 - 0.05), pytest.approx(0.02 * 43))


def test_a_word_is_as_sure_as_its_labels_and_the_spaces_beside_it_together():
    path = path_of("so i do", lengths=[(2, 1)])
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.uniform(0.2, 1.0, path.size))
    peaks = np.exp(log_probs.reshape(-1, 3)[:, :2].max(axis=1))  # of s, o, space, i, space, d, o
    found = words.words_of(path, log_probs, CHARACTERS, frame_seconds=0.02)
    expected = [peaks[0:3].prod(), peaks[2:5].prod(), peaks[4:7].prod()]
    assert [word.confidence for word in found] == pytest.approx(expected)
    assert words.confidence_of(found) == pytest.approx(np.mean(expected))
    assert words.confidence_of([]) is None
    # The same from all labels, and with a temperature.
    whole = np.full((path.size, CHARACTERS.size), -20.0)
    whole[np.arange(path.size), path] = log_probs
    flat = words.words_of(path, whole, CHARACTERS, frame_seconds=0.02, calibration=Calibration(temperature=2.0))
    for word, before in zip(flat, expected, strict=True):
        assert word.confidence / (1 - word.confidence) == pytest.approx((before / (1 - before)) ** 0.5, rel=1e-4)


def test_a_word_that_was_searched_for_is_as_sure_as_the_share_of_hypotheses_that_have_it():
    path = path_of("so i do", lengths=[(2, 1)], first=2)
    rivals = [("so i do", -1.0), ("so i did", -1.5), ("i do", -3.0), ("so do", -4.0)]
    weights = np.exp([score for _, score in rivals])
    weights /= weights.sum()
    values = words.agreed_log_probs(path, rivals, CHARACTERS)
    found = words.words_of(path, values, CHARACTERS, frame_seconds=0.02)
    has = [[True, True, False, True], [True, True, True, False], [True, False, True, True]]
    assert [word.confidence for word in found] == pytest.approx([weights[mask].sum() for mask in has], rel=1e-5)
    # Shared over its labels, so that a word that is cut keeps what each part says of it.
    first = words.words_of(path[:3], values[:3], CHARACTERS, frame_seconds=0.02)
    assert first[0].confidence == pytest.approx(found[0].confidence ** 0.5, rel=1e-5)
    assert words.agreed_log_probs(path[:2], [("", -1.0), ("a", -2.0)], CHARACTERS).tolist() == [0.0, 0.0]


def test_what_is_stored_of_a_calibration_is_checked():
    entries = [
        {"name": "a", "calibration": {"temperature": 2, "lag_seconds": -0.01, "words": 5}},
        {"name": "b", "calibration": {"temperature": 2.0, "lag_seconds": 0.0, "search_temperature": 0.5}},
        {"name": "c"},
    ]
    found = words.stored_calibrations(entries, where="A")
    assert found == {"a": Calibration(2, -0.01, None), "b": Calibration(2.0, 0.0, 0.5)}
    assert [found[name].temperature_of_search("any") for name in "ab"] == [None, 0.5]
    known = found["b"]._replace(search_digest="one")
    assert [known.temperature_of_search(digest) for digest in ("one", "other")] == [0.5, None]
    told = {"suite": "v", "ece_before": 0.2, "ece_after": 0.1, "search_digest": "one"}
    assert words.calibration_errors([{"name": "a", "calibration": told}, *entries]) == {"a": told}
    with pytest.raises(UserError, match="calibration has search_digest 3; allowed: a text"):
        words.stored_calibrations([{"name": "d", "calibration": {"search_digest": 3}}], where="A")
    for wrong in ({"temperature": 0.0}, {"temperature": "1"}, {"lag_seconds": float("nan")}, {"temperature": True}):
        with pytest.raises(UserError, match=r"^A: task 'd': calibration has \w+ .*; allowed: finite numbers"):
            words.stored_calibrations([{"name": "d", "calibration": wrong}], where="A")


@pytest.mark.parametrize("temperature", [0.01, 1.0, 50.0])
def test_a_temperature_keeps_the_order_and_the_range(temperature):
    posteriors = [0.0, 1e-300, 1e-9, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0]
    found = [words.calibrated(posterior, temperature=temperature) for posterior in posteriors]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1
    assert found[4] == 0.5
    # What all hypotheses have is no surer than what the temperature was fitted to.
    sure = 1 / (1 + np.exp(-np.log((1 - 1e-6) / 1e-6) / temperature)) if temperature != 1 else 1.0
    assert found[-1] == pytest.approx(sure, abs=1e-12)


def test_nothing_said_is_no_words():
    assert words.words_of(np.zeros(5, np.int32), np.zeros(5), CHARACTERS, frame_seconds=0.02) == ()
    assert words.words_of(np.zeros(0, np.int32), np.zeros(0), CHARACTERS, frame_seconds=0.02) == ()
    spaces = np.array([0, 1, 0], np.int32)
    assert words.words_of(spaces, np.zeros(3), CHARACTERS, frame_seconds=0.02) == ()
    assert words.words_of_chunks([], [], [], CHARACTERS, hop=160, sample_rate=8000) == ()  # all of it is a pause


def test_the_words_of_chunks_have_their_times_in_the_whole_and_say_its_text():
    """Cut in no pause, a word lies in both chunks and is there once; after a pause times go on where the chunk lies."""
    hop, rate = 160, 8000
    whole = path_of("one two three", lengths=[(2, 2)], first=3)
    uncut = words.words_of(whole, np.zeros(whole.size), CHARACTERS, frame_seconds=hop / rate, offset=1.0)
    start, frames = rate, whole.size
    for cut in range(6, frames - 6):
        chunks = [
            pauses.Chunk(start, start + (cut + 4) * hop, 0, cut, after_pause=True),
            pauses.Chunk(start + (cut - 5) * hop, start + frames * hop, 5, 5 + frames - cut, after_pause=False),
            pauses.Chunk(start + 4 * rate, start + 4 * rate + frames * hop - 100, 0, frames, after_pause=True),
        ]
        paths = [whole[: cut + 4], whole[cut - 5 :], whole]
        values = [np.zeros(path.size) for path in paths]
        found = words.words_of_chunks(chunks, paths, values, CHARACTERS, hop=hop, sample_rate=rate)
        assert " ".join(word.text for word in found) == pauses.text(chunks, paths, CHARACTERS)
        for word, expected in zip(found[:3], uncut, strict=True):
            assert (word.text, word.start) == (expected.text, pytest.approx(expected.start))
            assert word.end == pytest.approx(expected.end)
        assert found[3].start == pytest.approx(uncut[0].start + 4)
        assert found[-1].end <= (chunks[-1].stop) / rate
