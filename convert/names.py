"""What the author of a file calls our tensors, where the file does not describe its model."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import collector
from convert.arrays import is_counter, is_floating
from convert.errors import ConversionError
from convert.guess import Guess, guess, guess_exactly, name_of
from convert.layouts import OURS, cifar, keras, wide_resnet
from convert.leaves import to_flax, to_torch
from convert.parts import Part, find_part, is_statistic
from convert.sources import Source
from convert.structure import Found, Recognition, is_flax_kernel, nearest, recognise
from convert.weights import Weights
from convert.wrappers import name_some, unwrap
from resnet_spec import DIALECT, RATES, ClassifierSpec, ResNetSpec, UnknownNameError

RESIDUAL = "residual connections around all blocks"
"""What no tensor shows: a plain network of He et al. 2015 has the tensors of option A."""
_PADDING = (
    "its kernels have the axes of Flax and Keras, whose networks usually pad as TensorFlow does, "
    "and not as torch does: --padding same says so, and --stem-padding same where the first "
    "convolution does it, too"
)
_IMAGES = ("mean", "std", "mu", "sigma")  # what authors call the mean and deviation of images
_CLOSE = 0.9  # share of a layout's names from which on it says best what does not fit
_OTHERS = {  # what a part of a name says of networks that people often have
    "_bn_s": "these are Caffe2's names, whose BatchNorms have no statistics: Detectron2's "
    "DetectionCheckpointer loads them into its network; save the state dict of that",
    "attnpool": "CLIP's ResNets have a stem of three convolutions, average pooling before strides, "
    "and attention in place of the pooling before the head: the table has none of these",
    "standardized_conv2d": "BiT's ResNets have GroupNorm and standardised weights: the table has "
    "neither",
    "conv1_1": "a stem of three convolutions (ResNet-C, -D, -vd): the table has none",
}
_INSPECT = "`resnet-convert inspect` shows what it holds"
_SHOWN = 6  # open groups and networks in one message
_HOW = (
    "to decide: --names MAP.json with names of ours and of the file, such as {example}, or "
    "--rename OLD=NEW, until the names say it (a word such as shortcut, numbers)"
)


def with_names(source: Source, renames: Sequence[str]) -> Source:
    """A source after each replacement `OLD=NEW` in its names: plain text, one after the other.

    Raises:
        ConversionError: the source describes itself, a replacement is not `OLD=NEW` or changes no
            name, or two names become one.
    """
    if not renames:
        return source
    arrays, names = source.weights.arrays, source.weights.names
    if source.weights.classifier is not None:
        raise ConversionError(f"leave out --rename: {source.path} says itself what it holds")
    changed, problems = list(arrays), []
    for text in renames:
        old, sign, new = text.partition("=")
        if not old or not sign:
            problems.append(f"{text!r} is not OLD=NEW")
            continue
        if not any(old in name for name in changed):
            problems.append(f"no name has {old!r} in it; there are {name_some(changed)}")
        changed = [name.replace(old, new) for name in changed]
    counts = Counter(changed)
    if not problems:
        problems = [f"{n} tensors would be called {name!r}" for name, n in counts.items() if n > 1]
    if problems:
        raise ConversionError("--rename cannot be done:", problems)
    renamed = dict(zip(changed, arrays.values(), strict=True))
    originals = {new: names.get(old, old) for new, old in zip(changed, arrays, strict=True)}
    weights = dataclasses.replace(source.weights, arrays=renamed, names=originals)
    return dataclasses.replace(source, weights=weights)


def read_map(path: Path) -> dict[str, str]:
    """The names in a file of `--names`: ours -> the file's, of layers or of tensors.

    What `inspect --names --json` prints is such a file, too.

    Raises:
        ConversionError: it is not a JSON object of names.
        OSError: it cannot be read.
    """
    twice: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=as_dict)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"--names {path}: this is not JSON: {error}") from error
    if isinstance(entries, dict) and isinstance(entries.get("names"), dict):
        entries = entries["names"]  # of what `inspect --json` prints
    if not isinstance(entries, dict) or not all(isinstance(n, str) for n in entries.values()):
        raise ConversionError(
            f'--names {path}: this is no JSON object of names, as {{"stem.conv": "conv_in"}}'
        )
    if twice:
        raise ConversionError(f"--names {path}: names that are there twice:", twice)
    return entries


def by_layout(names: Mapping[str, Any], found: Guess) -> Recognition:
    """The bijection of a file that fits a layout whole."""
    whole = found.layout.whole_names({name: name for name in names})
    tensors = found.layout.tensors(found.classifier)
    theirs = {ours: whole[name] for ours, name in tensors.items() if name in whole}
    return Recognition(found.classifier, theirs, epsilon=found.layout.epsilon)


def other_network(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Why names say that a file has another network than its shapes do, a sentence each."""
    shapes = {name: array.shape for name, array in arrays.items()}
    return [*keras.signs(shapes), *wide_resnet.signs(shapes)]


def probably_other_network(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """As `other_network`, where the author of another file may have chosen the same names."""
    return list(cifar.raw_shortcuts({name: array.shape for name, array in arrays.items()}))


def by_structure(arrays: Mapping[str, np.ndarray], told: Mapping[str, str] | None = None) -> Found:
    """The networks that a file's arrays can be, with what lies beside them in the file.

    `told` is as `recognise` takes it.
    """
    first: Found | None = None
    for inner, beside in _views(arrays):
        found = _by_structure({name: arrays[theirs] for name, theirs in inner.items()}, told)
        if found.networks:
            networks = tuple(_in_file(one, inner, beside) for one in found.networks)
            return dataclasses.replace(found, networks=networks)
        first = first or found
    assert first is not None
    return first


def within(arrays: Mapping[str, np.ndarray], *, keeps_head: bool = True) -> Part | None:
    """The network of ours that is a part of a file, which as a whole is none; None where none is.

    `keeps_head`: linear layers behind it must not be left out.
    """

    def name_network(inner: Mapping[str, np.ndarray], may_have_head: bool) -> str:
        exact = guess_exactly({name: array.shape for name, array in inner.items()})
        found = [one.classifier for one in exact or _by_structure(inner, None).networks]
        fits = bool(found) and (may_have_head or found[0].num_classes is None)
        return name_of(found[0].network) if fits else ""

    return None if other_network(arrays) else find_part(arrays, name_network, keeps_head=keeps_head)


def of_part(arrays: Mapping[str, np.ndarray], part: Part) -> tuple[Recognition, ...]:
    """The networks that a part of a file can be; none where it may not be taken."""
    inner = {name: arrays[theirs] for name, theirs in part.names.items()}
    exact = guess_exactly({name: array.shape for name, array in inner.items()})
    found = [by_layout(inner, one) for one in exact[:1]] or by_structure(inner).networks
    return tuple(_in_file(one, part.names, part.beside) for one in found if not part.problems)


def _views(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """The file's name of each tensor by a shorter one, and the tensors that lie beside these.

    All of a file, first; then what remains of it without the mean and deviation of images; then
    what is in one container, as a module in a Lightning module, with but vectors and numbers beside
    it: the weights of a loss, the counts of a metric. A BatchNorm there may be a layer of the
    network, in front of it or behind it.
    """
    yield {name: name for name in arrays}, ()
    of_images = [n for n, a in arrays.items() if a.size in (1, 3) and _of_images(n)]
    inner, _ = unwrap({name: name for name in arrays if name not in of_images})
    if of_images and inner:
        yield inner, tuple(of_images)
    containers = Counter(name.partition(".")[0] for name in arrays if "." in name)
    for prefix in (f"{name}." for name, count in containers.items() if 2 * count > len(arrays)):
        beside = {name: a for name, a in arrays.items() if not name.startswith(prefix)}
        if beside and all(a.ndim < 2 and not is_statistic(n) for n, a in beside.items()):
            inner = {n.removeprefix(prefix): n for n in arrays if n not in beside}
            yield unwrap(inner)[0], tuple(beside)


def _of_images(name: str) -> bool:
    """Whether a tensor is called as a mean or a deviation of images is."""
    return name.replace("/", ".").rpartition(".")[2].removeprefix("new_") in _IMAGES


def _in_file(found: Recognition, inner: Mapping[str, str], beside: tuple[str, ...]) -> Recognition:
    """What was recognised under the shorter names of a view, by the file's own."""
    names = {ours: inner[theirs] for ours, theirs in found.names.items()}
    beside = (*(inner[theirs] for theirs in found.beside), *beside)
    return dataclasses.replace(found, names=names, beside=beside)


def _by_structure(arrays: Mapping[str, np.ndarray], told: Mapping[str, str] | None) -> Found:
    if other_network(arrays):
        return Found(())
    by_dtype: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        by_dtype.setdefault(array.dtype, []).append(name)
    names = list(arrays)
    if all(names == sorted(names) for names in by_dtype.values()):  # as safetensors writes them
        names = sorted(names)
    return recognise({name: arrays[name].shape for name in names}, told)


def under_our_names(
    arrays: Mapping[str, np.ndarray], found: Recognition
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A file's arrays with our names and torch's axes, and notes on counters.

    Convolutions keep their biases, which `convert.folding` folds.
    """
    if left_over := sorted({*arrays} - {*found.names.values(), *found.beside}):
        raise ConversionError("these tensors have no place in the network:", left_over)
    ours, notes = dict[str, np.ndarray](), [*found.notes]
    if found.beside:
        notes.append(f"left out: {name_some(found.beside)}, which lie beside the network")
    if any(map(_of_images, found.beside)):
        notes.append("its author's network normalises its images itself, and the twins do not")
    cast: set[str] = set()
    expected = found.classifier.tensors()
    for name, theirs in found.names.items():
        array = arrays[theirs]
        if is_flax_kernel(theirs):
            array = to_torch("kernel", array)
        if name == "head.weight" and array.ndim == 4:  # a convolution of 1x1
            array = array[:, :, 0, 0]
        if array.shape[:-1] == (1, 1, 1) and len(expected.get(name, ())) == 1:  # Haiku's
            array = array.reshape(-1)
        if is_counter(name) and array.size == 1:
            if is_floating(array.dtype):  # all of a file was cast, which may round a count
                cast.add(array.dtype.name)
                array = np.zeros((), np.int64)
            elif array.dtype.kind in "iu":
                array = array.reshape(()).astype(np.int64)
        ours[name] = array
    if cast:
        notes.append(f"taken as zero: num_batches_tracked, which are {' and '.join(sorted(cast))}")
    missing = [name for name in expected if name not in ours]
    ours |= {name: np.zeros((), np.int64) for name in missing}
    is_flax = any(is_flax_kernel(name) for name in arrays)  # which counts no batches
    if missing and not is_flax:
        notes.append(f"taken as zero: {len(missing)} num_batches_tracked, which the file lacks")
    return ours, notes


def under_original_names(weights: Weights) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays as a file had them whose author had other names, and notes on what it had more.

    Raises:
        ConversionError: the weights do not say what an author called them, or say it of other
            tensors.
    """
    if not weights.names or weights.classifier is None:
        raise ConversionError(
            "these weights do not say what an author called them: a file does that `import` made "
            "of one with other names"
        )
    convolutions = dict(weights.classifier.network.convolutions())
    theirs: dict[str, np.ndarray] = {}
    folded, absent = list[str](), dict[str, str]()
    for ours, name in weights.names.items():
        array = weights.arrays.get(ours)
        if array is None and (conv := convolutions.get(ours.removesuffix(".bias"))):
            array = np.zeros(conv.out_planes, weights.arrays["stem.conv.weight"].dtype)
            folded.append(name)
        if array is None:
            absent[name] = ours
            continue
        if ours == "head.weight" and weights.has_conv_head:
            array = array[:, :, None, None]
        theirs[name] = to_flax("kernel", array) if is_flax_kernel(name) else array
    if lost := [name for name, ours in absent.items() if not ours.startswith("head.")]:
        raise ConversionError(
            "these weights do not have all tensors that they say an author's file has: import that "
            "file again",
            [f"absent: {name_some(lost)}"],
        )
    notes = [f"left out: {name_some([*absent])}, which were not imported"] if absent else []
    if folded:
        notes.append(f"zeros, because running means have them: {name_some(folded)}")
    return theirs, notes


@collector.paused()
def determine(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    model: str | None = None,
    fields: Mapping[str, Any] | None = None,
    told: Mapping[str, str] | None = None,
    keeps_head: bool = True,
) -> tuple[Recognition, str] | None:
    """The network that a file's names and shapes determine, and how, in a sentence; None if none.

    A known layout that fits whole comes first, then structure.

    Args:
        path: of the file, for messages.
        arrays: the file's, by its own names, in its order.
        model: the name in our table, if the user states it.
        fields: of the spec that the user states.
        told: the file's name of layers or tensors by ours; no layout is tried.
        keeps_head: linear layers behind the network must not be left out.

    Raises:
        ConversionError: several networks or bijections fit, or none as the user states it; or no
            tensor of the file can be in a network of ours, with its name.
    """
    if others := other_network(arrays):
        raise ConversionError(f"{path} holds a network that the table does not have:", others)
    if model is None and told is None and (others := probably_other_network(arrays)):
        lines = [*others, "if it is of a network of ours all the same, --model or --names says so"]
        raise ConversionError(f"{path} holds a network that the table does not have:", lines)
    ways = list(_exactly(arrays)) if told is None else []
    is_of_layout = bool(ways)  # which knows the padding of its package
    if ways:
        sentence = f"taken {ways[0][1]}: every name and shape fits"
    else:
        found = by_structure(arrays, told)
        if found.problems:
            raise ConversionError(f"--names does not fit {path}:", found.problems)
        part = None if found.networks or told is not None else within(arrays, keeps_head=keeps_head)
        if part is not None and not part.problems:
            inner = {name: arrays[theirs] for name, theirs in part.names.items()}
            one, sentence = determine(path, inner, model=model, fields=fields) or (None, "")
            if one is not None:
                one = _in_file(one, part.names, part.beside)
                return dataclasses.replace(one, notes=(*part.notes, *one.notes)), sentence
        if not found.networks and model is None:
            raise _nothing(path, arrays, found, () if part is None else part.problems)
        ways = [(one, name_of(one.classifier.network)) for one in found.networks]
        sentence = "recognised by structure: {name}"
    if not ways:
        return None
    fitting, problems = [], []
    for one, said in ways:
        spec, wrong = _as_stated(one.classifier, model, fields or {})
        problems += [f"{said}: {sentence}" for sentence in wrong]
        if not wrong:
            classifier = dataclasses.replace(one.classifier, network=spec)
            fitting.append((dataclasses.replace(one, classifier=classifier), said))
    if not fitting:
        raise ConversionError(f"{path} holds another network than is stated:", problems)
    first = fitting[0][0]
    network = first.classifier.network
    others = [o for o, _ in fitting if network.differences(o.classifier.network)]
    if others or first.open:
        raise _ambiguous(path, fitting)
    is_flax = any(map(is_flax_kernel, first.names.values()))
    if is_flax and not is_of_layout and "padding" not in (fields or {}):
        first = dataclasses.replace(first, notes=(*first.notes, _PADDING))
    return first, sentence.format(name=name_of(network))


def _exactly(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[Recognition, str]]:
    """The networks of known layouts that a file is, and how it is imported as these."""
    for inner, beside in _views(arrays):
        exact = guess_exactly({name: arrays[theirs].shape for name, theirs in inner.items()})
        for one in exact:
            yield _in_file(by_layout(inner, one), inner, beside), f"with {one.options}"
        if exact:
            return


def _as_stated(
    found: ClassifierSpec, model: str | None, fields: Mapping[str, Any]
) -> tuple[ResNetSpec, list[str]]:
    """The network as the user states it, and how the tensors contradict that."""
    network = found.network
    try:
        if model is None:
            spec = ResNetSpec.from_json({**network.to_json(), **fields})
        else:
            shown = {name: getattr(network, name) for name in ("shortcut", "in_planes", *DIALECT)}
            spec = OURS.network(model, **{**shown, **fields})
    except UnknownNameError:
        raise
    except ValueError as error:
        return network, [str(error)]
    if dataclasses.replace(found, network=spec).tensors() == found.tensors():
        return spec, []
    stated = [] if model is None else [f"--model {model}"]
    stated += [f"--{name} {value}" for name, value in fields.items() if name not in RATES]
    differences = "; ".join(spec.differences(network))
    return spec, [f"not as {' '.join(stated)} has it: {differences}"]


def _nothing(
    path: Path, arrays: Mapping[str, np.ndarray], found: Found, of_part: Sequence[str]
) -> ConversionError:
    """The refusal of a file whose tensors determine no network of ours."""
    what = (
        f"give --model, the name in our table of what {path} holds, and --layout where its names "
        "are not ours: its tensors are those of no network that is recognised"
    )
    problems = []
    problems += [said for part, said in _OTHERS.items() if any(part in name for name in arrays)]
    if found.left_over:
        problems.append(f"no layer of a ResNet of ours has {name_some(found.left_over)}")
    if of_part:
        what = f"{path} holds more than a network of ours:"
        return ConversionError(what, [*of_part, _INSPECT])
    guesses = guess({name: array.shape for name, array in arrays.items()})
    structure = nearest({name: array.shape for name, array in arrays.items()})
    if structure is not None and (not guesses or guesses[0].share < _CLOSE):
        name = name_of(structure[0].network)
        problems += [f"not {name}, the nearest: {problem}" for problem in structure[1]]
    elif guesses:
        near = guesses[0]
        name = f"{near.model} in the layout {near.layout.name}"
        problems += [f"not {name}, the nearest: {problem}" for problem in near.problems]
    problems.append(_INSPECT)
    return ConversionError(what, problems)


def _ambiguous(path: Path, ways: Sequence[tuple[Recognition, str]]) -> ConversionError:
    """The refusal of a file that can be several networks, or one with layers in several places."""
    if len(ways) == 1:
        (one, name), *_ = ways
        what = f"{path} is recognised as {name}, but not which of its layers is which:"
        lines = list(open_layers(one))
        ours = one.open[0][0]
        example = {ours: _their_path(one, ours)}
    else:
        what = f"{path} can be more than one network, and nothing in it decides:"
        lines = [f"{name}: {_difference(one, ways)}" for one, name in ways]
        example = {"stem.conv": _their_path(ways[0][0], "stem.conv")}
        lines.append("to decide: --model, --shortcut and the other options say which one it is")
    if (more := len(lines) - _SHOWN) > 0:
        lines = [*lines[:_SHOWN], f"and {more} more"]
    return ConversionError(what, [*lines, _HOW.format(example=json.dumps(example))])


def open_layers(found: Recognition) -> Iterator[str]:
    """A sentence for each group of layers that could be exchanged, with the file's names."""
    for group in found.open:
        alike: dict[Any, list[str]] = {}
        for path in group:
            shape = found.classifier.tensors().get(f"{path}.weight", ())
            alike.setdefault(shape, []).append(path)
        for paths in (paths for paths in alike.values() if len(paths) > 1):
            theirs = [_their_path(found, path) for path in paths]
            if len(paths) == 2:
                yield (
                    f"either {theirs[0]} is {paths[0]} and {theirs[1]} is {paths[1]}, or the "
                    "other way round"
                )
            else:
                yield f"{name_some(theirs)} are {name_some(paths)}, in an order that is not shown"


def _difference(one: Recognition, ways: Sequence[tuple[Recognition, str]]) -> str:
    """What a network takes a layer of the file for that the others take for another."""
    for other, _ in ways:
        ours_of = {theirs: ours for ours, theirs in other.names.items()}
        for ours, theirs in one.names.items():
            if ours_of.get(theirs) != ours:
                return f"{theirs} is its {ours}"
    for other, _ in ways:
        differences = one.classifier.network.differences(other.classifier.network)
        for difference in differences:
            name = difference.partition(":")[0]
            return f"{name} is {getattr(one.classifier.network, name)!r}"
    return "the same names"


def _their_path(found: Recognition, path: str) -> str:
    """The file's path of a layer of ours, or what the names of a block of ours begin with."""
    if theirs := found.names.get(f"{path}.weight"):
        return theirs[: -len(theirs.replace("/", ".").rpartition(".")[2]) - 1]
    first, *others = [name for ours, name in found.names.items() if ours.startswith(f"{path}.")]
    while not all(name.startswith(first) for name in others):
        first = first[:-1]
    return first
