"""Subtitles: what a viewer can read, and what a player takes for a cue."""

from typing import NamedTuple

import pytest

from hra_jax.text import subtitles


class Word(NamedTuple):
    text: str
    start: float
    end: float


def spoken(text, *, seconds=0.4, start=0.0, gaps=None):
    """The words of a text, one after another; `gaps` are the seconds of silence after some of them, by number."""
    words = []
    for number, word in enumerate(text.split()):
        words.append(Word(word, start, start + seconds))
        start += seconds + (gaps or {}).get(number, 0.0)
    return words


LONG = " ".join(["what somebody says who does not stop for breath in any of the sentences that there are"] * 20)


def test_srt_is_numbered_blocks_with_commas_in_times():
    words = [*spoken("good morning", start=0.1), *spoken("all of you", start=3725.5)]
    assert subtitles.srt(words) == (
        "1\n00:00:00,100 --> 00:00:01,100\ngood morning\n\n2\n01:02:05,500 --> 01:02:06,700\nall of you\n"
    )


def test_vtt_has_a_head_and_points_in_times():
    assert subtitles.vtt(spoken("good morning", start=0.1)) == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:01.100\ngood morning\n"
    )


def test_nothing_said_is_a_file_without_cues():
    assert subtitles.srt([]) == ""
    assert subtitles.vtt([]) == "WEBVTT\n"


def test_what_is_said_is_no_markup_and_no_time():
    words = spoken("a --> b <i> & &lt;")
    assert "a --&gt; b &lt;i&gt; &amp; &amp;lt;" in subtitles.vtt(words)
    assert subtitles.srt(words).splitlines()[2] == "a -> b <i> & &lt;"


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.5])
def test_every_cue_can_be_read_and_all_words_are_there_once(seconds):
    words = spoken(LONG, seconds=seconds)
    cues = subtitles.cues(words)
    assert " ".join(line for cue in cues for line in cue.lines) == LONG
    for cue in cues:
        assert len(cue.lines) <= 2
        assert all(len(line) <= 42 for line in cue.lines)
        assert cue.end - cue.start <= 7000
    for cue, following in zip(cues, cues[1:], strict=False):
        assert cue.start < cue.end <= following.start


def test_cues_end_at_pauses():
    words = spoken(LONG, seconds=0.3, gaps={12: 0.4, 24: 0.5, 40: 1.2})
    starts = {cue.start for cue in subtitles.cues(words)}
    for number in (13, 25, 41):
        assert round(1000 * words[number].start) in starts
    # Where one cue holds everything, a short pause is no reason for two.
    assert len(subtitles.cues(spoken("one two three four", gaps={1: 0.3}))) == 1
    assert len(subtitles.cues(spoken("one two three four", gaps={1: 1.1}))) == 2


def test_a_short_cue_stays_for_a_second_but_not_into_the_next():
    first, second = subtitles.cues([Word("yes", 1.0, 1.2), Word("no", 2.3, 2.5)])
    assert (first.end, second.end) == (2000, 3300)
    first, second = subtitles.cues([Word("yes", 1.0, 1.2), Word("x" * 42 + "y" * 42, 1.3, 15.3)])[:2]
    assert first.end == second.start == 1300


def test_every_cue_ends_after_it_begins_also_of_words_without_a_duration():
    words = [Word(letter * 42, 1.0, 1.0) for letter in "xyz"]
    cues = subtitles.cues(words)
    assert " ".join(line for cue in cues for line in cue.lines) == " ".join(word.text for word in words)
    assert all(cue.end > cue.start for cue in cues)


def test_a_word_that_is_heard_for_long_is_shown_for_seven_seconds():
    assert [(cue.start, cue.end) for cue in subtitles.cues([Word("there", 1.0, 60.0)])] == [(1000, 8000)]


def test_lines_are_of_equal_length():
    (cue,) = subtitles.cues(spoken("the bridge opens at eight fifty nine and closes at ten"))
    assert cue.lines == ("the bridge opens at eight", "fifty nine and closes at ten")


def test_a_text_without_spaces_is_parted_by_its_length():
    cues = subtitles.cues([Word("字" * 300, 0.0, 30.0)])
    assert "".join(line for cue in cues for line in cue.lines) == "字" * 300
    assert all(len(line) <= 42 for cue in cues for line in cue.lines)
    assert all(cue.end - cue.start <= 7000 for cue in cues)
    assert (cues[0].start, cues[-1].end) == (0, 30000)
