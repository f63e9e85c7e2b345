"""Moves weights between the Flax and torch twins, files, training runs and other packages."""

from typing import TYPE_CHECKING, Any

from convert.errors import ConversionError
from convert.inference import export_onnx, export_program
from convert.layouts import from_layout, layout_spec, to_layout
from convert.loading import load
from convert.models import build
from convert.runs import run_from_torch, run_to_torch
from convert.saving import save
from convert.sources import load_preprocessing, load_statistics_batch_size
from convert.twins import flax_to_torch, torch_to_flax

if TYPE_CHECKING:
    from convert.adoption import Adopted, adopt

__all__ = [
    "Adopted",
    "ConversionError",
    "adopt",
    "build",
    "export_onnx",
    "export_program",
    "flax_to_torch",
    "from_layout",
    "layout_spec",
    "load",
    "load_preprocessing",
    "load_statistics_batch_size",
    "run_from_torch",
    "run_to_torch",
    "save",
    "to_layout",
    "torch_to_flax",
]


def __getattr__(name: str) -> Any:
    """What runs networks of others is imported when it is asked for, as it takes half the time."""
    if name not in ("Adopted", "adopt"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convert import adoption

    return getattr(adoption, name)
