"""The validation recordings of a folder, each speaker with the adapter of that speaker.

    python -m hra_jax.evaluate --workdir W --suite speakers_validation

`{dir}` is a folder with validation.jsonl, which
`python -m hra_jax.data.manifest make FOLDER --split --output FOLDER` writes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "speakers_validation"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/validation.jsonl", "speaker=*", "*"),)
    return config
