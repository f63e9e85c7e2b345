"""Our own names, the hub of all layouts."""

from collections.abc import Iterator

from convert.layouts.layout import Layout
from resnet_spec import ClassifierSpec, ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, the same) for every layer of any model."""
    for path, _ in ClassifierSpec(spec, num_classes=1).layers():
        yield path, path


LAYOUT = Layout("flax-resnet", "our own names, those of the torch twin", names, may_lack_bias=True)
