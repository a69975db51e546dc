"""The 107 users of UserLibri on Parakeet CTC 1.1B: a user, who is a reader of a book, is a task.

    python -m hra_jax.data.corpora prepare hra/user_libri --source DOWNLOADED --data_dir DATA
    python -m hra_jax.data.cache --source seqio:hra/user_libri/train,validation,test --data_dir DATA
    python -m hra_jax.train --config user_libri_hra --config.backbone=BACKBONE --config.data.dir=DATA --workdir W

BACKBONE is what `python -m hra_jax.convert --source PARAKEET --output BACKBONE` makes of the published folder, whose
vocabulary is kept. A user has about 50 readings; a tenth of them is validation, another the test. What it takes,
without a TPU:

    python -m hra_jax.aot --config user_libri_hra --topology v5e:2x4 --tasks 107

The batch is one for 1, 2, 4 or 8 chips. To go on from an adapter that knows other readers, and train the users' own
parameters alone: --config.adapter.start=ADAPTER --config.adapter.train=tasks, and --config.hra.width of that adapter.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.backbone = "abstract:parakeet_ctc_1.1b"
    config.remat = "full"
    # A user has some minutes of speech, and 66,560 parameters.
    config.hra.width = 64
    config.data.task_tag = "user"
    config.data.sources = (("user_libri", "seqio:hra/user_libri/train", "proportional"),)
    # Users have equally many updates, whether they have read 20 sentences or 100.
    config.data.draw = "tasks"
    # Readings of 1 to 35 s. A batch of 560 s is 16 rows of 35 s, and every earlier bucket ends where a multiple of 8
    # rows fits.
    config.batch.buckets = (5.8, 8.75, 11.6, 17.5, 35.0)
    config.batch.seconds = 560.0
    config.batch.multiple = 8
    config.batch.max_tasks = 32
    # 8 h of speech are 65 batches: these are about 20 epochs.
    config.steps = 1300
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 130
    config.augment.speed = 0.1
    config.eval.suite = "user_libri"
    config.eval.select_suite = "user_libri_validation"
    config.eval.every_steps = 130
    config.eval.batch_seconds = 560.0
    config.export.step = "best"
    return config
