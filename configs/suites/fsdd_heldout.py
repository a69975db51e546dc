"""Speakers of the Free Spoken Digit Dataset whom an adapter has not heard, with heads trained on few of their words.

    python -m hra_jax.evaluate --adapter DIR --suite fsdd_heldout --data_dir FSDD_FOLDER --output R

Those of the six speakers who are tasks of the adapter are left out. `{dir}` is the folder that has train.jsonl and
test.jsonl with the tag `speaker`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the suite; hra_jax/evaluation/suites.py says what its keys are."""
    config = ConfigDict()
    config.name = "fsdd_heldout"
    config.normalizer = "basic"  # of references and hypotheses
    # (task, manifest, tag filter, adapter task); `*` is each speaker in turn
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "__few__"),)
    config.support = "{dir}/train.jsonl"
    config.shots = (0, 1, 10, 100)  # utterances
    config.draws = 5
    # How heads are trained: configuration keys, as `configs/fsdd.py` has them; `steps` is updates of every head.
    config.few = (
        ("steps", 100),
        ("batch.seconds", 32.0),
        ("batch.buckets", (0.5, 0.8, 2.5)),
        ("augment.noise_probability", 0.5),
        ("augment.speed", 0.15),
        ("augment.warp", 0.1),
        ("augment.time_mask_fraction", 0.06),
        ("optimizer.learning_rate", 4e-3),
        ("optimizer.warmup_steps", 20),
        ("optimizer.weight_decay", 1e-2),
    )
    return config
