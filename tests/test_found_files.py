"""Files as other people leave them: wrapped, renamed, in parts, and asked for wrongly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import convert
import torch_resnet
from convert.__main__ import main
from convert.inspection import as_text, inspect
from tests.twins import randomise

IMPORT = ("--layout", "cifar", "--model", "ResNet20")


@pytest.fixture
def ours() -> dict[str, torch.Tensor]:
    model = torch_resnet.create("ResNet20", 10, shortcut="centred_identity")
    randomise(model)
    return dict(model.state_dict())


@pytest.fixture
def theirs(ours) -> dict[str, torch.Tensor]:
    return convert.to_layout(ours, "ResNet20", "cifar")


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def as_pytorchs_example(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    accuracy = torch.tensor(3.0)
    return {
        "epoch": 3,
        "arch": "x",
        "state_dict": prefixed("module.", state),
        "best_acc1": accuracy,
    }


def as_lightning(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 0.1}, "loops": {}}


def as_average(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"n_averaged": torch.tensor(5), **prefixed("module.", state)}


@pytest.mark.parametrize(
    "name", ["best.pth.tar", "last.ckpt", "m.PTH", "pytorch_model.bin", "m.pt"]
)
@pytest.mark.parametrize("wrap", [as_pytorchs_example, as_lightning, as_average])
def test_what_is_around_a_state_dict_and_its_files_name_do_not_matter(
    wrap, name, ours, theirs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(theirs), name)
    assert main(["import", name, *IMPORT, "-o", "ours.safetensors"]) == 0
    assert "note: " in capsys.readouterr().out
    read = convert.load("ours.safetensors", backend="torch").state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in ours.items())
    from_api = convert.from_layout(torch.load(name), "ResNet20", "cifar")
    assert all(torch.equal(from_api[key], tensor) for key, tensor in ours.items())


def test_files_are_written_by_the_names_that_say_their_form(ours, tmp_path, capsys):
    model = torch_resnet.create("ResNet18", 4)
    with pytest.raises(convert.ConversionError, match="weights are in"):
        convert.save(tmp_path / "m.ckpt", model)
    convert.save(tmp_path / "m.safetensors", model)
    for name in ("pytorch_model.bin", "model.safetensor"):
        arguments = ("--layout", "timm", "--preprocessing", "imagenet", "-o", str(tmp_path / name))
        assert main(["export", str(tmp_path / "m.safetensors"), *arguments]) == 2
        assert f"{name}: weights are written to .safetensors" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_weights_in_several_files_are_not_taken_for_a_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert main(["import", str(tmp_path), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "it has no weight_map of names" in capsys.readouterr().err


def write_in_two_files(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """A state dict in two files, the first of which has only the first layers; their index."""
    places = {n: f"{'a' if i < 30 else 'b'}.safetensors" for i, n in enumerate(state)}
    for file in {*places.values()}:
        save_file({n: t for n, t in state.items() if places[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


@pytest.mark.parametrize("prefix", ["module.", "timm_model."])
def test_a_prefix_of_all_names_in_several_files_is_removed(prefix, ours, theirs, tmp_path, capsys):
    index, output = write_in_two_files(tmp_path, prefixed(prefix, theirs)), tmp_path / "o.pt"
    assert main(["import", str(index), *IMPORT, "-o", str(output)]) == 0
    assert f"every name began with {prefix!r}" in capsys.readouterr().out
    read = convert.load(output, backend="torch").state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in ours.items())


def test_a_part_of_several_files_is_taken_by_its_prefix(ours, theirs, tmp_path, capsys):
    both = {**prefixed("one.", {n: t + 1 for n, t in theirs.items()}), **prefixed("two.", theirs)}
    index, output = write_in_two_files(tmp_path, both), tmp_path / "o.pt"
    assert main(["import", str(index), *IMPORT, "--prefix", "two.", "-o", str(output)]) == 0
    assert "which do not begin with 'two.'" in capsys.readouterr().out
    read = convert.load(output, backend="torch").state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in ours.items())
    for option in (("--prefix", "three."), ("--entry", "state_dict")):
        assert main(["import", str(index), *IMPORT, *option, "-o", str(tmp_path / "x.pt")]) == 2
        assert (
            "three." if "three." in option else "an index of several"
        ) in capsys.readouterr().err


def test_what_is_said_of_files_that_say_it_themselves_must_be_true(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    convert.save(path, torch_resnet.create("ResNet20", 10))
    for option, value, field in (
        ("--padding", "same", "padding"),
        ("--running-variance", "biased", "running_variance"),
        ("--model", "ResNet32", "stage_depths"),
    ):
        assert main(["diff", str(path), option, value]) == 2
        assert field in capsys.readouterr().err


def test_a_peers_file_of_one_channel_is_compared(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs["conv1.weight"] = theirs["conv1.weight"][:, :1].clone()
    torch.save(theirs, "gray.pt")
    options = ("--backend-b", "torch", "--precision", "f64", "--batch", "2", "--size", "8")
    assert main(["diff", "gray.pt", *IMPORT, *options]) == 0
    assert "verdict: the same" in capsys.readouterr().out


def test_names_behind_prefixes_are_compared_by_them_and_said_with_or_without_a_dot(
    ours, theirs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(prefixed("encoder.", theirs) | {"other": torch.ones(2)}, "wrapped.pth")
    torch.save(ours, "plain.pt")
    model = ("--model", "ResNet20", "--shortcut", "centred_identity", "--backend-b", "torch")
    arguments = ["diff", "wrapped.pth", "plain.pt", *model, "--layout-a", "cifar", "--size", "8"]
    assert main(arguments) == 2
    assert "--prefix encoder." in capsys.readouterr().err
    for prefix in ("encoder.", "encoder"):
        assert main([*arguments, "--prefix-a", prefix]) == 0, prefix
    assert "verdict: the same" in capsys.readouterr().out


def test_inspect_says_what_import_would_refuse_and_knows_any_width(theirs, tmp_path):
    torch.save({name: tensor.half() for name, tensor in theirs.items()}, tmp_path / "half.pt")
    assert "num_batches_tracked should be int64, is float16" in as_text(
        inspect(tmp_path / "half.pt")
    )
    wide = torch_resnet.create("WideResNet50-3", 5)
    torch.save(dict(wide.state_dict()), tmp_path / "wide.pt")
    found = [match["model"] for match in inspect(tmp_path / "wide.pt")["matches"]]
    assert "WideResNet50-3" in found


def test_a_program_on_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "m.safetensors"
    convert.save(path, torch_resnet.create("ResNet20", 10))
    command = f"ulimit -f 300; exec {sys.executable} -m convert export {path} -o {tmp_path}/m.pt2"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "File too large" in found.stderr
    assert "terminate" not in found.stderr
    assert {p.name for p in Path(tmp_path).iterdir()} == {"m.safetensors"}
