"""Where two networks differ: planted faults are found, and rounding is not taken for one."""

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from convert.__main__ import main
from convert.layouts import torchvision
from convert.parity import Comparison, compare, measure
from convert.parity.cells import as_json
from convert.parity.comparison import NOISE_FACTOR, SECTIONS
from convert.parity.page import as_page
from convert.parity.precision import reduced_flags
from convert.parity.verdict import judge
from resnet_spec import ResNetSpec, find_spec
from tests.commands import assert_refused, run, run_here
from tests.torch_or_none import import_torchvision
from tests.twins import random_images, randomise

# Of equal widths: the fewer shapes there are, the fewer operations are compiled.
SPEC = ResNetSpec("basic", (1, 1), (4, 4), stem_planes=4, small_images=True)
LAYERS = [
    *("stem.conv", "stem.bn", "stem"),
    *("stages.0.0.conv1", "stages.0.0.bn1", "stages.0.0.conv2", "stages.0.0.bn2"),
    "stages.0.0",  # its shortcut is the identity, and no layer
    *("stages.1.0.conv1", "stages.1.0.bn1", "stages.1.0.conv2", "stages.1.0.bn2"),
    *("stages.1.0.shortcut.conv", "stages.1.0.shortcut", "stages.1.0.shortcut_bn", "stages.1.0"),
    *("avgpool", "head", "output"),
]
IMAGES = random_images(3, 8)

Twins = tuple[Any, torch.nn.Module]


def make_torch(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = torch_resnet.from_spec(SPEC, 5).to(dtype)
    randomise(model, seed)
    return model.eval()


@pytest.fixture(scope="module")
def untouched() -> Twins:
    torch_model = make_torch()
    # without initial values, which take seconds to draw
    flax_model = nnx.eval_shape(lambda: flax_resnet.from_spec(SPEC, 5, rngs=nnx.Rngs(0)))
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    return flax_model, torch_model


@pytest.fixture
def twins(untouched: Twins) -> Twins:
    """Copies in which a test may plant a fault."""
    flax_model, torch_model = untouched
    return nnx.clone(flax_model), copy.deepcopy(torch_model)


def layers_of(flax_model: Any) -> list[Any]:
    return [(path, module) for path, module in nnx.iter_modules(flax_model) if callable(module)]


@pytest.fixture(scope="module")
def in_float32(untouched: Twins) -> Comparison:
    flax_model, torch_model = untouched
    return compare(torch_model, flax_model, IMAGES, titles=("the torch twin", "the Flax twin"))


def test_twins_are_the_same_in_float64_and_within_rounding_in_float32(in_float32):
    verdict = in_float32.verdict
    assert verdict.same, verdict.reasons
    assert verdict.same_function
    assert verdict.first_layer is None
    for section in ("eval", "train", "gradients", "statistics"):
        for row in in_float32.sections[section]:
            assert row.exact.relative < 1e-12, row
            if "num_batches" not in row.name:
                assert row.reduced.relative < 1e-4, row
    largest = max(row.reduced.relative for row in in_float32.sections["train"])
    assert largest > 1e-8  # float32 was float32
    assert all(row.noise_ratio <= NOISE_FACTOR for row in in_float32.sections["train"])
    assert "same function: yes" in verdict.lines[0]
    assert "times the rounding noise" in verdict.lines[1]


def test_every_layer_is_there_in_the_order_of_the_forward_pass(in_float32):
    for mode in ("eval", "train"):
        names = [row.name for row in in_float32.sections[mode]]
        assert names == LAYERS
    parameters = {name for name, _ in make_torch().named_parameters()}
    assert {row.name for row in in_float32.sections["gradients"]} == parameters
    buffers = {name for name, _ in make_torch().named_buffers()}
    assert {row.name for row in in_float32.sections["statistics"]} == buffers
    assert {row.name for row in in_float32.sections["weights"]} == parameters | buffers
    assert all(row.note == "same bits" for row in in_float32.sections["weights"])
    assert set(in_float32.sections) == set(SECTIONS) - {"steps"}


def test_the_models_are_left_as_they_were(twins):
    flax_model, torch_model = twins
    state = {name: tensor.clone() for name, tensor in torch_model.state_dict().items()}
    flax_model.train()
    calls = {type(module): type(module).__call__ for _, module in layers_of(flax_model)}
    compare(torch_model, flax_model, IMAGES, precision="f64")
    assert not torch_model.training
    assert flax_model.stem.bn.use_running_average is False
    assert all(parameter.grad is None for parameter in torch_model.parameters())
    for model in (torch_model.state_dict(), convert.flax_to_torch(flax_model)):
        assert all(torch.equal(model[name], tensor) for name, tensor in state.items())
    assert flax_model.stem.conv.kernel.get_value().dtype == np.float32
    assert {kind: kind.__call__ for kind in calls} == calls  # none records any more


def swap_statistics_of_one_layer(flax_model: Any, torch_model: Any) -> None:
    bn = flax_model.stages[1][0].bn1
    mean, var = bn.mean.get_value(), bn.var.get_value()
    bn.mean.set_value(var)
    bn.var.set_value(abs(mean))


def swap_statistics_of_two_layers(flax_model: Any, torch_model: Any) -> None:
    one, other = torch_model.stages[0][0].bn1, torch_model.stages[0][0].bn2
    one.running_mean, other.running_mean = other.running_mean, one.running_mean
    one.running_var, other.running_var = other.running_var, one.running_var


def transpose_a_square_kernel(flax_model: Any, torch_model: Any) -> None:
    conv = torch_model.stages[1][0].conv2
    conv.weight.data = conv.weight.data.transpose(0, 1).clone()


def set_another_epsilon(flax_model: Any, torch_model: Any) -> None:
    flax_model.stages[1][0].bn1.epsilon = 1e-3


def pad_as_tensorflow_does(flax_model: Any, torch_model: Any) -> None:
    flax_model.stages[1][0].conv1.padding = "SAME"


def turn_momentum_round(flax_model: Any, torch_model: Any) -> None:
    flax_model.stages[0][0].bn2.momentum = 0.9


def double_a_gradient(flax_model: Any, torch_model: Any) -> None:
    conv = torch_model.stages[0][0].conv2
    conv.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))


DIFFERS_IN_EVAL = ["eval", "statistics", "weights"]
DIFFERS_IN_ALL = ["eval", "train", "gradients", "statistics"]
FAULTS = [
    (swap_statistics_of_one_layer, "stages.1.0.bn1", DIFFERS_IN_EVAL),
    (swap_statistics_of_two_layers, "stages.0.0.bn1", DIFFERS_IN_EVAL),
    (transpose_a_square_kernel, "stages.1.0.conv2", [*DIFFERS_IN_ALL, "weights"]),
    (set_another_epsilon, "stages.1.0.bn1", DIFFERS_IN_ALL),
    (pad_as_tensorflow_does, "stages.1.0.conv1", DIFFERS_IN_ALL),
    (turn_momentum_round, "stages.0.0.bn2", ["statistics"]),
    (double_a_gradient, "stages.0.0.bn1", ["gradients"]),
]


@pytest.mark.parametrize(
    ("plant", "layer", "sections"), FAULTS, ids=[plant.__name__ for plant, *_ in FAULTS]
)
def test_a_planted_fault_is_found_and_its_layer_named(
    twins, plant: Callable[..., None], layer: str, sections: list[str]
):
    plant(*twins)
    comparison = compare(twins[1], twins[0], IMAGES, precision="f64")
    verdict = comparison.verdict
    assert not verdict.same
    assert verdict.first_layer == layer
    assert verdict.lines[-1] == f"verdict: they differ, first at {layer}"
    firsts = {section: comparison.first_in(section) for section in SECTIONS}
    assert [section for section, row in firsts.items() if row is not None] == sections
    for section in sections:
        row: Any = firsts[section]
        assert any(SECTIONS[section] in reason and row.name in reason for reason in verdict.reasons)
        if section != "statistics" or "train" not in sections:  # a layer's input moves its own
            assert section == "gradients" or row.name.startswith(layer)


def test_a_small_fault_is_told_from_rounding_in_float32_too(twins):
    twins[1].stages[0][0].bn2.eps = 1e-3
    comparison = compare(twins[1], twins[0], IMAGES)
    assert comparison.verdict.first_layer == "stages.0.0.bn2"
    rows: dict[str, Any] = {row.name: row for row in comparison.sections["eval"]}
    assert rows["stages.0.0.bn2"].noise_ratio > 100 * NOISE_FACTOR
    assert not rows["stages.0.0.conv2"].is_noisy


def test_less_than_float32_in_one_network_alone_is_no_rounding(twins):
    """In float64 the two agree, in float32 one rounds to 8 bits behind one convolution."""

    def lose_bits(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.bfloat16().float() if output.dtype == torch.float32 else output

    twins[1].stages[0][0].conv2.register_forward_hook(lose_bits)
    verdict = compare(twins[1], twins[0], IMAGES).verdict
    assert verdict.same_function
    assert not verdict.same
    assert verdict.first_layer == "stages.0.0.conv2"
    assert "computes in less precision than requested" in verdict.reasons[0]


def test_bfloat16_is_held_against_its_own_noise():
    model = make_torch()
    comparison = compare(model, copy.deepcopy(model), IMAGES, precision="bf16")
    assert comparison.verdict.same
    stem: Any = comparison.sections["eval"][0]
    assert stem.noise > 1e-3


@pytest.fixture
def cuda_matmul_flag():
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


def test_nothing_is_called_equal_while_torch_computes_in_less(cuda_matmul_flag):
    model = make_torch()
    cuda_matmul_flag("high")
    verdict = compare(model, copy.deepcopy(model), IMAGES, precision="f64").verdict
    assert not verdict.same
    assert verdict.same_function
    assert "torch.backends.cuda.matmul.fp32_precision" in verdict.lines[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        verdict = compare(model, model, IMAGES, precision="f64").verdict
    assert any("torch.autocast" in reason for reason in verdict.reasons)


def test_nothing_is_called_equal_while_jax_computes_in_less(in_float32, twins):
    assert reduced_flags(["torch", "flax"], "cpu") == []  # TF32 in cuDNN, torch's default, is none
    with jax.default_matmul_precision("tensorfloat32"):
        flags = reduced_flags(["flax"], "cpu")
        assert reduced_flags(["torch"], "cpu") == []
        compared = compare(twins[1], twins[0], IMAGES, precision="f64")
    assert compared.flags == tuple(flags)
    verdict = judge(dataclasses.replace(in_float32, flags=tuple(flags)))
    assert not verdict.same
    assert verdict.same_function
    assert "jax_default_matmul_precision is 'tensorfloat32'" in verdict.lines[-1]


def test_on_a_gpu_the_frameworks_own_defaults_are_less():
    flags = reduced_flags(["torch", "flax"], "gpu")
    assert [flag.partition(" is ")[0] for flag in flags] == [
        *("torch.backends.cudnn.conv.fp32_precision", "jax_default_matmul_precision")
    ]


def test_tf32_is_within_tf32_and_never_equal():
    model = make_torch()
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    verdict = compare(model, copy.deepcopy(model), IMAGES, precision="tf32").verdict
    assert not verdict.same
    assert verdict.same_function
    assert verdict.lines[-1] == "verdict: the same within TF32, which is not equal"
    assert cudnn.conv.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_json_and_page_are_complete_and_need_no_network(in_float32):
    fields = json.loads(as_json(in_float32))
    page = as_page(in_float32)
    assert fields["verdict"]["same"] is True
    assert fields["precision"] == "f32"
    assert set(fields["sections"]) == set(SECTIONS) - {"steps"}
    for section, rows in in_float32.sections.items():
        entries = {row["name"]: row for row in fields["sections"][section]}
        for row in rows:
            assert entries[row.name]["float64"]["relative"] == row.exact.relative
            assert f"<td>{row.name}</td>" in page
    for row in in_float32.sections["eval"]:
        assert f"<title>{row.name}\n" in page  # what the plot shows on hover
    assert "the torch twin against the Flax twin" in page
    assert "more than rounding" not in page
    for outside in ("http", "//", "<script", "<link", "@import", "url("):
        assert outside not in page


def test_the_page_marks_where_the_networks_differ(twins):
    twins[1].stages[0][0].bn2.eps = 1e-3
    comparison = compare(twins[1], twins[0], IMAGES, precision="f64", titles=("<A>", "B & C"))
    page = as_page(comparison)
    assert "they differ at stages.0.0.bn2</text>" in page
    assert '<tr class="differs first"><td>stages.0.0.bn2</td>' in page
    assert "&lt;A&gt; against B &amp; C" in page
    assert "noise" not in page.partition("</style>")[2]  # float64 alone has none


@pytest.mark.slow
def test_a_peers_model_is_compared_by_its_own_names():
    theirs = import_torchvision().models.resnet18(weights=None, num_classes=7)
    randomise(theirs)
    ours = torch_resnet.create("ResNet18", 7)
    layers = dict(torchvision.names(find_spec("ResNet18")))
    ours.load_state_dict(convert.from_layout(theirs.state_dict(), "ResNet18", "torchvision"))
    names = {**layers, "stages.2.1": "layer3.1"}
    theirs.layer3[1].bn2.eps = 1e-3
    images, labels = random_images(2, 64), np.array([3, 6])
    comparison = compare(ours, theirs, images, labels, names=names, precision="f64")
    assert comparison.verdict.first_layer == "stages.2.1.bn2"
    assert comparison.only == ((), ())
    assert all(row.note == "same bits" for row in comparison.sections["weights"])
    rows = {row.name: row for row in comparison.sections["train"]}
    assert set(rows) == {*names, "output"}
    assert list(rows).index("stages.2.1.bn2") + 1 == list(rows).index("stages.2.1")
    assert rows["stages.2.1.conv2"].exact.relative < 1e-12 < rows["stages.2.1"].exact.relative
    assert {row.name for row in comparison.sections["gradients"]} == {
        name for name, _ in ours.named_parameters()
    }


def test_networks_of_other_shapes_differ_too():
    longer = torch_resnet.from_spec(ResNetSpec("basic", (2, 1), (4, 4), 4, small_images=True), 9)
    comparison = compare(make_torch(), longer, IMAGES, precision="f64")
    verdict = comparison.verdict
    assert not verdict.same
    assert any("only B has stages.0.1.conv1.weight" in reason for reason in verdict.reasons)
    head = comparison.sections["eval"][-2]
    assert (head.name, head.note) == ("head", "shape (3, 5) against (3, 9)")
    assert head.differs


def test_arguments_that_do_not_fit_are_all_named():
    model = make_torch()
    with pytest.raises(convert.ConversionError, match=r"channels(.|\n)*labels(.|\n)*no layer fc"):
        compare(model, model, IMAGES[..., :2], np.array([0, 1]), names={"head": "fc"})
    with pytest.raises(convert.ConversionError, match=r"f16(.|\n)*tpu(.|\n)*\(n, h, w, c\)"):
        compare(model, model, IMAGES[0], precision="f16", device="tpu")  # pyright: ignore
    with pytest.raises(convert.ConversionError, match="NaN"):
        compare(model, model, IMAGES * np.nan)


def test_differences_of_arrays():
    one = np.array([3.0, -4.0, 0.0])
    difference = measure(one, np.array([3.0, -4.0, 2.0]))
    assert (difference.absolute, difference.relative) == (2.0, 0.5)
    assert difference.cosine == pytest.approx(25 / (5 * 29**0.5))
    assert measure(one, one[:2]).relative == np.inf
    assert measure(one, one * np.nan).relative == np.inf
    assert measure(one * np.nan, one * np.nan).relative == 0
    assert measure(one * 0, one * 0).relative == 0
    assert measure(one * 0, one * 1e-9, smallest_scale=1).relative == 4e-9
    assert measure(one * 1e-200, one * -1e200).cosine == pytest.approx(-1)


def test_the_command_says_by_its_exit_code_that_two_files_are_not_the_same(tmp_path):
    convert.save(tmp_path / "one.safetensors", make_torch(0))
    convert.save(tmp_path / "other.safetensors", make_torch(1))
    options = ("--backend-b", "torch", "--size", "8", "--precision", "f64")
    options = (*options, "--json", "found.json", "--html", "found.html")
    result = run("convert", "diff", "one.safetensors", "other.safetensors", *options, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "verdict: they differ, first at stem.conv" in result.stdout
    assert all(layer in result.stdout for layer in LAYERS)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["verdict"]["first_layer"] == "stem.conv"
    assert (tmp_path / "found.html").read_text().endswith("</html>\n")
    assert_refused(
        run_here("convert", "diff", "no.safetensors", *options, cwd=tmp_path), "No such file"
    )


def pad_as_file_says(model: torch.nn.Module) -> torch.nn.Module:
    spec = dataclasses.replace(SPEC, padding="same")
    padded = torch_resnet.from_spec(spec, 5)
    padded.load_state_dict(dict(model.state_dict()))
    return padded


@pytest.mark.parametrize(
    ("plant", "layer"),
    [
        (swap_statistics_of_two_layers, "stages.0.0.bn1"),
        (transpose_a_square_kernel, "stages.1.0.conv2"),
        (None, "stages.1.0.conv1"),
    ],
    ids=["statistics", "kernel", "padding"],
)
def test_the_command_finds_a_fault_of_a_file_and_names_its_layer(
    tmp_path, monkeypatch, capsys, plant: Callable[..., None] | None, layer: str
):
    monkeypatch.chdir(tmp_path)
    sound, faulty = make_torch(), make_torch()
    convert.save("sound.safetensors", sound)
    if plant is None:
        faulty = pad_as_file_says(faulty)
    else:
        plant(None, faulty)
    convert.save("faulty.safetensors", faulty)
    arguments = ["diff", "sound.safetensors", "faulty.safetensors", "--size", "8"]
    assert main([*arguments, "--json", "found.json"]) == 1
    assert f"verdict: they differ, first at {layer}\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["verdict"]["first_layer"] == layer


def test_the_command_compares_the_twins_of_one_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    convert.save("model.safetensors", make_torch())
    torch.save(dict(make_torch().state_dict()), "plain.pt")
    np.save("images.npy", IMAGES)
    np.save("labels.npy", np.arange(3))
    arguments = ["diff", "model.safetensors", "--precision", "f64", "--images", "images.npy"]
    with mock.patch("flax_resnet.layers.kaiming_normal", nnx.initializers.zeros):  # seconds less
        assert main([*arguments, "--labels", "labels.npy"]) == 0
    assert "verdict: the same" in capsys.readouterr().out
    files = {path.name for path in tmp_path.iterdir()}
    for mistake, part in (
        (["--json", "nowhere/found.json"], "folder nowhere"),
        (["--batch", "0"], "--batch"),
        (["--step-a", "3"], "step"),
        (["--layout", "torchvison"], "did you mean torchvision"),
        (["--images", "model.safetensors", "--backend-b", "torch"], "not a .npy file"),
    ):
        assert main([*arguments, *mistake]) == 2, mistake
        assert part in capsys.readouterr().err
    assert main(["diff", "model.safetensors", "plain.pt"]) == 2
    assert "plain.pt does not say which model it holds: give --model" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == files
