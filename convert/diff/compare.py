"""Running two networks on one batch and comparing them layer by layer."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convert.arrays import BFLOAT16, same_bits
from convert.diff.arguments import check_arguments
from convert.diff.comparison import (
    ACTIVATIONS,
    Comparison,
    Row,
    layer_of,
    least_noise,
    tolerance,
)
from convert.diff.measure import is_finite, largest, measure, measure_finite
from convert.diff.precision import Device, Precision, check_ready, reduced_flags, tensor_float32
from convert.diff.runs import Arrays, Loss, Run, framework_of, make_run
from convert.models import arrays_of
from resnet_spec import ResNetSpec

# A gradient that is zero but for rounding, as of a bias before a BatchNorm, is held against the
# gradients of the other parameters: 1e-5 of the largest, so that float64 rounding of 1e-16 stays
# at 1e-11, below the tolerance.
_SMALLEST_GRADIENT = 1e-5

Results = list[dict[str, Arrays]]  # of both networks: arrays by section and name


def compare(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    names: Mapping[str, str] | None = None,
    precision: Precision = "f32",
    device: Device = "cpu",
    seed: int = 0,
    titles: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compares the outputs of every layer, gradients, statistics and weights of two networks.

    Both are copied, and run in float64 and in `precision`: in eval mode, then one step in train
    mode, drawing nothing at random, uncompiled. All outputs of one mode are in memory at once,
    of two networks in two precisions: keep the batch small.

    Args:
        model_a: either twin, or any torch module with our names.
        model_b: likewise; or a peer's torch module together with `names`.
        images: (n, h, w, c), of any real dtype; what a network expects, already normalised.
        labels: (n,), integer classes for a cross-entropy loss; None takes a sum of the outputs
            with random weights, which sees all of them.
        names: our name of a layer -> the peer's name, for every layer to compare: what a layout of
            `convert.layouts` yields; blocks can be added (`{"stages.0.0": "layer1.0"}`).
        precision: beside float64; "tf32" can never show that two networks are the same.
        device: "cpu" or "gpu".
        seed: of the random weights of the loss.
        titles: what to call the two in reports.

    Raises:
        ConversionError: an argument does not fit, JAX has no float64, or there is no such device.
        ValueError: the batch is too small for a step in train mode.
    """
    images = np.asarray(images)
    check_arguments(model_a, model_b, images, labels, names, precision, device)
    frameworks = framework_of(model_a), framework_of(model_b)
    check_ready(frameworks, device)
    images = _round(images, precision)
    loss = Loss(seed, None if labels is None else np.asarray(labels))

    def make_runs(precision: Precision) -> list[Run]:
        return [
            make_run(model_a, precision, device, None),
            make_run(model_b, precision, device, names),
        ]

    exact_runs = make_runs("f64")
    reduced_runs = None if precision == "f64" else make_runs(precision)
    sections: dict[str, tuple[Row, ...]] = {}
    for step in (_evaluate, _train):
        exact = [step(run, images, loss) for run in exact_runs]
        with tensor_float32(frameworks) if precision == "tf32" else contextlib.nullcontext():
            reduced = [step(run, images, loss) for run in reduced_runs or ()]
        sections |= _compare_results(exact, reduced, precision, list(sections.get("eval", ())))
    weights, only = _compare_weights(model_a, model_b, names)
    return Comparison(
        titles=titles,
        frameworks=frameworks,
        precision=precision,
        device=device,
        images=images.shape,
        flags=() if precision == "tf32" else tuple(reduced_flags(frameworks, device)),
        only=only,
        described=_compare_descriptions(model_a, model_b, ResNetSpec.differences),
        described_training=_compare_descriptions(model_a, model_b, ResNetSpec.training_differences),
        sections={**sections, "weights": _in_order(weights, list(sections["eval"]))},
    )


def _compare_descriptions(
    model_a: Any, model_b: Any, differences: Callable[[ResNetSpec, ResNetSpec], list[str]]
) -> tuple[str, ...]:
    """What these images need not show: padding alike at odd sizes, for one."""
    one, other = (getattr(model, "spec", None) for model in (model_a, model_b))
    return () if one is None or other is None else tuple(differences(one, other))


def _evaluate(run: Run, images: np.ndarray, _: Loss) -> dict[str, Arrays]:
    return {"eval": run.evaluate(images)}


def _train(run: Run, images: np.ndarray, loss: Loss) -> dict[str, Arrays]:
    step = run.train(images, loss)
    return {
        "train": step.activations,
        "gradients": step.gradients,
        "statistics": step.statistics,
    }


def _round(images: np.ndarray, precision: Precision) -> np.ndarray:
    """Images in float64 that the precision holds exactly: all runs see the same ones."""
    dtypes: dict[Precision, Any] = {"f64": np.float64, "bf16": BFLOAT16}
    return images.astype(dtypes.get(precision, np.float32)).astype(np.float64)


def _compare_results(
    exact: Results, reduced: Results, precision: Precision, layers: Sequence[Row]
) -> dict[str, tuple[Row, ...]]:
    """Rows of each section that the runs of one mode gave."""
    sections: dict[str, tuple[Row, ...]] = {}
    for section in exact[0]:
        one, other = (result[section] for result in exact)
        smallest = 0.0
        if section == "gradients":
            arrays = filter(is_finite, [*one.values(), *other.values()])
            smallest = _SMALLEST_GRADIENT * max(map(largest, arrays), default=0.0)
        pairs = [result[section] for result in reduced]
        rows = [
            _row(name, (one, other), pairs, precision, smallest) for name in one if name in other
        ]
        sections[section] = tuple(rows) if section in ACTIVATIONS else _in_order(rows, layers)
    return sections


def _row(
    name: str,
    exact: Sequence[Arrays],
    reduced: Sequence[Arrays],
    precision: Precision,
    smallest: float,
) -> Row:
    one, other = (arrays[name] for arrays in exact)
    row = Row(
        name,
        measure_finite(one, other, smallest),
        tolerance=tolerance(None, precision),
        note=_note(one, other),
    )
    if not reduced:
        return row
    less_one, less_other = (arrays[name] for arrays in reduced)
    noise = least_noise(
        precision,
        measure_finite(less_one, one, smallest).relative,
        measure_finite(less_other, other, smallest).relative,
    )
    return dataclasses.replace(
        row,
        reduced=measure_finite(less_one, less_other, smallest),
        noise=noise,
        tolerance=tolerance(noise, precision),
    )


def _note(one: np.ndarray, other: np.ndarray) -> str:
    if one.shape != other.shape:
        return f"shape {one.shape} against {other.shape}"
    finite = is_finite(one), is_finite(other)
    if all(finite):
        return ""
    where = "in both" if not any(finite) else "in the second" if finite[0] else "in the first"
    return f"not finite {where}"


def _in_order(rows: Sequence[Row], layers: Sequence[Row]) -> tuple[Row, ...]:
    """Rows of arrays in the order in which their layers come in the forward pass."""
    place = {row.name: number for number, row in enumerate(layers)}
    return tuple(sorted(rows, key=lambda row: place.get(layer_of(row.name), len(place))))


def _compare_weights(
    model_a: Any, model_b: Any, names: Mapping[str, str] | None
) -> tuple[list[Row], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Rows of the arrays in both models, and the names of those in only one."""
    one, other = arrays_of(model_a), arrays_of(model_b)
    if names is not None:
        ours = {their: our for our, their in names.items()}
        renamed = {}
        for name, array in other.items():
            layer, _, leaf = name.rpartition(".")
            renamed[f"{ours.get(layer, layer)}.{leaf}"] = array
        other = renamed
    rows = [_weight_row(name, one[name], other[name]) for name in one if name in other]
    only = tuple(n for n in one if n not in other), tuple(n for n in other if n not in one)
    return rows, only


def _weight_row(name: str, one: np.ndarray, other: np.ndarray) -> Row:
    if one.shape != other.shape:
        note = f"shape {one.shape} against {other.shape}"
    elif one.dtype != other.dtype:
        note = f"{one.dtype} against {other.dtype}"
    else:
        note = "same bits" if same_bits(one, other) else ""
    return Row(name, measure(one, other), note=note)
