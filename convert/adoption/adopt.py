"""Builds both twins of a live network of another author, and proves that they compute the same."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.adoption.candidates import Candidate, candidates, completed, difference, undecided
from convert.adoption.flow import Flow, Layer
from convert.adoption.refusal import explain, refuse
from convert.arrays import array_problems, is_counter, is_floating, to_numpy
from convert.errors import ConversionError
from convert.files import write_weights
from convert.folding import EPSILON
from convert.models import build_flax, build_torch
from convert.parity.compare import framework_of, make_probe
from convert.parity.precision import Framework, Precision, float64
from convert.parity.probe import OUTPUT
from convert.preprocessing import stated_preprocessing
from convert.weights import Weights
from convert.wrappers import name_some, unwrap_module
from resnet_spec import Preprocessing, ResNetSpec

if TYPE_CHECKING:
    import torch
    from flax import nnx

TOLERANCES: dict[str, float] = {"float32": 1e-5, "float64": 1e-12}
"""Largest difference of logits, relative to the largest logit, in each precision."""
_SEED, _LARGE = 0, 100.0
_MOMENTUM = 0.1  # of every BatchNorm of the twins, in torch's sense
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Adopted:
    """The twins of a network of another author.

    Attributes:
        spec: the row of the table, with its dialect.
        flax_model: in eval mode, with the author's weights.
        torch_model: likewise.
        names: the author's name of each tensor by ours; not of tensors that are computed.
        errors: largest difference of the twins' logits from the author's, relative to the largest
            logit, by twin and precision: `errors["flax"]["float64"]`.
        notes: what was left out, folded, or is not certain, a sentence each.
        weights: the tensors under our names, with the description that a file keeps.
    """

    spec: ResNetSpec
    flax_model: "nnx.Module"
    torch_model: "torch.nn.Module"
    names: Mapping[str, str]
    errors: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    weights: Weights = field(repr=False)

    def save(
        self, path: str | os.PathLike[str], *, preprocessing: Preprocessing | str | None = None
    ) -> None:
        """Writes the weights with their description, and the author's names, as `import` does.

        Raises:
            ConversionError, OSError, ValueError: as `convert.save`.
        """
        if isinstance(preprocessing, str):
            preprocessing, _ = stated_preprocessing(preprocessing, self.spec)
        weights = dataclasses.replace(self.weights, preprocessing=preprocessing)
        write_weights(Path(path), weights)


def adopt(module: Any, images: Any) -> Adopted:
    """Both twins of any live network that computes what a row of the table computes.

    A copy of the module is run in evaluation mode: what its operations are, in which order, and
    which feeds which says its row, whatever its code looks like. Every row and dialect that fits is
    tried with random weights in float64 until one gives the same logits. Then the twins get the
    module's own weights, and their logits are compared in float32 and in float64. The module
    itself is not run, and stays as it is.

    Args:
        module: a `torch.nn.Module`, an NNX module, a linen module with its variables (bound, or as
            a pair), or a model of Keras's own layers on its JAX backend. Wrappers of torch for
            several devices and for compiling are opened.
        images: a batch as the module takes it, (n, c, h, w) or (n, h, w, c): two are enough. Let
            height and width be even, else nothing tells SAME padding from torch's.

    Raises:
        ConversionError: it is no network of the table (the message names the first layer in which
            it differs from the nearest), it cannot be copied or run, or is not deterministic.
        TypeError: it is no module of torch, Flax or Keras.
    """
    module = unwrap_module(module)
    framework = _framework(module)
    images = _images(images, framework)
    exact = _network(module, framework, "float64")
    own = exact.run(images)
    refuse(own, type(module).__name__)
    shapes = {name: a.shape for name, a in exact.given.items() if is_floating(a.dtype)}
    exact.fill(_random_values(own, shapes))
    flow = exact.run(images)
    tried = list(candidates(flow))
    fitting = next((one for one in tried if one.proves(flow)), None)
    if fitting is None:
        raise explain(exact, images, tried, type(module).__name__)
    notes = [
        f"images of this size do not show it: {text}; give some of even height and width"
        for text in undecided(tried, fitting, flow)
    ]
    narrow = _network(module, framework, "float32").run(images)
    return _adopted(module, images, fitting, own, narrow, exact, notes)


def _framework(module: Any) -> Framework:
    if isinstance(module, tuple) and len(module) == 2 and isinstance(module[1], Mapping):
        return framework_of(module)
    kinds = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    if "keras" in kinds:  # on its torch backend, a module of torch as well
        return "flax"
    if not kinds & {"torch", "flax"} or isinstance(module, type):
        raise TypeError(
            f"adopt takes a module of torch, Flax or Keras, not a {type(module).__name__}"
        )
    if hasattr(module, "unbind") and getattr(module, "scope", None) is None:
        raise TypeError("adopt takes a linen module with its variables: (module, variables)")
    return framework_of(module)


def _images(images: Any, framework: Framework) -> np.ndarray:
    """(n, h, w, c): of arrays of the other framework, or of none, the smaller axis has channels."""
    array = to_numpy(images)
    if array.ndim != 4 or 0 in array.shape:
        raise ConversionError(
            f"images are a batch, (n, c, h, w) or (n, h, w, c), not {array.shape}"
        )
    if is_floating(array.dtype) and not np.isfinite(array).all():
        raise ConversionError("images are finite, but these contain NaN or infinity")
    is_torch = type(images).__module__.partition(".")[0] == "torch"
    are_first = array.shape[1] < array.shape[3] or (is_torch and array.shape[1] == array.shape[3])
    if is_torch and framework == "torch":
        are_first = True
    return np.moveaxis(array, 1, -1) if are_first else array


def _network(module: Any, framework: Framework, dtype: str) -> Any:
    if framework == "torch":
        from convert.adoption.torch_flow import TorchNetwork as Kind
    else:
        from convert.adoption.flax_flow import FlaxNetwork as Kind
    return Kind(module, dtype)


def _random_values(flow: Flow, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value for every weight, by its author's name; `shapes` are of all tensors of numbers.

    Values as they were trained may hide a difference: the scales of a zero-initialised branch hide
    all of it. The scales here keep the signal through any depth.
    """
    generator = np.random.default_rng(_SEED)
    ranges = {"running_var": (0.5, 1.5), "running_mean": (-0.5, 0.5), "bias": (-0.5, 0.5)}
    values: dict[str, np.ndarray] = {}
    for _, layer in flow.layers():
        tensors = [(n, leaf, layer.arrays[leaf].shape) for leaf, n in layer.names.items()]
        tensors += [(n, "weight", shapes[n]) for n in layer.sources if n in shapes]
        for name, leaf, shape in tensors:
            bound = (3 / max(np.prod(shape[1:]), 1)) ** 0.5  # variance 1 / fan in
            low, high = ranges.get(leaf, (-bound, bound))
            if leaf == "weight" and layer.kind == "norm":
                low, high = 0.2, 0.8
            values.setdefault(name, generator.uniform(low, high, shape))
    for name in list(values)[:1]:  # of the stem: no bound of an activation lets large values pass
        values[name] *= _LARGE
    return values


def _adopted(
    module: Any,
    images: np.ndarray,
    candidate: Candidate,
    own: Flow,
    narrow: Flow,
    exact: Any,
    notes: Iterable[str],
) -> Adopted:
    """The twins with the module's own weights, and the proof."""
    found, given = candidate.found(narrow), exact.given
    arrays, names = _own_weights(found, given)
    if faults := array_problems({names.get(n, n): a for n, a in arrays.items()}, False):
        raise ConversionError(f"{type(module).__name__} holds what no weights should:", faults)
    network, more = _as_trained(candidate.classifier.network, exact, images)
    notes = [*own.notes, *notes, *_notes(found, own, names), *more]
    classifier = dataclasses.replace(candidate.classifier, network=network)
    candidate = dataclasses.replace(candidate, classifier=classifier)
    arrays, more = candidate.folded(completed(arrays, classifier), found)
    notes += more
    torch_model = build_torch(classifier, dict(arrays))
    flax_model = build_flax(classifier, dict(arrays))
    wide, errors = candidate.arrays(own), dict[str, dict[str, float]]()
    for twin, model in (("torch", torch_model), ("flax", flax_model)):
        errors[twin] = {
            "float32": _error(model, "f32", None, narrow),
            "float64": _error(model, "f64", wide, own),
        }
    problems = [
        f"the {twin} twin's logits differ by {error:.1e} of the largest in {dtype}, which is more "
        f"than {TOLERANCES[dtype]:g}"
        for twin, of_twin in errors.items()
        for dtype, error in of_twin.items()
        if not error <= TOLERANCES[dtype]
    ]
    if problems:
        raise ConversionError(
            f"{type(module).__name__} computes what the twins do with random weights, but not with "
            "its own: are some of them NaN, infinite or very large?",
            problems,
        )
    epsilons = {la.arguments["epsilon"] for la in found.values() if la.kind == "norm"}
    kept = names if epsilons == {EPSILON} else {}  # under them would go another epsilon
    head = given.get(names.get("head.weight", ""))
    weights = Weights(
        arrays,
        classifier,
        notes=tuple(notes),
        names=kept,
        has_conv_head=head is not None and head.ndim == 4,
    )
    return Adopted(network, flax_model, torch_model, names, errors, tuple(notes), weights)


def _error(model: Any, precision: Precision, arrays: Any, flow: Flow) -> float:
    """How far a twin's logits are from those of a run; with other weights, if they are given."""
    with float64(("flax",)):
        probe = make_probe(model, precision, "cpu")
        if arrays is not None:
            probe.load(arrays)
        return difference(probe.evaluate(flow.stem_input)["eval"][OUTPUT], flow.output)


def _own_weights(
    found: Mapping[str, Layer], given: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The module's own tensors by our names, and its names of them, in its order."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for path, layer in found.items():
        for leaf, array in layer.arrays.items():
            name = layer.names.get(leaf)
            arrays[f"{path}.{leaf}"] = array if name is None else given[name].reshape(array.shape)
            names |= {} if name is None else {f"{path}.{leaf}": name}
        counter = layer.names.get("running_mean", "").removesuffix("running_mean") + _COUNTER
        if layer.kind == "norm" and counter in given:
            names[f"{path}.{_COUNTER}"] = counter
            arrays[f"{path}.{_COUNTER}"] = np.asarray(given[counter], np.int64)
    ours_of = {theirs: ours for ours, theirs in names.items()}
    return arrays, {ours_of[name]: name for name in given if name in ours_of}


def _as_trained(spec: ResNetSpec, exact: Any, images: np.ndarray) -> tuple[ResNetSpec, list[str]]:
    """The spec with the fields that only count in training, and notes on them."""
    changes: dict[str, Any] = {"running_variance": exact.running_variance}
    (rates, others), notes = exact.draws(images), list[str]()
    are_of_blocks = len(rates) == len([*spec.blocks()]) and len({*rates}) == 1
    if are_of_blocks and spec.block == "basic":
        changes["drop_rate"] = rates[0]
        notes.append(
            f"taken from its layers of dropout: drop_rate={rates[0]:g}, between the convolutions "
            "of each block; evaluation does not show where they stand"
        )
    elif rates:
        said = ", ".join(f"{rate:g}" for rate in sorted({*rates}))
        notes.append(f"left out: dropout ({said}), which counts in training alone")
    if others:
        said = ", ".join(sorted(others))
        notes.append(f"left out: what it draws at random in training ({said})")
    if momenta := exact.momenta() - {_MOMENTUM}:
        said = ", ".join(sorted("mean of all batches" if m is None else f"{m:g}" for m in momenta))
        notes.append(
            f"left out: the momentum of its BatchNorm ({said}); a new batch counts {_MOMENTUM} "
            "in the twins' running statistics"
        )
    return dataclasses.replace(spec, **changes), notes


def _notes(found: Mapping[str, Layer], own: Flow, names: Mapping[str, str]) -> Iterator[str]:
    """Notes on what was left out, and on tensors that are computed from others."""
    if own.unused:
        yield f"left out: {name_some(own.unused)}, which have no part in the output"
    computed = [
        layer.path
        for layer in found.values()
        if any(leaf not in layer.names for leaf in layer.arrays)
    ]
    if computed:
        yield f"computed from other tensors, or constant, and kept as values: {name_some(computed)}"
    norms = sum(layer.kind == "norm" for layer in found.values())
    if missing := norms - sum(is_counter(name) for name in names):
        yield f"taken as zero: {missing} num_batches_tracked, which it lacks"
