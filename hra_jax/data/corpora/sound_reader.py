"""Sound for TensorFlow Datasets by soundfile, in place of the package pydub that it asks for, which needs ffmpeg."""

import contextlib
import io
import itertools
import os
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from hra_jax.data.report import DataReport


class Sound:
    """Samples as pydub's `AudioSegment` has them.

    Args:
      samples: int16 `[S, channels]`.
    """

    def __init__(self, samples: np.ndarray):
        self._samples = samples

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._samples.shape[1]

    def set_channels(self, count: int) -> "Sound":
        """The mean of all channels, `count` times."""
        mean = np.rint(self._samples.astype(np.float32).mean(axis=1, keepdims=True)).astype(np.int16)
        return Sound(np.repeat(mean, count, axis=1))

    def get_array_of_samples(self) -> np.ndarray:
        """int16 `[S * channels]`, the channels of one moment beside each other."""
        return self._samples.reshape(-1)


def read(content: bytes, rate: int) -> np.ndarray:
    """A sound file as int16 `[S, channels]`, full scale 32,768; ValueError says in one line why it is none."""
    try:
        samples, found = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(getattr(error, "error_string", str(error))) from error
    if found != rate:
        raise ValueError(f"it has {found} Hz; the corpus has {rate} Hz")
    if not np.isfinite(samples).all():
        raise ValueError("some samples are NaN or infinite")
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


@contextlib.contextmanager
def in_place_of_pydub(rate: int, report: DataReport) -> Iterator[None]:
    """Lets TensorFlow Datasets read sound files meanwhile.

    What cannot be read has no samples then, so that one bad file does not end the preparation of a corpus.

    Args:
      rate: Hz, that all files must have.
      report: gets those that cannot be read (missing_file, undecodable_audio), by name.
    """
    import tensorflow as tf
    from tensorflow_datasets.core import lazy_imports_lib

    numbers = itertools.count(1)

    def from_file(file: Any, format: str | None = None) -> Sound:
        del format  # the file says it
        name = os.fspath(getattr(file, "name", None) or f"file {next(numbers):,} of an archive")
        try:
            return Sound(read(file.read(), rate))
        except tf.errors.NotFoundError:
            report.add("missing_file", name, "no such file")
        except (OSError, ValueError, tf.errors.OpError) as error:
            report.add("undecodable_audio", name, str(error).splitlines()[0])
        return Sound(np.zeros((0, 1), np.int16))

    segment = types.SimpleNamespace(from_file=from_file)
    failure = types.SimpleNamespace(CouldntDecodeError=soundfile.LibsndfileError)
    importer = lazy_imports_lib.LazyImporter
    before = vars(importer)["pydub"]
    importer.pydub = types.SimpleNamespace(AudioSegment=segment, exceptions=failure)
    try:
        yield
    finally:
        importer.pydub = before
