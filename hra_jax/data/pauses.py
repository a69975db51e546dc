"""Long audio in chunks that an encoder has learned to hear: where to cut it, and how the pieces are put together.

An encoder that was trained on sentences recognises a minute badly, and hears letters in the noise of a room between
two sentences. So what is longer than a chunk may be is parted at its pauses, which are left out, and each part has a
text of its own. A part that is still too long is cut where it is quietest. The chunks on both sides of such a cut hear
some of each other, so that a word there is lost to neither, and the labels of the frames that each keeps are decoded as
one.

A pause is a stretch of steady sound, well below the speech around it. Loudness alone would not do: the end of a word
may be as soft as the room, but is not steady.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hra_jax.errors import UserError
from hra_jax.text.vocabularies import Vocabulary

DEFAULT_SECONDS = 20.0  # of a chunk, where nothing says what was trained on
_FRAME_SECONDS = 0.02  # over which a level is taken
_PAUSE_SECONDS = 0.3  # the shortest pause
_STEADY_DB = 3.0  # how far a level in a pause may be from their median
_NEAR_SECONDS = 1.0  # from a pause, within which a louder steady sound is none
_BELOW_DB = 10.0  # how far a pause lies below the speech around it
_AROUND_SECONDS = 5.0  # on both sides, over which the level of the speech is taken
_RANGE_DB = 40.0  # what is quieter than this below the speech is no better a place to cut
_SHORTEST_SECONDS = 0.1  # of what may be a word
_CONTEXT_SHARE = 0.1  # of a chunk, heard beyond a cut in no pause
_NUMBERS = (int, float, np.integer, np.floating)
_BLOCK = 4096  # frames whose level is taken at once: hours of sound are not copied
_CUT_COST = 0.05  # of any cut, where one in the loudest speech costs 1 more


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of a waveform that is recognised at once.

    Attributes:
      start, stop: the samples that are heard.
      first, last: of its encoder frames, those whose labels count.
      after_pause: whether a text begins with it.
    """

    start: int
    stop: int
    first: int
    last: int
    after_pause: bool


def chunks(waveform: np.ndarray, hop: int, *, sample_rate: int, longest_seconds: float) -> list[Chunk]:
    """Cuts a waveform into chunks.

    Args:
      waveform: float32 `[S]`.
      hop: samples of an encoder frame.
      sample_rate: Hz.
      longest_seconds: of a chunk, what it hears beyond its cuts included; never less than four frames.

    Returns:
      The chunks in their order; a waveform that is not too long is one, pauses and all.
    """
    longest = max(int(longest_seconds * sample_rate / hop), 4)
    if len(waveform) <= longest * hop:
        return [Chunk(0, len(waveform), 0, -(-len(waveform) // hop), after_pause=True)]
    level = _levels(waveform, round(_FRAME_SECONDS * sample_rate))
    below = level - _speech_levels(level)
    found = []
    for start, stop in _parts(level, below, len(waveform), round(_FRAME_SECONDS * sample_rate)):
        found += _chunks_of_part(below, start, stop, hop, sample_rate=sample_rate, longest=longest)
    return found


def _chunks_of_part(
    below: np.ndarray, start: int, stop: int, hop: int, *, sample_rate: int, longest: int
) -> list[Chunk]:
    """The chunks of the samples [start, stop), which hold no pause; `below` and `longest` as elsewhere."""
    frames, context = -(-(stop - start) // hop), max(int(longest * _CONTEXT_SHARE), 1)
    # The price of a cut before each encoder frame is the level on its two sides.
    times = (start + hop * np.arange(frames)) / sample_rate / _FRAME_SECONDS
    after = np.minimum(times.astype(np.int64), len(below) - 1)
    loudest = np.maximum(below[after], below[np.maximum(after - 1, 0)])
    prices = _CUT_COST + np.clip(1 + loudest / _RANGE_DB, 0, 1)
    edges = [0, *_cheapest_cuts(prices, longest=longest, context=context), frames]
    found = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        heard = max(first - context, 0) if first else 0
        end = stop if last == frames else min(start + (last + context) * hop, stop)
        found.append(Chunk(start + heard * hop, end, first - heard, last - heard, after_pause=first == 0))
    return found


def text(chunks: Sequence[Chunk], paths: Sequence[np.ndarray], vocabulary: Vocabulary) -> str:
    """What a waveform says.

    Args:
      chunks: of the waveform.
      paths: of each chunk the likeliest label of each frame that it hears, int `[frames]`.
      vocabulary: of the labels.
    """
    from hra_jax.models import ctc  # which imports JAX

    stretches: list[list[np.ndarray]] = []
    for chunk, path in zip(chunks, paths, strict=True):
        if chunk.after_pause:
            stretches.append([])
        stretches[-1].append(path[chunk.first : chunk.last])
    decoded = [ctc.labels_of_path(np.concatenate(stretch), vocabulary.blank_id) for stretch in stretches]
    texts = [vocabulary.decode(labels) for labels in decoded]
    return " ".join(part for part in texts if part)  # nobody says a word with a pause in it


def check_seconds(value: object) -> float:
    """The length of a chunk as a float; UserError unless it is a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not 0 < value < math.inf:
        raise UserError(f"chunk_seconds = {value!r}: allowed are numbers of seconds above 0")
    return float(value)


def _levels(waveform: np.ndarray, size: int) -> np.ndarray:
    """The level of each frame of `size` samples in dB, of any reference, float32 `[F]`.

    It is that of the differences of neighbouring samples: most noise of rooms is low, and unsteady where it is.
    """
    # Scaled, so that no square of a loud sample overflows.
    scale, levels = np.float32(max(waveform.max(), -waveform.min(), 1e-30)), []
    for start in range(0, len(waveform), _BLOCK * size):
        scaled = waveform[max(start - 1, 0) : start + _BLOCK * size] / scale
        changes = np.diff(scaled) if start else np.diff(scaled, prepend=scaled[:1])
        padded = np.pad(changes, (0, -len(changes) % size)).reshape(-1, size)
        levels.append(10 * np.log10(np.square(padded).mean(axis=1) + 1e-12))
    return np.concatenate(levels)


def _speech_levels(level: np.ndarray) -> np.ndarray:
    """The level of the speech around each frame: the 90th percentile of `level [F]` over some seconds, `[F]`."""
    step = round(_AROUND_SECONDS / _FRAME_SECONDS)
    centres = np.arange(0, len(level) + step, step)
    found = [np.percentile(level[max(centre - step, 0) : centre + step + 1], 90) for centre in centres]
    # A stretch of silence has no speech of its own: the level falls by no more than the range.
    floor = max(found) - _RANGE_DB
    return np.interp(np.arange(len(level)), centres, np.maximum(found, floor))


def _parts(level: np.ndarray, below: np.ndarray, samples: int, size: int) -> list[tuple[int, int]]:
    """What lies between the pauses, as (start, stop) in samples.

    Args:
      level: of each frame.
      below: the same, the speech around it being 0 dB.
      samples: of the waveform.
      size: samples of a frame.
    """
    window = round(_PAUSE_SECONDS / _FRAME_SECONDS)
    if len(level) < window:
        return [(0, samples)]
    windows = np.lib.stride_tricks.sliding_window_view(level, window)
    medians = np.median(windows, axis=1)
    steady = np.abs(windows - medians[:, None]).max(axis=1) <= _STEADY_DB
    steady &= np.lib.stride_tricks.sliding_window_view(below, window).max(axis=1) < -_BELOW_DB
    # Of two steady sounds close together the louder one belongs to the speech: what was trained on has such edges.
    near = round(_NEAR_SECONDS / _FRAME_SECONDS)
    quiet = np.pad(np.where(steady, medians, np.inf), near, constant_values=np.inf)
    steady &= medians <= np.lib.stride_tricks.sliding_window_view(quiet, 2 * near + 1).min(axis=1) + 2 * _STEADY_DB
    # A frame is in a pause where one of the windows that hold it is.
    paused = np.convolve(steady, np.ones(window, np.int64)) > 0
    edges = np.flatnonzero(np.diff(paused.astype(np.int8), prepend=1, append=1))
    parts = [(int(start) * size, min(int(stop) * size, samples)) for start, stop in edges.reshape(-1, 2)]
    return [(start, stop) for start, stop in parts if (stop - start) >= size * _SHORTEST_SECONDS / _FRAME_SECONDS]


def _cheapest_cuts(prices: np.ndarray, *, longest: int, context: int) -> list[int]:
    """The frames to cut before: the least sum of prices, no chunk being too long.

    Args:
      prices: of a cut before each frame, `[F]`.
      longest: frames of a chunk.
      context: those among them that lie beyond each of its cuts.
    """
    frames = len(prices)
    cost, before = np.full(frames + 1, np.inf), np.zeros(frames + 1, np.int64)
    cost[0] = 0
    for cut in range(1, frames + 1):
        inside = longest - (context if cut < frames else 0)  # the first chunk has no cut before it
        starts = np.arange(max(cut - inside, 0), cut)
        heard = cut - starts + np.where(starts > 0, context, 0)
        reached = np.where(heard <= inside, cost[starts], np.inf)
        best = int(reached.argmin())
        cost[cut] = reached[best] + (prices[cut] if cut < frames else 0)
        before[cut] = starts[best]
    cuts = [frames]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return cuts[-2:0:-1]
