"""The test sentences of the languages of `common_voice_hra`, each with the adapter of its language.

    python -m hra_jax.evaluate --workdir W --suite common_voice

`data.dir` is where `hra_jax.data.cache` has put the shards of seqio:hra/common_voice/LANGUAGE/test.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "common_voice"
    config.normalizer = "basic"  # of references and hypotheses
    languages = [name for name, _, _ in load("common_voice_hra").data.sources]
    config.tasks = tuple((name, f"seqio:hra/common_voice/{name}/test", "", name) for name in languages)
    return config
