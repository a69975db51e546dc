"""Fine-tunes the whole backbone on your own recordings, all speakers together; exports another backbone.

    python -m hra_jax.train --config full --config.data.dir=FOLDER --workdir runs/full

FOLDER is as for the configuration `own`, which this one starts from.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `own`."""
    config = load("own").unlock()
    config.method = "full"
    config.optimizer.learning_rate = 5e-4
    return config
