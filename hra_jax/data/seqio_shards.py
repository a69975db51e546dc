"""Shards as a source of seqio Tasks of one's own: `seqio.TfdsDataSource` opens no ArrayRecord.

    source = shards_source({"train": "shards/train", "validation": "shards/validation"})
    seqio.TaskRegistry.add("mine", source=source, preprocessors=[...], output_features={...})

An example has `samples` (int16 `[S]`), `sample_rate` (Hz), `text`, `id` and `tags` (a JSON object).
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from hra_jax.data import shards
from hra_jax.data.report import DataReport
from hra_jax.data.seqio_setup import libraries
from hra_jax.data.utterance import Utterance


def shards_source(folders: Mapping[str, epath.PathLike]) -> Any:
    """A `seqio.DataSource` of folders of shards, by the names of their splits.

    A shard that is damaged is an AudioError where it is read.

    Raises:
      UserError: there are no shards in one of them.
    """
    return _source_class()({split: _rows_by_shard(folder) for split, folder in folders.items()})


def _rows_by_shard(folder: epath.PathLike) -> dict[str, Sequence[Utterance]]:
    """The utterances of each shard of a folder, as columns."""
    found = shards.read_index(folder)
    utterances, _ = shards.utterances_of(found, folder, report=DataReport())
    number = np.asarray(found.rows.column("shard"))[np.asarray(found.rows.column("record")) >= 0]
    return {shard.path: utterances.take(number == at) for at, shard in enumerate(found.shards)}


def _examples(parts: Sequence[Sequence[Utterance]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for row in part:
            assert isinstance(row, shards.Sharded)
            samples = np.rint(shards.samples(row) * 32768).astype(np.int16)
            tags = json.dumps(row.tags, ensure_ascii=False)
            yield {
                "samples": samples,
                "sample_rate": row.shard.sample_rate,
                "text": row.text,
                "id": row.key,
                "tags": tags,
            }


@functools.cache
def _source_class() -> Any:
    """The class, which TensorFlow and seqio must be loaded for."""
    tf, seqio = libraries()
    texts = {name: tf.TensorSpec([], tf.string) for name in ("text", "id", "tags")}
    signature = {"samples": tf.TensorSpec([None], tf.int16), "sample_rate": tf.TensorSpec([], tf.int32)} | texts

    class ShardsSource(seqio.DataSource):  # type: ignore[name-defined]
        """Shards, read without TensorFlow, as a tf.data.Dataset."""

        def __init__(self, rows: Mapping[str, Mapping[str, Sequence[Utterance]]]):
            counts = {split: sum(map(len, parts.values())) for split, parts in rows.items()}
            super().__init__(splits=tuple(rows), num_input_examples=counts)
            self._rows = rows

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> Sequence[str]:
            return list(self._rows[split])

        def get_dataset(
            self,
            split: str = "train",
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            **others: Any,
        ) -> Any:
            del others
            parts = list(self._rows[split].values())
            if shard_info is not None:
                parts = parts[shard_info.index :: shard_info.num_shards]
            if shuffle:  # the shards; a Task shuffles the examples through its buffer
                parts = [parts[at] for at in np.random.default_rng(seed).permutation(len(parts))]
            return tf.data.Dataset.from_generator(functools.partial(_examples, parts), output_signature=signature)

    return ShardsSource
