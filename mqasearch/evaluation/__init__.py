"""Scores: benchmarks as lm-eval has them, and the scorers that put them to a live model."""
