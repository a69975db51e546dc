"""Output layers on your own recordings: nothing but a correction of the last layer, for each speaker.

    python -m hra_jax.train --config output --config.data.dir=FOLDER --workdir runs/output

FOLDER is as for the configuration `own`, which this one starts from.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `own`."""
    config = load("own").unlock()
    config.adapter.name = "output"
    config.optimizer.learning_rate = 1e-2
    return config
