"""The table: names, sizes and counts, against published numbers."""

import dataclasses

import pytest

from resnet_spec import (
    MODELS,
    ClassifierSpec,
    ResNetSpec,
    count_multiplications,
    find_spec,
    list_models,
)

# torchvision's documentation, "num_params" of each model's weights.
TORCHVISION_PARAMETERS = {
    "ResNet18": 11_689_512,
    "ResNet34": 21_797_672,
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
    "WideResNet50-2": 68_883_240,
    "WideResNet101-2": 126_886_696,
}
# The same, "GFLOPS": multiply-adds at 224 pixels.
TORCHVISION_GIGAFLOPS = {
    "ResNet18": 1.814,
    "ResNet34": 3.664,
    "ResNet50": 4.089,
    "ResNet101": 7.801,
    "ResNet152": 11.514,
    "WideResNet50-2": 11.398,
    "WideResNet101-2": 22.753,
}
# In millions, with the shortcuts of the source: He et al. 2015, table 6 (option A);
# torch-resnet 0.0.4, README (option B); Zagoruyko & Komodakis 2016, table 4 (option B).
PUBLISHED_MILLIONS = {
    ("ResNet20", "identity"): "0.27",
    ("ResNet32", "identity"): "0.46",
    ("ResNet44", "identity"): "0.66",
    ("ResNet56", "identity"): "0.85",
    ("ResNet110", "identity"): "1.7",
    ("ResNet1202", "identity"): "19.4",
    ("PreActResNet164", "projection"): "1.7",
    ("PreActResNet1001", "projection"): "10.3",
    ("PreActResNet1001", "identity"): "10.3",
    ("PreActWideResNet28-10", "projection"): "36.5",
    ("PreActWideResNet16-8", "projection"): "11.0",
    ("PreActWideResNet40-4", "projection"): "8.9",
}


@pytest.mark.parametrize("name", TORCHVISION_PARAMETERS)
def test_imagenet_sizes_have_torchvisions_parameter_counts(name):
    assert find_spec(name).count_parameters(1000) == TORCHVISION_PARAMETERS[name]


@pytest.mark.parametrize("name", TORCHVISION_GIGAFLOPS)
def test_imagenet_sizes_cost_as_many_multiplications_as_torchvision_says(name):
    count = count_multiplications(find_spec(name), 224, 1000)
    assert round(count / 1e9, 3) == TORCHVISION_GIGAFLOPS[name]


@pytest.mark.parametrize(("name", "shortcut"), PUBLISHED_MILLIONS)
def test_cifar_sizes_have_the_published_parameter_counts(name, shortcut):
    published = PUBLISHED_MILLIONS[name, shortcut]
    digits = len(published.partition(".")[2])
    spec = dataclasses.replace(find_spec(name), shortcut=shortcut)
    assert f"{spec.count_parameters(10) / 1e6:.{digits}f}" == published


@pytest.mark.parametrize(
    ("shortcut", "published"),
    [
        ("identity", "1.68"),
        ("projection", "1.73"),
        ("full_projection", "3.19"),
        ("convolution", "2.06"),
    ],
)
def test_shortcuts_have_the_published_parameter_counts(shortcut, published):
    """PreActResNet164 with 100 classes (torch-resnet 0.0.4, README, second table)."""
    spec = dataclasses.replace(find_spec("PreActResNet164"), shortcut=shortcut)
    assert f"{spec.count_parameters(100) / 1e6:.2f}" == published


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200, 20, 32, 44, 56, 110, 164, 1001, 1202])
def test_the_name_is_the_number_of_layers_without_shortcuts(depth):
    spec = find_spec(f"ResNet{depth}")
    shortcuts = sum(block.shortcut is not None for block in spec.blocks())
    assert spec.count_layers(10) - shortcuts == depth


@pytest.mark.parametrize("depth", [16, 28, 40])
def test_a_wide_name_counts_the_shortcuts_but_the_first(depth):
    # Zagoruyko & Komodakis 2016: 6n+4, where the first stage of a width over 1 projects, too.
    spec = find_spec(f"WideResNet{depth}-2")
    assert spec.count_layers(10) - 1 == depth


def test_preact_resnet50_has_54_layers_with_its_head():
    assert find_spec("PreActResNet50").count_layers(1000) == 54  # torch-resnet 0.0.4, README


def test_every_row_has_a_twin_with_preactivation():
    names = list_models()
    assert len(names) == len(set(names)) == len(MODELS)
    for name in names:
        if not name.startswith("PreAct"):
            twin = dataclasses.replace(find_spec(name), preact=True)
            assert find_spec(f"PreAct{name}") == twin


def test_full_names_say_width_and_drop_rate():
    assert find_spec("WideResNet28-10") == dataclasses.replace(find_spec("WideResNet28"), width=10)
    assert find_spec("WideResNet28").drop_rate == 0.3
    assert find_spec("WideResNet40-10-0.0").drop_rate == 0.0
    assert find_spec("WideResNet16-3-0.25").width == 3
    assert find_spec("WideResNet50-2") == dataclasses.replace(find_spec("ResNet50"), width=2)
    assert find_spec("ResNet18-small") == dataclasses.replace(
        find_spec("ResNet18"), small_images=True
    )


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("resnet50", "ResNet50"),
        ("ResNet51", "ResNet50"),
        ("WideResnet28-10", "WideResNet28-10"),
        ("WideResNet28-ten", "WideResNet28-10"),
        ("ResNet50-2", "WideResNet50-2"),
        ("WideWideResNet50-2", "WideResNet50-2"),
        ("ResWideNet50-2", "WideResNet50-2"),
        ("WideResNet28-1_0", "WideResNet28-10"),
        ("WideResNet28- 10", "WideResNet28-10"),
        ("WideResNet28-10.5", "WideResNet28-10"),
        ("PreActResnet18-smal", "PreActResNet18-small"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name, offered):
    with pytest.raises(ValueError, match=offered):
        find_spec(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WideResNet28-0", "width"),
        ("WideResNet28-1-1.5", "drop_rate"),
        ("WideResNet50-2-0.3", "drop_rate"),
    ],
)
def test_a_number_out_of_range_is_named(name, reason):
    with pytest.raises(ValueError, match=reason):
        find_spec(name)


def test_a_spec_names_all_that_is_wrong_at_once():
    with pytest.raises(ValueError, match=r"in_planes.*width.*stage_depths\[1\].*block.*shortcut"):
        ResNetSpec(
            block="dense",  # type: ignore[arg-type]
            stage_depths=(1, 0),
            stage_planes=(1, 1),
            stem_planes=1,
            in_planes=0,
            width=-1,
            shortcut="none",  # type: ignore[arg-type]
        )


def test_a_spec_that_was_asked_for_its_blocks_is_the_same():
    asked, other = (dataclasses.replace(find_spec("ResNet50")) for _ in range(2))
    assert list(asked.blocks()) == list(asked.blocks())
    assert len(list(asked.blocks())) == 16
    assert (asked, hash(asked), repr(asked)) == (other, hash(other), repr(other))
    assert list(dataclasses.replace(asked, width=2).blocks()) != list(asked.blocks())


def test_an_identity_shortcut_cannot_shrink():
    with pytest.raises(ValueError, match="cannot shrink 64 channels to 32"):
        ResNetSpec(
            block="basic",
            stage_depths=(1, 1),
            stage_planes=(64, 32),
            stem_planes=64,
            shortcut="identity",
        )


@pytest.mark.parametrize("name", ["ResNet20", "PreActWideResNet40-2-0.0", "ResNet50"])
def test_a_description_survives_json(name):
    import json

    classifier = ClassifierSpec(find_spec(name), num_classes=7)
    assert ClassifierSpec.from_json(json.loads(json.dumps(classifier.to_json()))) == classifier
