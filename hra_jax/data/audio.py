"""Audio files to mono float32 samples at one rate."""

import io
import os

import numpy as np
import soundfile
import soxr
from etils import epath

from hra_jax.data.report import KINDS
from hra_jax.data.utterance import Utterance

# How far a declared duration may reach beyond the end of its file before the file counts as truncated.
_TOLERANCE_SHARE = 0.05
_TOLERANCE_SECONDS = 0.05


class AudioError(ValueError):
    """An utterance's audio cannot be used.

    Attributes:
      kind: one of `report.KINDS`.
      detail: one line that says why.
    """

    def __init__(self, kind: str, detail: str):
        assert kind in KINDS
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def open_sound(path: str) -> soundfile.SoundFile:
    """Opens a local or remote audio file for reading.

    Raises:
      AudioError: missing_file, empty_audio (no bytes), undecodable_audio (not audio, or not readable).
    """
    remote = "://" in path
    try:
        size = epath.Path(path).stat().length if remote else os.stat(path).st_size
        if size == 0:
            raise AudioError("empty_audio", "the file has no bytes")
        return soundfile.SoundFile(io.BytesIO(epath.Path(path).read_bytes()) if remote else path)
    except FileNotFoundError as error:
        raise AudioError("missing_file", f"no file at {path}") from error
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError("undecodable_audio", _one_line(error)) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _segment(sound: soundfile.SoundFile, *, offset: float, duration: float) -> tuple[int, int]:
    """First frame and number of frames of a segment in seconds; AudioError if the file does not hold it."""
    if sound.frames == 0:
        raise AudioError("empty_audio", "the file has no samples")
    start, count = round(offset * sound.samplerate), round(duration * sound.samplerate)
    lacking = (start + count - sound.frames) / sound.samplerate
    if lacking > max(_TOLERANCE_SHARE * duration, _TOLERANCE_SECONDS):
        seconds = sound.frames / sound.samplerate
        wanted = f"{offset:g} to {offset + duration:g} s"
        raise AudioError("undecodable_audio", f"truncated: the manifest says {wanted}, the file ends at {seconds:g} s")
    count = min(count, sound.frames - start)
    if count <= 0:
        raise AudioError("empty_audio", f"no samples between {offset:g} and {offset + duration:g} s")
    return start, count


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """float32 `[S]` at `rate` Hz as float32 at `wanted` Hz (soxr, high quality)."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="HQ")


def decode_file(path: str, sample_rate: int) -> np.ndarray:
    """A whole audio file as `decode` gives an utterance."""
    with open_sound(path) as sound:
        return _read(sound, start=0, count=sound.frames, sample_rate=sample_rate)


def decode(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """Reads an utterance, and nothing of its file beyond it.

    Args:
      utterance: `audio_filepath`, `offset` and `duration` (seconds) are used.
      sample_rate: Hz of the result.

    Returns:
      float32 [S]: the mean of all channels, resampled (soxr, high quality) if the file has another rate; full scale is
      1.

    Raises:
      AudioError: missing_file, empty_audio, undecodable_audio or nan_samples.
    """
    with open_sound(utterance.audio_filepath) as sound:
        start, count = _segment(sound, offset=utterance.offset, duration=utterance.duration)
        return _read(sound, start=start, count=count, sample_rate=sample_rate)


def _read(sound: soundfile.SoundFile, *, start: int, count: int, sample_rate: int) -> np.ndarray:
    """Frames [start, start + count) of an open file as `decode` gives them."""
    if count == 0:
        raise AudioError("empty_audio", "the file has no samples")
    try:
        sound.seek(start)
        samples = sound.read(count, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError("undecodable_audio", _one_line(error)) from error
    if len(samples) < count:  # libsndfile stops at a broken frame without an error
        raise AudioError("undecodable_audio", f"truncated: {len(samples)} of {count} samples could be read")
    if not np.isfinite(samples).all():
        raise AudioError("nan_samples", f"{np.sum(~np.isfinite(samples))} samples are NaN or infinite")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    mono = resample(mono, sound.samplerate, sample_rate)
    if not mono.size:
        raise AudioError("empty_audio", f"{count} samples at {sound.samplerate} Hz are none at {sample_rate} Hz")
    return np.ascontiguousarray(mono, dtype=np.float32)
