"""Orbax checkpoints of other programs: a tree of arrays, without a description of its model."""

from pathlib import Path

from convert.errors import ConversionError
from convert.runs.disk_format import CHECKPOINTS, DESCRIPTION, PROGRESS, shorten
from convert.runs.orbax_access import patient_loops, read_arrays
from convert.weights import Weights
from convert.wrappers import name_some

_TREE = "_METADATA"  # the file in which Orbax keeps the structure of a tree
_VALUE = "/value"  # what an NNX state has behind the name of each variable


def find_tree(folder: Path, step: int | None = None) -> Path | None:
    """The folder of a tree that another program wrote; None where there is none.

    Args:
        folder: of a tree, of one step of a `CheckpointManager`, or of all its steps.
        step: one of these; None is the newest.

    Raises:
        ConversionError: a step has several trees.
    """
    within = folder / CHECKPOINTS if (folder / CHECKPOINTS).is_dir() else folder
    steps = {int(path.name): path for path in within.iterdir() if path.name.isdecimal()}
    place = within if not steps else steps.get(max(steps) if step is None else step)
    if place is None or any((place / name).exists() for name in (DESCRIPTION, PROGRESS)):
        return None
    if (place / _TREE).is_file():
        return place
    found = sorted(path for path in place.iterdir() if (path / _TREE).is_file())
    if len(found) > 1:
        raise ConversionError(f"{place} holds several trees: name one:", list(map(str, found)))
    return found[0] if found else None


def read_tree(place: Path) -> Weights:
    """The arrays of a tree by their paths, `params/conv_init/kernel`.

    Raises:
        ConversionError: it is damaged.
    """
    try:
        with patient_loops():
            arrays = read_arrays(place.resolve())
    except ImportError:
        raise
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        raise ConversionError(f"{place} is not a whole tree of Orbax: {shorten(error)}") from error
    left_out = [name for name, array in arrays.items() if array.dtype.kind in "OUS"]
    arrays = {name.removesuffix(_VALUE): a for name, a in arrays.items() if name not in left_out}
    notes = [f"left out: {name_some(left_out)}, which are no arrays"] if left_out else []
    return Weights(arrays, None, notes=tuple(notes))
