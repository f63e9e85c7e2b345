"""Runs two networks on one batch and compares them layer by layer."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convert.arrays import BFLOAT16, is_floating, same_bits
from convert.diff.comparison import (
    ACTIVATIONS,
    APART,
    TOLERANCE,
    Comparison,
    Difference,
    Findings,
    Row,
    largest,
    layer_of,
    measure,
)
from convert.diff.precision import (
    DEVICES,
    PRECISIONS,
    UNIT_ROUNDOFF,
    Device,
    Framework,
    Precision,
    check_ready,
    reduced_flags,
    tensor_float32,
)
from convert.diff.probe import Arrays, Loss, Probe, Sections
from convert.diff.verdict import judge
from convert.errors import ConversionError
from convert.models import arrays_of
from resnet_spec import ResNetSpec

# A gradient that is zero but for rounding, as of a bias before a BatchNorm, is compared with the
# gradients of the other parameters: with 1e-5 of the largest, so that float64 rounding of 1e-16
# becomes 1e-11, below the tolerance.
_SMALLEST_GRADIENT = 1e-5
# If a network is so badly conditioned that its rounding exceeds the tolerance, rounding in float64
# is predicted: that of a lower precision, times the ratio of the unit roundoffs, times this margin.
_ROUNDING_MARGIN = 1000.0


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

    Both are copied, and run in float64 and in `precision`: once in eval mode, then one step in
    train mode, without random draws and uncompiled. Memory holds all outputs of one mode, of two
    networks in two precisions: keep the batch small.

    Args:
        model_a: either twin, or any torch module with our names.
        model_b: likewise; or another package's torch module together with `names`.
        images: (n, h, w, c), of any real dtype, normalised as the networks expect.
        labels: (n,), integer classes for a cross-entropy loss. The default loss is a sum of the
            outputs with random weights, which depends on all of them.
        names: our name of a layer -> its name in `model_b`, for every layer to compare: what a
            layout of `convert.layouts` yields; blocks can be added (`{"stages.0.0": "layer1.0"}`).
        precision: compared beside float64; "tf32" can never show that two networks are the same.
        device: "cpu" or "gpu".
        seed: of the random weights of the loss.
        titles: the names of the two in reports.

    Raises:
        ConversionError: an argument does not fit, JAX has no float64, or there is no such device.
        ValueError: the batch is too small for a step in train mode.
    """
    images = np.asarray(images)
    _check_arguments(model_a, model_b, images, labels, names, precision, device)
    frameworks = framework_of(model_a), framework_of(model_b)
    check_ready(frameworks, device)
    images = _round(images, precision)
    loss = Loss(seed, None if labels is None else np.asarray(labels))

    models = ((model_a, None), (model_b, names))
    exact_probes = [_make_probe(model, "f64", device, theirs) for model, theirs in models]
    reduced_probes: list[Probe] = []
    if precision != "f64":
        reduced_probes = [_make_probe(model, precision, device, theirs) for model, theirs in models]
    passes: tuple[Callable[[Probe], Sections], ...] = (
        lambda probe: probe.evaluate(images),
        lambda probe: probe.train(images, loss),
    )
    sections: dict[str, tuple[Row, ...]] = {}
    for run in passes:
        exact = [run(probe) for probe in exact_probes]
        with tensor_float32(frameworks) if precision == "tf32" else contextlib.nullcontext():
            reduced = [run(probe) for probe in reduced_probes]
        sections |= _compare_results(exact, reduced, precision, sections.get("eval", ()))
    weights, only = _compare_weights(model_a, model_b, names)
    findings = Findings(
        titles=titles,
        frameworks=frameworks,
        precision=precision,
        device=device,
        images=images.shape,
        flags=() if precision == "tf32" else tuple(reduced_flags(frameworks, device)),
        only=only,
        described=_compare_descriptions(model_a, model_b, ResNetSpec.differences),
        described_training=_compare_descriptions(model_a, model_b, ResNetSpec.training_differences),
        sections={**sections, "weights": _in_order(weights, sections["eval"])},
    )
    return Comparison(**vars(findings), verdict=judge(findings))


def framework_of(model: Any) -> Framework:
    """The framework of a model; torch's models have a state dict."""
    return "torch" if hasattr(model, "state_dict") else "flax"


def _make_probe(
    model: Any, precision: Precision, device: Device, names: Mapping[str, str] | None
) -> Probe:
    if framework_of(model) == "torch":
        from convert.diff.torch_probe import TorchProbe

        return TorchProbe(model, precision, device, names)
    from convert.diff.flax_probe import FlaxProbe

    return FlaxProbe(model, precision, device)


def _check_arguments(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    labels: Any,
    names: Mapping[str, str] | None,
    precision: str,
    device: str,
) -> None:
    """Raises a ConversionError that lists every argument that does not fit."""
    choices = (("precision", precision, PRECISIONS), ("device", device, DEVICES))
    problems = [
        f"{what} is one of {', '.join(known)}, not {value!r}"
        for what, value, known in choices
        if value not in known
    ]
    problems += _check_images(images, model_a, model_b)
    if labels is not None:
        problems += _check_labels(np.asarray(labels), images, model_a, model_b)
    if names is not None:
        problems += _check_names(names, model_a, model_b)
    if problems:
        raise ConversionError("these networks cannot be compared with these arguments:", problems)


def _check_images(images: np.ndarray, *models: Any) -> list[str]:
    if images.ndim != 4 or 0 in images.shape:
        return [f"images are (n, h, w, c), not {images.shape}"]
    if not (is_floating(images.dtype) or np.issubdtype(images.dtype, np.integer)):
        return [f"images are real numbers, not {images.dtype}"]
    if not np.all(np.isfinite(images)):
        return ["images are finite, but these contain NaN or infinity"]
    expected = {spec.in_planes for model in models if (spec := getattr(model, "spec", None))}
    if expected - {images.shape[-1]}:
        channels = " and ".join(map(str, sorted(expected)))
        return [f"images have {images.shape[-1]} channels, but the models take {channels}"]
    return []


def _check_labels(labels: np.ndarray, images: np.ndarray, *models: Any) -> list[str]:
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return [f"labels are one integer per image, not {labels.dtype} {labels.shape}"]
    heads = [head for model in models if (head := getattr(model, "head", None)) is not None]
    if any(type(head).__name__ == "Identity" for head in heads):
        return ["labels are for networks with a head, but one here returns pooled features"]
    sizes = [size for head in heads if (size := getattr(head, "out_features", None))]
    if labels.min() < 0 or any(labels.max() >= size for size in sizes):
        return [f"labels are classes from 0, but these are {labels.min()} to {labels.max()}"]
    return []


def _check_names(names: Mapping[str, str], model_a: Any, model_b: Any) -> list[str]:
    if framework_of(model_b) != "torch":
        return ["names are for a torch model, but the second model is not one"]
    theirs = {name for name, _ in model_b.named_modules()}
    problems = [
        f"the second model has no layer {name}" for name in names.values() if name not in theirs
    ]
    if len(set(names.values())) != len(names):
        problems.append("two of our layers have the same name in the second model")
    if framework_of(model_a) == "torch":
        ours = {name for name, _ in model_a.named_modules()}
        problems += [f"the first model has no layer {name}" for name in names if name not in ours]
    return problems


def _compare_descriptions(
    model_a: Any, model_b: Any, differences: Callable[[ResNetSpec, ResNetSpec], list[str]]
) -> tuple[str, ...]:
    """Differences that these images may not show: padding, for one, is alike at odd sizes."""
    one, other = (getattr(model, "spec", None) for model in (model_a, model_b))
    return () if one is None or other is None else tuple(differences(one, other))


def _round(images: np.ndarray, precision: Precision) -> np.ndarray:
    """Images in float64 that the precision represents exactly: all runs get the same ones."""
    dtypes: dict[Precision, Any] = {"f64": np.float64, "bf16": BFLOAT16}
    return images.astype(dtypes.get(precision, np.float32)).astype(np.float64)


def _compare_results(
    exact: list[Sections], reduced: list[Sections], precision: Precision, layers: Sequence[Row]
) -> dict[str, tuple[Row, ...]]:
    """Rows of each section, from the results of both networks in both precisions."""
    sections: dict[str, tuple[Row, ...]] = {}
    for section, one in exact[0].items():
        other, smallest = exact[1][section], 0.0
        if section == "gradients":
            arrays = filter(_is_finite, [*one.values(), *other.values()])
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
    difference, note = _measure_finite(one, other, smallest), _note(one, other)
    if not reduced:
        return Row(name, difference, tolerance=TOLERANCE, note=note)
    less_one, less_other = (arrays[name] for arrays in reduced)
    noises = (
        _measure_finite(less_one, one, smallest).relative,
        _measure_finite(less_other, other, smallest).relative,
    )
    # The smaller one: a network that is too noisy does not hide itself.
    noise = max(UNIT_ROUNDOFF[precision], float(np.nanmin(noises)))
    return Row(
        name,
        difference,
        reduced=_measure_finite(less_one, less_other, smallest),
        noise=noise,
        tolerance=_tolerance(noise, precision),
        note=note,
    )


def _tolerance(noise: float, precision: Precision) -> float:
    """Of a relative difference in float64, given the noise of a lower precision."""
    if not math.isfinite(noise):
        return TOLERANCE
    predicted = noise * UNIT_ROUNDOFF["f64"] / UNIT_ROUNDOFF[precision]
    return max(TOLERANCE, _ROUNDING_MARGIN * predicted)


def _measure_finite(one: np.ndarray, other: np.ndarray, smallest_scale: float) -> Difference:
    """As `measure`, but NaN and infinity differ from everything, from themselves too."""
    if not (_is_finite(one) and _is_finite(other)):
        return APART
    return measure(one, other, smallest_scale)


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())


def _note(one: np.ndarray, other: np.ndarray) -> str:
    if one.shape != other.shape:
        return f"shape {one.shape} against {other.shape}"
    finite = _is_finite(one), _is_finite(other)
    if all(finite):
        return ""
    where = "in both" if not any(finite) else "in the second" if finite[0] else "in the first"
    return f"not finite {where}"


def _in_order(rows: Sequence[Row], layers: Sequence[Row]) -> tuple[Row, ...]:
    """Rows of arrays, in the order of their layers in the forward pass."""
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
