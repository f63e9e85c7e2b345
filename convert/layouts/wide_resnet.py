"""szagoruyko/wide-residual-networks, the authors' own: a dictionary of tensors, no modules."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from convert.layouts.layout import TORCHS_DIALECT, Layout, Shapes, Spelling, walk


@dataclass(frozen=True)
class FunctionalSpelling(Spelling):
    """A convolution's only tensor is called as the convolution itself."""

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        return layer if num_axes == 4 else super().name(layer, leaf, num_axes)


def signs(shapes: Shapes) -> Iterator[str]:
    """The most used port, meliketoy/wide-resnet.pytorch, which computes something else."""
    is_preact = shapes.get("conv1.weight", ())[:1] != shapes.get("bn1.weight", ())
    if is_preact and {"layer1.0.shortcut.0.bias", "layer1.0.bn2.bias", "linear.bias"} <= {*shapes}:
        yield (
            "these are names and biases of meliketoy/wide-resnet.pytorch: there a block has its "
            "stride in the second convolution, and its shortcut takes what is not normalised yet; "
            "here the first convolution has it, and the shortcut begins behind the normalisation"
        )


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
