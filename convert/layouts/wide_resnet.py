"""szagoruyko/wide-residual-networks, the authors' own: a dictionary of tensors, no modules."""

from dataclasses import dataclass
from functools import partial

from convert.layouts.layout import TORCHS_DIALECT, Layout, Spelling, walk


@dataclass(frozen=True)
class FunctionalSpelling(Spelling):
    """A convolution's only tensor is called as the convolution itself."""

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        return layer if num_axes == 4 else super().name(layer, leaf, num_axes)


LAYOUT = Layout(
    "wide-resnet",
    "szagoruyko/wide-residual-networks: pre-activation WideResNet16-1 to 40-10",
    partial(
        walk,
        stem="conv0",
        block=lambda stage, index: f"group{stage}.block{index}",
        conv="conv{}",
        bn="bn{}",
        count_from=0,
        shortcut="convdim",
        norm="bn",
        head="fc",
    ),
    limits={
        "block": ("basic",),
        "preact": (True,),
        "small_images": (True,),
        "shortcut": ("projection",),
        **TORCHS_DIALECT,
    },
    spelling=FunctionalSpelling(has_counters=False),
)
