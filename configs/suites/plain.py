"""A whole test manifest as one task without an adapter: how good a backbone is.

    python -m hra_jax.evaluate --workdir W --suite plain

`{dir}` is the folder that has test.jsonl; any manifest will do, it needs no tags.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "plain"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `__base__` is the backbone without an adapter
    config.tasks = (("plain", "{dir}/test.jsonl", "", "__base__"),)
    return config
