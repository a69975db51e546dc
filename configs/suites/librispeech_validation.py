"""The development sets of LibriSpeech, whose readers no adapter knows, with the mean of its tasks.

    python -m hra_jax.evaluate --workdir W --suite librispeech_validation

`data.dir` is where `hra_jax.data.cache` has put the shards of dev_clean and dev_other.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "librispeech_validation"
    config.normalizer = "basic"  # of references and hypotheses
    config.tasks = tuple(
        (name, f"seqio:hra/librispeech/lazy_decode/{name}", "", "__mean__") for name in ("dev_clean", "dev_other")
    )
    return config
