"""A residual network together with its head: what a file of weights says about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnet_spec.blocks import Conv
from resnet_spec.spec import ResNetSpec, is_positive_integer


@dataclass(frozen=True)
class ClassifierSpec:
    """A network and its head: linear with `num_classes` outputs, or none where that is None.

    Raises:
        ValueError: `num_classes` is not a positive integer.
    """

    network: ResNetSpec
    num_classes: int | None = None
    head_bias: bool = True

    def __post_init__(self) -> None:
        if self.num_classes is None:
            return
        if not is_positive_integer(self.num_classes):
            raise ValueError(
                f"num_classes must be a positive integer or None, not {self.num_classes!r}"
            )
        object.__setattr__(self, "num_classes", int(self.num_classes))

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
        """Name and shape of every tensor, spelled as torch does."""
        return {f"{path}.{leaf}": s for path, shapes in self.layers() for leaf, s in shapes.items()}

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes."""
        return {
            "network": self.network.to_json(),
            "num_classes": self.num_classes,
            "head_bias": self.head_bias,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ClassifierSpec":
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is unknown, missing or out of its range.
        """
        try:
            network = ResNetSpec.from_json(fields["network"])
            head_bias = fields["head_bias"]
            num_classes = fields["num_classes"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"incomplete description of a model: {error}") from error
        return cls(network, num_classes, bool(head_bias))


def _conv_shape(conv: Conv) -> tuple[int, ...]:
    return (conv.out_planes, conv.in_planes, conv.kernel_size, conv.kernel_size)


def _norm_shapes(planes: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**dict.fromkeys(vectors, (planes,)), "num_batches_tracked": ()}
