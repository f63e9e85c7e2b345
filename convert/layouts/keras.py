"""keras.applications' ResNet50, 101 and 152: biases, an epsilon of 1.001e-5, "v1" bottlenecks."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from convert.layouts.layout import Layout, Shapes, Spelling, walk
from convert.layouts.torchvision import IMAGENET_LIMITS
from resnet_spec import ResNetSpec, find_spec

_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_OTHERS = {"weight": "kernel", "bias": "bias"}
_NUM_CONVS = {53: "ResNet50", 104: "ResNet101", 155: "ResNet152"}


@dataclass(frozen=True)
class KerasSpelling(Spelling):
    """Kernels have Flax's axes and name; what belongs to a BatchNorm has names of its own."""

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        leaves = _NORM if layer.endswith("_bn") else _OTHERS
        return f"{layer}{self.separator}{leaves[leaf]}"


names = partial(
    walk,
    stem="conv1_conv",
    stem_bn="conv1_bn",
    block=lambda stage, index: f"conv{stage + 2}_block{index + 1}",
    conv="{}_conv",
    bn="{}_bn",
    separator="_",
    shortcut="0_conv",
    shortcut_bn="0_bn",
    head="predictions",
)


def adapt(spec: ResNetSpec) -> ResNetSpec:
    """Bottlenecks have the stride on the first 1x1, as He et al. 2015 published them."""
    stride = "1x1" if spec.block == "bottleneck" else "3x3"
    return dataclasses.replace(spec, bottleneck_stride=stride, running_variance="biased")


def whole_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by the layout's names: before 3.10 Keras wrote a class and its number."""
    num_convs, num_norms = _counts(tensors)
    if num_convs != num_norms or num_convs not in _NUM_CONVS:
        return tensors
    layers = dict(_counted(find_spec(_NUM_CONVS[num_convs])))
    split = {name: name.rpartition("/") for name in tensors}
    return {f"{layers.get(n, n)}/{leaf}": tensors[name] for name, (n, _, leaf) in split.items()}


def _counts(names: Iterable[str]) -> tuple[int, int]:
    """The numbers of convolutions and BatchNorms that are called by their class."""
    found = {n.rpartition("/")[0] for n in names}
    kinds = ("conv2d", "batch_normalization")
    num_convs, num_norms = (sum(n.startswith(kind) for n in found) for kind in kinds)
    return num_convs, num_norms


def _counted(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(class and number, name) of every layer, counted in the order of Keras's graph."""
    kinds: dict[str, list[str]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    classes: dict[str, str] = dict(zip(("conv", "bn", "predictions"), kinds, strict=True))
    for ours, theirs in names(spec):
        layers = kinds[classes[theirs.rpartition("_")[2]]]
        # as far from the end as the block's last layer of its kind, a shortcut's comes before it
        layers.insert(len(layers) - ("shortcut" in ours), theirs)
    for kind, layers in kinds.items():
        yield from ((f"{kind}_{n}" if n else kind, layer) for n, layer in enumerate(layers))


def signs(shapes: Shapes) -> Iterator[str]:
    """Keras's own pre-activation networks, which no row of the table describes."""
    num_convs, num_norms = _counts(shapes)  # no BatchNorm follows a shortcut's convolution
    is_counted = num_convs in _NUM_CONVS and num_norms == num_convs - 4
    if is_counted or any(name.endswith("_preact_bn/gamma") for name in shapes):
        yield (
            "a ResNetV2 of keras.applications: there the last block of a stage has the stride, its "
            "shortcut takes every second pixel, and the max pool pads with zeros; here the first "
            "block has it (He et al. 2016)"
        )


LAYOUT = Layout(
    "keras",
    "keras.applications: ResNet50/101/152 with biases, stride on the first 1x1 (no V2)",
    names,
    limits={
        **IMAGENET_LIMITS,
        "block": ("bottleneck",),
        "preact": (False,),
        "width": (1,),
        "bottleneck_stride": ("1x1",),
    },
    adapt=adapt,
    spelling=KerasSpelling(is_flax=True, has_counters=False, separator="/"),
    has_conv_bias=True,
    epsilon=1.001e-5,
    whole_names=whole_names,
    signs=signs,
)
