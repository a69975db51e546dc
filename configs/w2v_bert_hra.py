"""A hierarchical recurrent adapter on w2v-BERT 2.0 (580 million parameters), with one new output layer for all tasks.

    python -m hra_jax.convert --source W2V_BERT --output BACKBONE
    python -m hra_jax.train --config w2v_bert_hra --config.backbone=BACKBONE --config.data.dir=FOLDER --workdir W

W2V_BERT is the published folder, BACKBONE a new one, FOLDER holds train.jsonl, with the tag `speaker`. The encoder is
self-supervised and has no output layer: all tasks together learn one, for the characters of their texts (with
adapter.output=characters each task would learn its own). Shapes are all that

    python -m hra_jax.aot --config w2v_bert_hra --topology v5e:2x4
    python -m hra_jax.params --config w2v_bert_hra --methods all

need. The batch is one for 8 to 64 chips.
"""

from ml_collections import ConfigDict

from hra_jax import config as configs


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = configs.load("base")
    config.backbone = "abstract:w2v_bert_2.0"
    config.remat = "full"
    # 30 s are 1,500 frames: scores of all of them at a time would be the largest thing in memory.
    config.attention_block = 128
    config.data.sources = (("train", "{dir}/train.jsonl", 1.0),)
    # A layer that begins at nothing needs the speech of all tasks.
    config.adapter.output = "shared_characters"
    config.adapter.output_size = 64
    config.hra.width = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.steps = 10000
    # 64 utterances of 30 s: 8 on each of 8 chips, or 1 on each of 64.
    config.batch.buckets = (8.0, 16.0, 30.0)
    config.batch.seconds = 1920.0
    config.batch.multiple = 64
    config.batch.max_tasks = 64
    config.eval.batch_seconds = 1920.0
    return config
