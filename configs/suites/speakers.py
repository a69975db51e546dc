"""The test recordings of a folder, each speaker with the adapter of that speaker.

    python -m hra_jax.evaluate --workdir W --suite speakers

`{dir}` is a folder with test.jsonl; `python -m hra_jax.data.manifest make FOLDER --split --output FOLDER` writes it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "speakers"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "*"),)
    return config
