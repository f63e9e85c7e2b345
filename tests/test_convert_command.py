"""The converter's command line: foreign files in, foreign files out, mistakes in one sentence."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

import convert
import torch_resnet
from convert.__main__ import main
from convert.atomic import replacing
from convert.layouts import LAYOUTS
from tests.commands import LONGEST, Process, assert_refused, run, run_here, run_unread
from tests.torch_or_none import import_torchvision
from tests.twins import make_twins, randomise


def test_a_torchvision_file_comes_in_and_goes_out_again(tmp_path):
    theirs = import_torchvision().models.resnet18(weights=None)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    arguments = ("--layout", "torchvision", "--model", "ResNet18", "-o", "ours.safetensors")
    result = run("convert", "import", "theirs.pth", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert convert.load(tmp_path / "ours.safetensors", backend="torch").spec is not None
    result = run(
        *("convert", "export", "ours.safetensors", "--layout", "torchvision", "-o", "back.pt"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    back = torch.load(tmp_path / "back.pt")
    assert set(back) == set(theirs.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    other = import_torchvision().models.resnet18(weights=None)
    other.load_state_dict(back, strict=True)


def test_a_link_is_written_through(tmp_path):
    convert.save(tmp_path / "m.safetensors", torch_resnet.create("ResNet20", 10))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.npz").write_text("the older one")
    (tmp_path / "link.npz").symlink_to(tmp_path / "there" / "real.npz")
    arguments = (str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "link.npz"))
    assert main(["export", *arguments]) == 0
    assert (tmp_path / "link.npz").is_symlink()
    assert len(np.load(tmp_path / "there" / "real.npz")) > 100
    assert {path.name for path in tmp_path.rglob("*.npz")} == {"link.npz", "real.npz"}


@pytest.mark.parametrize("output", ["out.safetensors", "run"])
def test_sigterm_leaves_nothing_half_written(output, tmp_path):
    """Sent the moment that the temporary file or folder is there."""
    convert.save(tmp_path / "m.safetensors", torch_resnet.create("ResNet152", 1000))
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "convert", "import", tmp_path / "m.safetensors", "-o", output]
    with Process(command, cwd=tmp_path / "here", stderr=subprocess.PIPE) as process:
        while process.poll() is None and not any((tmp_path / "here").iterdir()):
            time.sleep(0.001)
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert not list((tmp_path / "here").iterdir())


def test_a_signal_at_once_after_the_temporary_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    open_file = os.open

    def open_and_stop(path: Any, flags: int, *mode: int) -> int:
        handle = open_file(path, flags, *mode)
        if flags & os.O_CREAT:
            os.close(handle)
            raise SystemExit(128 + signal.SIGTERM)
        return handle

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_stop)
        with pytest.raises(SystemExit), replacing(tmp_path / "m.npz"):
            pytest.fail("the signal came before")
    assert not list(tmp_path.iterdir())


def test_layouts_are_listed(tmp_path):
    result = run("convert", "layouts", cwd=tmp_path)
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(LAYOUTS)


def test_a_users_mistake_is_one_clear_sentence_and_no_file(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    convert.save(tmp_path / "ours.safetensors", model)
    whole = (tmp_path / "ours.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": 1}, tmp_path / "no_tensors.pt")
    torch.save(dict(model.state_dict()), tmp_path / "plain.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "one.pt")
    torch.save({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "float8.pt")
    (tmp_path / "text.pt").write_text("not a file of weights")
    files = {path.name for path in tmp_path.iterdir()}
    ours, out = "ours.safetensors", ("-o", "out.pt")
    assert_refused(run("convert", "import", ours, cwd=tmp_path), "-o")  # as a user sees it
    for arguments, parts in (
        (("export", "half.safetensors", *out), ("half.safetensors", "not a whole")),
        (("export", "nowhere.pt", *out), ("nowhere.pt", "No such file")),
        (("export", "nowhere", *out), ("nowhere",)),
        (("export", ".", *out), ("no checkpoint",)),
        (("export", ours, *out, "--layout", "torchvison"), ("did you mean torchvision",)),
        (("export", ours, *out, "--layout", "torchvision"), ("cannot express", "planes")),
        (("export", ours, "-o", "out.bin"), ("out.bin", ".safetensors")),
        (("export", ours, "-o", "no/out.pt"), ("folder no",)),
        (("export", ours, *out, "--step", "3"), ("--step",)),
        (("export", "plain.pt", *out), ("does not say which model",)),
        (("import", "one.pt", *out), ("--model", "no layer of a ResNet of ours has a")),
        (("import", ours, *out, "--layout", "torchvision"), ("--model",)),
        (("import", ours, *out, "--head", "new:0"), ("new:N",)),
        (("import", ours, *out, "--shortcut", "idntity"), ("--shortcut",)),
        (("export", ours, *out, "--head", "new:ten"), ("new:N", "new:ten")),
        (("export", ours, *out, "--image-size", "64"), ("--image-size",)),
        (("export", ours, "-o", "out.onnx", "--layout", "timm"), ("--layout",)),
        (("export", ours, "-o", "folder", "--layout", "timm"), ("cannot express",)),
        (("inspect", "nowhere.pt"), ("nowhere.pt", "No such file")),
        (("inspect", "text.pt"), ("text.pt",)),
        (("import", ours, "-o", "out.bin"), ("out.bin", ".safetensors")),
        (("import", "float8.pt", *out, "--model", "ResNet20"), ("float8.pt",)),
        (("import", "plain.pt", *out, "--model", "ResNet21"), ("did you mean", "ResNet20")),
        (("import", "plain.pt", *out, "--model", "ResNet32"), ("missing: stages.0.3.conv1",)),
        (("import", "no_tensors.pt", *out, "--model", "ResNet20"), ("state dict",)),
        (("import", "text.pt", *out, "--model", "ResNet20"), ("text.pt",)),
        (("import", ours), ("-o",)),
        (("imprt", ours), ("imprt",)),
    ):
        assert_refused(run_here("convert", *arguments, cwd=tmp_path), *parts)
        assert {path.name for path in tmp_path.iterdir()} == files, arguments


@pytest.mark.parametrize("output", [b"caf\xe9", b"caf\xe9.onnx", b"caf\xe9.pt2"])
def test_a_name_that_a_writer_cannot_take_is_refused_at_once_and_others_are_taken(
    output, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flax_model, model = make_twins("ResNet20", dtype="float32")
    convert.save(os.fsdecode(b"\xe9.safetensors"), flax_model)
    name = os.fsdecode(output)
    command = "export" if b"." in output else "import"
    assert main([command, os.fsdecode(b"\xe9.safetensors"), "-o", name]) == 2
    error = capsys.readouterr().err
    assert r"caf\udce9" in error
    assert "is not UTF-8" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [os.fsdecode(b"\xe9.safetensors")]
    if name.endswith(".pt2"):
        with pytest.raises(convert.ConversionError, match="is not UTF-8"):
            convert.export_program(model, name)


def test_a_reader_that_leaves_does_not_make_networks_differ(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    convert.save(tmp_path / "m.safetensors", model)
    arguments = ("m.safetensors", "--backend-b", "torch", "--batch", "1", "--size", "8")
    process = Process(
        [sys.executable, "-m", "convert", "diff", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=LONGEST)
    assert (process.returncode, error) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("layouts",), 0, ""),
        (("import", "--help"), 0, ""),
        (("inspect", "m.pt"), 0, ""),
        (("export", "m.pt", "-o", "new.npz"), 2, "resnet-convert: standard output was closed\n"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_may_leave_a_list_and_is_told_of_what_else_he_has_not_read(
    arguments, code, said, unbuffered, tmp_path
):
    convert.save(tmp_path / "m.pt", torch_resnet.create("ResNet20", 10))
    found = run_unread("convert", *arguments, cwd=tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert found == (code, said)
