"""Length buckets of a run: those that its configuration names, or so many, found in its training data."""

import dataclasses
import math
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from hra_jax.config.keys import group
from hra_jax.data import durations
from hra_jax.data.batching import bucket_rows, set_buckets
from hra_jax.data.durations import Durations
from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.run import foundation, read
from hra_jax.run.foundation import Foundation
from hra_jax.training import agreement


def find_buckets(config: ConfigDict, sources: Sequence[TableSource], base: Foundation) -> bool:
    """Finds the buckets of a configuration that gives their number, and sets them there; a collective.

    Args:
      config: a validated configuration.
      sources: the training data.
      base: the backbone.

    Returns:
      Whether there was a number.

    Raises:
      UserError: the processes have found different ones; or no batch of an evaluation holds them.
    """
    if not isinstance(config.batch.buckets, int):
        return False
    found = _edges(config, lengths_of(config, sources), config.batch.buckets, base.features, base.encoder)
    agreement.check_agreement({"length buckets": repr(found)})
    _set(config, found)
    return True


def _set(config: ConfigDict, edges: tuple[float, ...]) -> None:
    """Sets the buckets of a configuration, whose evaluations must hold them, too, now or later; UserError else."""
    seconds, multiple = config.eval.batch_seconds, config.batch.multiple
    try:
        bucket_rows(edges, batch_seconds=seconds, multiple=multiple)
    except UserError as error:
        raise UserError(f"config.eval.batch_seconds is {seconds:g}: {error}") from error
    set_buckets(config, edges)


def take_buckets(config: ConfigDict, path: epath.PathLike) -> None:
    """Sets the buckets that a run would find, from a file of `hra_jax.data.durations` in place of the data.

    Raises:
      UserError: the configuration gives no number, or the file is not of its data.
    """
    if not isinstance(config.batch.buckets, int):
        raise UserError(f"--durations={str(path)!r}: batch.buckets is {config.batch.buckets!r}; needed: their number")
    found = durations.read_durations(path, group(config, "data"))
    try:
        sources = read.training_sources(group(config, "data"), DataReport())
    except (UserError, OSError):
        pass  # the data is elsewhere, as it is where one asks for a file
    else:
        durations.check_same(path, found, lengths_of(config, sources))
    _set(config, edges_of(config, found, config.batch.buckets))


def lengths_of(config: ConfigDict, sources: Sequence[TableSource]) -> Durations:
    """The lengths of the utterances of some sources that a configuration trains on."""
    data = group(config, "data")
    return durations.durations_of(
        sources, task_tag=data.task_tag, tasks=data.tasks if config.method == "adapter" else ()
    )


def limit_of(config: ConfigDict) -> float:
    """Seconds of the longest utterance that buckets are found for: `data.max_seconds`, or what a batch holds."""
    batch = group(config, "batch")
    # As many as the hundredth of a second below, so that a batch holds `multiple` rows for certain.
    most = math.floor(100 * batch.seconds / batch.multiple) / 100
    return group(config, "data").max_seconds or most


def edges_of(config: ConfigDict, found: Durations, buckets: int) -> tuple[float, ...]:
    """The ends of so many buckets, for the backbone that a configuration names; seconds, ascending."""
    # The frames of a size do not depend on how many outputs it has.
    sizes = dataclasses.replace(group(config, "pretrain"), vocabulary="sentencepiece")
    base = foundation.geometry(foundation.ABSTRACT if config.method == "pretrain" else config.backbone, sizes)
    return _edges(config, found, buckets, *base)


def _edges(
    config: ConfigDict, found: Durations, buckets: int, features: FeatureConfig, encoder: EncoderConfig
) -> tuple[float, ...]:
    frame = features.stride * encoder.subsampling / features.sample_rate
    return durations.best_edges(found, buckets, frame=frame, limit=limit_of(config))
