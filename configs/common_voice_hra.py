"""Languages of Common Voice on w2v-BERT 2.0 (580 million parameters): a language is a task, with letters of its own.

    python -m hra_jax.data.corpora prepare hra/common_voice/cy --source DOWNLOADED --data_dir DATA
    python -m hra_jax.data.cache --source seqio:hra/common_voice/cy/train,validation,test --data_dir DATA
    python -m hra_jax.train --config common_voice_hra --config.backbone=BACKBONE --config.data.dir=DATA --workdir W

The first two are typed for each of the languages below; DOWNLOADED is the folder of one, or a folder of them. For other
languages, or one, change LANGUAGES in a copy of this file, and name its suites '' or copies of theirs. BACKBONE is what
`python -m hra_jax.convert --source W2V_BERT --output BACKBONE` makes of the published folder. The encoder has no output
layer: each language gets one, for the characters of its texts. What it takes, without a TPU:

    python -m hra_jax.aot --config common_voice_hra --topology v5e:2x4 --tasks 8 --labels_per_second 20

The batch is one for 8, 16 or 32 chips.
"""

from ml_collections import ConfigDict

from hra_jax.config import load

# Of six families and four scripts, from some hours of speech to some hundred.
LANGUAGES = ("cy", "eu", "hi", "ka", "lg", "tr", "uk", "vi")


def get_config() -> ConfigDict:
    """Returns what differs from `base`."""
    config = load("base")
    config.backbone = "abstract:w2v_bert_2.0"
    config.remat = "full"
    config.adapter.output = "characters"
    config.adapter.output_size = 128
    config.hra.width = 256
    config.data.task_tag = "locale"
    config.data.sources = tuple(
        (language, f"seqio:hra/common_voice/{language}/train", "proportional") for language in LANGUAGES
    )
    # Of two languages, of which one has a hundred times the data, it comes four times as often.
    config.data.temperature = 3.3
    # Sentences of 2 to 10 s. A batch of 960 s is 64 rows of 15 s, and every earlier bucket ends where 32 rows more fit,
    # or 64. About 15% of it is padding.
    config.batch.buckets = (3.75, 5.0, 6.0, 7.5, 10.0, 15.0)
    config.batch.seconds = 960.0
    config.batch.multiple = 32
    config.batch.max_tasks = len(LANGUAGES)
    # 4,500 h of speech: a language of 100 h, at an eighth of the rows, is gone through six times. Output layers begin
    # at nothing. `aot` has 0.12 s for a step on v5e:2x4 at the chips' peak, so the run takes 40 minutes at the least.
    config.steps = 20000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1000
    # Microphones and rooms of volunteers differ, and so do levels.
    config.augment.noise_probability = 0.3
    config.augment.gain_db = (-12.0, 6.0)
    config.eval.suite = "common_voice"
    config.eval.select_suite = "common_voice_validation"
    config.eval.every_steps = 2000
    config.eval.batch_seconds = 960.0
    config.export.step = "best"
    return config
