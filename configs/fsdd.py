"""Adapts the shipped tiny backbone to the six speakers of the Free Spoken Digit Dataset, all in one run.

    python -m hra_jax.train --config fsdd --config.data.dir=FSDD_FOLDER --workdir runs/fsdd

FSDD_FOLDER holds train.jsonl, validation.jsonl and test.jsonl, with the tag `speaker`.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.steps = 1500
    config.remat = "dots"
    config.data.sources = (("fsdd", "{dir}/train.jsonl", 1.0),)
    config.data.threads = 2
    config.hra.width = 128
    config.batch.seconds = 27.5
    config.batch.max_tasks = 6
    # So many that the steps gain what their compilations take, and little padding (docs/results.md, length buckets).
    config.batch.buckets = (0.4, 0.52, 0.66, 1.04, 2.5)
    config.augment.noise_probability = 0.5
    config.augment.speed = 0.15
    config.augment.warp = 0.1
    config.augment.time_mask_fraction = 0.06
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 1e-2
    config.eval.suite = "fsdd"
    config.eval.select_suite = "fsdd_validation"
    config.export.step = "best"
    return config
