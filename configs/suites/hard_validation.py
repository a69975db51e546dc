"""The validation sentences of the hard synthetic speakers: picks checkpoints of runs that `hard` tests.

    python -m hra_jax.evaluate --workdir W --suite hard_validation

`{dir}` is where the synthetic set `hard` was rendered.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "hard_validation"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/validation.jsonl", "speaker=*", "*"),)
    return config
