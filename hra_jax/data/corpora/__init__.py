"""Public corpora by name, and users' own seqio Tasks and Mixtures. `python -m hra_jax.data.corpora`."""
