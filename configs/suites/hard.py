"""The test sentences of the hard synthetic speakers, each speaker with the adapter of that speaker.

    python -m hra_jax.evaluate --workdir W --suite hard

`{dir}` is where the synthetic set `hard` was rendered.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "hard"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "*"),)
    return config
