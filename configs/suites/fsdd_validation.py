"""The validation set of the Free Spoken Digit Dataset: picks checkpoints of runs that `fsdd` tests.

    python -m hra_jax.evaluate --workdir W --suite fsdd_validation

`{dir}` is the folder that has validation.jsonl with the tag `speaker`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "fsdd_validation"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/validation.jsonl", "speaker=*", "*"),)
    return config
