"""Parallelism, applied to single-process models from outside."""
