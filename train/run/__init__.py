"""A run from its first step to its results: loop, checkpoints, metrics, progress, signals."""
