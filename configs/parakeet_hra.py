"""A hierarchical recurrent adapter on Parakeet CTC 1.1B, in its own vocabulary.

    python -m hra_jax.convert --source PARAKEET --output BACKBONE
    python -m hra_jax.train --config parakeet_hra --config.backbone=BACKBONE --config.data.dir=FOLDER --workdir W

PARAKEET is the published folder, BACKBONE a new one, FOLDER holds train.jsonl, with the tag `speaker`.
Shapes are all that

    python -m hra_jax.aot --config parakeet_hra --topology v5e:2x4
    python -m hra_jax.params --config parakeet_hra --methods all

need. The batch is one for 8 to 64 chips.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.backbone = "abstract:parakeet_ctc_1.1b"
    config.remat = "full"
    config.data.sources = (("train", "{dir}/train.jsonl", 1.0),)
    config.hra.width = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.steps = 5000
    # 64 utterances of 30 s: 8 on each of 8 chips, or 1 on each of 64.
    config.batch.buckets = (8.0, 16.0, 30.0)
    config.batch.seconds = 1920.0
    config.batch.multiple = 64
    config.batch.max_tasks = 64
    config.eval.batch_seconds = 1920.0
    return config
