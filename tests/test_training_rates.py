"""Dropout and stochastic depth, which no tensor shows and no evaluation: said wherever they go."""

from pathlib import Path
from typing import Any

import pytest
import torch

import convert
import torch_resnet
from convert.__main__ import main
from convert.inspection import inspect
from tests.twins import randomise

NAME = "WideResNet16-2"  # whose dropout is 0.3


@pytest.fixture
def model() -> torch.nn.Module:
    model = torch_resnet.create(NAME, 4, stochastic_depth=0.5)
    randomise(model)
    return model


@pytest.fixture
def file(model, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    convert.save("m.safetensors", model)
    return tmp_path / "m.safetensors"


def rates(path: str) -> tuple[float, float]:
    spec: Any = convert.load(path, backend="torch").spec
    return spec.drop_rate, spec.stochastic_depth


def test_a_layout_has_no_place_for_them_and_import_takes_them_as_export_says(file, capsys):
    assert main(["export", "m.safetensors", "--layout", "torch-resnet", "-o", "o.pth"]) == 0
    said = "--drop-rate 0.3 --stochastic-depth 0.5"
    assert f"takes as {said}" in capsys.readouterr().out
    known = ("--layout", "torch-resnet", "--model")
    assert main(["import", "o.pth", *known, NAME, *said.split(), "-o", "x.pt"]) == 0
    assert rates("x.pt") == (0.3, 0.5)
    assert "drop_rate" not in capsys.readouterr().out
    assert main(["import", "o.pth", *known, NAME, "-o", "x.pt"]) == 0
    assert rates("x.pt") == (0.3, 0.0)
    assert "drop_rate=0.3" in capsys.readouterr().out  # what the name alone has brought along
    assert main(["import", "o.pth", *known, f"{NAME}-0.0", "-o", "x.pt"]) == 0
    assert rates("x.pt") == (0.0, 0.0)


def test_a_file_that_says_them_is_not_overruled_by_a_name_without_a_word(file, capsys):
    assert main(["import", "m.safetensors", "--model", f"{NAME}-0.0", "-o", "x.pt"]) == 0
    assert rates("x.pt") == (0.3, 0.5)
    out = capsys.readouterr().out
    assert f"not as {NAME}-0.0: drop_rate: 0.3, not 0.0 (--drop-rate changes it)" in out
    assert f"not as {NAME}-0.0: stochastic_depth: 0.5, not 0.0" in out
    assert main(["import", "m.safetensors", "--drop-rate", "0", "-o", "x.pt"]) == 0
    assert rates("x.pt") == (0.0, 0.5)
    assert "instead of the source's drop_rate, 0.3: 0.0" in capsys.readouterr().out
    assert main(["import", "m.safetensors", "--drop-rate", "1.5", "-o", "y.pt"]) == 2
    assert "drop_rate" in capsys.readouterr().err


def test_inspect_names_a_network_by_its_width_and_its_rates(file):
    (match,) = inspect(file)["matches"]
    assert match["model"] == f"{NAME}, stochastic_depth=0.5"
    assert main(["import", "m.safetensors", "--drop-rate", "0", "-o", "x.pt"]) == 0
    assert inspect(Path("x.pt"))["matches"][0]["model"] == f"{NAME}-0.0, stochastic_depth=0.5"
    convert.save("w.pt", torch_resnet.create("WideResNet50-2"))
    assert inspect(Path("w.pt"))["matches"][0]["model"] == "WideResNet50-2"


def test_diff_says_that_two_files_train_otherwise(file, model, capsys):
    plain = torch_resnet.create(f"{NAME}-0.0", 4)
    plain.load_state_dict(model.state_dict())
    convert.save("plain.safetensors", plain)
    arguments = ("--precision", "f64", "--batch", "2", "--size", "16")
    assert main(["diff", "m.safetensors", "plain.safetensors", *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    said = "drop_rate: 0.0, not 0.3; stochastic_depth: 0.0, not 0.5"
    note = f"B trains differently by its description: {said} (this comparison drops nothing"
    assert f"{note} at random)" in out
    assert main(["diff", "m.safetensors", *arguments]) == 0
    assert "trains differently" not in capsys.readouterr().out
    assert main(["diff", "m.safetensors", "--drop-rate", "0.1", *arguments]) == 2
    assert "drop_rate: 0.3, not 0.1" in capsys.readouterr().err
