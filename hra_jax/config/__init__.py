"""Configurations: the files, and what each key allows. A configuration file starts from `load("base")`."""

from hra_jax.config.files import load_config as load

__all__ = ["load"]
