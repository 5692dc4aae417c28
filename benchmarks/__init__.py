"""Measurements, each a ratio of two sides in one process: ``python -m benchmarks.NAME --help``."""
