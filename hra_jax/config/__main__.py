"""Prints every configuration key: its default, what it allows, and what it means.

python -m hra_jax.config
"""

from hra_jax.config.keys import documentation
from hra_jax.console import tell

if __name__ == "__main__":
    tell(*documentation().splitlines())
