"""How a network differs from its row of the table: what was edited after it was built."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from resnet_spec.spec import ResNetSpec

Methods = tuple[tuple[str, Any], ...]
"""(name, function) of the methods with which a module computes."""


class ModuleInRow(NamedTuple):
    """A module of an unedited network: its parent's path, its own name, and how it computes."""

    parent: str
    name: str
    kind: type
    methods: Methods
    settings: tuple[tuple[str, Any], ...]


def shorten(spec: ResNetSpec) -> ResNetSpec:
    """A row with at most two blocks a stage: from the second on all blocks of a stage are equal.

    Without what matters in training only, which `list_differences` does not compare.
    """
    depths = tuple(min(depth, 2) for depth in spec.stage_depths)
    return dataclasses.replace(spec, stage_depths=depths, drop_rate=0.0, stochastic_depth=0.0)


def list_modules(
    modules: Iterable[tuple[str, Any]],
    spec: ResNetSpec,
    methods: Callable[[Any], Methods],
    settings: Iterable[str],
) -> tuple[ModuleInRow, ...]:
    """Every module of a row's network but the head.

    Args:
        modules: (path, module) of the row that `shorten` returns, parents before their children;
            the network itself, whose path is empty, comes first.
        spec: the whole row.
        methods: of a module, as `Methods`.
        settings: names of the attributes that a module computes with.
    """
    settings = tuple(settings)
    found = []
    for path, module in modules:
        own = tuple((name, getattr(module, name)) for name in settings if hasattr(module, name))
        for place in _places(path, spec):
            parent, _, name = place.rpartition(".")
            found.append(ModuleInRow(parent, name, type(module), methods(module), own))
    return tuple(module for module in found if module.name != "head")


def _places(path: str, spec: ResNetSpec) -> Iterator[str]:
    """The path, in every block that is equal to its own."""
    match path.split("."):
        case ["stages", stage, index, *rest] if index != "0":
            for other in range(1, spec.stage_depths[int(stage)]):
                yield ".".join(["stages", stage, str(other), *rest])
        case _:
            yield path


def list_differences(
    model: Any, row: tuple[ModuleInRow, ...], methods: Callable[[Any], Methods]
) -> list[str]:
    """By module, where a network computes something other than `row`, the modules of its spec."""
    depths = model.spec.stage_depths
    problems = [
        f"stages.{number}: {len(blocks)} blocks, not {depth}"
        for number, (blocks, depth) in enumerate(zip(model.stages, depths, strict=False))
        if len(blocks) != depth
    ]
    if len(model.stages) != len(depths):
        problems.append(f"stages: {len(model.stages)}, not {len(depths)}")
    found: dict[str, Any] = {}
    for expected in row:
        path = f"{expected.parent}.{expected.name}".lstrip(".")
        if path and expected.parent not in found:
            continue  # its parent was replaced, which is in the list already
        module = _child(found[expected.parent], expected.name) if path else model
        differences = _compare(module, expected, methods)
        problems += [f"{path or 'the network'}: {difference}" for difference in differences]
        if not differences:
            found[path] = module
    return problems


def _child(parent: Any, name: str) -> Any:
    if name.isdigit():
        return parent[int(name)] if int(name) < len(parent) else None
    return getattr(parent, name, None)


def _compare(module: Any, in_row: ModuleInRow, methods: Callable[[Any], Methods]) -> list[str]:
    if module is None:
        return [f"there is no {in_row.kind.__name__}"]
    if (own := methods(module)) != in_row.methods:
        if not isinstance(module, in_row.kind):
            return [f"{type(module).__name__}, not {in_row.kind.__name__}"]
        names = [
            name
            for (name, one), (_, other) in zip(own, in_row.methods, strict=True)
            if one is not other
        ]
        return [f"{type(module).__name__} has its own {' and '.join(names)}"]
    return [
        f"{name} {getattr(module, name)!s:.80}, not {expected}"
        for name, expected in in_row.settings
        if not _is_same(getattr(module, name), expected)
    ]


def _is_same(value: Any, expected: Any) -> bool:
    if value is expected or expected is None:  # an array cannot be compared with None by ==
        return value is expected
    return _pair(value) == _pair(expected)


def _pair(value: Any) -> Any:
    """A size or stride for both axes, where one number may stand for both."""
    return (value, value) if isinstance(value, int) else value
