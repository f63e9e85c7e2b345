"""Configurations: the options, what a resumed run may change, and the recipes."""

from train.config.config import (
    OF_ONE_START,
    Config,
    check_resumable,
    computed_fields,
    flag,
    unused_fields,
)
from train.config.fields import DATASETS, FIRST_PROFILED, FOLDER, LAST_PROFILED, MOST_STEPS

__all__ = [
    "DATASETS",
    "FIRST_PROFILED",
    "FOLDER",
    "LAST_PROFILED",
    "MOST_STEPS",
    "OF_ONE_START",
    "Config",
    "check_resumable",
    "computed_fields",
    "flag",
    "unused_fields",
]
