"""Runs two networks on one batch and compares them layer by layer."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from convert.arrays import BFLOAT16, is_counter, is_floating, same_bits, to_numpy
from convert.errors import ConversionError
from convert.parity.axes import channels_last, image_channels, turn
from convert.parity.comparison import (
    ACTIVATIONS,
    APART,
    TOLERANCE,
    Difference,
    Findings,
    Hint,
    Row,
    largest,
    layer_of,
    measure,
)
from convert.parity.hints import Search
from convert.parity.modules import framework_of, problems_of
from convert.parity.pairing import Names, Pairing, pair
from convert.parity.precision import (
    DEVICES,
    FRAMEWORKS,
    PRECISIONS,
    UNIT_ROUNDOFF,
    Device,
    Framework,
    Precision,
    check_ready,
    float64,
    reduced_flags,
    tensor_float32,
)
from convert.parity.probe import MODES, OUTPUT, Arrays, Loss, Probe, Sections
from convert.parity.report import Report
from convert.parity.verdict import judge
from resnet_spec import ResNetSpec

# A small gradient is compared with the gradients of the other parameters: with 1e-5 of the largest,
# so that float64 rounding of 1e-16 becomes 1e-11, below the tolerance.
_SMALLEST_GRADIENT = 1e-5
# One that is zero but for rounding in both, as of a bias before a BatchNorm, is compared with the
# largest itself. It is a sum of terms that cancel: before Flax's own BatchNorm, whose variance is
# E[x^2] - E[x]^2, 2e-15 of the largest was seen on four images of 8 pixels.
_ZERO_GRADIENT = 1e-13
# If a network is so badly conditioned that its rounding exceeds the tolerance, rounding in float64
# is predicted: that of a lower precision, times the ratio of the unit roundoffs, times this margin.
_ROUNDING_MARGIN = 1000.0

Allowed = Literal["biased running variance"]


def compare(
    model_a: Any,
    model_b: Any,
    images: Any,
    labels: np.ndarray | None = None,
    *,
    names: Names = "path",
    copy_weights: Framework | None = None,
    allow: Allowed | Collection[Allowed] = (),
    steps: int = 0,
    precision: Precision = "f32",
    device: Device = "cpu",
    seed: int = 0,
    titles: tuple[str, str] = ("A", "B"),
) -> Report:
    """Compares the outputs of every layer, gradients, statistics and weights of two networks.

    Both are copied, and run in float64 and in `precision`: once in eval mode, then one step in
    train mode, without random draws and uncompiled. Memory holds all outputs of one mode, of two
    networks in two precisions: keep the batch small.

    Args:
        model_a: a torch module, an NNX module, or a linen module with its variables: bound, or as
            a pair. It takes one batch, and returns an array, or a tuple or dict of arrays.
        model_b: likewise.
        images: a batch, of any real dtype, normalised as the networks expect. Of four axes, it is
            (n, h, w, c) or (n, c, h, w): the networks' channels decide; where both fit,
            (n, c, h, w) if it is a tensor of torch, else (n, h, w, c).
        labels: (n,), integer classes for a cross-entropy loss. The default loss is a sum of the
            outputs with random weights, which depends on all of them.
        names: which layers are compared: those of the same path ("path"), of the same kind in the
            order of execution ("order"), or the layers in a map of names in A to names in B, with
            what they contain.
        copy_weights: the framework whose weights the other network gets, too, for this comparison;
            by default each has its own, and they are compared.
        allow: "biased running variance": Flax's own BatchNorm keeps the biased variance of a batch,
            torch's the unbiased one.
        steps: of SGD with momentum and weight decay, whose parameters are compared: optax and
            `torch.optim`, in float64.
        precision: compared beside float64; "tf32" can never show that two networks are the same.
        device: "cpu" or "gpu".
        seed: of the random weights of the loss.
        titles: the names of the two in reports.

    Raises:
        ConversionError: an argument does not fit, or there is no such device.
        ValueError: the batch is too small for a step in train mode.
    """
    allowed = (allow,) if isinstance(allow, str) else tuple(allow)
    models = (model_a, model_b)
    if problems := [p for each in zip(models, titles, strict=True) for p in problems_of(*each)]:
        raise ConversionError("these networks cannot be compared:", problems)
    is_torch = type(images).__module__.partition(".")[0] == "torch"
    images = channels_last(to_numpy(images), models, is_torch=is_torch)
    frameworks = framework_of(model_a), framework_of(model_b)
    _check_arguments(models, images, labels, names, precision, device)
    _check_options(frameworks, copy_weights, allowed, steps)
    check_ready(frameworks, device)
    with float64(frameworks):
        networks = _Networks(models, frameworks, precision, device, _round(images, precision))
        pairing = networks.pair(names, copy_weights)
        loss = Loss(seed, None if labels is None else np.asarray(labels))
        weights, only = _compare_weights(networks, pairing, copy_weights)
        only = only[0] + networks.only_outputs(0), only[1] + networks.only_outputs(1)
        sections, hints = _compare_runs(networks, pairing, loss, allowed, steps, titles)
    findings = Findings(
        titles=titles,
        frameworks=frameworks,
        precision=precision,
        device=device,
        images=images.shape,
        flags=() if precision == "tf32" else tuple(reduced_flags(frameworks, device)),
        only=only,
        unpaired=pairing.unpaired,
        beside_logits=(networks.exact[0].beside_logits, networks.exact[1].beside_logits),
        described=_compare_descriptions(model_a, model_b, ResNetSpec.differences),
        described_training=_compare_descriptions(model_a, model_b, ResNetSpec.training_differences),
        sections={**sections, "weights": _in_order(weights, sections["eval"])},
        hints=hints,
    )
    return Report(**vars(findings), verdict=judge(findings))


class _Networks:
    """Two networks and their results, in float64 and, unless that is all, in another precision."""

    def __init__(
        self,
        models: tuple[Any, Any],
        frameworks: tuple[Framework, Framework],
        precision: Precision,
        device: Device,
        images: np.ndarray,
    ):
        self.frameworks, self.images = frameworks, images
        self.precisions: list[Precision] = list(dict.fromkeys(("f64", precision)))
        self.probes: list[list[Probe]] = []  # for each precision, of both
        self.evaluated: list[list[Sections]] = []
        for each in self.precisions:
            with self._flags(each):
                probes: list[Any] = [make_probe(model, each, device) for model in models]
                if set(frameworks) == {"torch", "flax"}:
                    side = frameworks.index("flax")
                    probes[side].partners = frozenset(probes[1 - side].weights())
                self.evaluated.append([probe.evaluate(images) for probe in probes])
            self.probes.append(probes)

    @property
    def exact(self) -> list[Probe]:
        return self.probes[0]

    def pair(self, names: Names, copy_weights: Framework | None) -> Pairing:
        """Pairs the layers that ran, and gives one network the weights of the other."""
        one, other = self.exact
        pairing = pair(one.layers(), other.layers(), names)
        if copy_weights is not None:
            source = self.frameworks.index(copy_weights)
            weights = _carried(self.exact, source, pairing)
            for probes, evaluated in zip(self.probes, self.evaluated, strict=True):
                probes[1 - source].load(weights)
                evaluated[1 - source] = probes[1 - source].evaluate(self.images)
        return pairing

    def only_outputs(self, side: int) -> tuple[str, ...]:
        """Names of arrays that one network returns and the other does not."""
        others = self.exact[1 - side].outputs
        return tuple(name for name in self.exact[side].outputs if name not in others)

    def take_evaluated(self) -> list[list[Sections]]:
        """What both computed in eval mode, which is not kept here."""
        evaluated, self.evaluated = self.evaluated, []
        return evaluated

    def train(self, loss: Loss) -> list[list[Sections]]:
        # JAX first: it keeps more for the backward pass, and then fewer results are in memory
        order = sorted((0, 1), key=lambda side: self.frameworks[side])
        results = []
        for probes, precision in zip(self.probes, self.precisions, strict=True):
            with self._flags(precision):
                trained = {side: probes[side].train(self.images, loss) for side in order}
            results.append([trained[0], trained[1]])
        return results

    def torch_side(self) -> int | None:
        """Which of the two is run with mistakes: torch's, of two the first."""
        return self.frameworks.index("torch") if "torch" in self.frameworks else None

    def _flags(self, precision: Precision) -> Any:
        return tensor_float32(self.frameworks) if precision == "tf32" else nullcontext()


def make_probe(model: Any, precision: Precision, device: Device) -> Probe:
    """A copy of a network of either framework, to run and to read."""
    if framework_of(model) == "torch":
        from convert.parity.torch_probe import TorchProbe

        return TorchProbe(model, precision, device)
    from convert.parity.flax_probe import FlaxProbe

    return FlaxProbe(model, precision, device)


def _carried(probes: Sequence[Probe], source: int, pairing: Pairing) -> Arrays:
    """The weights of one network under the names of the other.

    Raises:
        ConversionError: a tensor of the other gets none, or one of another shape.
    """
    own = [probe.weights() for probe in probes]
    ours, theirs = own[source], own[1 - source]
    second = own[1]
    tied = probes[1 - source].tied()
    partners = {name: pairing.tensor(name) for name in second}
    if source == 1:
        partners = {ours_name: name for name, ours_name in partners.items()}
    carried = {n: ours[p] for n in theirs if (p := partners.get(n)) is not None and p in ours}
    problems = [
        f"{name} gets none"
        if name not in carried
        else f"{name} is {theirs[name].shape}, but {partners[name]} of the one copied is "
        f"{carried[name].shape}"
        for name in theirs
        if (
            name not in carried and not is_counter(name) and not carried.keys() & tied.get(name, ())
        )
        or (name in carried and carried[name].shape != theirs[name].shape)
    ]
    if problems:
        raise ConversionError("these weights cannot be copied:", problems)
    return carried


def _compare_runs(
    networks: _Networks,
    pairing: Pairing,
    loss: Loss,
    allowed: Collection[Allowed],
    steps: int,
    titles: tuple[str, str],
) -> tuple[dict[str, tuple[Row, ...]], tuple[Hint, ...]]:
    """Rows of each section of what was computed, and what explains the first difference."""
    sections: dict[str, tuple[Row, ...]] = {}
    hints: tuple[Hint, ...] = ()
    side, search = networks.torch_side(), None
    if side is not None:
        probe: Any = networks.exact[side]
        search = Search(probe, side, pairing, networks.images, titles[side])
    for mode in ACTIVATIONS:
        pairs: list[tuple[Sections, Sections]] = []  # those of the other mode leave the memory
        results = networks.take_evaluated() if mode == "eval" else networks.train(loss)
        pairs = [(one, pairing.rename(other)) for one, other in results]
        del results
        if set(networks.frameworks) == {"torch", "flax"}:
            assert side is not None
            moved = turn(pairs[0], pairs[1:], side, mode)
            outputs = frozenset(name for name in moved if name.partition(".")[0] == OUTPUT)
            loss = replace(loss, channels_first=outputs) if mode == "eval" else loss
        sections |= _compare_results(pairs, networks.precisions[-1], sections.get("eval", ()))
        if search is None:
            continue
        if mode == "train":
            sections["statistics"] = _note_unmoved(networks, pairing, pairs[0], sections)
            rows = search.name_biased(sections["statistics"], pairs[0], allowed)
            sections["statistics"] = rows
        for section in (mode, "statistics") if mode == "train" else (mode,):
            hints = hints or search.explain(section, sections[section], pairs[0])
            if any(row.differs for row in sections[section]):
                break  # what differs behind it has no cause of its own
    if steps:
        one, other = (probe.steps(networks.images, loss, steps) for probe in networks.exact)
        pairs = [(one, pairing.rename(other))]
        sections |= _compare_results(pairs, "f64", sections["eval"])
    return sections, hints


def _note_unmoved(
    networks: _Networks,
    pairing: Pairing,
    results: tuple[Sections, Sections],
    sections: Mapping[str, Sequence[Row]],
) -> tuple[Row, ...]:
    """Rows of statistics, with a note where one network did not move any of its own."""
    before = networks.exact[0].weights(), pairing.tensors(networks.exact[1].weights())
    rows = tuple(sections["statistics"])
    for side, which in enumerate(("first", "second")):
        after = results[side]["statistics"]
        names = [row.name for row in rows if not row.is_counter]
        if names and all(np.array_equal(before[side][name], after[name]) for name in names):
            note = f"not moved in the {which}: does it train? {MODES}"
            rows = tuple(replace(row, note=note) if row.differs else row for row in rows)
    return rows


def _check_options(
    frameworks: tuple[Framework, Framework],
    copy_weights: str | None,
    allowed: Collection[str],
    steps: int,
) -> None:
    """Raises a ConversionError that lists every option that does not fit."""
    known = get_args(Allowed)
    problems = [
        f"allow is {', '.join(known)}, not {text!r}" for text in allowed if text not in known
    ]
    if copy_weights is not None and copy_weights not in FRAMEWORKS:
        problems.append(f"copy_weights is one of {', '.join(FRAMEWORKS)}, not {copy_weights!r}")
    elif copy_weights is not None and len(set(frameworks)) < 2:
        problems.append(f"copy_weights is for a torch and a Flax network: both are {frameworks[0]}")
    if steps < 0:
        problems.append(f"steps is a number of steps, not {steps}")
    if problems:
        raise ConversionError("these networks cannot be compared so:", problems)


def _check_arguments(
    models: tuple[Any, Any],
    images: np.ndarray,
    labels: Any,
    names: Names,
    precision: str,
    device: Device,
) -> None:
    """Raises a ConversionError that lists every argument that does not fit."""
    choices = (("precision", precision, PRECISIONS), ("device", device, DEVICES))
    problems = [
        f"{what} is one of {', '.join(known)}, not {value!r}"
        for what, value, known in choices
        if value not in known
    ]
    problems += _check_images(images, *models)
    if labels is not None:
        problems += _check_labels(np.asarray(labels), images, *models)
    if isinstance(names, Mapping):
        problems += _check_names(names, *models)
    elif names not in ("path", "order"):
        problems.append(f'names is "path", "order" or a map of names, not {names!r}')
    if problems:
        raise ConversionError("these networks cannot be compared with these arguments:", problems)


def _check_images(images: np.ndarray, *models: Any) -> list[str]:
    if not images.ndim or 0 in images.shape:
        return [f"images are a batch, as (n, h, w, c), not {images.shape}"]
    if not (is_floating(images.dtype) or np.issubdtype(images.dtype, np.integer)):
        return [f"images are real numbers, not {images.dtype}"]
    if not np.all(np.isfinite(images)):
        return ["images are finite, but these contain NaN or infinity"]
    described = [m for m in models if isinstance(getattr(m, "spec", None), ResNetSpec)]
    if described and images.ndim != 4:
        return [f"images are (n, h, w, c), not {images.shape}"]
    expected = {count for model in described if (count := image_channels(model)) is not None}
    if images.ndim == 4 and expected - {images.shape[-1]}:
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
    sides = (("first", model_a, names), ("second", model_b, names.values()))
    problems = [
        f"the {which} model has no layer {name}"
        for which, model, given in sides
        if (known := _paths(model)) is not None
        for name in given
        if name not in known
    ]
    if len(set(names.values())) != len(names):
        problems.append("two layers have the same name in the second model")
    return problems


def _paths(model: Any) -> set[str] | None:
    """The names of all layers; None of a linen module, which has them only when it runs."""
    if framework_of(model) == "torch":
        return {name for name, _ in model.named_modules()}
    from convert.parity.flax_probe import is_linen, paths

    return None if is_linen(model) else paths(model)


def _compare_descriptions(
    model_a: Any, model_b: Any, differences: Callable[[ResNetSpec, ResNetSpec], list[str]]
) -> tuple[str, ...]:
    """Differences that these images may not show: padding, for one, is alike at odd sizes."""
    one, other = (getattr(model, "spec", None) for model in (model_a, model_b))
    if not (isinstance(one, ResNetSpec) and isinstance(other, ResNetSpec)):
        return ()
    return tuple(differences(one, other))


def _round(images: np.ndarray, precision: Precision) -> np.ndarray:
    """Images in float64 that the precision represents exactly: all runs get the same ones.

    Integers, as of words, are given as they are.
    """
    if images.ndim != 4 and not is_floating(images.dtype):
        return images
    dtypes: dict[Precision, Any] = {"f64": np.float64, "bf16": BFLOAT16}
    return images.astype(dtypes.get(precision, np.float32)).astype(np.float64)


def _compare_results(
    results: Sequence[tuple[Sections, Sections]], precision: Precision, layers: Sequence[Row]
) -> dict[str, tuple[Row, ...]]:
    """Rows of each section, from the results of both networks in both precisions."""
    sections: dict[str, tuple[Row, ...]] = {}
    exact = results[0]
    for section, one in exact[0].items():
        other, top = exact[1][section], 0.0
        if section == "gradients":
            arrays = filter(_is_finite, [*one.values(), *other.values()])
            top = max(map(largest, arrays), default=0.0)
        pairs = [(result[0][section], result[1][section]) for result in results[1:]]
        rows = [
            _row(
                name,
                (one, other),
                [array for both in pairs for array in both],
                precision,
                _smallest_scale(one[name], other[name], top),
            )
            for name in one
            if name in other
        ]
        sections[section] = tuple(rows) if section in ACTIVATIONS else _in_order(rows, layers)
    return sections


def _smallest_scale(one: np.ndarray, other: np.ndarray, top: float) -> float:
    """What two float64 gradients are compared with at least, where the largest of all is `top`."""
    is_zero = max(largest(one), largest(other)) <= _ZERO_GRADIENT * top
    return top * (1.0 if is_zero else _SMALLEST_GRADIENT)


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
    networks: _Networks, pairing: Pairing, copy_weights: Framework | None
) -> tuple[list[Row], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Rows of the arrays in both models, and the names of those in only one."""
    if copy_weights is None:
        one, other = (probe.given() for probe in networks.exact)
    else:
        one, other = (probe.weights() for probe in networks.exact)
    other = pairing.tensors(other)
    rows = [_weight_row(name, one[name], other[name]) for name in one if name in other]
    if not any(map(is_counter, one)) or not any(map(is_counter, other)):
        one, other = (
            {name: a for name, a in arrays.items() if not is_counter(name)}
            for arrays in (one, other)
        )  # Flax's own BatchNorm counts no batches
    tied = [probe.tied() for probe in networks.exact]
    tied[1] = {n: frozenset(map(pairing.tensor, names)) for n, names in tied[1].items()}
    tied[1] = {pairing.tensor(name): names for name, names in tied[1].items()}
    return rows, (_missing(one, other, tied[0]), _missing(other, one, tied[1]))


def _missing(one: Arrays, other: Arrays, tied: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Names that only the first has, unless that array has another name that both have."""
    return tuple(n for n in one if n not in other and not other.keys() & tied.get(n, ()))


def _weight_row(name: str, one: np.ndarray, other: np.ndarray) -> Row:
    if one.shape != other.shape:
        note = f"shape {one.shape} against {other.shape}"
    elif one.dtype != other.dtype:
        note = f"{one.dtype} against {other.dtype}"
    else:
        note = "same bits" if same_bits(one, other) else ""
    return Row(name, measure(one, other), note=note)
