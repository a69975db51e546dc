"""Low-rank adaptation (LoRA) on your own recordings: corrections of the attention's projections, for each speaker.

    python -m hra_jax.train --config lora --config.data.dir=FOLDER --workdir runs/lora

FOLDER is as for the configuration `own`, which this one starts from.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `own`."""
    config = load("own").unlock()
    config.adapter.name = "lora"
    config.lora.rank = 4
    config.optimizer.learning_rate = 3e-3
    return config
