"""Suites, error rates, reports."""
