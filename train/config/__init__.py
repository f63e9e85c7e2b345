"""Configurations: their fields and ranges, what a resumed run may change, and the recipes."""

from train.config.config import (
    DATASETS,
    FIRST_PROFILED,
    FOLDER,
    LAST_PROFILED,
    MOST_STEPS,
    Config,
)

__all__ = ["DATASETS", "FIRST_PROFILED", "FOLDER", "LAST_PROFILED", "MOST_STEPS", "Config"]
