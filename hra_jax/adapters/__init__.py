"""Adaptation methods behind one protocol, and the bank of per-task rows."""
