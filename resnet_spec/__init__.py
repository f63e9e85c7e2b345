"""The table of residual networks and all their arithmetic, in the standard library alone."""

from resnet_spec.blocks import (
    BLOCKS,
    SHORTCUTS,
    BlockKind,
    Conv,
    ShortcutKind,
    basic_block,
    bottleneck,
    check_identity_shortcut,
    shortcut_conv,
    stem_conv,
)
from resnet_spec.classifier import ClassifierSpec
from resnet_spec.preprocessing import PREPROCESSINGS, Preprocessing
from resnet_spec.spec import BlockSpec, Dimensions, ResNetSpec, plan_stages
from resnet_spec.table import MODELS, UnknownNameError, find_spec, list_models, nearest_names

__all__ = [
    "BLOCKS",
    "MODELS",
    "PREPROCESSINGS",
    "SHORTCUTS",
    "BlockKind",
    "BlockSpec",
    "ClassifierSpec",
    "Conv",
    "Dimensions",
    "Preprocessing",
    "ResNetSpec",
    "ShortcutKind",
    "UnknownNameError",
    "basic_block",
    "bottleneck",
    "check_identity_shortcut",
    "find_spec",
    "list_models",
    "nearest_names",
    "plan_stages",
    "shortcut_conv",
    "stem_conv",
]
__version__ = "0.1.0"
