"""The twins of a network that is at hand as its author's own code."""

from convert.adoption.adopt import Adopted, adopt

__all__ = ["Adopted", "adopt"]
