"""Names that other packages give to the layers of these networks, one file for each package.

A layout says `(our layer, their layer)` for every layer, and which networks the package has. Both
directions of conversion, and the check that no tensor is left out, follow from it.
"""

from convert.layouts.layout import OURS, Layout
from convert.layouts.translate import (
    LAYOUTS,
    find_layout,
    from_layout,
    layout_spec,
    read_layout,
    to_layout,
    write_layout,
)

__all__ = [
    "LAYOUTS",
    "OURS",
    "Layout",
    "find_layout",
    "from_layout",
    "layout_spec",
    "read_layout",
    "to_layout",
    "write_layout",
]
