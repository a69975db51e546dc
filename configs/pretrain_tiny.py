"""Pre-trains the tiny backbone with CTC on synthetic speech of many plain voices, and exports a backbone folder.

python -m hra_jax.train --config pretrain_tiny --workdir runs/pretrain_tiny
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.steps = 6000
    config.method = "pretrain"
    config.remat = "dots"
    config.data.dir = "runs/data/plain"
    config.data.synthetic = "plain"
    config.data.sources = (("plain", "{dir}/train.jsonl", 1.0),)
    config.data.threads = 2
    config.batch.seconds = 64.0
    config.batch.buckets = (1.2, 2.0, 2.8, 5.0)
    config.augment.noise_probability = 0.6
    config.augment.noise_snr_db = (5.0, 35.0)
    config.augment.speed = 0.1
    config.augment.warp = 0.1
    config.augment.time_mask_fraction = 0.06
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.final_fraction = 0.0
    config.optimizer.weight_decay = 1e-2
    config.checkpoint.every_steps = 250
    config.checkpoint.keep_best = 0
    config.eval.every_steps = 500
    config.eval.suite = "plain"
    config.eval.select_suite = "plain_validation"
    config.export.dtype = "bfloat16"
    return config
