"""Audio files to mono float32 samples at one rate."""

import collections
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import soxr
from numpy.typing import ArrayLike

from hra_jax.data import shards
from hra_jax.data.examples import Example
from hra_jax.data.sample_hashes import SampleHash
from hra_jax.data.shards import Sharded
from hra_jax.data.sound_files import LEAST_RATE, MOST_RATE, AudioError, Sound
from hra_jax.data.utterance import Recording, Utterance
from hra_jax.errors import UserError

__all__ = [
    "AudioError",
    "check_segment",
    "decode",
    "decode_file",
    "decode_hashed",
    "from_array",
    "rate_of",
    "resample",
    "sample_hash",
]

MOST_SAMPLES = 2**28  # of one decoded utterance or file: 4 h 39 min at 16 kHz

# How far a declared duration may reach beyond the end of its file before the file counts as truncated.
_TOLERANCE_SHARE = 0.05
_TOLERANCE_SECONDS = 0.05
_MOST_SECONDS: Final = 1e9  # no file is longer, and samples are still counted exactly
_SILENCE: Final = 1e-4  # share of the channels' energy that their mean has left, -40 dB


def _segment(sound: Sound, *, offset: float, duration: float) -> tuple[int, int]:
    """First sample and number of samples of a segment in seconds; AudioError if the file is known not to hold it."""
    start = round(min(offset, _MOST_SECONDS) * sound.rate)
    count = round(min(duration, _MOST_SECONDS) * sound.rate)
    if sound.frames is not None:
        if sound.frames == 0:
            raise AudioError("empty_audio", "the file has no samples")
        _check_end(sound, sound.frames, offset=offset, duration=duration)
        count = min(count, sound.frames - start)
    if count <= 0:
        raise AudioError("empty_audio", f"no samples between {offset:g} and {offset + duration:g} s")
    return start, count


def check_segment(sound: Sound, *, offset: float, duration: float) -> None:
    """Refuses, with an AudioError, a segment in seconds that an open file is known not to hold."""
    _segment(sound, offset=offset, duration=duration)


def _check_end(sound: Sound, frames: int, *, offset: float, duration: float) -> None:
    """Refuses a segment that reaches beyond the end of its file."""
    seconds = frames / sound.rate
    if offset + duration - seconds > max(_TOLERANCE_SHARE * duration, _TOLERANCE_SECONDS):
        wanted = f"{offset:g} to {offset + duration:g} s"
        raise AudioError("undecodable_audio", f"truncated: the manifest says {wanted}, the file ends at {seconds:g} s")


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """float32 `[S]` at `rate` Hz as float32 at `wanted` Hz (soxr, high quality)."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="HQ")


def decode_file(path: str, sample_rate: int) -> np.ndarray:
    """A whole audio file as `decode` gives an utterance; too_long where it has more than `MOST_SAMPLES`."""
    with Sound(path) as sound:
        return _read(sound, start=0, count=sound.frames, sample_rate=sample_rate)


def decode(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """Reads an utterance, and nothing of its file beyond it.

    Args:
      utterance: `audio_filepath`, `offset` and `duration` (seconds) are used; of a `Recording`, its samples; of a
        `Sharded`, its record, and of an address of a record, what `offset` and `duration` leave of it.
      sample_rate: Hz of the result.

    Returns:
      float32 [S]: the mean of all channels, resampled (soxr, high quality) if the file has another rate; full scale is
      1.

    Raises:
      AudioError: missing_file, unreachable_audio, empty_audio, undecodable_audio, nan_samples, silent_audio (channels
        that cancel each other) or too_long (more than `MOST_SAMPLES`).
    """
    found = _resolved(utterance)
    if isinstance(found, Recording):
        return resample(found.samples, found.sample_rate, sample_rate)
    if isinstance(found, Sharded):
        return resample(_record_of(found, utterance), found.shard.sample_rate, sample_rate)
    with Sound(utterance.audio_filepath, part=utterance.offset > 0) as sound:
        start, count = _segment(sound, offset=utterance.offset, duration=utterance.duration)
        return _read(sound, start=start, count=count, sample_rate=sample_rate)


def _record_of(found: Sharded, utterance: Utterance) -> np.ndarray:
    """The samples of a record, or the part of them that an utterance has which names it by its address."""
    samples = shards.samples(found)
    if utterance is found or (not utterance.offset and utterance.duration >= found.duration):
        return samples
    start, count = (round(seconds * found.shard.sample_rate) for seconds in (utterance.offset, utterance.duration))
    part = samples[start : start + count]
    if not part.size:
        end = utterance.offset + utterance.duration
        raise AudioError("empty_audio", f"no samples between {utterance.offset:g} and {end:g} s of {found.address}")
    return part


def rate_of(utterance: Utterance) -> int:
    """The rate at which the samples of an utterance lie in its file or shard, Hz. Raises AudioError."""
    utterance = _resolved(utterance)
    if isinstance(utterance, Sharded):
        return utterance.shard.sample_rate
    with Sound(utterance.audio_filepath, part=True) as sound:
        return sound.rate


def _resolved(utterance: Utterance) -> Utterance:
    """The utterance in shards whose address stands in the place of a file; others as they are. Raises AudioError."""
    if isinstance(utterance, Recording | Sharded) or "#" not in utterance.audio_filepath:
        return utterance
    return shards.at_address(utterance.audio_filepath) or utterance


def decode_hashed(utterance: Utterance, sample_rate: int) -> tuple[np.ndarray, int]:
    """What `decode` gives, and the `sample_hash` of the utterance: it is read once for both."""
    if isinstance(resolved := _resolved(utterance), Recording | Sharded):
        return decode(utterance, sample_rate), sample_hash(resolved)
    found = SampleHash()
    with Sound(utterance.audio_filepath, part=utterance.offset > 0) as sound:
        start, count = _segment(sound, offset=utterance.offset, duration=utterance.duration)
        samples = _read(sound, start=start, count=count, sample_rate=sample_rate, found=found)
        return samples, found.finish(sound, start + count)


def from_array(samples: ArrayLike, *, what: str) -> np.ndarray:
    """Mono samples that somebody has in memory as float32 `[S]`, full scale 1.

    Args:
      samples: floats of full scale 1, or integers of 8, 16 or 32 bits as files of PCM have them.
      what: they are, for the error.

    Raises:
      UserError: other shapes or types, no samples, or samples that are not finite.
    """
    given = np.asarray(samples)
    if given.ndim != 1 or not given.size:
        raise UserError(f"{what} has shape {given.shape}; allowed is 1-D (mono) and not empty")
    # Integers of 64 bits are those of a list: nothing says what their full scale is.
    known = given.dtype.kind in "fiu" or given.dtype.name == "bfloat16"
    if not known or (given.dtype.kind in "iu" and given.dtype.itemsize > 4):
        raise UserError(
            f"{what} has samples of type {given.dtype}; allowed are floats of full scale 1, and integers of 8, 16 or "
            "32 bits as in files"
        )
    waveform = _full_scale(given)[:, 0]
    if not np.isfinite(waveform).all():
        raise UserError(f"{what} holds NaN or infinite samples")
    return waveform


def decode_example(example: Example, sample_rate: int) -> tuple[np.ndarray, int]:
    """What `decode_hashed` gives, of an example of a corpus. Raises AudioError."""
    found = SampleHash()
    if isinstance(example.audio, bytes):
        with Sound("", example.audio) as sound:
            return _read(sound, start=0, count=sound.frames, sample_rate=sample_rate, found=found), found.value
    block = _full_scale(example.audio)
    if not block.size:
        raise AudioError("empty_audio", "there are no samples")
    if not LEAST_RATE <= example.sample_rate <= MOST_RATE:
        raise AudioError("undecodable_audio", f"the sample rate is {example.sample_rate:,} Hz")
    mean = _Mean(found.of(iter([block])))
    samples = _gathered(_resampled(mean, example.sample_rate, sample_rate))
    mean.check()
    return samples, found.value


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples `[S]` or `[S, channels]` of any dtype as float32 `[S, channels]`, full scale 1."""
    block = samples if samples.ndim == 2 else samples.reshape(-1, 1)
    if block.dtype.kind in "iu":
        limits = np.iinfo(block.dtype)
        zero = (int(limits.max) + int(limits.min) + 1) // 2
        return ((block.astype(np.float64) - zero) / (int(limits.max) + 1 - zero)).astype(np.float32)
    return block.astype(np.float32)


def sample_hash(utterance: Utterance) -> int:
    """64 bits that name the samples of an utterance as they lie in its file, above 0; see `sample_hashes`.

    What is in shards is not read for it: their index has it.

    Raises:
      AudioError: it cannot be read.
    """
    utterance = _resolved(utterance)
    if isinstance(utterance, Sharded):
        return utterance.sample_hash
    found = SampleHash()
    if isinstance(utterance, Recording):
        collections.deque(found.of(iter([utterance.samples[:, None]])), maxlen=0)
        return found.value
    with Sound(utterance.audio_filepath, part=utterance.offset > 0) as sound:
        start, count = _segment(sound, offset=utterance.offset, duration=utterance.duration)
        for _ in found.of(sound.blocks(start, count)):
            pass
        return found.finish(sound, start + count)


def _read(
    sound: Sound, *, start: int, count: int | None, sample_rate: int, found: SampleHash | None = None
) -> np.ndarray:
    """Samples [start, start + count) of an open file as `decode` gives them; `found` gets them as they lie there."""
    if count == 0:
        raise AudioError("empty_audio", "the file has no samples")
    blocks = sound.blocks(start, count)
    mean = _Mean(blocks if found is None else found.of(blocks))
    samples = _gathered(_resampled(mean, sound.rate, sample_rate))
    if count is not None and mean.read < count:
        if sound.frames is not None:  # libsndfile stops at a broken frame without an error
            raise AudioError("undecodable_audio", f"truncated: {mean.read} of {count} samples could be read")
        _check_end(sound, start + mean.read, offset=start / sound.rate, duration=count / sound.rate)
    mean.check()
    if not samples.size:
        raise AudioError("empty_audio", f"{mean.read} samples at {sound.rate} Hz are none at {sample_rate} Hz")
    return samples


class _Mean(Iterator[np.ndarray]):
    """The mean of the channels of blocks `[S, channels]`, as blocks `[S]`.

    Attributes:
      read: samples per channel so far.
    """

    def __init__(self, blocks: Iterator[np.ndarray]):
        self.read = 0
        self._blocks = blocks
        self._before, self._after = 0.0, 0.0  # energy of the channels, and of their mean

    def __next__(self) -> np.ndarray:
        """The next block; AudioError nan_samples where the mean is not finite."""
        block = next(self._blocks)
        self.read += len(block)
        if block.shape[1] == 1:
            return _finite(block[:, 0])
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            mono = _finite(block.mean(axis=1))
            self._before += float(np.vdot(block, block)) / block.shape[1]
            self._after += float(np.vdot(mono, mono))
        return mono

    def check(self) -> None:
        """Refuses channels that cancel each other."""
        if self._after < _SILENCE * self._before:
            raise AudioError(
                "silent_audio", "the channels are in opposite phase, and their mean is silence; keep one of them"
            )


def _finite(samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise AudioError("nan_samples", f"{np.sum(~np.isfinite(samples))} samples are NaN or infinite")
    return samples


def _resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Blocks at another rate; together they are what `resample` gives for all of them at once."""
    if rate == wanted:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    last = None
    for block in blocks:
        if last is not None:
            yield _finite(stream.resample_chunk(last))
        last = block
    if last is not None:
        yield _finite(stream.resample_chunk(last, last=True))


def _gathered(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """All samples in one array, which grows in place: blocks and array together would take twice the memory."""
    found, size = np.empty(0, np.float32), 0
    for block in blocks:
        if size + len(block) > MOST_SAMPLES:
            raise AudioError("too_long", f"more than {MOST_SAMPLES:,} samples at a time; cut it, or name segments")
        if size + len(block) > found.size:
            found.resize(max(size + len(block), 3 * size // 2), refcheck=False)
        found[size : size + len(block)] = block
        size += len(block)
    found.resize(size, refcheck=False)
    return found
