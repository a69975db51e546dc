"""Feature settings, and the filters and transforms that follow from them. Nothing here needs JAX.

Letters: W window samples, K transform bins, F mel bins.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hra_jax.errors import UserError
from hra_jax.models.setting_checks import at_least, one_of, within
from hra_jax.models.stored_settings import UNSAID


def _kaldi_mel(hz: float | np.ndarray) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


# The slaney scale: 15 steps of 200 / 3 Hz up to 1000 Hz, then 27 steps to each factor of 6.4.
_KNEE_HZ, _KNEE_MEL, _OCTAVE = 1000.0, 15.0, 27.0 / np.log(6.4)


def _slaney_mel(hz: float | np.ndarray) -> np.ndarray:
    hz = np.asarray(hz, np.float64)
    above = _KNEE_MEL + _OCTAVE * np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ)
    return np.where(hz < _KNEE_HZ, hz * _KNEE_MEL / _KNEE_HZ, above)


def _kaldi_hz(mel: np.ndarray) -> np.ndarray:
    return 700.0 * np.expm1(mel / 1127.0)


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    above = _KNEE_HZ * np.exp(np.maximum(mel - _KNEE_MEL, 0.0) / _OCTAVE)
    return np.where(mel < _KNEE_MEL, mel * _KNEE_HZ / _KNEE_MEL, above)


MEL_SCALES = {"kaldi": (_kaldi_mel, _kaldi_hz), "slaney": (_slaney_mel, _slaney_hz)}


def _hann(size: int) -> np.ndarray:
    return np.hanning(size + 1)[:size]


# Name -> the values of a window of so many samples, float64: the periodic Hann, the symmetric one, and its power 0.85.
WINDOWS: dict[str, Callable[[int], np.ndarray]] = {
    "hann": _hann,
    "hann_symmetric": np.hanning,
    "povey": lambda size: np.hanning(size) ** 0.85,
}
KINDS = ("log_mel", "waveform")
FRAMINGS = ("hop", "inside", "centred")
PREEMPHASES = ("frame", "signal")
FLOORS = ("add", "max")
NORMALIZATIONS = ("none", "utterance", "unbiased", "unbiased_std")

# Settings that nothing reads of kind 'waveform'. (The oldest ones are in every folder, with any value.)
_SPECTRAL = (
    "framing",
    "window_shape",
    "unit_power",
    "remove_dc",
    "preemphasis",
    "preemphasis_of",
    "mel_scale",
    "mel_area",
    "floor_mode",
    "stack",
)

# What each number may be: far beyond every published encoder. The matrices of a spectrum are computed from them before
# any weight is read, and a stored backbone may be a stranger's.
_LIMITS: dict[str, tuple[float, float]] = {
    "sample_rate": (1, 768_000),
    "window": (0, 10),
    "hop": (0, 10),
    "fft": (1, 2**14),
    "bins": (1, 2**10),
    "low_hz": (0, 384_000),
    "high_hz": (0, 384_000),
    "floor": (0, 1e6),
    "normalization_eps": (0, 1e6),
    "scale": (-1e9, 1e9),
    "preemphasis": (-1, 1),
    "stack": (1, 64),
}
_MOST_PRODUCTS = 2**24  # samples of a window times points of the transform


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Features: log-mel spectra, or the samples themselves (`kind='waveform'`, for encoders that begin with a CNN).

    With the defaults the waveform is scaled to unit variance first, so `floor` is relative to the loudness of the
    utterance: digital silence and faint noise below it look the same. The other fields are what published encoders
    differ in.
    """

    sample_rate: int = 16000  # Hz; audio at any other rate is resampled before it reaches the model
    window: float = 0.025  # seconds
    hop: float = 0.010  # seconds
    fft: int = 512  # points of the transform
    bins: int = 80  # mel bins
    low_hz: float = 20.0
    high_hz: float = 8000.0
    unit_variance: bool = True  # scale each waveform to unit variance over its valid samples
    floor: float = 1e-4  # added to the mel power (1.0 = white noise of unit variance) before the logarithm
    # Over the valid frames, per bin, zero mean and: 'utterance' unit biased variance, 'unbiased' unit unbiased variance
    # (eps is added to the variance), 'unbiased_std' the same with eps added to the standard deviation; or 'none'.
    normalization: str = "utterance"
    normalization_eps: float = 1e-5
    # log_mel | waveform: each sample is a frame of width 1; of the other fields, only the sample rate, scale,
    # unit_variance and normalization act
    kind: str = "log_mel"
    scale: float = 1.0  # factor on the samples
    # hop: frame i is centred on the middle of hop i, one frame for every whole hop. inside: frame i begins at sample
    # i hop, as many as lie wholly inside the signal. centred: the transform of frame i is centred on sample i hop, one
    # frame for every whole hop. What lies beyond the signal is zero.
    framing: str = "hop"
    window_shape: str = "hann"  # hann (periodic) | hann_symmetric | povey (symmetric Hann to the power of 0.85)
    unit_power: bool = True  # the window scaled so that white noise of unit variance has power 1 in each bin
    remove_dc: bool = False  # subtract the mean of each frame
    preemphasis: float = 0.0  # x[n] - p x[n - 1]
    preemphasis_of: str = "frame"  # frame (x[-1] of a frame is its x[0]) | signal (x[-1] is 0)
    mel_scale: str = "kaldi"  # kaldi: 1127 ln(1 + f / 700) | slaney: linear below 1000 Hz
    mel_area: bool = False  # triangles linear in Hz with area 1, not linear in mel with peak 1
    floor_mode: str = "add"  # of the mel power: add `floor` | max(power, floor)
    stack: int = 1  # consecutive frames put side by side; what does not fill a stack is invalid

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", KINDS),
            ("normalization", NORMALIZATIONS),
            ("framing", FRAMINGS),
            ("window_shape", WINDOWS),
            ("preemphasis_of", PREEMPHASES),
            ("mel_scale", MEL_SCALES),
            ("floor_mode", FLOORS),
        ):
            one_of(f"features.{name}", getattr(self, name), allowed)
        for name, (least, most) in _LIMITS.items():
            within(f"features.{name}", getattr(self, name), least, most)
        if self.kind != "waveform":
            at_least("features.hop in samples", self.hop_samples, 1)
        if self.window_samples * self.fft > _MOST_PRODUCTS:
            raise UserError(
                f"features.fft = {self.fft}: with a window of {self.window_samples} samples; allowed: a product of at "
                f"most {_MOST_PRODUCTS:,}"
            )
        at_least("features.fft", self.fft, self.window_samples)
        at_least("features.window", self.window, self.hop)
        if not self.floor > 0:
            raise UserError(f"features.floor = {self.floor}: must be above 0")
        if self.kind == "waveform":
            for field in dataclasses.fields(self):
                # A folder that does not say what nothing reads must load after a default has changed.
                unread = (field.default, UNSAID["FeatureConfig"].get(field.name))
                if field.name in _SPECTRAL and getattr(self, field.name) not in unread:
                    raise UserError(
                        f"features.{field.name} = {getattr(self, field.name)!r}: is for spectra, and features.kind is "
                        f"'waveform'; leave it at {field.default!r}"
                    )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise UserError(
                f"features.low_hz = {self.low_hz}, high_hz = {self.high_hz}: "
                f"must rise within 0 and half the sample rate ({self.sample_rate / 2})"
            )

    @property
    def window_samples(self) -> int:
        """Window length in samples."""
        return round(self.window * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Hop length in samples."""
        return round(self.hop * self.sample_rate)

    @property
    def width(self) -> int:
        """Values of one feature frame, F."""
        return 1 if self.kind == "waveform" else self.bins * self.stack

    @property
    def stride(self) -> int:
        """Samples from one feature frame to the next."""
        return 1 if self.kind == "waveform" else self.hop_samples * self.stack

    def spectra(self, num_samples: Any) -> Any:
        """Valid frames of `num_samples` samples (int or integer array) before they are stacked."""
        if self.kind == "waveform":
            return num_samples
        if self.framing != "inside":
            return num_samples // self.hop_samples
        # Fewer samples than a window: (negative // hop) + 1 is at most 0, and a length is not negative.
        frames = (num_samples - self.window_samples) // self.hop_samples + 1
        return frames * (frames > 0)

    def frames(self, num_samples: Any) -> Any:
        """Valid feature frames of `num_samples` samples (int or integer array)."""
        return self.spectra(num_samples) // self.stack


# --- Matrices of the log-mel spectrum, computed in float64 ------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def mel_matrix(config: FeatureConfig, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Triangles between points at equal distances on the mel scale: `[K, F]`, computed in float64.

    They are linear in mel with peak 1, or with `mel_area` linear in Hz with area 1.
    """
    to_mel, to_hz = MEL_SCALES[config.mel_scale]
    bins = np.arange(config.fft // 2 + 1) * config.sample_rate / config.fft  # Hz
    edges = np.linspace(to_mel(config.low_hz), to_mel(config.high_hz), config.bins + 2)
    bins, edges = (bins, to_hz(edges)) if config.mel_area else (to_mel(bins), edges)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bins = bins[:, None]
    weights = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    area = (high - low) / 2 if config.mel_area else 1.0
    return (np.maximum(weights, 0.0) / area).astype(dtype)


@functools.lru_cache(maxsize=8)
def transform_matrix(config: FeatureConfig, dtype: DTypeLike = np.float32) -> np.ndarray:
    """From the samples of a frame to its spectrum, `[W, 2K]` (cosines, then sines), computed in float64.

    All that is linear in the samples of one frame is in it: its mean is subtracted, then it is pre-emphasised, windowed
    and transformed.
    """
    size, window = config.window_samples, WINDOWS[config.window_shape](config.window_samples)
    phase = 2 * np.pi / config.fft * np.outer(np.arange(size), np.arange(config.fft // 2 + 1))
    basis = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * window[:, None]
    if config.unit_power:
        basis = basis / np.sqrt(np.square(window).sum())
    # Each step is a matrix on the samples x; x' (A' B) = (A x)' B.
    if config.preemphasis and config.preemphasis_of == "frame":
        emphasis = np.eye(size) - config.preemphasis * np.eye(size, k=-1)
        emphasis[0, 0] -= config.preemphasis
        basis = emphasis.T @ basis
    if config.remove_dc:
        basis = basis - basis.mean(axis=0)
    return basis.astype(dtype)
