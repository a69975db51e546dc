"""Residual bottleneck adapters on your own recordings: a small network after each layer, for each speaker.

    python -m hra_jax.train --config residual --config.data.dir=FOLDER --workdir runs/residual

FOLDER is as for the configuration `own`, which this one starts from.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `own`."""
    config = load("own").unlock()
    config.adapter.name = "residual"
    config.residual.width = 16
    config.optimizer.learning_rate = 3e-3
    return config
