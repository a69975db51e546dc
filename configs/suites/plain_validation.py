"""A whole validation manifest as one task without an adapter: picks checkpoints while a backbone trains.

    python -m hra_jax.evaluate --workdir W --suite plain_validation

`{dir}` is the folder that has validation.jsonl; any manifest will do, it needs no tags.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "plain_validation"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `__base__` is the backbone without an adapter
    config.tasks = (("plain", "{dir}/validation.jsonl", "", "__base__"),)
    return config
