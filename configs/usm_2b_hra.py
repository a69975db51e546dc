"""The setting of arXiv 2403.19709 on a Conformer of its backbone's size, two billion parameters: what tasks cost there.

    python -m hra_jax.params --config usm_2b_hra --tasks 1,10,100,1000,10000,100000 --methods all

prints 393,728 shared + tasks x 394,752 parameters for the hierarchical recurrent adapter. The paper's backbone is not
public, so the one here is shapes without weights. It trains on a backbone folder of yours:

    python -m hra_jax.train --config usm_2b_hra --config.backbone=DIR --config.data.dir=FOLDER --workdir runs/usm_2b_hra

FOLDER holds train.jsonl, with the tag `speaker`. What that takes on a pod, without a pod:

    python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16

The mesh is one for v5e:16x16 and v6e:16x16 (16 x 16) and for v5p:4x4x4 (4 x 16); with --config.mesh.slices=2 it is one
for two slices of either.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
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
    # A batch of 1,024 utterances of 30 s: 4 on each of 256 chips. Its rows divide by two slices of 256 chips.
    config.batch.buckets = (8.0, 16.0, 30.0)
    config.batch.seconds = 30720.0
    config.batch.multiple = 512
    config.batch.max_tasks = 64
    config.eval.batch_seconds = 30720.0
    # Each layer's weights are gathered from 16 chips when they are used.
    config.mesh.fsdp = 16
    return config
