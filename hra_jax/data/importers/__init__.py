"""Corpora as they are published, read into manifests: one file for each format. `python -m hra_jax.data.manifest`."""
