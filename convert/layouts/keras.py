"""keras.applications' ResNet50, 101 and 152: biases, an epsilon of 1.001e-5, "v1" bottlenecks."""

import dataclasses
from collections.abc import Iterator, Mapping
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
_MODELS = ("ResNet50", "ResNet101", "ResNet152")


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
    """Tensors by the layout's names: early releases of Keras 3 wrote a class and its number."""
    num_convs = sum(name.startswith("conv2d") and name.endswith("/kernel") for name in tensors)
    specs = (spec for spec in map(find_spec, _MODELS) if len([*spec.convolutions()]) == num_convs)
    for spec in specs:
        layers = dict(_counted(spec))
        split = {name: name.rpartition("/") for name in tensors}
        return {f"{layers.get(n, n)}/{leaf}": tensors[name] for name, (n, _, leaf) in split.items()}
    return tensors


def _counted(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(class and number, name) of every layer, counted in the order of Keras's graph."""
    kinds: dict[str, list[str]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    classes = dict(zip(("conv", "bn", "predictions"), kinds, strict=True))
    for ours, theirs in names(spec):
        layers = kinds[classes[theirs.rpartition("_")[2]]]
        # as far from the end as the block's last layer of its kind, a shortcut's comes before it
        layers.insert(len(layers) - ("shortcut" in ours), theirs)
    for kind, layers in kinds.items():
        yield from ((f"{kind}_{n}" if n else kind, layer) for n, layer in enumerate(layers))


def signs(shapes: Shapes) -> Iterator[str]:
    """Keras's own pre-activation networks, which no row of the table describes."""
    if any(name.endswith("_preact_bn/gamma") for name in shapes):
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
