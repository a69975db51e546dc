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
    """Speech with pauses of room noise, and where the pauses are, as (start, stop) in frames."""
    quiet = 10 ** (-below_db / 20)
    pieces, holes, at = [], [], 0
    for number, seconds in enumerate(lengths):
        if number:
            pieces.append(speech(pause, rng=rng, level=0.1 * quiet))
            holes.append((at / HOP, (at + len(pieces[-1])) / HOP))
            at += len(pieces[-1])
        pieces.append(speech(seconds, rng=rng))
        at += len(pieces[-1])
    return np.concatenate(pieces), holes


def cut(waveform, longest):
    return pauses.chunks(waveform, HOP, sample_rate=RATE, longest_seconds=longest)


@pytest.mark.parametrize("longest", [3.0, 5.0, 9.5, 1000.0])
@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_chunks_hold_every_frame_once_and_none_is_too_long(longest, pause):
    rng = np.random.default_rng(0)
    waveform, _ = sentences(rng.uniform(0.8, 2.9, 30), pause=pause, rng=rng)
    found, frames = cut(waveform, longest), -(-len(waveform) // HOP)
    assert [chunk.first for chunk in found] == [0, *(chunk.last for chunk in found[:-1])]
    assert found[-1].last == found[-1].stop == frames and found[0].start == 0 and found[0].after_pause
    for chunk in found:
        assert 0 <= chunk.start <= chunk.first < chunk.last <= chunk.stop <= frames
        assert (chunk.stop - chunk.start) * HOP <= longest * RATE
    assert longest < 1000 or len(found) == 1


@pytest.mark.parametrize("below_db", [18, 40, 200])
def test_cuts_lie_in_pauses_where_there_are_enough_of_them(below_db):
    rng = np.random.default_rng(1)
    waveform, holes = sentences(rng.uniform(0.8, 2.6, 40), pause=0.5, rng=rng, below_db=below_db)
    found = cut(waveform, 3.0)
    assert len(found) > 20
    for chunk in found[1:]:
        assert chunk.after_pause and chunk.start == chunk.first
        assert any(start + 4 < chunk.first < stop - 4 for start, stop in holes)


def test_where_there_is_no_pause_both_sides_hear_some_of_each_other():
    found = cut(speech(30, rng=np.random.default_rng(2)), 5.0)
    assert len(found) > 5
    for before, chunk in zip(found[:-1], found[1:], strict=True):
        assert not chunk.after_pause
        assert chunk.start < chunk.first and before.stop > before.last


def test_the_cuts_are_the_cheapest_of_all():
    rng = np.random.default_rng(3)
    for _ in range(20):
        prices, quiet = rng.random(11).astype(np.float32), rng.random(11) < 0.3
        longest, context = int(rng.integers(4, 7)), 1
        beyond = np.append(np.where(quiet, 0, context), 0)
        beyond[0] = 0

        def cost(edges, prices=prices, beyond=beyond, longest=longest):
            spans = zip(edges[:-1], edges[1:], strict=True)
            if any(stop + beyond[stop] - start + beyond[start] > longest for start, stop in spans):
                return np.inf
            return sum(prices[edge] for edge in edges[1:-1])

        ways = [[0, *(n + 1 for n in range(10) if choice >> n & 1), 11] for choice in range(2**10)]
        best = min(map(cost, ways))
        found = pauses._cheapest_cuts(prices, quiet, longest=longest, context=context)
        assert cost([0, *found, 11]) == pytest.approx(best, abs=1e-6)


def test_loudness_does_not_matter_nor_does_a_loud_speaker_elsewhere():
    rng = np.random.default_rng(4)
    waveform, _ = sentences([2.0] * 20, pause=0.5, rng=rng)
    found = cut(waveform, 3.0)
    assert cut(1e-3 * waveform, 3.0) == found
    louder = np.concatenate([waveform, np.zeros(12 * RATE, np.float32), 10 * waveform])
    assert [chunk for chunk in cut(louder, 3.0) if chunk.last < found[-1].first][:-1] == found[: len(found) - 3]


def test_silence_and_what_is_short_are_one_matter():
    assert cut(np.zeros(100, np.float32), 3.0) == [pauses.Chunk(0, 1, 0, 1, after_pause=True)]
    assert all(chunk.after_pause for chunk in cut(np.zeros(20 * RATE, np.float32), 3.0))


def test_pauses_part_words_and_other_cuts_do_not():
    vocabulary = CharacterVocabulary("ab")
    a, b, blank = vocabulary.encode("a")[0], vocabulary.encode("b")[0], vocabulary.blank_id
    chunks = [
        pauses.Chunk(0, 5, 0, 4, after_pause=True),
        pauses.Chunk(3, 8, 4, 8, after_pause=False),
        pauses.Chunk(8, 10, 8, 10, after_pause=True),
        pauses.Chunk(10, 12, 10, 12, after_pause=True),
    ]
    paths = [[a, blank, b, b, a], [a, b, blank, a, a], [blank, blank], [a, b]]
    # The last `a` of the first path is beyond its cut, and so is the first of the second one.
    assert pauses.text(chunks, [np.array(path) for path in paths], vocabulary) == "aba ab"


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "3"])
def test_a_length_that_is_none_is_refused_in_one_line(value):
    with pytest.raises(UserError, match=r"chunk_seconds = .*allowed are numbers of seconds above 0"):
        pauses.check_seconds(value)
