"""The validation readings of UserLibri, each user with the adapter of that user.

    python -m hra_jax.evaluate --workdir W --suite user_libri_validation

`data.dir` is where `hra_jax.data.cache` has put the shards of seqio:hra/user_libri/validation.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "user_libri_validation"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, source, tag filter, adapter task); `*` is each user in turn
    config.tasks = (("*", "seqio:hra/user_libri/validation", "user=*", "*"),)
    return config
