"""Long audio in chunks that an encoder has learned to hear: where to cut it, and how the pieces are put together.

An encoder that was trained on sentences recognises a minute badly, and a cut inside a word costs that word. So cuts lie
where it is quietest, preferably in pauses. A cut in a pause divides the text. Where there is no pause for longer than a
chunk may be, the chunks on both sides hear some of each other, and the labels of the frames that each keeps are
decoded as one.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence

import numpy as np

from hra_jax.errors import UserError
from hra_jax.models import ctc
from hra_jax.text.vocabularies import Vocabulary

DEFAULT_SECONDS = 20.0  # of a chunk, where nothing says what was trained on
_CONTEXT_SHARE = 0.1  # of a chunk, heard beyond a cut that lies in no pause
_PAUSE_SECONDS = 0.25  # how long it must be quiet around a cut
_PAUSE_DB = 13.0  # how far below the speech around it
_LEVEL_SECONDS = 10.0  # over which the level of the speech is taken
_RANGE_DB = 40.0  # what is quieter than this below the speech is no better a place to cut
_SILENCE_DB = -100.0  # below the loudest sample; what is quieter is a pause, whatever is around it
_IN_SPEECH = 1.0  # the price of a cut in no pause, and up to as much more for how loud it is there
_IN_PAUSE = 0.05  # of one in a pause, and as much more: fewer chunks are better, as an encoder hears more at once


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a waveform that is recognised at once, in encoder frames of it.

    Attributes:
      start, stop: the frames that are heard.
      first, last: those of them whose labels count; the chunks of a waveform share no frame and leave none out.
      after_pause: whether a text begins with it; the first one does.
    """

    start: int
    stop: int
    first: int
    last: int
    after_pause: bool

    def kept(self, path: np.ndarray) -> np.ndarray:
        """The labels `[first .. last]` of the path `[start .. stop]` of the chunk, which may end early."""
        kept: np.ndarray = path[self.first - self.start : self.last - self.start]
        return kept


def chunks(waveform: np.ndarray, hop: int, *, sample_rate: int, longest_seconds: float) -> list[Chunk]:
    """Cuts a waveform into chunks.

    A cut has a price, low in a pause and else the higher the louder it is there. The cuts are the cheapest together: a
    shortest path over the grid of encoder frames.

    Args:
      waveform: float32 `[S]`.
      hop: samples of an encoder frame.
      sample_rate: Hz.
      longest_seconds: of a chunk, what it hears beyond its ends included; never less than four frames.

    Returns:
      The chunks in their order. The last one reaches to the end of the waveform, also where that is no whole frame:
      `stop * hop` may lie beyond it by less than a frame.
    """
    frames = -(-len(waveform) // hop)
    longest = max(int(longest_seconds * sample_rate / hop), 4)
    if frames <= longest:
        return [Chunk(0, frames, 0, frames, after_pause=True)]
    context = max(int(longest * _CONTEXT_SHARE), 1)
    prices, quiet = _prices(waveform, hop, sample_rate=sample_rate)
    # The frames beyond a cut in no pause are within the longest, on both sides.
    cuts = _cheapest_cuts(prices, quiet, longest=longest, context=context)
    edges = [0, *cuts, frames]
    inner = [True, *(bool(quiet[cut]) for cut in cuts), True]
    return [
        Chunk(
            start=first if inner[n] else max(first - context, 0),
            stop=last if inner[n + 1] else min(last + context, frames),
            first=first,
            last=last,
            after_pause=inner[n],
        )
        for n, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


def text(chunks: Sequence[Chunk], paths: Sequence[np.ndarray], vocabulary: Vocabulary) -> str:
    """What a waveform says.

    Args:
      chunks: of the waveform.
      paths: of each chunk the likeliest label of each frame that it hears, int `[frames]`.
      vocabulary: of the labels.
    """
    stretches: list[list[np.ndarray]] = []
    for chunk, path in zip(chunks, paths, strict=True):
        if chunk.after_pause:
            stretches.append([])
        stretches[-1].append(chunk.kept(path))
    decoded = [ctc.labels_of_path(np.concatenate(stretch), vocabulary.blank_id) for stretch in stretches]
    texts = [vocabulary.decode(labels) for labels in decoded]
    return " ".join(part for part in texts if part)  # nobody says a word with a pause in it


def check_seconds(value: object) -> float:
    """The length of a chunk as a float; UserError unless it is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise UserError(f"chunk_seconds = {value!r}: allowed are numbers of seconds above 0")
    return float(value)


def _prices(waveform: np.ndarray, hop: int, *, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The price of a cut before each frame, float32 `[F]`, and whether it lies in a pause, bool `[F]`.

    What counts is the loudest frame around it, in comparison with the speech of some seconds (their 90th percentile).
    """
    frames = -(-len(waveform) // hop)
    # Of any loudness, and without squares that overflow.
    scaled = waveform / np.float32(max(np.abs(waveform).max(), 1e-30))
    power = np.square(np.pad(scaled, (0, frames * hop - len(waveform))))
    level = 10 * np.log10(power.reshape(frames, hop).mean(axis=1) + 1e-12)
    speech = _speech_level(level, max(int(_LEVEL_SECONDS * sample_rate / hop), 1))
    half = max(round(_PAUSE_SECONDS / 2 * sample_rate / hop), 1)
    padded = np.pad(level - speech, half, constant_values=-np.inf)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)[:frames]
    loudest = around.max(axis=1)
    quiet = (loudest < -_PAUSE_DB) | (loudest + speech < _SILENCE_DB)
    loudness = np.clip(1 + loudest / _RANGE_DB, 0, 1).astype(np.float32)
    return np.where(quiet, _IN_PAUSE, _IN_SPEECH) * (1 + loudness), quiet


def _speech_level(level: np.ndarray, window: int) -> np.ndarray:
    """The 90th percentile of `level [F]` over the window around each frame, in steps of half a window, `[F]`."""
    step = max(window // 2, 1)
    centres = np.arange(0, len(level) + step, step)
    found = [np.percentile(level[max(centre - step, 0) : centre + step + 1], 90) for centre in centres]
    # A stretch of silence has no speech of its own: the level falls by no more than the range.
    floor = max(found) - _RANGE_DB
    levels: np.ndarray = np.interp(np.arange(len(level)), centres, np.maximum(found, floor)).astype(np.float32)
    return levels


def _cheapest_cuts(prices: np.ndarray, quiet: np.ndarray, *, longest: int, context: int) -> list[int]:
    """The frames to cut before: the least sum of prices, no chunk being too long.

    Args:
      prices, quiet: of a cut before each frame, `[F]`.
      longest: frames of a chunk.
      context: those among them that are beyond a cut in no pause.
    """
    frames = len(prices)
    beyond = np.where(quiet, 0, context)
    beyond = np.append(beyond, 0)
    beyond[0] = 0
    price = np.append(prices, 0)
    cost, before = np.full(frames + 1, np.inf), np.zeros(frames + 1, np.int64)
    cost[0] = 0
    for cut in range(1, frames + 1):
        first = max(cut + beyond[cut] - longest, 0)
        starts = np.arange(first, cut)
        heard = cut + beyond[cut] - starts + beyond[starts]
        reached = np.where(heard <= longest, cost[starts], np.inf)
        best = int(reached.argmin())
        cost[cut], before[cut] = reached[best] + price[cut], starts[best]
    cuts = [frames]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return cuts[-2:0:-1]
