"""TensorFlow and seqio, as this library uses them: imported when first needed, quiet, and off the accelerators."""

import contextlib
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from hra_jax.console import tell
from hra_jax.errors import FAILURES

_CHATTER = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} ")


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keeps what TensorFlow's C++ code says of its own start (no GPU found, ...) off the user's screen.

    It writes past Python and past its log level. Every other line that comes meanwhile is shown afterwards.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            tell(*(line for line in lines if not _CHATTER.match(line)), to=sys.stderr)


@functools.cache
def libraries() -> tuple[Any, Any]:
    """TensorFlow and seqio, imported on first use (it takes seconds) and kept off the accelerators."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with without_chatter():
        return _imported()


def _imported() -> tuple[Any, Any]:
    import seqio
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            # The caller's own TensorFlow code has initialised the devices: too late to hide them, and not ours to.
            continue
    return tf, seqio


def failures() -> tuple[type[Exception], ...]:
    """What goes wrong in seqio, in TensorFlow and in code of the user's that they call."""
    tf, _ = libraries()
    return (*FAILURES, tf.errors.OpError)
