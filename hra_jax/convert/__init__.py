"""Published Conformer checkpoints to backbone folders: `python -m hra_jax.convert`, or `conversion.convert`.

A family is one file of `families`, with a table: which source key becomes which tensor of the backbone, and how. Every
key of a folder is used by a rule, ignored by a pattern that carries the reason, or an error.
"""
