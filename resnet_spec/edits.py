"""Where a network computes otherwise than its row of the table: what was edited after building."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from resnet_spec.spec import ResNetSpec

Methods = tuple[tuple[str, Any], ...]
"""(name, function) of the methods by which a module computes."""


class Layer(NamedTuple):
    """A module as the row has it: names of its parent and its own, and how it computes."""

    parent: str
    name: str
    kind: type
    methods: Methods
    settings: tuple[tuple[str, Any], ...]


def shorten(spec: ResNetSpec) -> ResNetSpec:
    """A network with a block for each kind of a row's: from the second on a stage's are equal.

    Without what is of training alone: `list_differences` does not ask for it.
    """
    depths = tuple(min(depth, 2) for depth in spec.stage_depths)
    return dataclasses.replace(spec, stage_depths=depths, drop_rate=0.0, stochastic_depth=0.0)


def list_layers(
    modules: Iterable[tuple[str, Any]],
    spec: ResNetSpec,
    methods: Callable[[Any], Methods],
    settings: Iterable[str],
) -> tuple[Layer, ...]:
    """Every module of a row's network but the head, from the (path, module) of its shortened one.

    The network itself, whose path is empty, comes first, and parents before what they hold.
    """
    settings = tuple(settings)
    layers = []
    for path, module in modules:
        found = tuple((name, getattr(module, name)) for name in settings if hasattr(module, name))
        for place in _places(path, spec):
            parent, _, name = place.rpartition(".")
            layers.append(Layer(parent, name, type(module), methods(module), found))
    return tuple(layer for layer in layers if layer.name != "head")


def _places(path: str, spec: ResNetSpec) -> Iterator[str]:
    """A path in every block that is like its own."""
    match path.split("."):
        case ["stages", stage, index, *rest] if index != "0":
            for other in range(1, spec.stage_depths[int(stage)]):
                yield ".".join(["stages", stage, str(other), *rest])
        case _:
            yield path


def list_differences(
    model: Any, layers: tuple[Layer, ...], methods: Callable[[Any], Methods]
) -> list[str]:
    """By module, where a network computes something else than its row, whose layers these are."""
    depths = model.spec.stage_depths
    problems = [
        f"stages.{number}: {len(blocks)} blocks, not {depth}"
        for number, (blocks, depth) in enumerate(zip(model.stages, depths, strict=False))
        if len(blocks) != depth
    ]
    if len(model.stages) != len(depths):
        problems.append(f"stages: {len(model.stages)}, not {len(depths)}")
    found: dict[str, Any] = {}
    for layer in layers:
        path = f"{layer.parent}.{layer.name}".lstrip(".")
        if path and layer.parent not in found:
            continue  # its parent was replaced, which is said
        module = _child(found[layer.parent], layer.name) if path else model
        differences = _compare(module, layer, methods)
        problems += [f"{path or 'the network'}: {difference}" for difference in differences]
        if not differences:
            found[path] = module
    return problems


def _child(parent: Any, name: str) -> Any:
    if name.isdigit():
        return parent[int(name)] if int(name) < len(parent) else None
    return getattr(parent, name, None)


def _compare(module: Any, layer: Layer, methods: Callable[[Any], Methods]) -> list[str]:
    if module is None:
        return [f"there is no {layer.kind.__name__}"]
    if (own := methods(module)) != layer.methods:
        if not isinstance(module, layer.kind):
            return [f"{type(module).__name__}, not {layer.kind.__name__}"]
        names = [
            name
            for (name, one), (_, other) in zip(own, layer.methods, strict=True)
            if one is not other
        ]
        return [f"{type(module).__name__} has its own {' and '.join(names)}"]
    return [
        f"{name} {getattr(module, name)!s:.80}, not {expected}"
        for name, expected in layer.settings
        if not _is_same(getattr(module, name), expected)
    ]


def _is_same(value: Any, expected: Any) -> bool:
    if value is expected or expected is None:  # where others have an array, perhaps
        return value is expected
    return _pair(value) == _pair(expected)


def _pair(value: Any) -> Any:
    """Of a size or stride, which may be one number for both axes."""
    return (value, value) if isinstance(value, int) else value
