"""Tests of `hra_jax.adapters`."""
