"""As `usm_2b_hra`, by bottleneck adapters.

    python -m hra_jax.aot --config usm_2b_residual --topology v5e:16x16

says what it takes on a pod, and with a backbone folder of yours

    python -m hra_jax.train --config usm_2b_residual --config.backbone=DIR --config.data.dir=FOLDER --workdir W

trains it.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `usm_2b_hra`."""
    config = load("usm_2b_hra").unlock()
    config.adapter.name = "residual"
    return config.lock()
