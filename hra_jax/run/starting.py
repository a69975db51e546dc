"""The first thing that a command does, while `hra_jax` itself is being imported: it takes care of signals.

Importing JAX and TensorFlow takes seconds, in which Ctrl-C would end in a traceback.
"""

import re
import sys

from hra_jax.run import signals

# What another command starts in a session of its own; it dies with that command (run/children.py), and forks, for
# which it must have no threads.
_CHILDREN = {"hra_jax.data.synthetic.voice_worker"}


def module_of(words: list[str], arguments: int) -> str | None:
    """The module of this package that `python -m` runs.

    Args:
      words: the command line of the interpreter.
      arguments: how many words of it, at the end, are the command's own.

    Returns:
      None where it runs anything else.
    """
    last = words[: len(words) - arguments][-1:]  # NAME of `-m NAME`; it may be in one word: `-mNAME`
    found = re.fullmatch(r"(?:-\w*m)?(hra_jax(?:\.\w+)*)", "".join(last))
    return found and found[1]


def start() -> bool:
    """Installs the handlers of signals if this process runs a command; to be called while `python -m` looks for it.

    Returns:
      Whether it does.
    """
    module = module_of(sys.orig_argv, len(sys.argv) - 1)
    if module is None or module in _CHILDREN:
        return False
    signals.install()
    return True
