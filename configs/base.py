"""The configuration that all others start from: every key at its default. The other files hold differences only.

    python -m hra_jax.config

prints every key with its default, what it allows, and what it means with its unit; docs/configuration.md has the same
tables. Default, rule and meaning stand with the class that uses the value: `optimizer.*` in
hra_jax/training/optimizer.py, `hra.*` in hra_jax/adapters/hra.py; hra_jax/config/keys.py lists the class of each group.

    (no group)        seed, steps, method, backbone, backbone_dtype, dropout, remat, attention_block, accumulate
    pretrain          the new backbone of method 'pretrain'
    adapter           which method, layers and outputs, what trains, where it starts
    hra residual lora the settings of one method
    data batch        what is trained on, how it is read; the size of global batches
    augment           noise, speed, warping, masks
    optimizer         learning rate, schedule, AdamW, clipping
    checkpoint eval export     how often, on what, from which step
    mesh distributed profile   devices, processes, profiling

Names of tasks, synthetic sets, suites and sizes are checked too, so a mistyped one fails before anything is compiled.
"""

from ml_collections import ConfigDict

from hra_jax.config.keys import default_config


def get_config() -> ConfigDict:
    """Returns the locked configuration that has every key; it trains nothing until `data.sources` is given."""
    return default_config()
