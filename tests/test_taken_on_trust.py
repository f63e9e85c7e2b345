"""What tensors cannot show is said, whichever command reads them, and what lies beside is heard."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import convert
from convert.__main__ import main
from convert.arrays import is_counter
from convert.inspection import as_text, inspect
from resnet_spec import PREPROCESSINGS
from tests.peers import import_timm
from tests.twins import assert_same_state, make_twins

IMPORT = ("--layout", "cifar", "--model", "ResNet20")


@pytest.fixture
def theirs(tmp_path: Path) -> dict[str, Any]:
    _, model = make_twins("ResNet20", dtype="float32", shortcut="centred_identity")
    return convert.to_layout(model.state_dict(), "ResNet20", "cifar")


def run_import(path: Path, *options: str) -> int:
    return main(["import", str(path), *options, "-o", str(path.with_name("out.npz"))])


def test_a_blurred_network_has_the_tensors_of_a_plain_one_and_the_reader_is_told(tmp_path, capsys):
    """The names and shapes fit exactly; only the user can know."""
    timm = import_timm()
    blurred = timm.create_model("resnetaa50", num_classes=3, stem_type="", avg_down=False)
    plain = timm.create_model("resnet50", num_classes=3)
    dilated = timm.create_model("resnet50", num_classes=3, output_stride=8, act_layer="gelu")
    shapes = [
        {name: tensor.shape for name, tensor in model.state_dict().items()}
        for model in (blurred, plain, dilated)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    path = tmp_path / "m.pth"
    torch.save(blurred.state_dict(), path)
    assert run_import(path, "--layout", "timm", "--model", "ResNet50", "--padding", "even") == 0
    (note,) = [n for n in capsys.readouterr().out.splitlines() if "tensors do not show" in n]
    text = as_text(inspect(path))
    for part in ("stem_padding='even'", "anti-aliasing", "dilation", "ReLU", "epsilon", "pooling"):
        assert part in note
        assert part in text
    assert " padding='even'" not in note  # which the user has stated


def test_a_file_that_describes_itself_leaves_nothing_open(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("ResNet20", dtype="float32")[1])
    assert run_import(path) == 0
    assert "tensors do not show" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "resnetblur50"}, "it blurs before it subsamples"),
        ({"architecture": "resnet18", "model_args": {"output_stride": 8}}, "output_stride is 8"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "bottleneck_stride: '1x1'"),
        ({"architecture": "resnet50", "pretrained_cfg": {"crop_mode": "squash"}}, None),
        ({"config": {"model": "ResNet18"}}, None),
    ],
)
def test_the_configuration_beside_a_file_is_heard(name, config, says, tmp_path, capsys):
    _, model = make_twins("ResNet50", dtype="float32")
    state = convert.to_layout(model.state_dict(), "ResNet50", "timm")
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / name
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    stated = ("--layout", "timm", "--model", "ResNet50")
    assert run_import(path, *stated) == (0 if says is None else 2)
    output = capsys.readouterr()
    if says is not None:
        assert says in output.err
        assert "away" in output.err  # what to do where it is not the file's
        moved = path.rename(path.with_stem("moved"))
        moved = moved.rename(moved.with_suffix(".pt")) if path.suffix == ".bin" else moved
        assert run_import(moved, *stated) == 0


def test_inspect_looks_at_a_file_beside_the_configuration_of_another_network(theirs, tmp_path):
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50d", "num_classes": 3}')
    assert run_import(tmp_path / "pytorch_model.bin", *IMPORT) == 2
    found = inspect(tmp_path / "pytorch_model.bin")
    assert found["matches"][0]["model"] == "ResNet20"
    assert any("average-pooled shortcuts" in note for note in found["notes"])


def test_inspect_says_what_import_would_refuse_of_a_file_that_describes_itself(tmp_path, capsys):
    from convert.files import Weights, read_weights, write_weights

    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("ResNet20", dtype="float32")[1])
    weights = read_weights(path)
    arrays = {n: a for n, a in weights.arrays.items() if n != "stem.bn.bias"}
    arrays["head.bias"] = arrays["head.bias"][:3]
    write_weights(path, Weights(arrays, weights.classifier))
    text = as_text(inspect(path))
    assert "missing: stem.bn.bias (16,)" in text
    assert "head.bias should be (10,), is (3,)" in text
    assert "(the file says so)" not in text
    assert run_import(path) == 2


def test_inspect_names_what_does_not_fit_and_the_head_that_is_there(theirs, tmp_path):
    theirs["extra"] = torch.ones(3)
    del theirs["bn1.bias"]
    torch.save(theirs, tmp_path / "m.pt")
    text = as_text(inspect(tmp_path / "m.pt"))
    for part in ("head of 10", "left over: extra (3,)", "missing: bn1.bias (16,)", "nearest"):
        assert part in text


def test_names_behind_a_prefix_are_said_and_taken(theirs, tmp_path, capsys):
    query, key = ({p + n: t for n, t in theirs.items()} for p in ("encoder_q.", "encoder_k."))
    both = {f"module.{n}": t for n, t in {**query, **key, "queue": torch.ones(4)}.items()}
    path = tmp_path / "moco.pt"
    torch.save({"state_dict": both, "epoch": 3}, path)
    assert run_import(path, *IMPORT) == 2
    error = capsys.readouterr().err
    assert "'encoder_k.' and 'encoder_q.'" in error
    assert "--prefix encoder_k." in error
    assert len(error.splitlines()) == 2
    assert "taken: the network behind 'encoder_q.'" in as_text(inspect(path))
    for prefix in ("encoder_q.", "module.encoder_q."):
        assert run_import(path, *IMPORT, "--prefix", prefix) == 0
        assert "encoder_k.conv1.weight" in capsys.readouterr().out  # what was left out
        arrays = convert.load(tmp_path / "out.npz", "torch").state_dict()
        assert torch.equal(arrays["stem.conv.weight"], theirs["conv1.weight"])
        assert "head of 10" in as_text(inspect(path, prefix))
        ours = convert.from_layout(both, "ResNet20", "cifar", prefix=prefix)
        assert torch.equal(ours["head.bias"], theirs["linear.bias"])
    assert run_import(path, *IMPORT, "--prefix", "encoder_z.") == 2
    assert "no name begins with 'encoder_z.'" in capsys.readouterr().err


def test_what_is_beside_the_network_of_a_lightning_module_does_not_hide_it(
    theirs, tmp_path, capsys
):
    state = {f"model.{name}": tensor for name, tensor in theirs.items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}}, path)
    assert run_import(path, *IMPORT, "--reset-counters") == 2
    assert "--prefix model." in capsys.readouterr().err
    assert run_import(path, *IMPORT, "--prefix", "model.") == 0
    assert "criterion.weight" in capsys.readouterr().out


def test_a_twin_within_another_module_is_taken_by_its_prefix(tmp_path, capsys):
    _, model = make_twins("ResNet20", dtype="float32")
    outer = torch.nn.ModuleDict({"encoder": model, "decoder": torch.nn.Linear(2, 2)})
    path = tmp_path / "m.pt"
    torch.save(outer.state_dict(), path)
    assert "--prefix encoder." in as_text(inspect(path))
    for command in ("import", "export"):
        assert main([command, str(path), "-o", str(tmp_path / "out.npz")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
        arguments = ["--prefix", "encoder.", "-o", str(tmp_path / "out.npz")]
        assert main([command, str(path), *arguments]) == 0
        assert "left out: decoder.weight, decoder.bias" in capsys.readouterr().out
        assert_same_state(
            convert.load(tmp_path / "out.npz", "torch").state_dict(), model.state_dict()
        )


def test_names_of_no_layout_are_shown(tmp_path):
    torch.save({"a.b": torch.ones(2), "c": torch.ones(1)}, tmp_path / "m.pt")
    assert "the first names are a.b, c" in as_text(inspect(tmp_path / "m.pt"))


@pytest.mark.parametrize("choice", ["drop", "new:5"])
def test_a_head_that_is_not_wanted_may_be_of_any_kind(choice, theirs, tmp_path, capsys):
    for leaf in ("weight", "bias"):
        theirs[f"linear.1.{leaf}"] = theirs.pop(f"linear.{leaf}")
    path = tmp_path / "m.pt"
    torch.save(theirs, path)
    assert run_import(path, *IMPORT) == 2
    capsys.readouterr()
    assert run_import(path, *IMPORT, "--head", choice) == 0
    assert "left out: linear.1.weight, linear.1.bias, the head" in capsys.readouterr().out
    head = convert.load(tmp_path / "out.npz", "torch").head
    assert getattr(head, "out_features", None) == (None if choice == "drop" else 5)


def test_a_layout_that_is_stated_of_a_file_of_ours_is_the_mistake(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("ResNet18", dtype="float32", in_planes=1)[1])
    assert run_import(path, "--layout", "torchvision", "--model", "ResNet18") == 2
    error = capsys.readouterr().err
    assert "leave out --layout" in error
    assert "in_planes" not in error


def test_an_empty_tensor_hides_no_other_problem(theirs, tmp_path, capsys):
    theirs["bn1.bias"] = torch.empty(0)
    del theirs["bn1.weight"]
    path = tmp_path / "m.pt"
    torch.save(theirs, path)
    assert run_import(path, *IMPORT) == 2
    error = capsys.readouterr().err
    for part in ("missing: bn1.weight", "empty: bn1.bias", "bn1.bias should be (16,), is (0,)"):
        assert part in error
    assert any("empty: bn1.bias" in note for note in inspect(path)["notes"])


@pytest.mark.parametrize("lost", [("head.bias",), ("head.weight", "head.bias")], ids=str)
def test_a_head_that_a_file_says_it_has_and_has_not_is_refused(lost, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("ResNet20", dtype="float32")[1])
    with safe_open(path, "np") as file:
        description = file.metadata()
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in lost}
    save_file(kept, path, description)
    assert run_import(path) == 2
    error = capsys.readouterr().err
    assert all(f"missing: {name}" in error for name in lost)
    assert not (tmp_path / "out.npz").exists()
    assert "--head new:10" in error
    assert run_import(path, "--head", "new:10") == 0


def test_a_head_without_a_bias_is_said(tmp_path, capsys):
    _, model = make_twins("ResNet20", dtype="float32")
    state = {name: t for name, t in model.state_dict().items() if name != "head.bias"}
    torch.save(dict(state), tmp_path / "m.pt")
    assert run_import(tmp_path / "m.pt", "--model", "ResNet20") == 0
    assert "the head has no bias" in capsys.readouterr().out


def test_a_network_under_the_names_of_a_package_that_has_it_not_comes_in_by_two_steps(
    tmp_path, capsys, monkeypatch
):
    """Caffe's style: torchvision's names, the stride on the first 1x1. As the refusal says."""
    monkeypatch.chdir(tmp_path)
    _, model = make_twins("ResNet50", dtype="float32", bottleneck_stride="1x1")
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(convert.to_layout(plain, "ResNet50", "torchvision"), "caffe.pth")
    known = ("--layout", "torchvision", "--model", "ResNet50")
    stated = ("--bottleneck-stride", "1x1")
    assert main(["import", "caffe.pth", *known, *stated, "-o", "out.pt"]) == 2
    error = capsys.readouterr().err
    assert "torchvision has only '3x3'" in error
    assert "resnet-convert import THAT --bottleneck-stride 1x1 -o OUTPUT" in error
    assert main(["import", "caffe.pth", *known, "-o", "named.pt"]) == 0
    assert main(["import", "named.pt", *stated, "-o", "out.pt"]) == 0
    loaded = convert.load("out.pt", backend="torch")
    assert loaded.spec == model.spec
    assert_same_state(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("layout", "output", "changes", "batch_size", "said"),
    [
        ("transformers", "o.pt", {"bottleneck_stride": "1x1"}, None, "--bottleneck-stride 1x1"),
        ("transformers", "folder", {"bottleneck_stride": "1x1"}, None, None),
        (
            *("timm", "folder", {"running_variance": "biased"}, 64),
            "--running-variance biased --statistics-batch-size 64",
        ),
        ("torchvision", "o.pt", {}, None, None),
        ("flax-imagenet", "o.npz", {"padding": "same"}, None, "--running-variance unbiased"),
        (
            *("flax-imagenet", "o.npz"),
            *({"padding": "same", "stem_padding": "same", "running_variance": "biased"}, None),
            "--stem-padding same",
        ),
    ],
)
def test_what_an_export_has_no_place_for_is_said_as_import_takes_it(
    layout, output, changes, batch_size, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, model = make_twins("ResNet50", dtype="float32", **changes)
    convert.save(
        *("m.pt", model),
        preprocessing=PREPROCESSINGS["imagenet"],
        statistics_batch_size=batch_size,
    )
    assert main(["export", "m.pt", "--layout", layout, "-o", output]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "has no place for" in line]
    assert [note.partition(" takes as ")[2] for note in notes] == ([] if said is None else [said])
    named = () if Path(output).is_dir() else ("--model", "ResNet50", "--layout", layout)
    assert main(["import", output, *named, *(said or "").split(), "-o", "back.pt"]) == 0
    back = convert.load("back.pt", backend="torch")
    assert back.spec == model.spec
    assert convert.load_statistics_batch_size("back.pt") == batch_size
    one, other = back.state_dict(), model.state_dict()
    weights = [name for name in other if layout != "flax-imagenet" or not is_counter(name)]
    assert_same_state({n: one[n] for n in weights}, {n: other[n] for n in weights})
