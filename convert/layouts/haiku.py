"""DeepMind's Haiku: `hk.nets.ResNet18` to 200, v1 and v2, with SAME padding everywhere."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.layouts.layout import Layout, Spelling, walk
from convert.layouts.torchvision import IMAGENET_LIMITS
from resnet_spec import ResNetSpec

_NORM = {
    "weight": "scale",
    "bias": "offset",
    "running_mean": "~/mean_ema/average",
    "running_var": "~/var_ema/average",
}
_OTHERS = {"weight": "w", "bias": "b"}
_STEM = "/~/initial_conv"  # behind the path of the network in the user's own modules
_MODULE = "res_net"  # what Haiku calls it where the user does not


@dataclass(frozen=True)
class HaikuSpelling(Spelling):
    """Parameters and state are separate trees; a BatchNorm's arrays keep the axes of images."""

    def name(self, layer: str, leaf: str, num_axes: int) -> str:
        leaves = _NORM if "batchnorm" in layer else _OTHERS
        collection = "state" if leaf.startswith("running") else "params"
        return f"{collection}/{layer}/{leaves[leaf]}"

    def to_ours(self, name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith("/w") and array.ndim >= 2:
            return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        return array.reshape(-1) if array.shape[:-1] == (1, 1, 1) else array

    def to_theirs(self, name: str, array: np.ndarray) -> np.ndarray:
        if name.endswith("/w") and array.ndim >= 2:
            return array.transpose(*range(2, array.ndim), 1, 0)
        return array if name.endswith("/b") else array.reshape(1, 1, 1, -1)

    def parts(self, name: str) -> list[str]:
        """Collection, module and parameter: a module's path is one key of Haiku's trees."""
        collection, _, inner = name.partition("/")
        module, _, leaf = inner.rpartition("/")
        return [collection, module, leaf]


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, Haiku's) for every layer."""
    return walk(
        spec,
        stem=f"{_MODULE}{_STEM}",
        stem_bn=f"{_MODULE}/~/initial_batchnorm",
        block=lambda stage, index: f"{_MODULE}/~/block_group_{stage}/~/block_{index}",
        conv="~/conv_{}",
        bn="~/batchnorm_{}",
        count_from=0,
        separator="/",
        shortcut="~/shortcut_conv",
        shortcut_bn="~/shortcut_batchnorm",
        norm=f"{_MODULE}/~/final_batchnorm",
        head=f"{_MODULE}/~/logits",
    )


def adapt(spec: ResNetSpec) -> ResNetSpec:
    """Every strided layer pads unevenly, the first convolution too."""
    return dataclasses.replace(spec, padding="same", stem_padding="same", running_variance="biased")


def whole_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by the layout's names: a network's path depends on the modules around it."""
    stem = next((name for name in tensors if name.endswith(f"{_STEM}/w")), None)
    if stem is None:
        return tensors
    path = stem.removesuffix(f"{_STEM}/w").partition("/")[2]
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        collection, _, inner = name.partition("/")
        is_within = inner.startswith(f"{path}/")
        found[f"{collection}/{_MODULE}{inner[len(path) :]}" if is_within else name] = tensor
    return found


LAYOUT = Layout(
    "haiku",
    "Haiku's hk.nets.ResNet18 to 200, v1 and v2, SAME padding, biased statistics",
    names,
    limits={
        **IMAGENET_LIMITS,
        "width": (1,),
        "padding": ("same",),
        "stem_padding": ("same",),
    },
    adapt=adapt,
    spelling=HaikuSpelling(is_flax=True, has_collections=True, has_counters=False, separator="/"),
    whole_names=whole_names,
)
