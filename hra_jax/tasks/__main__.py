"""`python -m hra_jax.tasks`: see `hra_jax.tasks.commands`."""

import sys

from hra_jax import cli
from hra_jax.tasks.commands import define_flags, main

if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
