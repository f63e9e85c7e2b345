"""Orbax checkpoints that this trainer did not write: recognised, and told the ways in."""

from pathlib import Path

from convert.errors import ConversionError
from resnet_spec.checkpoints import DESCRIPTION, PROGRESS

_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")  # of Orbax, in any version


def check_own(folder: Path) -> None:
    """Raises a ConversionError where a folder is Orbax's, and nothing in it is of this trainer."""
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if {DESCRIPTION, PROGRESS} & names:
        return
    inner = (path for path in folder.iterdir() if path.is_dir())
    if any(m in names for m in _MARKS) or any((p / m).exists() for p in inner for m in _MARKS):
        raise ConversionError(
            f"{folder} is an Orbax checkpoint, but not one of this trainer: restore it where it "
            "was made, and give its tree to `convert.from_layout`, or write its arrays by "
            "numpy.savez with names as params/conv_init/kernel, and import that .npz"
        )
