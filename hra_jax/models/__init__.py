"""Speech encoders in Flax: features, subsampling, Conformer layers, CTC."""
