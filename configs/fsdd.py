"""Adapts the shipped tiny backbone to the six speakers of the Free Spoken Digit Dataset, all in one run.

    python -m hra_jax.train --config fsdd --config.data.dir=FSDD_FOLDER --workdir runs/fsdd

FSDD_FOLDER holds train.jsonl, validation.jsonl and test.jsonl, with the tag `speaker`.
"""

from ml_collections import ConfigDict

from hra_jax import config as configs


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = configs.load("base")
    config.steps = 1500
    config.data.sources = (("fsdd", "{dir}/train.jsonl", 1.0),)
    config.batch.seconds = 32.0
    config.batch.max_tasks = 6
    config.batch.buckets = (0.6, 1.0, 2.5)
    config.eval.suite = "fsdd"
    config.eval.select_suite = "fsdd_validation"
    config.export["from"] = "best"
    return config
