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

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `parakeet_hra`."""
    config = load("parakeet_hra").unlock()
    config.backbone = "abstract:w2v_bert_2.0"
    # A layer that begins at nothing needs the speech of all tasks.
    config.adapter.output = "shared_characters"
    config.adapter.output_size = 64
    config.steps = 10000
    return config.lock()
