"""Subtitles from words with times: the texts of SubRip (.srt) and WebVTT (.vtt) files.

A cue has at most two lines of 42 characters and lasts at most 7 seconds. It ends at a pause where it can, and always at
a long one. A cue that would be gone at once stays for a second, unless the next one comes before.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

LINE = 42  # characters
_LONGEST_SECONDS = 7.0
_SHORTEST_SECONDS = 1.0
_PAUSE_SECONDS = 0.5  # after which there is always a new cue
# What a cue costs, where one that ends in no pause at all costs 1 more, and one that is too short another 1.
_CUE_COST = 1.0


class TimedWord(Protocol):
    """What a subtitle needs of a word: its text, and when it was said, in seconds."""

    @property
    def text(self) -> str:
        """Without spaces."""

    @property
    def start(self) -> float:
        """Seconds."""

    @property
    def end(self) -> float:
        """Seconds."""


class Cue(NamedTuple):
    """What is shown at once, of one line or two, from `start` to `end` in milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]


class _Piece(NamedTuple):
    text: str
    start: float
    end: float


def srt(*speeches: Iterable[TimedWord]) -> str:
    """The text of a SubRip file; '' for no words. An arrow in a word loses a dash: SubRip has no way to write it.

    Args:
      *speeches: words in the order of their times; several where there is speech at once, which has cues of its own.
    """
    blocks = []
    for number, cue in enumerate(_cues_of_all(speeches), 1):
        lines = [line.replace("-->", "->") for line in cue.lines]
        blocks.append("\n".join([str(number), f"{_time(cue.start, ',')} --> {_time(cue.end, ',')}", *lines, ""]))
    return "\n".join(blocks)


def vtt(*speeches: Iterable[TimedWord]) -> str:
    """The text of a WebVTT file; its head alone for no words. Takes what `srt` takes."""
    blocks = ["WEBVTT\n"]
    for cue in _cues_of_all(speeches):
        lines = [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in cue.lines]
        blocks.append("\n".join([f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}", *lines, ""]))
    return "\n".join(blocks)


def _cues_of_all(speeches: Iterable[Iterable[TimedWord]]) -> list[Cue]:
    """The cues of each, in the order in which they are shown."""
    return sorted((cue for words in speeches for cue in cues(words)), key=lambda cue: cue.start)


def cues(words: Iterable[TimedWord]) -> list[Cue]:
    """The cues of words that come in the order of their times."""
    pieces = [piece for word in words for piece in _pieces(word)]
    found: list[Cue] = []
    for first, last in itertools.pairwise(_cheapest_ends(pieces)):
        lines = _lines([piece.text for piece in pieces[first:last]])
        start, end = round(1000 * pieces[first].start), round(1000 * pieces[last - 1].end)
        end = min(end, start + round(1000 * _LONGEST_SECONDS))  # of a word whose letters were heard far apart
        end = max(end, start + round(1000 * _SHORTEST_SECONDS))
        if last < len(pieces):
            end = min(end, max(round(1000 * pieces[last].start), start + 1))  # one that ends at once is no cue
        found.append(Cue(start, end, lines))
    return found


def _pieces(word: TimedWord) -> list[_Piece]:
    """A word as it is, or one that no line holds in pieces, over which its time is spread."""
    count = max(len(word.text), 1)
    rate = (word.end - word.start) / count
    return [
        _Piece(word.text[at : at + LINE], word.start + rate * at, word.start + rate * min(at + LINE, count))
        for at in range(0, count, LINE)
    ]


def _cheapest_ends(pieces: Sequence[_Piece]) -> list[int]:
    """Where cues begin, and the end of the last one: of all ways to part the pieces the one that costs least."""
    costs, before = [0.0], [0]
    for last in range(1, len(pieces) + 1):
        gap = pieces[last].start - pieces[last - 1].end if last < len(pieces) else _PAUSE_SECONDS
        ways = []
        for first in range(last - 1, -1, -1):
            if first < last - 1 and not _fit(pieces, first, last):
                break
            short = pieces[last - 1].end - pieces[first].start < _SHORTEST_SECONDS
            ways.append((costs[first] + _CUE_COST + short, first))
        cost, first = min(ways)
        costs.append(cost + 1 - min(max(gap, 0.0), _PAUSE_SECONDS) / _PAUSE_SECONDS)
        before.append(first)
    ends = [len(pieces)]
    while ends[-1]:
        ends.append(before[ends[-1]])
    return ends[::-1]


def _fit(pieces: Sequence[_Piece], first: int, last: int) -> bool:
    """Whether one cue holds the pieces [first, last), given that it holds all but the first of them."""
    if pieces[first + 1].start - pieces[first].end >= _PAUSE_SECONDS:
        return False
    if pieces[last - 1].end - pieces[first].start > _LONGEST_SECONDS:
        return False
    return all(len(line) <= LINE for line in _lines([piece.text for piece in pieces[first:last]]))


def _lines(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts in one line where they fit, or in the two of most equal length."""
    whole = " ".join(texts)
    if len(whole) <= LINE or len(texts) == 1:
        return (whole,)
    parted = ((" ".join(texts[:at]), " ".join(texts[at:])) for at in range(1, len(texts)))
    return min(parted, key=lambda lines: max(map(len, lines)))


def _time(milliseconds: int, point: str) -> str:
    """'00:00:00,000'; times before the beginning are the beginning."""
    seconds, rest = divmod(max(milliseconds, 0), 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"
