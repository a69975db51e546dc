"""The official test set of the Free Spoken Digit Dataset: each of the six speakers with the adapter of that speaker.

    python -m hra_jax.evaluate --workdir W --suite fsdd

`{dir}` is the folder that has test.jsonl with the tag `speaker`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "fsdd"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "*"),)
    return config
