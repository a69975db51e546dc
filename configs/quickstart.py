"""Adapts the shipped tiny backbone to hard synthetic speakers, all in one run.

    python -m hra_jax.train --config quickstart --workdir runs/quickstart

(or `make quickstart`, which also makes the environment). The audio is rendered into `data.dir` first.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.steps = 2000
    config.remat = "dots"
    config.data.dir = "runs/data/hard"
    config.data.synthetic = "hard"
    config.data.sources = (("hard", "{dir}/train.jsonl", 1.0),)
    config.data.threads = 2
    config.hra.width = 128
    config.batch.seconds = 24.0
    config.batch.max_tasks = 8
    config.batch.buckets = (1.3, 2.0, 2.8, 5.0)
    config.augment.speed = 0.1
    config.augment.time_mask_fraction = 0.05
    config.augment.freq_masks = 1
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.checkpoint.every_steps = 500
    config.eval.every_steps = 1000
    config.eval.suite = "hard"
    config.eval.select_suite = "hard_validation"
    config.decode.lm = "train"  # the sentences come from a closed grammar, which a language model learns
    config.export.step = "best"
    return config
