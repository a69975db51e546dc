"""Manifests, synthetic speech, reference streams, batches."""
