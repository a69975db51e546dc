"""Independent implementations that tests compare with, and tiny models for them."""
