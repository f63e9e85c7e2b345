"""The table of residual networks and all their arithmetic, in the standard library alone."""

from resnet_spec.blocks import (
    BLOCKS,
    SHORTCUTS,
    BlockKind,
    BottleneckStride,
    Conv,
    PaddingKind,
    RunningVariance,
    ShortcutKind,
    basic_block,
    bottleneck,
    branch_drop_rates,
    check_identity_shortcut,
    check_probability,
    same_padding,
    shortcut_conv,
    stem_conv,
)
from resnet_spec.classifier import ClassifierSpec
from resnet_spec.cost import count_multiplications
from resnet_spec.preprocessing import PREPROCESSINGS, Preprocessing
from resnet_spec.spec import (
    CHOICES,
    DIALECT,
    RATES,
    BlockSpec,
    Dialect,
    Dimensions,
    ResNetSpec,
    check_own_classes,
    plan_stages,
)
from resnet_spec.table import MODELS, UnknownNameError, find_spec, list_models, nearest_names

__all__ = [
    "BLOCKS",
    "CHOICES",
    "DIALECT",
    "MODELS",
    "PREPROCESSINGS",
    "RATES",
    "SHORTCUTS",
    "BlockKind",
    "BlockSpec",
    "BottleneckStride",
    "ClassifierSpec",
    "Conv",
    "Dialect",
    "Dimensions",
    "PaddingKind",
    "Preprocessing",
    "ResNetSpec",
    "RunningVariance",
    "ShortcutKind",
    "UnknownNameError",
    "basic_block",
    "bottleneck",
    "branch_drop_rates",
    "check_identity_shortcut",
    "check_own_classes",
    "check_probability",
    "count_multiplications",
    "find_spec",
    "list_models",
    "nearest_names",
    "plan_stages",
    "same_padding",
    "shortcut_conv",
    "stem_conv",
]
__version__ = "0.1.0"
