"""Recordings that augmentation draws from: noise and impulse responses of rooms, read once and kept as arrays."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hra_jax.data import audio
from hra_jax.data.report import DataReport
from hra_jax.data.sources import located, read_source
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.models import augmentation
from hra_jax.models.augmentation import AugmentConfig

_Cut = Callable[[np.ndarray, int, int], Iterator[np.ndarray]]


def read_sounds(
    augment: AugmentConfig, *, folder: str, sample_rate: int, report: DataReport, modules: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The recordings of `augment.noise_source` and `augment.impulse_source`, the same in every process.

    Args:
      augment: the group `augment` of a configuration.
      folder: what `{dir}` in a source stands for.
      sample_rate: Hz, of the features.
      report: gets what cannot be used.
      modules: `data.modules`.

    Returns:
      {kind: float32 `[K, R]`} as `augmentation.Sounds`; K may be smaller than in `augmentation.sound_shapes`.

    Raises:
      UserError: a source that cannot be read, or nothing in it that can be used.
    """
    cuts: dict[str, _Cut] = {augmentation.NOISE: _parts, augmentation.IMPULSES: _from_the_loudest}
    shapes = augmentation.sound_shapes(augment, sample_rate)
    return {
        kind: _rows(
            f"augment.{'noise' if kind == augmentation.NOISE else 'impulse'}_source",
            source,
            cuts[kind],
            folder=folder,
            modules=modules,
            shape=shapes[kind],
            sample_rate=sample_rate,
            report=report,
        )
        for kind, source in augmentation.sources(augment).items()
    }


def _rows(
    key: str,
    source: str,
    cut: _Cut,
    *,
    folder: str,
    modules: Sequence[str],
    shape: tuple[int, int],
    sample_rate: int,
    report: DataReport,
) -> np.ndarray:
    """At most `shape` of a source: where it holds more, recordings are drawn by a seed that never changes."""
    place = located(source, data_dir=folder, key=key, modules=modules)
    utterances, refused = read_source(place, report=report)
    most, length = shape
    each = max(1, most // max(1, len(utterances)))
    rows: list[np.ndarray] = []
    for number in np.random.default_rng(0).permutation(len(utterances)):
        if len(rows) == most:
            break
        found = _decoded(utterances[number], sample_rate, report)
        if found is not None:
            rows += cut(found, length, min(each, most - len(rows)))
    if not rows:
        why = f"; {report.summary()}" if utterances or refused else ""
        raise UserError(f"{key} = {source!r}: no recording in it can be used, of {len(utterances) + len(refused)}{why}")
    return np.stack(rows)


def _decoded(utterance: Utterance, sample_rate: int, report: DataReport) -> np.ndarray | None:
    """float32 [S]; None, and a line in the report, where it cannot be used."""
    try:
        found = audio.decode(utterance, sample_rate)
        if not found.any():
            raise audio.AudioError("silent_audio", "all samples are zero")
    except audio.AudioError as error:
        report.add(error.kind, utterance.key, error.detail)
        return None
    return found


def _parts(samples: np.ndarray, length: int, most: int) -> Iterator[np.ndarray]:
    """At most so many parts of a noise, spread over it; what is shorter than one goes on from its beginning."""
    if len(samples) < length:
        yield np.resize(samples, length)
        return
    whole = len(samples) // length
    for number in range(min(most, whole)):
        part = samples[(start := number * whole // min(most, whole) * length) : start + length]
        if part.any():
            yield part


def _from_the_loudest(samples: np.ndarray, length: int, most: int) -> Iterator[np.ndarray]:
    """An impulse response from its direct sound on, of energy 1; zeros follow where it is short."""
    del most
    kept = samples[np.abs(samples).argmax() :][:length]
    kept = kept / np.linalg.norm(kept)
    yield np.pad(kept, (0, length - len(kept)))
