"""A run: read, laid out and placed from its configuration; scored, exported and saved."""
