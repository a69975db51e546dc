"""Hierarchical recurrent adapters for frozen speech encoders, in JAX.

backbone = hra_jax.load_backbone("builtin:tiny")
model = hra_jax.load_adapter("W/adapter", backbone)
texts = model.transcribe(waveforms, sample_rate=8000, tasks=["nicolas", "__base__"])

model = hra_jax.fit(backbone, {"ann": [(waveform, "hello"), ...]}, sample_rate=8000, steps=300)
"""

import importlib
import os
import signal
import sys

TYPE_CHECKING = False  # `typing` takes milliseconds, in which Ctrl-C would end in a traceback
if TYPE_CHECKING:
    from hra_jax.api import Backbone, Model, load_adapter, load_backbone
    from hra_jax.fitting import fit, save_adapter

__version__ = "0.2.0"  # setup.py reads it from here, results and exports carry it

_PLACES = dict.fromkeys(("Backbone", "Model", "load_adapter", "load_backbone"), "hra_jax.api") | dict.fromkeys(
    ("fit", "save_adapter"), "hra_jax.fitting"
)
__all__ = ["Backbone", "Model", "__version__", "fit", "load_adapter", "load_backbone", "save_adapter"]


def _interrupted(*_: object) -> None:
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(130)


if sys.argv[:1] == ["-m"] and "hra_jax" in "".join(sys.orig_argv[-len(sys.argv) :][:1]):
    # `python -m` is looking for its module, a command of this package: Ctrl-C must end it from here on, also while
    # what takes care of signals is imported.
    _before = signal.signal(signal.SIGINT, _interrupted)
    if not importlib.import_module("hra_jax.run.starting").start():
        signal.signal(signal.SIGINT, _before)


def __getattr__(name: str) -> object:
    # Late, so that commands which only read files do not wait for JAX.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'hra_jax' has no attribute {name!r}")
