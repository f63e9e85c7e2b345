"""Equal weights are equal files, byte for byte, and have one digest in every form and layout."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import convert
import torch_resnet
from convert.__main__ import main
from convert.folders import write_folder
from convert.inspection import as_text, inspect
from convert.layouts import LAYOUTS
from convert.models import arrays_of, describe
from convert.weights import Weights
from resnet_spec import PREPROCESSINGS
from tests.commands import run_here

# Of the network and the description below; they change where a form of file or the description of
# a model does, and then only on purpose.
HASHES = {
    ".safetensors": "1114a4e85c97f6860d209a7aaf5f2edd269e2a03eac113b4605bdf4fff0be91b",
    ".pt": "d63af82cf0a9d7b005d26711754b5bf181e9ec0f478257bbf771bf69c9a3f998",
    ".npz": "560926dcdb55143961fbd87b312c635574d9e61fea54f2b55bf6114dd314b783",
}
# Of every file in a folder of the package.
FOLDER_HASHES = {
    "timm": {
        "config.json": "f81b5557da4094d1bf076fefe440b37644d7444aee47b60e4254bfec9144f8b6",
        "model.safetensors": "5d409eb9fae0ff3d1493ea238880a4dd9c9147b4e151c35df38afcc3c7c2162f",
    },
    "transformers": {
        "config.json": "e9245d6b501e79237876906ed1afa9ed481719e45c870b644b946c2bef49cf92",
        "model.safetensors": "c98db4d82b7a1cd49d376e9ae0609a89973546ce8415d660c27e62f65a737f81",
        "preprocessor_config.json": (
            "5b0ef16a8c3f538f0c780e4ddde293c2b25846c84abcfa109ca87e88c1c1553f"
        ),
    },
}
MODEL = "WideResNet16-1-0.0"


def small_network() -> torch.nn.Module:
    model = torch_resnet.create(MODEL, num_classes=10)
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    """Values in every leaf that need no generator of random numbers: those differ by release."""
    with torch.no_grad():
        for number, (name, tensor) in enumerate(model.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
                continue
            values = (np.arange(tensor.numel()) * 37 + number) % 101
            tensor.copy_(torch.from_numpy(values.reshape(tensor.shape) / 64 + 0.25))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_all(folder: Path) -> dict[str, str]:
    """One file of each form: suffix -> hash."""
    folder.mkdir()
    hashes = {}
    for suffix in HASHES:
        path = folder / f"m{suffix}"
        convert.save(path, small_network(), preprocessing=PREPROCESSINGS["cifar10"])
        hashes[suffix] = sha256(path)
    return hashes


def test_files_have_the_bytes_that_they_had(tmp_path):
    assert save_all(tmp_path / "here") == HASHES


def small_resnet18() -> Weights:
    """Weights of a network that timm and transformers have."""
    model = torch_resnet.create("ResNet18", num_classes=3)
    fill(model)
    return Weights(arrays_of(model), describe(model), PREPROCESSINGS["imagenet"])


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_model_folder_has_the_bytes_that_it_had(package, tmp_path):
    write_folder(tmp_path / "f", small_resnet18(), LAYOUTS[package])
    found = {path.name: sha256(path) for path in sorted((tmp_path / "f").iterdir())}
    assert found == FOLDER_HASHES[package]


@pytest.mark.slow
def test_a_model_for_inference_has_the_same_bytes_each_time(tmp_path):
    """Its hash is not kept: torch writes its own release into the file."""
    for name in ("one", "other"):
        convert.export_onnx(small_network(), tmp_path / f"{name}.onnx", image_size=32)
    assert sha256(tmp_path / "one.onnx") == sha256(tmp_path / "other.onnx")


def test_two_runs_of_one_seed_have_one_configuration_but_for_their_times(tmp_path):
    """And one digest: they compare by a line of their `result.json`."""
    found = []
    for _ in range(2):
        arguments = ("digits", "--model", MODEL, "--max-steps", "1", "--run-dir", "run")
        result = run_here("train", *arguments, "--overwrite", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / "run" / "config.json").read_bytes().splitlines()
        digest = json.loads((tmp_path / "run" / "result.json").read_text())["digest"]
        timeless = [line for line in lines if b'"when": ' not in line]
        assert len(timeless) < len(lines)
        found.append((timeless, digest, sha256(tmp_path / "run" / "model.safetensors")))
    assert found[0] == found[1]


def test_another_process_at_another_time_writes_the_same_bytes(tmp_path):
    code = "from tests.test_same_bytes import save_all; from pathlib import Path; "
    code += f"print(save_all(Path({str(tmp_path / 'there')!r})))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(HASHES)


def test_the_order_of_metadata_is_sorted_and_its_text_is_kept(tmp_path):
    """Characters that JSON escapes, and others that it does not, have one length."""
    from convert.formats.safetensors import write

    texts = {"z": 'quote " slash \\ / tab \t line \n', "a": "\x01\x7f é 漢 😀", "format": "pt"}
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float16)}
    contents, path = set(), tmp_path / "m.safetensors"
    for _ in range(10):
        write(path, arrays, texts)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, framework="np") as file:
        assert file.metadata() == texts
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


def digest_of(path: Path) -> str:
    found = inspect(path)
    assert f"digest of the weights: {found['digest']}" in as_text(found)
    return found["digest"]


def test_the_digest_is_of_the_weights_alone_whatever_the_form_the_twin_and_the_layout(tmp_path):
    model = torch_resnet.create("ResNet18", num_classes=5)
    path = tmp_path / "m.safetensors"
    convert.save(path, model)
    expected = digest_of(path)
    assert len(expected) == 64
    convert.save(tmp_path / "flax.npz", convert.load(path, backend="flax"))
    assert digest_of(tmp_path / "flax.npz") == expected
    for layout in ("flax-resnet", "torchvision", "timm", "transformers"):
        out = tmp_path / f"{layout}.pt"
        assert main(["export", str(path), "--layout", layout, "-o", str(out)]) == 0
        assert digest_of(out) == expected, layout
    assert main(["import", str(path), "-o", str(tmp_path / "run")]) == 0
    assert digest_of(tmp_path / "run") == expected


@pytest.mark.parametrize("change", ["value", "dtype", "statistic"])
def test_another_digest_for_other_weights(change, tmp_path):
    model = small_network()
    convert.save(tmp_path / "one.pt", model)
    if change == "dtype":
        model.double()
    with torch.no_grad():
        state = model.state_dict()  # shares the model's memory
        if change == "value":
            state["head.bias"][1] += 1e-6
        if change == "statistic":
            state["stem.bn.running_var"][0] *= 1.5
    convert.save(tmp_path / "other.pt", model)
    assert digest_of(tmp_path / "one.pt") != digest_of(tmp_path / "other.pt")


def test_a_counter_of_batches_is_no_weight(tmp_path):
    model = small_network()
    convert.save(tmp_path / "one.pt", model)
    model.state_dict()["stem.bn.num_batches_tracked"].fill_(8)
    convert.save(tmp_path / "other.pt", model)
    assert digest_of(tmp_path / "one.pt") == digest_of(tmp_path / "other.pt")


def test_where_the_network_is_not_known_there_is_no_digest(tmp_path):
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    assert inspect(tmp_path / "m.safetensors")["digest"] is None
