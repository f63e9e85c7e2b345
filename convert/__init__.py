"""Weights between the Flax and torch twins, files, training runs and other packages' layouts."""

from convert.errors import ConversionError
from convert.files import load, save
from convert.layouts import from_layout, to_layout
from convert.runs import run_from_torch, run_to_torch
from convert.twins import flax_to_torch, torch_to_flax

__all__ = [
    "ConversionError",
    "flax_to_torch",
    "from_layout",
    "load",
    "run_from_torch",
    "run_to_torch",
    "save",
    "to_layout",
    "torch_to_flax",
]
