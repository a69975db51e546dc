"""The validation sentences of the languages of `common_voice_hra`, each with the adapter of its language.

    python -m hra_jax.evaluate --workdir W --suite common_voice_validation

`data.dir` is where `hra_jax.data.cache` has put the shards of seqio:hra/common_voice/LANGUAGE/validation.
"""

from ml_collections import ConfigDict

LANGUAGES = ("cy", "eu", "hi", "ka", "lg", "tr", "uk", "vi")


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "common_voice_validation"
    config.normalizer = "basic"  # of references and hypotheses
    config.tasks = tuple(
        (language, f"seqio:hra/common_voice/{language}/validation", "", language) for language in LANGUAGES
    )
    return config
