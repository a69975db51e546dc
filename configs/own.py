"""Adapts a backbone to your own recordings, one task per speaker.

    python -m hra_jax.data.manifest make FOLDER --split --output FOLDER
    python -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own

FOLDER holds a folder of audio files for each speaker, with the transcript of each in a .txt beside it (or all of them
in transcripts.tsv). Utterances of more than 16 s are skipped and named in W/data_report.json.
"""

from ml_collections import ConfigDict

from hra_jax.config import load


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.steps = 1000
    config.remat = "dots"
    config.data.sources = (("own", "{dir}/train.jsonl", 1.0),)
    config.augment.noise_probability = 0.3
    config.augment.speed = 0.1
    config.augment.warp = 0.05
    config.eval.suite = "speakers"
    config.eval.select_suite = "speakers_validation"
    config.export.step = "best"
    return config
