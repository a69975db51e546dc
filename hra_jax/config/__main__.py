"""Prints every configuration key: its default, what it allows, and what it means.

python -m hra_jax.config
"""

from hra_jax import cli
from hra_jax.config.keys import documentation
from hra_jax.console import tell


def main(argv: list[str]) -> None:
    """Prints them."""
    del argv
    tell(*documentation().splitlines())


if __name__ == "__main__":
    cli.run(main)
