"""The life of a task: added, shown, renamed, exported, imported, removed. `python -m hra_jax.tasks`."""
