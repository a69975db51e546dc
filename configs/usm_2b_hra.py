"""The setting of arXiv 2403.19709 on a Conformer of its backbone's size, two billion parameters: what tasks cost there.

    python -m hra_jax.params --config usm_2b_hra --tasks 1,10,100,1000,10000,100000 --methods all

prints 393,728 shared + tasks x 394,752 parameters for the hierarchical recurrent adapter. The paper's backbone is not
public, so the one here is shapes without weights. It trains on a backbone folder of yours:

    python -m hra_jax.train --config usm_2b_hra --config.backbone=DIR --config.data.dir=FOLDER --workdir runs/usm_2b_hra

FOLDER holds train.jsonl, with the tag `speaker`.
"""

from ml_collections import ConfigDict

from hra_jax import config as configs


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = configs.load("base")
    config.backbone = "abstract"
    config.remat = "full"
    config.pretrain.size = "usm_2b"
    config.pretrain.vocabulary = "sentencepiece"
    config.pretrain.sentencepiece_size = 4096
    config.data.sources = (("train", "{dir}/train.jsonl", 1.0),)
    # With one task 788,480 parameters, near the 814K that are reported for the adapter with a linear head.
    config.hra.width = 256
    # With one task 6.4 million parameters: the baseline is reported to have 8 times as many as the adapter.
    config.residual.width = 64
    return config
