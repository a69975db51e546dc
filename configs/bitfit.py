"""BitFit on your own recordings: corrections of the biases, for each speaker.

    python -m hra_jax.train --config bitfit --config.data.dir=FOLDER --workdir runs/bitfit

FOLDER is as for the configuration `own`, which this one starts from.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `own`."""
    config = load("own").unlock()
    config.adapter.name = "bitfit"
    config.optimizer.learning_rate = 1e-2
    return config
