"""`resnet-train results`: a table of what runs reached, over their seeds, and their curves."""

from train.results.command import main

__all__ = ["main"]
