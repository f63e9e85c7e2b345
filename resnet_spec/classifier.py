"""A network together with its head, and the text by which files of weights describe it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnet_spec.blocks import Conv
from resnet_spec.spec import ResNetSpec, is_positive_integer


@dataclass(frozen=True)
class ClassifierSpec:
    """A network and its head: linear with `num_classes` outputs, or none where that is None.

    Attributes:
        network: a row of the table.
        num_classes: outputs of the head.
        head_bias: whether the head has one.
        statistics_batch_size: images that each running variance was taken over, where it is known:
            the biased and the unbiased one differ by m / (m - 1) for m values per channel. It is
            not compared.

    Raises:
        ValueError: `num_classes` or `statistics_batch_size` is not a positive integer.
    """

    network: ResNetSpec
    num_classes: int | None = None
    head_bias: bool = True
    statistics_batch_size: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("num_classes", "statistics_batch_size"):
            value = getattr(self, name)
            if value is None:
                continue
            if not is_positive_integer(value):
                raise ValueError(f"{name} must be a positive integer or None, not {value!r}")
            object.__setattr__(self, name, int(value))

    def layers(self) -> list[tuple[str, dict[str, tuple[int, ...]]]]:
        """(attribute path, shape of each tensor) of every layer, spelled as torch does."""
        convs = [
            (path, {"weight": _conv_shape(conv)}) for path, conv in self.network.convolutions()
        ]
        norms = [(path, _norm_shapes(planes)) for path, planes in self.network.norms()]
        head: dict[str, tuple[int, ...]] = {}
        if self.num_classes is not None:
            head["weight"] = (self.num_classes, self.network.out_planes)
            if self.head_bias:
                head["bias"] = (self.num_classes,)
        return [*convs, *norms, *([("head", head)] if head else [])]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, spelled and in the order as in torch's state dict."""
        layers = sorted(self.layers(), key=lambda layer: self._place(layer[0]))
        return {f"{path}.{leaf}": s for path, shapes in layers for leaf, s in shapes.items()}

    def _place(self, path: str) -> tuple[float, ...]:
        """By which layers are sorted: a block's are in pairs, its shortcut comes last."""
        part, *rest = path.split(".")
        if part != "stages":
            return (("stem", "stages", "norm", "head").index(part),)
        stage, block, layer, *_ = rest
        number = int(layer[-1]) if layer[-1].isdigit() else math.inf
        is_second = layer.startswith("conv") == self.network.preact
        return 1, int(stage), int(block), number, is_second

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes."""
        return {
            "network": self.network.to_json(),
            "num_classes": self.num_classes,
            "head_bias": self.head_bias,
            "statistics_batch_size": self.statistics_batch_size,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ClassifierSpec":
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is missing or out of its range.
        """
        try:
            network = ResNetSpec.from_json(fields["network"])
            head_bias = fields["head_bias"]
            num_classes = fields["num_classes"]
            batch_size = fields.get("statistics_batch_size")  # files of older versions have none
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"incomplete description of a model: {error}") from error
        return cls(network, num_classes, bool(head_bias), batch_size)


DESCRIPTION_KEY = "flax_resnet"
"""The text's key in a file's metadata, or in `_metadata[""]` of a torch state dict."""
_VERSION = 1


def encode(classifier: ClassifierSpec | None, **more: Any) -> str:
    """The text that describes a model, and `more` entries; None for one with foreign names."""
    model = None if classifier is None else classifier.to_json()
    return json.dumps({"version": _VERSION, "model": model, **more})


def decode(text: str) -> dict[str, Any]:
    """The entries of a description; `model` is as `ClassifierSpec.to_json` writes it.

    Raises:
        ValueError: the text describes no model, or is of another version.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict) or "model" not in entries:
        raise ValueError("this does not describe a model")
    if entries.get("version") != _VERSION:
        raise ValueError(
            f"this has format version {entries.get('version')!r}, this program reads {_VERSION}: "
            "update flax-resnet"
        )
    return entries


def _conv_shape(conv: Conv) -> tuple[int, ...]:
    return (conv.out_planes, conv.in_planes, conv.kernel_size, conv.kernel_size)


def _norm_shapes(planes: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**dict.fromkeys(vectors, (planes,)), "num_batches_tracked": ()}
