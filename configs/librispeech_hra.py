"""The 960 h of LibriSpeech on w2v-BERT 2.0 (580 million parameters): one adapter, a task for each of 2,338 readers.

    python -m hra_jax.data.corpora prepare hra/librispeech/lazy_decode --data_dir DATA
    python -m hra_jax.data.cache --source seqio:hra/librispeech/lazy_decode/SPLITS --data_dir DATA
    python -m hra_jax.train --config librispeech_hra --config.backbone=BACKBONE --config.data.dir=DATA --workdir W

SPLITS are train,dev_clean,dev_other,test_clean,test_other. BACKBONE is what
`python -m hra_jax.convert --source W2V_BERT --output BACKBONE` makes of the published folder. The encoder is
self-supervised and has no output layer: all tasks together learn one, for the characters of their texts. Nobody who
reads in the test sets reads in the training data, so they are scored with the mean of all tasks. What it takes, without
a TPU:

    python -m hra_jax.aot --config librispeech_hra --topology v5e:4x4 --tasks 2338 --labels_per_second 20

The batch is one for 8 or 16 chips.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.backbone = "abstract:w2v_bert_2.0"
    config.remat = "full"
    config.adapter.output = "shared_characters"
    config.adapter.output_size = 64
    # The bank of 2,338 tasks and its moments lie on every chip: with this width 3.7 GB of its 16.
    config.hra.width = 128
    config.data.sources = (("librispeech", "seqio:hra/librispeech/lazy_decode/train", "proportional"),)
    # Most readings are 12 to 17 s long, and none is longer than 25 s. A batch of 1,600 s is 64 rows of 25 s, and every
    # earlier bucket ends where a multiple of 16 rows fits. About 11% of it is padding.
    config.batch.buckets = (6.25, 10.0, 12.5, 14.25, 16.6, 25.0)
    config.batch.seconds = 1600.0
    config.batch.multiple = 16
    # A batch of the shortest has 256 rows, nearly all of other readers.
    config.batch.max_tasks = 256
    # 2,400 steps are an epoch, so these are ten. A layer that begins at nothing needs several. `aot` has 0.1 s for a
    # step on v5e:4x4 at the chips' peak, so the run takes 42 minutes at the very least.
    config.steps = 24000
    # As in w2v_bert_hra, reached over the first half epoch.
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1200
    config.eval.suite = "librispeech"
    config.eval.select_suite = "librispeech_validation"
    config.eval.every_steps = 2400
    config.eval.batch_seconds = 1600.0
    config.export.step = "best"
    return config
