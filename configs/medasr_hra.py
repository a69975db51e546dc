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

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `parakeet_hra`."""
    config = load("parakeet_hra").unlock()
    config.backbone = "abstract:medasr"
    config.hra.width = 128
    return config.lock()
