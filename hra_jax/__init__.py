"""Hierarchical recurrent adapters for frozen speech encoders, in JAX.

backbone = hra_jax.load_backbone("builtin:tiny")
model = hra_jax.load_adapter("W/adapter", backbone)
texts = model.transcribe(waveforms, sample_rate=8000, tasks=["nicolas", "__base__"])
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_jax.api import Backbone, Model, load_adapter, load_backbone

__version__ = "0.2.0"  # setup.py reads it from here, results and exports carry it

_FROM_API = ("Backbone", "Model", "load_adapter", "load_backbone")
__all__ = ["Backbone", "Model", "__version__", "load_adapter", "load_backbone"]

if sys.argv[:1] == ["-m"]:
    # `python -m` is looking for its module: a command of this package, perhaps, and Ctrl-C must end it from here on.
    importlib.import_module("hra_jax.run.starting").start()


def __getattr__(name: str) -> object:
    # Late, so that commands which only read files do not wait for JAX.
    if name in _FROM_API:
        return getattr(importlib.import_module("hra_jax.api"), name)
    raise AttributeError(f"module 'hra_jax' has no attribute {name!r}")
