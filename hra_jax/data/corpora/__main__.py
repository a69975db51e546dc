"""`python -m hra_jax.data.corpora`: see `hra_jax.data.corpora.commands`."""

import sys

from hra_jax import cli
from hra_jax.data.corpora.commands import define_flags, main

if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
