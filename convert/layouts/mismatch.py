"""What is wrong with tensors in a layout, by the layout's own names and axes."""

from collections.abc import Collection, Mapping

import numpy as np

from convert.arrays import compare_shapes, dtype_problems, is_counter, value_problems
from convert.layouts.layout import Layout

_COUNTER = "num_batches_tracked"
_ADVICE = "reset_counters (--reset-counters) takes them as zero"
# Of all names, to say that a prefix is what keeps them from being this layout's.
_ENOUGH, _FEW = 0.5, 0.1


def layout_problems(
    layout: Layout,
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    *,
    allow_nonfinite: bool = False,
) -> list[str]:
    """Every tensor that is missing, left over, misshapen or no weight; one sentence each.

    Args:
        layout: whose names these are.
        expected: shapes of the model's tensors, with torch's axes.
        given: tensors, with torch's axes, too.
        allow_nonfinite: take NaN, infinite values and negative variances, too.
    """
    problems = shape_problems(layout, expected, given)
    if problems and all(p.startswith("missing") and _COUNTER in p for p in problems):
        problems.append(f"counters alone are missing: {_ADVICE}")
    if problems:
        if behind := prefix_problems(expected, given):
            return behind
        signs = layout.signs({name: array.shape for name, array in given.items()})
        problems = [*signs, *problems]
    if array_problems(given, allow_nonfinite):  # told of the arrays as they came
        shown = {name: layout.spelling.to_theirs(name, array) for name, array in given.items()}
        problems += array_problems(shown, allow_nonfinite)
    if problems and all(f"{_COUNTER} should be int64" in problem for problem in problems):
        problems.append(f"counters alone are none of torch's: {_ADVICE}")
    return problems


def shape_problems(
    layout: Layout, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray]
) -> list[str]:
    """As `layout_problems`, of names and shapes alone."""
    if expected == {name: array.shape for name, array in given.items()}:
        return []

    def shape(name: str, array: np.ndarray) -> tuple[int, ...]:
        return layout.spelling.to_theirs(name, array).shape

    wanted = {name: np.broadcast_to(np.int8(0), size) for name, size in expected.items()}
    return compare_shapes(
        {name: shape(name, array) for name, array in wanted.items()},
        {name: shape(name, array) for name, array in given.items()},
    )


def array_problems(arrays: Mapping[str, np.ndarray], allow_nonfinite: bool) -> list[str]:
    """Every array that no weight should be."""
    problems: list[str] = []
    for name, array in arrays.items():
        problems += dtype_problems(name, array)
        problems += value_problems(name, array, allow_nonfinite=allow_nonfinite)
    return problems


def find_prefixes(names: Collection[str], first: str) -> list[str]:
    """What is before the name of a layout's first tensor, wherever that is a part of a name."""
    found = (name.removesuffix(first) for name in names if name.endswith(first))
    return sorted(prefix for prefix in found if prefix.endswith((".", "/")))


def prefix_problems(expected: Collection[str], given: Collection[str]) -> list[str]:
    """A sentence where most of the expected names are there behind a prefix, and none without."""
    weights = [name for name in expected if not is_counter(name)]
    if sum(name in given for name in weights) > _FEW * len(weights):
        return []
    prefixes = [
        prefix
        for prefix in (find_prefixes(given, weights[0]) if weights else ())
        if sum(prefix + name in given for name in weights) > _ENOUGH * len(weights)
    ]
    return [
        f"its names are there behind {' and '.join(map(repr, prefixes))}: take what begins so by "
        f"prefix={prefix!r} (--prefix {prefix})"
        for prefix in prefixes[:1]
    ]
