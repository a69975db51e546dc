"""A hierarchical recurrent adapter on MedASR (105 million parameters), in its own vocabulary.

    python -m hra_jax.convert --source MEDASR --output BACKBONE
    python -m hra_jax.train --config medasr_hra --config.backbone=BACKBONE --config.data.dir=FOLDER --workdir W

MEDASR is the published folder, BACKBONE a new one, FOLDER holds train.jsonl, with the tag `speaker`.
Shapes are all that

    python -m hra_jax.aot --config medasr_hra --topology v5e:2x4
    python -m hra_jax.params --config medasr_hra --methods all

need. The batch is one for 8 to 64 chips.
"""

from ml_collections import ConfigDict

from hra_jax import config as configs


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = configs.load("base")
    config.backbone = "abstract:medasr"
    config.remat = "full"
    # Scores of all 750 frames of 30 s at a time would be the largest thing in memory.
    config.attention_block = 128
    config.data.sources = (("train", "{dir}/train.jsonl", 1.0),)
    config.hra.width = 128
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
