"""PyPI's torch-resnet 0.0.4, the package that this one re-creates: every model of the table."""

from collections.abc import Iterator

from convert.layouts.layout import TORCHS_DIALECT, Layout, walk
from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, torch-resnet's) for every layer."""
    is_bare = spec.preact and spec.small_images  # a stem of one layer is not in a Sequential
    return walk(
        spec,
        stem="init_layer" if is_bare else "init_layer.0",
        stem_bn="init_layer.1",
        block=lambda stage, index: f"layers.{stage}.{index}",
        conv="conv{}",
        bn="bn{}",
        shortcut="shortcut.conv" if spec.preact else "shortcut.0.conv",
        shortcut_bn="shortcut.1",
        norm="norm",
        head="head",
    )


LAYOUT = Layout(
    "torch-resnet",
    "PyPI's torch-resnet 0.0.4: all of its models",
    names,
    limits={
        "shortcut": ("identity", "projection", "full_projection", "convolution"),
        **TORCHS_DIALECT,
    },
    may_lack_bias=True,  # it has no head of its own
)
