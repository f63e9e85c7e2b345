"""Networks recognised by structure: whatever their layers are called, rightly or not at all."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.structure import Found, nearest, recognise
from resnet_spec import ClassifierSpec, ResNetSpec, find_spec

Names = Callable[[str], str]
MODELS = (
    "ResNet20", "PreActResNet20", "ResNet18", "ResNet50", "PreActResNet50", "ResNet164",
    "PreActResNet164", "WideResNet16-4", "PreActWideResNet16-4", "ResNet18-small", "WideResNet50-2",
)  # fmt: skip
SHORTCUTS = ("projection", "identity", "full_projection", "convolution")


def parts(path: str) -> tuple[list[int], str, bool]:
    """`stages.0.1.shortcut.conv` -> ([0, 1], `conv`, True): the place, the layer, of a shortcut."""
    words = path.replace("shortcut_bn", "shortcut.bn").split(".")
    if words[0] != "stages":
        return [], path, False
    return [int(words[1]), int(words[2])], words[-1], "shortcut" in words


def scheme(
    block: str, layer: Names, shortcut: Mapping[str, str], outside: Mapping[str, str]
) -> Names:
    """Names of layers by patterns: `block` has {s} and {b} (from 0), {S} and {B} (from 1)."""

    def rename(path: str) -> str:
        place, leaf, is_shortcut = parts(path)
        if not place:
            return outside[path]
        stage, index = place
        prefix = block.format(s=stage, b=index, S=stage + 1, B=index + 1, T=stage + 2)
        return f"{prefix}{shortcut[leaf] if is_shortcut else layer(leaf)}"

    return rename


def numbered(pattern: str, *, first: int = 1, step: int = 1) -> Names:
    """`conv1` -> the pattern with {k} the kind and {n} the number, counted so."""

    def rename(leaf: str) -> str:
        kind, number = leaf[:-1], int(leaf[-1])
        return pattern.format(k=kind, n=first + step * (number - 1), K=kind.upper())

    return rename


OUTSIDE = [
    {"stem.conv": "conv1", "stem.bn": "bn1", "norm": "bn", "head": "fc"},
    {"stem.conv": "conv", "stem.bn": "bn", "norm": "bn_last", "head": "linear"},
    {"stem.conv": "convIn", "stem.bn": "bnIn", "norm": "bnOut", "head": "fcOut"},
    {"stem.conv": "conv_1.conv", "stem.bn": "conv_1.norm", "norm": "post", "head": "out"},
    {"stem.conv": "init.0", "stem.bn": "init.1", "norm": "final.0", "head": "final.2"},
    {"stem.conv": "first_conv", "stem.bn": "first_norm", "norm": "last_norm", "head": "logits"},
]
BLOCKS = [
    "layer{S}.{b}.",
    "stage_{T}.{b}.",
    "stage{S}.block{B}.",
    "layers_2n.{s}_{b}.",
    "block{S}.layer.{b}.",
    "stages.{s}.blocks.{b}.",
    "conv{T}_x.{b}.",
    "body.group{s}.unit_{b}.",
    "res{T}{{b}}.".replace("{{b}}", "_{b}"),
    "features.stage{S}unit{B}.",
]
LAYERS = [
    numbered("{k}{n}"),
    numbered("{k}_{n}"),
    numbered("{k}{n}", first=0),
    numbered("{k}s.{n}", first=0),
    numbered("branch.{k}_{n}"),
    lambda leaf: {"conv1": "conv_a", "conv2": "conv_b", "conv3": "conv_c",
                  "bn1": "norm_a", "bn2": "norm_b", "bn3": "norm_c"}[leaf],
    lambda leaf: f"residual.{3 * (int(leaf[-1]) - 1) + (leaf[0] == 'b')}",
]  # fmt: skip
SHORTCUT_NAMES = [
    {"conv": "downsample.0", "bn": "downsample.1"},
    {"conv": "shortcut.0", "bn": "shortcut.1"},
    {"conv": "convShortcut", "bn": "bnShortcut"},
    {"conv": "skip_conv", "bn": "skip_norm"},
    {"conv": "proj.conv", "bn": "proj.norm"},
    {"conv": "other.0", "bn": "other.1"},  # only its container tells it
]
ORDERS = ("definition", "sorted", "shortcut first", "head first")


def classifier_of(
    model: str, shortcut: str = "projection", classes: int | None = 7
) -> ClassifierSpec:
    spec = find_spec(model)
    fields = {**spec.to_json(), "shortcut": shortcut}
    return ClassifierSpec(type(spec).from_json(fields), classes)


def definition_order(classifier: ClassifierSpec) -> list[str]:
    """Our paths as most authors define them: stem, blocks with conv1, bn1, ..., shortcut; head."""
    paths = [path for path, _ in classifier.layers()]
    preact = classifier.network.preact

    def key(path: str) -> tuple[object, ...]:
        place, leaf, is_shortcut = parts(path)
        if not place:
            return (0 if path.startswith("stem") else 9, path != "norm", leaf == "stem.bn")
        number = 9 if is_shortcut else int(leaf[-1])
        is_norm = leaf.startswith("bn")
        return (1, *place, number, is_norm != (preact and not is_shortcut))

    return sorted(paths, key=key)


def renamed(classifier: ClassifierSpec, rename: Names, order: str) -> tuple[dict, dict[str, str]]:
    """Shapes by the author's names in an order, and the author's name by ours."""
    paths = definition_order(classifier)
    if order == "shortcut first":
        blocks = itertools.groupby(paths, key=lambda path: path.split(".")[:3])
        paths = [p for _, ps in blocks for p in sorted(ps, key=lambda p: "shortcut" not in p)]
    if order == "head first":
        paths = paths[-1:] + paths[:-1]
    shapes, truth = {}, {}
    layers = dict(classifier.layers())
    for path in paths:
        for leaf, shape in layers[path].items():
            truth[f"{path}.{leaf}"] = f"{rename(path)}.{leaf}"
            shapes[f"{rename(path)}.{leaf}"] = shape
    assert len(shapes) == len(truth), "two layers of one name"
    return ({n: shapes[n] for n in sorted(shapes)} if order == "sorted" else shapes), truth


def check(found: Found, classifier: ClassifierSpec, truth: Mapping[str, str]) -> bool:
    """Whether the network was found for certain; never another one, nor another bijection."""
    certain = [one for one in found.networks if not one.open]
    if len(found.networks) != 1 or not certain:
        return False
    (one,) = certain
    assert not classifier.network.differences(one.classifier.network)
    assert one.classifier.num_classes == classifier.num_classes
    assert dict(one.names) == dict(truth)
    return True


def schemes() -> Iterator[tuple[int, Names, str]]:
    """Forty ways to call and to order layers, each part of a name at least four times."""
    draw = random.Random(0)
    for number in range(48):
        outside, shortcut = OUTSIDE[number % len(OUTSIDE)], SHORTCUT_NAMES[number % 6]
        block, layer = BLOCKS[number % len(BLOCKS)], LAYERS[number % len(LAYERS)]
        yield number, scheme(block, layer, shortcut, outside), draw.choice(ORDERS)


@pytest.mark.parametrize("model", MODELS)
def test_a_network_is_recognised_whatever_its_layers_are_called(model):
    for number, rename, order in schemes():
        classifier = classifier_of(model, SHORTCUTS[number // 2 % 4])
        shapes, truth = renamed(classifier, rename, order)
        assert check(recognise(shapes), classifier, truth), (number, order)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ResNet20", "PreActResNet20", "ResNet50", "WideResNet16-4"])
def test_every_shortcut_is_recognised_under_every_scheme(model):
    for number, rename, order in schemes():
        for shortcut in SHORTCUTS:
            classifier = classifier_of(model, shortcut)
            shapes, truth = renamed(classifier, rename, order)
            assert check(recognise(shapes), classifier, truth), (number, order, shortcut)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_random_scheme_is_recognised_or_ambiguous_and_never_another(data):
    """Depths of no row of the table, heads of all sizes and none, and no order at all."""
    draw = data.draw
    depths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    spec = ResNetSpec(
        block=draw(st.sampled_from(["basic", "bottleneck"])),
        stage_depths=tuple(depths),
        stage_planes=tuple(16 * 2**stage for stage in range(len(depths))),
        stem_planes=16,
        preact=draw(st.booleans()),
        shortcut=draw(st.sampled_from(SHORTCUTS)),
        in_planes=draw(st.sampled_from([1, 3])),
        width=draw(st.sampled_from([1, 2, 4])),
        small_images=draw(st.booleans()),
    )
    classifier = ClassifierSpec(
        spec, draw(st.sampled_from([None, 1, 10, 1000])), draw(st.booleans())
    )
    choices = (BLOCKS, LAYERS, [*SHORTCUT_NAMES, {"conv": "conv9", "bn": "bn9"}], OUTSIDE)
    rename = scheme(*(draw(st.sampled_from(choice)) for choice in choices))
    shapes, truth = renamed(classifier, rename, draw(st.sampled_from(ORDERS)))
    names = list(shapes)
    if draw(st.booleans()):
        draw(st.randoms(use_true_random=False)).shuffle(names)
    check(recognise({name: shapes[name] for name in names}), classifier, truth)


def test_names_without_blocks_are_cut_by_their_order():
    classifier = classifier_of("ResNet20")
    counts: dict[str, int] = {}

    def rename(path: str) -> str:
        kind = "fc" if path == "head" else "bns" if "bn" in path else "convs"
        counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}.{counts[kind]}" if kind != "fc" else kind

    fixed = {path: rename(path) for path in definition_order(classifier)}
    shapes, truth = renamed(classifier, fixed.__getitem__, "definition")
    assert check(recognise(shapes), classifier, truth)


def test_before_or_after_the_convolution_is_ambiguous_where_no_name_says_what_a_block_is():
    """Option A and lists of layers: with and without pre-activation the shapes are the same."""
    classifier = classifier_of("ResNet20", "identity")
    counts = {"convs": 0, "bns": 0}

    def rename(path: str) -> str:
        if path == "head":
            return "fc"
        kind = "bns" if "bn" in path else "convs"
        counts[kind] += 1
        return f"{kind}.{counts[kind]}"

    fixed = {path: rename(path) for path in definition_order(classifier)}
    shapes, _ = renamed(classifier, fixed.__getitem__, "definition")
    found = recognise(shapes)
    assert {one.classifier.network.preact for one in found.networks} == {False, True}


def test_a_norm_of_a_shortcut_that_nothing_tells_from_the_last_one_is_left_open():
    classifier = classifier_of("ResNet18")
    layer = {"conv1": "a", "bn1": "b", "conv2": "c", "bn2": "d"}
    rename = scheme("layer{S}.{b}.", layer.__getitem__, {"conv": "e", "bn": "f"}, OUTSIDE[0])
    shapes, truth = renamed(classifier, rename, "definition")
    assert check(recognise(shapes), classifier, truth)  # the order of the definition tells it
    (one,) = recognise({name: shapes[name] for name in sorted(shapes)}).networks
    assert any({"stages.1.0.bn2", "stages.1.0.shortcut_bn"} <= {*paths} for paths in one.open)


def test_an_order_that_contradicts_the_numbers_in_names_decides_nothing():
    """Shuffled names: which 3x3 convolution is the shortcut is left open, not taken from them."""
    classifier = classifier_of("ResNet20", "convolution")
    shortcut = {"conv": "conv9", "bn": "bn9"}
    rename = scheme("layer{S}.{b}.", numbered("{k}{n}"), shortcut, OUTSIDE[0])
    shapes, truth = renamed(classifier, rename, "definition")
    for seed in range(20):
        names = list(shapes)
        random.Random(seed).shuffle(names)
        found = recognise({name: shapes[name] for name in names})
        assert not check(found, classifier, truth)
        assert any(one.open for one in found.networks)


REFUSED = {
    "GroupNorm": {"layer1.0.bn1.running_mean": None, "layer1.0.bn1.running_var": None},
    "squeeze and excitation": {
        "layer1.0.se.fc1.weight": (4, 64, 1, 1),
        "layer1.0.se.fc1.bias": (4,),
    },
    "grouped convolutions": {"layer1.0.conv2.weight": (64, 2, 3, 3)},
    "learned activations": {"layer1.0.act.weight": (64,)},
    "layer scale": {"layer1.0.gamma": (64,)},
    "a bias of another width": {"layer1.0.conv1.bias": (32,)},
    "spectral normalisation": {"layer1.0.conv1.weight_u": (64,)},
    "truncated": {"layer4.0.conv2.weight": None},
    "two heads": {"aux.weight": (10, 512), "aux.bias": (10,)},
    "three stems": {"conv0.weight": (64, 3, 3, 3)},
    "another kernel": {"layer2.0.conv1.weight": (128, 64, 5, 5)},
    "another width": {"layer3.1.conv1.weight": (250, 256, 3, 3)},
    "one more layer": {"layer3.1.conv3.weight": (256, 256, 3, 3)},
    "a transposed kernel": {"layer3.0.conv1.weight": (3, 3, 128, 256)},
    "a mean of another width": {"bn1.running_mean": (32,)},
    "nothing": dict.fromkeys(("conv1.weight", "fc.weight")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_residual_network_of_ours_is_not_taken_for_one(what):
    classifier = classifier_of("ResNet18")
    rename = scheme("layer{S}.{b}.", numbered("{k}{n}"), SHORTCUT_NAMES[0], OUTSIDE[0])
    shapes, _ = renamed(classifier, rename, "definition")
    for name, shape in REFUSED[what].items():
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = shape
    found = recognise(shapes)
    assert found.networks == ()
    assert set(found.left_over) <= set(shapes)
    if what in ("learned activations", "layer scale"):
        assert found.left_over == tuple(REFUSED[what])


NEARLY = {  # model, what is changed, what is said
    "no last norm": (
        "PreActResNet20",
        {"bn.weight": None, "bn.bias": None, "bn.running_mean": None, "bn.running_var": None},
        ["missing: 1 of normalisations (64,)"],
    ),
    "one more convolution": (
        "ResNet18",
        {"layer1.0.conv9.weight": (64, 64, 3, 3)},
        ["left over: 1 of layer1.0.conv1, layer1.0.conv2, layer1.1.conv1, layer1.1.conv2, ..."],
    ),
    "squeeze and excitation": (
        "ResNet20",
        {"layer1.0.se.fc1.weight": (4, 64), "layer1.0.se.fc2.weight": (64, 4)},
        ["left over: 2 linear layers: layer1.0.se.fc1, layer1.0.se.fc2"],
    ),
}


@pytest.mark.parametrize("what", NEARLY)
def test_the_nearest_network_is_named_with_what_it_lacks_and_what_is_left_over(what):
    model, changes, said = NEARLY[what]
    rename = scheme("layer{S}.{b}.", numbered("{k}{n}"), SHORTCUT_NAMES[0], OUTSIDE[0])
    shapes, _ = renamed(classifier_of(model), rename, "definition")
    shapes = {**shapes, **changes}
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    shapes.pop("bn.num_batches_tracked", None)
    assert recognise(shapes).networks == ()
    found = nearest(shapes)
    assert found is not None
    assert not found[0].network.differences(find_spec(model))
    assert found[1] == said


def test_of_a_network_of_another_kind_none_is_the_nearest():
    shapes = {f"features.{n}.weight": (64, 64 if n else 3, 3, 3) for n in range(5)}
    assert nearest(shapes) is None
    assert nearest({"a": (3,)}) is None
