"""State, step, optimizer, sharding, checkpoints, metrics."""
