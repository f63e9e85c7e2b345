"""The table: one row for each published network, and the grammar of their full names."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from resnet_spec.blocks import BlockKind
from resnet_spec.spec import DIALECT, ResNetSpec

# The fields of a spec that a run's configuration also has, besides its model's name.
_CONFIGURED = ("shortcut", "zero_init_residual", "stochastic_depth", *DIALECT)


class UnknownNameError(ValueError):
    """A name that is not in a table; the message offers the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = list(known)
        nearest = nearest_names(name, known)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
        super().__init__(f"there is no {what} called {name!r}: {hint}")


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three names that look like `name`, ignoring case."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[m] for m in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]


def _imagenet(block: BlockKind, *stage_depths: int, **changes: Any) -> ResNetSpec:
    """He et al. 2015, table 1: four stages; ResNet200 is from He et al. 2016, table 5."""
    planes = (64, 128, 256, 512)
    return ResNetSpec(
        block=block, stage_depths=stage_depths, stage_planes=planes, stem_planes=64, **changes
    )


def _cifar(depth: int, block: BlockKind, **changes: Any) -> ResNetSpec:
    """He et al. 2015, section 4.2: three stages; depth is 6n+2 (basic) or 9n+2 (bottleneck)."""
    return _three_stages((depth - 2) / {"basic": 6, "bottleneck": 9}[block], block, **changes)


def _wide(depth: int, **changes: Any) -> ResNetSpec:
    """Zagoruyko & Komodakis 2016, table 1: depth is 6n+4, shortcuts counted; dropout 0.3."""
    return _three_stages((depth - 4) / 6, "basic", **{"drop_rate": 0.3, **changes})


def _three_stages(blocks_a_stage: float, block: BlockKind, **changes: Any) -> ResNetSpec:
    n = int(blocks_a_stage)
    assert n == blocks_a_stage, f"no {block} ResNet of three equal stages has this depth"
    return ResNetSpec(
        block=block,
        stage_depths=(n, n, n),
        stage_planes=(16, 32, 64),
        stem_planes=16,
        small_images=True,
        **changes,
    )


_IMAGENET_ROWS = {
    "ResNet18": _imagenet("basic", 2, 2, 2, 2),
    "ResNet34": _imagenet("basic", 3, 4, 6, 3),
    "ResNet50": _imagenet("bottleneck", 3, 4, 6, 3),
    "ResNet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "ResNet152": _imagenet("bottleneck", 3, 8, 36, 3),
    "ResNet200": _imagenet("bottleneck", 3, 24, 36, 3),
}
_CIFAR_ROWS = {
    "ResNet20": _cifar(20, "basic"),
    "ResNet32": _cifar(32, "basic"),
    "ResNet44": _cifar(44, "basic"),
    "ResNet56": _cifar(56, "basic"),
    "ResNet110": _cifar(110, "basic"),
    "ResNet164": _cifar(164, "bottleneck"),  # He et al. 2016, section 4: 164 and 1001 layers
    "ResNet1001": _cifar(1001, "bottleneck"),
    "ResNet1202": _cifar(1202, "basic"),
}
_WIDE_ROWS = {
    "WideResNet16": _wide(16),
    "WideResNet28": _wide(28),
    "WideResNet40": _wide(40),
}
# Chen et al. 2020 (SimCLR, arXiv:2002.05709), appendix B.9: an ImageNet size on 32x32 images.
_SMALL_ROWS = {
    f"{name}-small": dataclasses.replace(row, small_images=True)
    for name, row in _IMAGENET_ROWS.items()
}
# Of the depths above, the widths that Zagoruyko & Komodakis 2016 report (tables 4 to 8; table 4
# also has depth 22, which `ResNet` builds from dimensions).
_PUBLISHED_WIDTHS = {
    "WideResNet16": (4, 8, 10),
    "WideResNet28": (10, 12),
    "WideResNet40": (1, 2, 4, 8, 10),
    "ResNet50": (2,),
    "ResNet101": (2,),
}


def _published_wide_rows() -> dict[str, ResNetSpec]:
    rows = {**_IMAGENET_ROWS, **_WIDE_ROWS}
    return {
        f"Wide{name.removeprefix('Wide')}-{width}": dataclasses.replace(rows[name], width=width)
        for name, widths in _PUBLISHED_WIDTHS.items()
        for width in widths
    }


def _with_preact(rows: dict[str, ResNetSpec]) -> dict[str, ResNetSpec]:
    preact = {f"PreAct{k}": dataclasses.replace(v, preact=True) for k, v in rows.items()}
    return {**rows, **preact}


MODELS: dict[str, ResNetSpec] = _with_preact(
    {**_IMAGENET_ROWS, **_SMALL_ROWS, **_CIFAR_ROWS, **_WIDE_ROWS, **_published_wide_rows()}
)
"""Every published network by its full name."""


def list_models() -> list[str]:
    """Every name of the table. `find_spec` takes any other width and drop rate of a Wide one."""
    return list(MODELS)


def find_spec(name: str) -> ResNetSpec:
    """The row of a full name: `ResNet50`, `ResNet18-small`, `WideResNet28-10`,
    `WideResNet40-10-0.0` (name, width, drop rate), `WideResNet50-2` (ResNet50 of width 2).

    Raises:
        UnknownNameError: there is no such name; the message offers the nearest ones.
        ValueError: the network cannot have the width or the drop rate in the name.
    """
    if name in MODELS:
        return MODELS[name]
    base, *numbers = name.split("-")
    row = MODELS.get(base)
    if row is None and base.removeprefix("PreAct").startswith("WideResNet"):
        row = MODELS.get(base.replace("Wide", ""))  # WideResNet50-2 is a ResNet50
    changes = _wide_changes(numbers)
    if row is None or "Wide" not in base or changes is None:
        raise UnknownNameError("model", name, MODELS)
    try:
        return dataclasses.replace(row, **changes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def configured_spec(config: Mapping[str, Any], in_planes: int) -> ResNetSpec:
    """The network of a run's configuration, for images of so many channels.

    Args:
        config: its `model`, and those fields of the spec that a configuration has; a missing
            one, which an older version did not write, is the model's.
        in_planes: channels of the images.

    Raises:
        ValueError: the model is unknown, or a field is out of its range.
    """
    fields = {name: config[name] for name in _CONFIGURED if name in config}
    return dataclasses.replace(find_spec(config["model"]), in_planes=in_planes, **fields)


def _wide_changes(numbers: list[str]) -> dict[str, Any] | None:
    """`["10", "0.0"]` as width and drop rate; None where they are not one or two numbers."""
    if not all(n.isascii() and n.replace(".", "", 1).isdecimal() for n in numbers):
        return None
    match numbers:
        case [width] if width.isdecimal():
            return {"width": int(width)}
        case [width, drop_rate] if width.isdecimal():
            return {"width": int(width), "drop_rate": float(drop_rate)}
    return None
