"""Tests of `hra_jax.training`."""
