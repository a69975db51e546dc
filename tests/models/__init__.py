"""Tests of `hra_jax.models`."""
