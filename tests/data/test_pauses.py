"""Where long audio is cut, and how what is said in the pieces becomes one text."""

import numpy as np
import pytest

from hra_jax.data import pauses
from hra_jax.errors import UserError
from hra_jax.text.vocabularies import CharacterVocabulary

RATE, HOP = 8000, 160


def speech(seconds, *, rng, level=0.1):
    """Noise whose loudness goes up and down as syllables do."""
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * rng.standard_normal(len(time)) * (0.3 + np.abs(np.sin(2 * np.pi * 2.5 * time)))).astype(np.float32)


def sentences(lengths, *, pause, rng, below_db=20):
    """Speech with pauses of room noise, and where the pauses are, as (start, stop) in samples."""
    quiet = 10 ** (-below_db / 20)
    pieces, holes, at = [], [], 0
    for number, seconds in enumerate(lengths):
        if number:
            noise = 0.1 * quiet * rng.standard_normal(int(pause * RATE))
            pieces.append(noise.astype(np.float32))
            holes.append((at, at + len(pieces[-1])))
            at += len(pieces[-1])
        pieces.append(speech(seconds, rng=rng))
        at += len(pieces[-1])
    return np.concatenate(pieces), holes


def cut(waveform, longest):
    return pauses.chunks(waveform, HOP, sample_rate=RATE, longest_seconds=longest)


@pytest.mark.parametrize("longest", [3.0, 5.0, 9.5, 1000.0])
@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_chunks_leave_out_nothing_but_pauses_and_none_is_too_long(longest, pause):
    rng = np.random.default_rng(0)
    waveform, holes = sentences(rng.uniform(0.8, 4, 30), pause=pause, rng=rng)
    found = cut(waveform, longest)
    kept = np.zeros(len(waveform), int)
    for chunk in found:
        assert 0 <= chunk.start < chunk.stop <= len(waveform) and chunk.stop - chunk.start <= longest * RATE
        assert 0 <= chunk.first < chunk.last <= -(-(chunk.stop - chunk.start) // HOP)
        kept[chunk.start + chunk.first * HOP : min(chunk.start + chunk.last * HOP, chunk.stop)] += 1
    assert kept.max() == 1
    paused = np.zeros(len(waveform), bool)
    for start, stop in holes:
        paused[start:stop] = True
    assert kept[~paused].mean() > 0.97
    assert len(found) == 1 if longest == 1000 else kept[paused].sum() < 0.3 * max(paused.sum(), 1)


@pytest.mark.parametrize("below_db", [18, 40, 200])
def test_every_pause_is_found_and_nothing_else_within_two_frames(below_db):
    rng = np.random.default_rng(1)
    waveform, holes = sentences(rng.uniform(0.8, 2.6, 40), pause=0.5, rng=rng, below_db=below_db)
    found = cut(waveform, 3.0)
    assert all(chunk.after_pause for chunk in found)
    ends = np.array([(before.stop, after.start) for before, after in zip(found[:-1], found[1:], strict=True)])
    np.testing.assert_allclose(ends, holes, atol=2 * 0.02 * RATE)


def test_noise_before_and_after_a_sentence_stays_with_it_where_the_pause_is_quieter():
    rng = np.random.default_rng(4)
    pieces, holes = [], []
    for number in range(20):
        if number:
            start = sum(map(len, pieces))
            pieces.append((0.005 * rng.standard_normal(RATE // 2)).astype(np.float32))
            holes.append((start, start + RATE // 2))
        # A recording that begins and ends with half a second of its own noise, 13 dB above that of the pauses.
        said = np.pad(speech(rng.uniform(1, 2), rng=rng), RATE // 2)
        pieces.append((said + 0.022 * rng.standard_normal(len(said))).astype(np.float32))
    found = cut(np.concatenate(pieces), 4.0)
    assert all(chunk.after_pause for chunk in found)
    ends = np.array([(before.stop, after.start) for before, after in zip(found[:-1], found[1:], strict=True)])
    np.testing.assert_allclose(ends, holes, atol=2 * 0.02 * RATE)


def test_where_there_is_no_pause_both_sides_hear_some_of_each_other():
    found = cut(speech(30, rng=np.random.default_rng(2)), 5.0)
    assert len(found) > 5 and [chunk.after_pause for chunk in found] == [True] + [False] * (len(found) - 1)
    for before, after in zip(found[:-1], found[1:], strict=True):
        assert before.start + before.last * HOP == after.start + after.first * HOP
        assert after.first > 0 and before.stop > before.start + before.last * HOP


def test_the_cuts_are_the_cheapest_of_all():
    rng = np.random.default_rng(3)
    for _ in range(20):
        prices, longest, context = rng.random(11), int(rng.integers(4, 7)), 1

        def cost(edges, prices=prices, longest=longest, context=context):
            for first, last in zip(edges[:-1], edges[1:], strict=True):
                if last - first + context * ((first > 0) + (last < 11)) > longest:
                    return np.inf
            return sum(prices[edge] for edge in edges[1:-1])

        ways = [[0, *(n + 1 for n in range(10) if choice >> n & 1), 11] for choice in range(2**10)]
        found = pauses._cheapest_cuts(prices, longest=longest, context=context)
        assert cost([0, *found, 11]) == pytest.approx(min(map(cost, ways)), abs=1e-9)


def test_loudness_does_not_matter_nor_does_silence_elsewhere():
    rng = np.random.default_rng(4)
    waveform, _ = sentences([2.0] * 20, pause=0.5, rng=rng)
    found = cut(waveform, 3.0)
    assert cut(1e-3 * waveform, 3.0) == found == cut(1e30 * waveform, 3.0)
    later = cut(np.concatenate([np.zeros(40 * RATE, np.float32), waveform]), 3.0)
    assert [chunk.start - 40 * RATE for chunk in later] == [chunk.start for chunk in found]


def test_silence_says_nothing_and_what_is_short_is_one_chunk_pauses_and_all():
    assert cut(np.zeros(100, np.float32), 3.0) == [pauses.Chunk(0, 100, 0, 1, after_pause=True)]
    assert pauses.text([], [], CharacterVocabulary("ab")) == ""
    waveform, _ = sentences([1.0, 1.0], pause=0.5, rng=np.random.default_rng(5))
    assert cut(waveform, 3.0) == [pauses.Chunk(0, len(waveform), 0, len(waveform) // HOP, after_pause=True)]
    assert all(0 < chunk.stop - chunk.start <= 3 * RATE for chunk in cut(np.zeros(20 * RATE, np.float32), 3.0))


def test_pauses_part_words_and_other_cuts_do_not():
    vocabulary = CharacterVocabulary("ab")
    a, b, blank = vocabulary.encode("a")[0], vocabulary.encode("b")[0], vocabulary.blank_id
    chunks = [
        pauses.Chunk(0, 5, 0, 4, after_pause=True),
        pauses.Chunk(3, 8, 1, 5, after_pause=False),
        pauses.Chunk(9, 11, 0, 2, after_pause=True),
        pauses.Chunk(12, 14, 0, 2, after_pause=True),
    ]
    paths = [[a, blank, b, b, a], [a, b, blank, a, a], [blank, blank], [a, b]]
    # The last `a` of the first path is beyond its cut, and so is the first of the second one.
    assert pauses.text(chunks, [np.array(path) for path in paths], vocabulary) == "aba ab"


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "3"])
def test_a_length_that_is_none_is_refused_in_one_line(value):
    with pytest.raises(UserError, match=r"chunk_seconds = .*allowed are numbers of seconds above 0"):
        pauses.check_seconds(value)


def test_levels_are_those_of_the_whole_sound_however_long_it_is():
    size = 16
    sound = speech(2.3 * pauses._BLOCK * size / RATE, rng=np.random.default_rng(7), level=3.0)
    scaled = sound.astype(np.float64) / np.abs(sound).max()
    changes = np.diff(scaled, prepend=scaled[0])
    powers = [
        np.mean(np.pad(part, (0, size - len(part))) ** 2) for part in np.split(changes, range(size, len(sound), size))
    ]
    np.testing.assert_allclose(pauses._levels(sound, size), 10 * np.log10(np.array(powers) + 1e-12), atol=1e-2)
