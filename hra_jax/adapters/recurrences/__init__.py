"""The recurrences of the controller, a file each; `hra_jax.adapters.controllers` has what they share."""
