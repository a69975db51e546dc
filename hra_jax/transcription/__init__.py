"""Recordings to text, many at a time: what is asked for, how it is batched, and where the text goes."""
