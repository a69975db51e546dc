"""A recogniser for servers: a portable program, its weights, and a small file for each task."""
