"""`resnet-train table`: trains what a table of published networks lacks, and writes the table."""

from train.table.command import main

__all__ = ["main"]
