"""PyPI's torch-resnet 0.0.4, the package that this one re-creates: every model of the table."""

from collections.abc import Iterator

from resnet_spec import ResNetSpec


def names(spec: ResNetSpec) -> Iterator[tuple[str, str]]:
    """(our layer, torch-resnet's) for every layer."""
    is_bare = spec.preact and spec.small_images  # a stem of one layer is not in a Sequential
    yield "stem.conv", "init_layer" if is_bare else "init_layer.0"
    if not spec.preact:
        yield "stem.bn", "init_layer.1"
    for block in spec.blocks():
        theirs = f"layers.{block.stage}.{block.index}"
        for number in range(1, len(block.convs) + 1):
            yield f"{block.path}.conv{number}", f"{theirs}.conv{number}"
            yield f"{block.path}.bn{number}", f"{theirs}.bn{number}"
        if block.shortcut is not None:
            conv = "shortcut.0.conv" if block.has_shortcut_norm else "shortcut.conv"
            yield f"{block.path}.shortcut.conv", f"{theirs}.{conv}"
        if block.has_shortcut_norm:
            yield f"{block.path}.shortcut_bn", f"{theirs}.shortcut.1"
    if spec.preact:
        yield "norm", "norm"
    yield "head", "head"
