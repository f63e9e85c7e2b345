"""Which network a state dict is of, from shapes and order alone, whatever its author called it.

The tensors that share a path are a layer: a convolution, a batch normalisation, a linear layer.
The shapes of all layers together say which networks they can be. Each layer then finds its place:
blocks are layers whose names begin alike, or that follow each other; within a block, shapes decide
first, then numbers and words in the names, then the order in the file.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convert.folding import EPSILON
from resnet_spec import SHORTCUTS, ClassifierSpec, ResNetSpec, ShortcutKind

Shape = tuple[int, ...]
Key = tuple[str, Shape]
"""What two layers share that can stand for each other: kind, and shape of the weight."""

# What packages call the tensors of a layer, by torch's words.
_LEAVES = {
    "weight": "weight", "kernel": "weight", "w": "weight", "gamma": "weight", "scale": "weight",
    "bias": "bias", "b": "bias", "beta": "bias", "offset": "bias",
    "running_mean": "running_mean", "mean": "running_mean", "moving_mean": "running_mean",
    "running_var": "running_var", "var": "running_var", "moving_var": "running_var",
    "moving_variance": "running_var", "num_batches_tracked": "num_batches_tracked",
}  # fmt: skip
_FLAX_KERNELS = ("kernel", "w")  # (h, w, in, out) and (in, out)
_COLLECTIONS = ("params", "batch_stats")  # of linen, before a layer's path
_COUNTER = "num_batches_tracked"
# What authors call a shortcut; the second some of them call the other branch.
_SHORTCUT_WORDS = (
    {"shortcut", "short", "sc", "downsample", "down", "skip", "proj", "projection", "bypass"},
    {"identity", "residual", "res"},
)
_WORDS = {"conv": "convolutions", "norm": "normalisations", "linear": "linear layers"}
_PATHS = 4  # of layers in a message
_NEAR = 0.1  # largest share of layers in which a network differs that is called the nearest
_WORD = re.compile(r"\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SEPARATOR = re.compile(r"[./]")


@dataclass(frozen=True)
class Layer:
    """The tensors of a file that share a path.

    Attributes:
        path: what their names share.
        place: of the first in the file.
        key: kind, and shape of the weight with torch's axes.
        tensors: the file's name of a tensor by torch's word for it.
        words: the words and numbers of the path.
    """

    path: str
    place: int
    key: Key
    tensors: Mapping[str, str]
    words: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.key[0]

    @property
    def shape(self) -> Shape:
        return self.key[1]


@dataclass(frozen=True)
class Recognition:
    """A network that a file's tensors can be.

    Attributes:
        classifier: the network and its head.
        names: the file's name of a tensor by ours; without counters that the file lacks, and with
            biases of convolutions that only the file has.
        open: layers of ours that could be exchanged: nothing in the file tells them apart.
        epsilon: of its BatchNorms, as the package has it whose names these are.
        beside: the file's tensors that are not of this network.
        notes: what a user should know of the choice.
    """

    classifier: ClassifierSpec
    names: Mapping[str, str]
    open: tuple[tuple[str, ...], ...] = ()
    epsilon: float = EPSILON
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What was recognised.

    Attributes:
        networks: those that the tensors can be; one, without open layers, is certain.
        left_over: names of tensors that no layer of a residual network has.
        problems: what is wrong with what the user told, a sentence each.
    """

    networks: tuple[Recognition, ...]
    left_over: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def recognise(shapes: Mapping[str, Shape], told: Mapping[str, str] | None = None) -> Found:
    """Finds the networks whose layers these tensors can be, by structure.

    Args:
        shapes: of all tensors by name, in the order of the file.
        told: the file's name of a layer or tensor by ours, as far as the user says it: it decides.
    """
    layers, left_over = _read_layers(shapes)
    if left_over:
        return Found((), tuple(left_over))
    # The order of the file then says nothing of the order of the definition.
    is_sorted = _are_sorted(shapes) or _contradicts_numbers(layers)
    candidates = list(_candidates(layers))
    assigned: list[_Assignment] = []
    for find in (_blocks_by_names, _blocks_by_order):
        found = [_assign(one, layers, is_sorted, find) for one in candidates]
        if assigned := [one for one in found if one is not None]:
            break
    if told is None or not candidates:
        return Found(tuple(one.recognition() for one in assigned))
    assigned = assigned or [_assign_by_shapes(one, layers) for one in candidates]
    problems = [one.follow(told, layers) for one in assigned]
    if not all(problems):
        pairs = zip(assigned, problems, strict=True)
        return Found(tuple(one.recognition() for one, wrong in pairs if not wrong))
    return Found((), problems=tuple(min(problems, key=len)))


def nearest(shapes: Mapping[str, Shape]) -> tuple[ClassifierSpec, list[str]] | None:
    """The network that has nearly these layers, and what differs, a sentence each."""
    layers, _ = _read_layers(shapes)
    linear = [layer for layer in layers if layer.kind == "linear"]
    linear.sort(key=lambda layer: (-layer.shape[1], len(layer.words)))
    del linear[:1]  # the head, the widest and least deep
    layers = [layer for layer in layers if layer not in linear]
    found = Counter(layer.key for layer in layers)
    best: tuple[int, ClassifierSpec, list[str]] | None = None
    for classifier in _likely(layers):
        expected = Counter(key for _, key in _places(classifier))
        missing, left_over = expected - found, found - expected
        count = missing.total() + left_over.total()
        if count > len(layers) * _NEAR or (best is not None and count >= best[0]):
            continue
        problems = [f"missing: {n} of {_WORDS[k]} {s}" for (k, s), n in missing.items()]
        for key, number in left_over.items():
            alike = [layer for layer in layers if layer.key == key]
            problems.append(f"left over: {number} of {_some_paths(alike)}")
        if linear:
            problems.append(f"left over: {len(linear)} linear layers: {_some_paths(linear)}")
        best = count, classifier, problems
    return None if best is None else best[1:]


def _some_paths(layers: Sequence[Layer]) -> str:
    paths = [layer.path for layer in layers]
    return ", ".join([*paths[:_PATHS], *(["..."] if len(paths) > _PATHS else [])])


def is_flax_kernel(name: str) -> bool:
    """Whether a tensor of this name has Flax's axes: (h, w, in, out) or (in, out)."""
    return _SEPARATOR.split(name)[-1].lower() in _FLAX_KERNELS


def _are_sorted(names: Iterable[str]) -> bool:
    """Whether names are in the order of the alphabet; counters have an order of their own."""
    weights = [name for name in names if not name.endswith(_COUNTER)]

    def by_text(name: str) -> list[tuple[int, str]]:
        return [(0, name)]

    def by_numbers(name: str) -> list[tuple[int, str]]:
        return [*map(_number, re.split(r"(\d+)", name))]

    pairs = list(itertools.pairwise(weights))
    return any(all(key(a) <= key(b) for a, b in pairs) for key in (by_text, by_numbers))


def _contradicts_numbers(layers: Iterable[Layer]) -> bool:
    """Whether a name comes before one that differs from it only by smaller numbers."""
    last: dict[tuple[str, ...], list[int]] = {}
    for layer in sorted(layers, key=lambda layer: layer.place):
        skeleton = tuple("#" if word.isdecimal() else word for word in layer.words)
        numbers = [int(word) for word in layer.words if word.isdecimal()]
        if numbers < last.get(skeleton, numbers):
            return True
        last[skeleton] = numbers
    return False


def _read_layers(shapes: Mapping[str, Shape]) -> tuple[list[Layer], list[str]]:
    """The layers in the order of the file, and the tensors that belong to none."""
    groups: dict[str, dict[str, str]] = {}
    places: dict[str, int] = {}
    strange = []
    for place, name in enumerate(shapes):
        path, leaf = _split(name)
        if leaf is None or leaf in groups.get(path, {}):
            strange.append(name)
            continue
        groups.setdefault(path, {})[leaf] = name
        places.setdefault(path, place)
    layers = []
    for path, tensors in groups.items():
        key = _key(tensors, shapes)
        if key is None:
            strange += tensors.values()
        else:
            layers.append(Layer(path, places[path], key, tensors, _words(path)))
    return _with_head(layers), strange


def _with_head(layers: list[Layer]) -> list[Layer]:
    """The layers, of which a convolution of 1x1 may be the head: the only one with a bias."""
    biased = [layer for layer in layers if layer.kind == "conv" and "bias" in layer.tensors]
    if len(biased) != 1 or biased[0].shape[2:] != (1, 1):
        return layers
    if any(layer.kind == "linear" for layer in layers):
        return layers
    head = dataclasses.replace(biased[0], key=("linear", biased[0].shape[:2]))
    return [head if layer is biased[0] else layer for layer in layers]


def _split(name: str) -> tuple[str, str | None]:
    """`layer1.0.bn1.gamma` -> (`layer1.0.bn1`, `weight`); None where the last is no such word."""
    parts = _SEPARATOR.split(name)
    if parts[0] in _COLLECTIONS:
        name = name[len(parts[0]) + 1 :]
    leaf = _LEAVES.get(parts[-1].lower())
    return name[: -len(parts[-1]) - 1], leaf


def _words(path: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(path))


def _key(tensors: Mapping[str, str], shapes: Mapping[str, Shape]) -> Key | None:
    """Kind and shape of a layer; None where these tensors are none of a residual network."""
    weight = tensors.get("weight")
    if weight is None:
        return None
    shape = tuple(shapes[weight])
    is_flax = is_flax_kernel(weight)
    others = {leaf: tuple(shapes[name]) for leaf, name in tensors.items() if leaf != "weight"}
    match len(shape), sorted(others):
        case 4, ([] | ["bias"]):
            shape = (shape[3], shape[2], *shape[:2]) if is_flax else shape
            return ("conv", shape) if others.get("bias", shape[:1]) == shape[:1] else None
        case 2, ([] | ["bias"]):
            shape = shape[::-1] if is_flax else shape
            return ("linear", shape) if others.get("bias", shape[:1]) == shape[:1] else None
        case 1, [*leaves] if {"bias", "running_mean", "running_var"} <= set(leaves):
            counter = others.pop(_COUNTER, ())
            fits = set(others.values()) == {shape} and counter in ((), (1,))
            return ("norm", shape) if fits else None
    return None


def _candidates(layers: Sequence[Layer]) -> Iterator[ClassifierSpec]:
    """The networks that have just these layers, wherever they stand."""
    keys = Counter(layer.key for layer in layers)
    for classifier in _likely(layers):
        if Counter(key for _, key in _places(classifier)) == keys:
            yield classifier


def _likely(layers: Sequence[Layer]) -> Iterator[ClassifierSpec]:
    """The networks that have the stem, the head, the widths and about the depth of these layers."""
    convs = [layer.shape for layer in layers if layer.kind == "conv"]
    heads = [layer for layer in layers if layer.kind == "linear"]
    if not convs or len(heads) > 1:
        return
    in_planes = min(shape[1] for shape in convs)
    stems = [shape for shape in convs if shape[1] == in_planes]
    if len(stems) != 1 or stems[0][2:] not in ((3, 3), (7, 7)):
        return
    convs.remove(stems[0])
    for spec in _specs(stems[0], convs):
        num_classes = heads[0].shape[0] if heads else None
        has_bias = not heads or "bias" in heads[0].tensors
        yield ClassifierSpec(spec, num_classes, has_bias)


def _specs(stem: Shape, convs: Collection[Shape]) -> Iterator[ResNetSpec]:
    """Networks whose stages have the widths and about the depths of these convolutions."""
    sizes = {shape[2:] for shape in convs}
    if not sizes <= {(1, 1), (3, 3)}:
        return
    threes = [shape for shape in convs if shape[2:] == (3, 3)]
    ones = [shape for shape in convs if shape[2:] == (1, 1)]
    fields: dict[str, Any] = {
        "stem_planes": stem[0],
        "in_planes": stem[1],
        "small_images": stem[2:] == (3, 3),
    }
    kinds: list[ShortcutKind] = [kind for kind in SHORTCUTS if kind != "centred_identity"]
    for block, preact, shortcut in itertools.product(("basic", "bottleneck"), (False, True), kinds):
        stages = _basic_stages(threes, shortcut) if block == "basic" else _deep_stages(threes, ones)
        for planes, width in _planes(block, stem[0], stages, ones):
            try:
                yield ResNetSpec(
                    block=block,
                    stage_depths=tuple(stages.values()),
                    stage_planes=planes,
                    width=width,
                    preact=preact,
                    shortcut=shortcut,
                    **fields,
                )
            except ValueError:  # channels that an identity would have to drop
                continue


def _basic_stages(threes: Iterable[Shape], shortcut: str) -> dict[int, int]:
    """Width and depth of each stage of basic blocks."""
    counts = Counter(shape[0] for shape in threes)
    changes = Counter(shape[0] for shape in threes if shape[0] != shape[1])
    extra = {width: changes[width] // 2 if shortcut == "convolution" else 0 for width in counts}
    return {width: (counts[width] - extra[width]) // 2 for width in sorted(counts)}


def _deep_stages(threes: Iterable[Shape], ones: Collection[Shape]) -> dict[int, int]:
    """The same of bottlenecks, by the width in the middle."""
    counts = Counter(shape[0] for shape in threes if shape[0] == shape[1]) if ones else Counter()
    return {width: counts[width] for width in sorted(counts)}


def _planes(
    block: str, stem: int, stages: Mapping[int, int], ones: Iterable[Shape]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Planes of the stages and the width that multiplies them, as the families have them."""
    widths = tuple(stages)
    if not widths or not all(stages.values()):
        return
    if block == "bottleneck":
        outs = [max((s[0] for s in ones if s[1] == width), default=0) for width in widths]
        planes = tuple(out // 4 for out in outs)
        if all(planes) and all(w % p == 0 for w, p in zip(widths, planes, strict=True)):
            factors = {w // p for w, p in zip(widths, planes, strict=True)}
            if len(factors) == 1:
                yield planes, factors.pop()
        return
    planes = tuple(stem * 2**number for number in range(len(widths)))
    if widths[0] % stem == 0 and widths == tuple(p * (widths[0] // stem) for p in planes):
        yield planes, widths[0] // stem
    else:
        yield widths, 1


def _places(classifier: ClassifierSpec) -> Iterator[tuple[str, Key]]:
    """(our path, key) of every layer, block by block in the order of the forward pass."""
    kinds = {4: "conv", 2: "linear", 1: "norm"}
    for path, shapes in classifier.layers():
        shape = shapes["weight"]
        yield path, (kinds[len(shape)], shape)


@dataclass
class _Block:
    """The layers of a block of ours, or of the file."""

    words: tuple[str, ...]
    layers: list[Layer] = field(default_factory=list)

    @property
    def keys(self) -> frozenset[tuple[Key, int]]:
        return frozenset(Counter(layer.key for layer in self.layers).items())

    @property
    def place(self) -> int:
        return min(layer.place for layer in self.layers)


Roles = dict[str, Key]
"""Layers of one block by our paths."""

_Finder = Callable[
    [Sequence[Layer], Roles, Sequence[Roles], bool], tuple[list[Layer], list[_Block], bool] | None
]


def _assign(
    classifier: ClassifierSpec, layers: Sequence[Layer], is_sorted: bool, find: _Finder
) -> "_Assignment | None":
    """The place of every layer; None where blocks of this network are not to be found."""
    outside: Roles = {}
    blocks: dict[str, Roles] = {block.path: {} for block in classifier.network.blocks()}
    for path, key in _places(classifier):
        block = ".".join(path.split(".")[:3])
        blocks.get(block, outside)[path] = key
    found = find(layers, outside, list(blocks.values()), is_sorted)
    if found is None:
        return None
    rest, theirs, is_ordered = found
    paths: dict[str, Layer] = {}
    undecided: list[tuple[str, ...]] = []
    for path, key in outside.items():
        (paths[path],) = (layer for layer in rest if layer.key == key)
    if not is_ordered:
        undecided.append(tuple(blocks))
    for (_, roles), block in zip(blocks.items(), theirs, strict=True):
        chosen, doubtful = _assign_block(roles, block, is_sorted)
        paths |= chosen
        undecided += doubtful
    return _Assignment(classifier, paths, undecided, is_sorted)


def _assign_by_shapes(classifier: ClassifierSpec, layers: Sequence[Layer]) -> "_Assignment":
    """Any place that fits for every layer: those of equal shape are open."""
    waiting: dict[Key, list[Layer]] = {}
    alike: dict[Key, list[str]] = {}
    for layer in layers:
        waiting.setdefault(layer.key, []).append(layer)
    for path, key in _places(classifier):
        alike.setdefault(key, []).append(path)
    places = {p: la for key in alike for p, la in zip(alike[key], waiting[key], strict=True)}
    are_open = [tuple(paths) for paths in alike.values() if len(paths) > 1]
    return _Assignment(classifier, places, are_open, is_sorted=True)


@dataclass
class _Assignment:
    """A layer of the file for every path of ours, and the paths whose layers could be exchanged."""

    classifier: ClassifierSpec
    paths: dict[str, Layer]
    open: list[tuple[str, ...]]
    is_sorted: bool

    def recognition(self) -> Recognition:
        names = {
            f"{path}.{leaf}": name
            for path, layer in self.paths.items()
            for leaf, name in layer.tensors.items()
        }
        biases = [f"{path}.bias" for path, _ in self.classifier.network.convolutions()]
        every = (*self.classifier.tensors(), *biases)
        ordered = {name: names[name] for name in every if name in names}
        return Recognition(self.classifier, ordered, tuple(self.open))

    def follow(self, told: Mapping[str, str], layers: Sequence[Layer]) -> list[str]:
        """Exchanges layers so that all is as told; returns what is wrong with that."""
        wanted, problems = self._read(told, layers)
        if problems:
            return problems
        for path, layer in wanted.items():
            if (before := self.paths[path]) is not layer:
                other = next(p for p, held in self.paths.items() if held is layer)
                self.paths |= {path: layer, other: before}
                are_open = any(path in group and other in group for group in self.open)
                if other not in wanted and not are_open:  # what seemed certain was wrong
                    alike = [p for p, held in self.paths.items() if held.key == layer.key]
                    rest = tuple(p for p in alike if p not in wanted)
                    self.open += [rest] if len(rest) > 1 else []
        groups = [self._still_open(group, wanted) for group in self.open]
        self.open = list(dict.fromkeys(group for group in groups if group))
        return []

    def _still_open(self, group: tuple[str, ...], wanted: Collection[str]) -> tuple[str, ...]:
        """The layers of an open group that what is told leaves open."""
        inside = tuple(f"{path}." for path in group)  # of blocks
        members = [p for p in self.paths if p in group or p.startswith(inside)]
        rest = [path for path in members if path not in wanted]
        if len(rest) == len(members):
            return group
        still_open: list[str] = []
        for key in dict.fromkeys(self.paths[path].key for path in rest):
            alike = [path for path in rest if self.paths[path].key == key]
            layers, is_certain = _in_order([self.paths[path] for path in alike], self.is_sorted)
            is_branch = len({path.rpartition(".")[0] for path in alike}) == 1
            if is_certain and is_branch and not any("shortcut" in path for path in alike):
                self.paths |= dict(zip(alike, layers, strict=True))
            elif len(alike) > 1:
                still_open += alike
        return tuple(still_open)

    def _read(
        self, told: Mapping[str, str], layers: Sequence[Layer]
    ) -> tuple[dict[str, Layer], list[str]]:
        """The layer of each path that is told, and what is wrong with it."""
        by_path: dict[str, tuple[Layer, str]] = {layer.path: (layer, "") for layer in layers}
        by_tensor = {n: (layer, leaf) for layer in layers for leaf, n in layer.tensors.items()}
        wanted: dict[str, Layer] = {}
        problems = []
        for ours, theirs in told.items():
            path, leaf = (ours, "") if ours in self.paths else ours.rpartition(".")[::2]
            layer, their_leaf = (by_tensor if leaf else by_path).get(theirs, (None, ""))
            if path not in self.paths or leaf not in ("", *_LEAVES.values()):
                problems.append(f"{ours} is no layer or tensor of this network")
            elif layer is None:
                problems.append(f"{theirs} is no {'tensor' if leaf else 'layer'} of the file")
            elif layer.key != self.paths[path].key or leaf != their_leaf:
                shapes = (self.paths[path].shape, layer.shape)
                problems.append(
                    f"{ours} cannot be {theirs}: {self.paths[path].kind} {shapes[0]}, "
                    f"{layer.kind} {shapes[1]}"
                )
            elif wanted.get(path, layer) is not layer:
                problems.append(f"{path} is told to be {wanted[path].path} and {layer.path}")
            else:
                wanted[path] = layer
        used = Counter(layer.path for layer in wanted.values())
        return wanted, [*problems, *(f"{n} is used {c} times" for n, c in used.items() if c > 1)]


def _blocks_by_names(
    layers: Sequence[Layer], outside: Roles, blocks: Sequence[Roles], is_sorted: bool
) -> tuple[list[Layer], list[_Block], bool] | None:
    """The layers outside of blocks, and the file's blocks in our order; whether that is certain."""
    kinds = [frozenset(Counter(roles.values()).items()) for roles in blocks]
    rest, clusters = _cluster(layers, set(kinds))
    if Counter(cluster.keys for cluster in clusters) != Counter(kinds):
        return None
    if Counter(layer.key for layer in rest) != Counter(outside.values()):
        return None
    is_certain, queues = True, {}
    for kind in set(kinds):
        alike = [cluster for cluster in clusters if cluster.keys == kind]
        ordered, is_ordered = _in_order(alike, is_sorted)
        queues[kind] = iter(ordered)
        is_certain &= is_ordered
    return rest, [next(queues[kind]) for kind in kinds], is_certain


def _cluster(
    layers: Sequence[Layer], kinds: Collection[frozenset[tuple[Key, int]]], depth: int = 0
) -> tuple[list[Layer], list[_Block]]:
    """Layers whose names begin alike and that are together a block, and those that are in none."""
    together = _Block(layers[0].words[:depth], list(layers))
    if together.keys in kinds:
        return [], [together]
    if len(layers) == 1:
        return list(layers), []
    branches: dict[str, list[Layer]] = {}
    for layer in layers:
        word = layer.words[depth] if depth < len(layer.words) else ""
        branches.setdefault(word, []).append(layer)
    if list(branches) == [""]:  # equal words, told apart by separators alone
        return list(layers), []
    rest: list[Layer] = []
    found: list[_Block] = []
    for branch in branches.values():
        more, blocks = _cluster(branch, kinds, depth + 1)
        rest += more
        found += blocks
    return rest, found


def _blocks_by_order(
    layers: Sequence[Layer], outside: Roles, blocks: Sequence[Roles], is_sorted: bool
) -> tuple[list[Layer], list[_Block], bool] | None:
    """The same of names without blocks: convolutions follow each other, normalisations too."""
    lists: dict[str, list[Layer]] = {}
    for kind in ("conv", "norm", "linear"):
        of_kind = [layer for layer in layers if layer.kind == kind]
        lists[kind], is_certain = _in_order(of_kind, is_sorted)
        if not is_certain:
            return None
    rest = lists.pop("linear")
    rest += [layer for layer in lists["conv"] if layer.key == outside["stem.conv"]]
    rest.append(lists["norm"].pop(0 if "stem.bn" in outside else -1))
    lists["conv"] = [layer for layer in lists["conv"] if layer not in rest]
    found = []
    for roles in blocks:
        block = _Block(())
        for kind, of_kind in lists.items():
            count = sum(key[0] == kind for key in roles.values())
            block.layers += of_kind[:count]
            del of_kind[:count]
        if Counter(layer.key for layer in block.layers) != Counter(roles.values()):
            return None
        found.append(block)
    if Counter(layer.key for layer in rest) != Counter(outside.values()):
        return None
    return rest, found, True


def _in_order(items: Sequence[Any], is_sorted: bool) -> tuple[list[Any], bool]:
    """Layers or blocks by the numbers in their names, else as in the file; whether that decides."""
    if len(items) < 2:
        return list(items), True
    words = [item.words for item in items]
    skeletons = {tuple("#" if w.isdecimal() or len(w) == 1 else w for w in name) for name in words}
    if len(skeletons) == 1 and len(set(words)) == len(items):
        return sorted(items, key=lambda item: [_number(word) for word in item.words]), True
    return sorted(items, key=lambda item: item.place), not is_sorted


def _number(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdecimal() else (0, word)


def _assign_block(
    roles: Roles, block: _Block, is_sorted: bool
) -> tuple[dict[str, Layer], list[tuple[str, ...]]]:
    """Our path -> layer of one block, and the groups of paths that nothing decides."""
    shortcut = [path for path in roles if "shortcut" in path]
    main = [path for path in roles if path not in shortcut]
    of_shortcut = _find_shortcut(roles, shortcut, block, is_sorted)
    doubtful: list[tuple[str, ...]] = []
    if of_shortcut is None:  # one of those that are possible, and that it is not the only one
        keys = {roles[path] for path in shortcut}
        doubtful.append(tuple(path for path in roles if roles[path] in keys))
        of_shortcut = [[la for la in block.layers if la.key == roles[p]][-1] for p in shortcut]
    chosen: dict[str, Layer] = {}
    of_main = [layer for layer in block.layers if layer not in of_shortcut]
    for paths, layers in ((shortcut, of_shortcut), (main, of_main)):
        for key in dict.fromkeys(roles[path] for path in paths):
            alike = [path for path in paths if roles[path] == key]
            ordered, is_certain = _in_order([la for la in layers if la.key == key], is_sorted)
            chosen |= dict(zip(alike, ordered, strict=True))
            if not is_certain:
                doubtful.append(tuple(alike))
    return chosen, doubtful


def _find_shortcut(
    roles: Roles, shortcut: Sequence[str], block: _Block, is_sorted: bool
) -> list[Layer] | None:
    """The layers of a block's shortcut; None where nothing tells them from the others."""
    wanted = Counter(roles[path] for path in shortcut)
    if not wanted:
        return []

    def fits(layers: Sequence[Layer]) -> bool:
        return Counter(layer.key for layer in layers) == wanted

    counts = Counter(roles.values())
    by_shape = [layer for layer in block.layers if counts[layer.key] == wanted[layer.key] > 0]
    if fits(by_shape):
        return by_shape
    depth = len(block.words)
    called = [
        [layer for layer in block.layers if words & {*layer.words[depth:]}]
        for words in _SHORTCUT_WORDS
    ]
    more = [[*by_shape, *(la for la in group if la not in by_shape)] for group in called]
    for group in (*called, *more, *_containers(block), *_with_numbers_of(by_shape, block)):
        if fits(group):
            return list(group)
    if is_sorted:
        return None
    return _by_order(roles, block, wanted)


def _containers(block: _Block) -> Iterator[list[Layer]]:
    """Layers of a block that are in one container, which has nothing else."""
    parents: dict[str, list[Layer]] = {}
    for layer in block.layers:
        parts = _SEPARATOR.split(layer.path)
        for depth in range(1, len(parts)):
            parents.setdefault(".".join(parts[:depth]), []).append(layer)
    fitting = [layers for layers in parents.values() if len(layers) < len(block.layers)]
    keys = [Counter(layer.key for layer in layers) for layers in fitting]
    for layers, key in zip(fitting, keys, strict=True):
        if keys.count(key) == 1:
            yield layers


def _with_numbers_of(known: Sequence[Layer], block: _Block) -> Iterator[list[Layer]]:
    """`conv3` of a shortcut and the `bn3` that has its number, where no other layer has it."""
    if len(known) != 1:
        return
    depth = len(block.words)

    def numbers(layer: Layer) -> list[str]:
        return [word for word in layer.words[depth:] if word.isdecimal()]

    alike = [layer for layer in block.layers if numbers(layer) == numbers(known[0])]
    if numbers(known[0]):
        yield alike


def _by_order(roles: Roles, block: _Block, wanted: Counter[Key]) -> list[Layer] | None:
    """The shortcut as what is defined before all others of its block, or after them."""
    ordered = sorted(block.layers, key=lambda layer: layer.place)
    size = sum(wanted.values())
    first, last = ordered[:size], ordered[-size:]
    ends = [end for end in (first, last) if Counter(layer.key for layer in end) == wanted]
    if len(ends) == 2:  # the last of the main branch has the shapes of a shortcut: conv3 of 1x1
        conv1 = next(key for path, key in roles.items() if path.endswith("conv1"))
        ends = [first] if conv1 not in wanted else []
    return ends[0] if len(ends) == 1 else None
