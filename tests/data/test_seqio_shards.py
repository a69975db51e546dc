"""seqio reads shards: as a Task and in a Mixture, each example once, in parts that share nothing."""

import json

import numpy as np
import pytest

from hra_jax.data import audio, cache, shards
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.seqio_shards import shards_source


@pytest.mark.slow(minutes=1)
def test_seqio_reads_shards_as_a_task_and_mixes_them(tmp_path):
    import seqio
    import tensorflow as tf

    random = np.random.default_rng(0)
    sounds = [random.integers(-9000, 9000, 800 * (1 + number)).astype(np.int16) for number in range(10)]
    examples = [Example(str(at), sound, 8000, f"text {at}", {"speaker": at % 2}) for at, sound in enumerate(sounds)]
    settings = cache.ShardSettings(sample_rate=8000, shard_seconds=1.0)
    items = cache.Items("test", 1, examples, 10)
    assert cache.cache(items, tmp_path / "s", settings=settings, report=DataReport()).shards > 3

    source = shards_source({"train": tmp_path / "s"})
    features = {name: seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.int32) for name in ("n",)}
    preprocessor = seqio.map_over_dataset(lambda row: row | {"n": tf.shape(row["samples"])})
    for name in ("one", "two"):
        seqio.TaskRegistry.add(f"shards_{name}", source, preprocessors=[preprocessor], output_features=features)
    rows = list(seqio.get_mixture_or_task("shards_one").get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    assert [row["id"].decode() for row in rows] == [str(at) for at in range(10)]
    for row, sound, example in zip(rows, sounds, examples, strict=True):
        np.testing.assert_array_equal(row["samples"], sound)
        assert row["n"] == [sound.size] and row["sample_rate"] == 8000 and row["text"].decode() == example.text
        assert json.loads(row["tags"]) == example.tags
    assert source.num_input_examples("train") == 10
    parts = [
        [
            row["id"]
            for row in source.get_dataset("train", seed=1, shard_info=seqio.ShardInfo(at, 2)).as_numpy_iterator()
        ]
        for at in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(row["id"] for row in rows) and parts[0] and parts[1]
    seqio.MixtureRegistry.add("shards_both", [("shards_one", 3), ("shards_two", 1)])
    mixed = seqio.get_mixture_or_task("shards_both").get_dataset(None, "train", shuffle=False, num_epochs=1)
    drawn = [int(row["n"][0]) for row in mixed.as_numpy_iterator()]
    assert len(drawn) > 10 and set(drawn) == {sound.size for sound in sounds}  # until the first Task is exhausted
    utterances, _ = shards.read_shards(tmp_path / "s", report=DataReport())
    np.testing.assert_array_equal(audio.decode(utterances[3], 8000), sounds[3] / np.float32(32768))
