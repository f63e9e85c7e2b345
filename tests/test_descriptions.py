"""What a state dict says of its network is heard wherever it is, and never replaced silently."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import convert
import torch_resnet
from convert.__main__ import main
from convert.description import describe_state
from tests.commands import Process
from tests.twins import randomise

# torch's compiler imports what torch itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def dialect() -> nn.Module:
    """A network that no name of the table has, with its weights."""
    model = torch_resnet.create("ResNet20", 10, padding="same").eval()
    randomise(model)
    return model


class Lightning(nn.Module):
    """A module around a network, as training frameworks want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "average": torch.optim.swa_utils.AveragedModel,
    "Lightning": Lightning,
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_network_inside_of_a_module_still_says_which_it_is(
    dialect, kind, is_zip, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    state = WRAPPERS[kind](dialect).state_dict()
    torch.save({"state_dict": state}, "w.ckpt", _use_new_zipfile_serialization=is_zip)
    described = describe_state(state)
    assert described is not None
    assert described.network.padding == "same"
    assert main(["import", "w.ckpt", "-o", "o.safetensors"]) == 0
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(convert.load("o.safetensors", backend="torch")(images), dialect(images))
    assert main(["import", "w.ckpt", "--model", "ResNet20", "-o", "x.safetensors"]) == 2
    assert "padding: 'same', not 'even'" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("kind", ["DataParallel", "compiled", "average"])
def test_what_torch_puts_around_a_network_is_saved_as_the_network(dialect, kind, tmp_path):
    convert.save(tmp_path / "m.pt", WRAPPERS[kind](dialect))
    read = convert.load(tmp_path / "m.pt", backend="torch").state_dict()
    assert all(torch.equal(read[name], value) for name, value in dialect.state_dict().items())


def test_a_state_dict_is_not_taken_for_another_network(dialect):
    with pytest.raises(convert.ConversionError, match="padding: 'same', not 'even'"):
        convert.from_layout(dialect.state_dict(), "ResNet20", "flax-resnet")
    state = convert.from_layout(dialect.state_dict(), "ResNet20", "flax-resnet", padding="same")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(convert.build(state, "torch")(images), dialect(images))


class Two(nn.Module):
    """Two networks, as contrastive training and distillation have them."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__()
        self.student, self.teacher = student, teacher


@pytest.mark.parametrize("is_same", [True, False])
def test_of_two_twins_in_a_module_each_is_read_as_it_says(
    is_same, dialect, tmp_path, monkeypatch, capsys
):
    """Names and shapes do not show the padding, so what they say of it must not be lost."""
    monkeypatch.chdir(tmp_path)
    other = torch_resnet.create("ResNet20", 10, padding="same" if is_same else "even").eval()
    randomise(other, seed=1)
    state = Two(dialect, other).state_dict()
    torch.save(state, "m.pt")
    images = torch.randn(2, 3, 16, 16)
    for prefix, model in (("student.", dialect), ("teacher.", other)):
        assert main(["import", "m.pt", "--prefix", prefix, "-o", "o.pt"]) == 0
        taken = convert.load("o.pt", backend="torch")
        assert taken.spec == model.spec
        assert torch.equal(taken(images), model(images))
        assert model.spec is not None
        stated = {"prefix": prefix, "padding": model.spec.padding}
        ours = convert.from_layout(state, "ResNet20", "flax-resnet", **stated)
        assert torch.equal(ours["stem.conv.weight"], model.state_dict()["stem.conv.weight"])
    capsys.readouterr()
    assert main(["import", "m.pt", "-o", "x.pt"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("--prefix student.", "teacher."))


def test_what_a_twin_says_is_not_said_of_the_network_beside_it(dialect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = torch_resnet.create("ResNet18-small", 10).eval()
    randomise(plain, seed=1)
    teacher = convert.to_layout(plain.state_dict(), "ResNet18-small", "cifar")
    state = nn.ModuleDict({"student": dialect}).state_dict()
    state.update({f"teacher.{name}": tensor for name, tensor in teacher.items()})
    torch.save(state, "m.pt")
    for more in ((), ("--layout", "cifar", "--model", "ResNet18-small")):
        assert main(["import", "m.pt", "--prefix", "teacher.", *more, "-o", "o.pt"]) == 0
        images = torch.randn(2, 3, 16, 16)
        assert torch.equal(convert.load("o.pt", backend="torch")(images), plain(images))
    ours = convert.from_layout(state, "ResNet18-small", "cifar", prefix="teacher.")
    assert torch.equal(ours["head.bias"], plain.state_dict()["head.bias"])


@pytest.mark.parametrize(("field", "value"), [("padding", "even"), ("running_variance", "biased")])
def test_what_replaces_what_a_file_says_is_said(
    dialect, field, value, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    convert.save("m.safetensors", dialect)
    option = f"--{field.replace('_', '-')}"
    for more in ((), ("--model", "ResNet20", "--padding", "even")):
        assert main(["import", "m.safetensors", *more, option, value, "-o", "y.pt"]) == 0
        replaced = f"note: instead of the source's {field}, {getattr(dialect.spec, field)}: {value}"
        assert replaced in capsys.readouterr().out
        assert getattr(convert.load("y.pt", backend="torch").spec, field) == value


def test_a_name_leaves_what_only_training_sees_as_the_file_says_it(tmp_path):
    model = torch_resnet.create("ResNet20", 10, stochastic_depth=0.5, running_variance="biased")
    convert.save(tmp_path / "m.pt", model, statistics_batch_size=32)
    arguments = ("--model", "ResNet20", "-o", str(tmp_path / "o.pt"))
    assert main(["import", str(tmp_path / "m.pt"), *arguments]) == 0
    assert convert.load(tmp_path / "o.pt", backend="torch").spec == model.spec
    assert convert.load_statistics_batch_size(tmp_path / "o.pt") == 32


def test_two_networks_are_not_the_same_where_only_these_images_say_so(
    dialect, tmp_path, monkeypatch, capsys
):
    """SAME and even padding are one and the same wherever every strided input is odd."""
    monkeypatch.chdir(tmp_path)
    even = torch_resnet.create("ResNet20", 10)
    weights = dict(dialect.state_dict())  # without what the state dict says
    even.load_state_dict(weights)
    convert.save("same.pt", dialect)
    convert.save("even.pt", even)
    options = ("--backend-b", "torch", "--precision", "f64", "--batch", "2", "--json", "d.json")
    for size, seen in (("17", False), ("16", True)):
        assert main(["diff", "even.pt", "same.pt", *options, "--size", size]) == 1
        assert "padding: 'same', not 'even'" in " ".join(capsys.readouterr().out.split())
        found = json.loads((tmp_path / "d.json").read_text())
        assert found["described"] == ["padding: 'same', not 'even'"]
        assert found["verdict"]["same_function"] is False
        assert any(row["parts"] for row in found["sections"]["eval"]) == seen


def test_weights_that_are_none_do_not_leave_in_another_layout():
    state = torch_resnet.create("ResNet20", 10).state_dict()
    nans = {n: t * float("nan") if t.is_floating_point() else t for n, t in state.items()}
    with pytest.raises(convert.ConversionError, match="non-finite"):
        convert.to_layout(nans, "ResNet20", "torch-resnet")
    out = convert.to_layout(nans, "ResNet20", "torch-resnet", allow_nonfinite=True)
    assert torch.isnan(out["head.weight"]).all()
    with pytest.raises(convert.ConversionError, match=r"head\.weight should be floating-point"):
        convert.to_layout({n: t.to(torch.int8) for n, t in state.items()}, "ResNet20", "cifar")


def test_numbers_of_another_byte_order_are_numbers():
    state = torch_resnet.create("ResNet20", 10).state_dict()
    swapped = {n: t.numpy().astype(t.numpy().dtype.newbyteorder(">")) for n, t in state.items()}
    read = convert.from_layout(swapped, "ResNet20", "flax-resnet")
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    long = {n: t.astype(np.longdouble) if t.dtype.kind == "f" else t for n, t in swapped.items()}
    with pytest.raises(convert.ConversionError, match="should be floating-point"):
        convert.from_layout(long, "ResNet20", "flax-resnet")


@pytest.mark.parametrize("counter", [torch.tensor(3, dtype=torch.int32), torch.tensor([3.0])])
def test_counters_that_are_none_are_taken_as_zero_where_that_is_asked_for(
    counter, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    state = dict(torch_resnet.create("ResNet20", 10).state_dict())
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    torch.save(state | dict.fromkeys(counters, counter), "m.pt")
    arguments = ("import", "m.pt", "--model", "ResNet20", "-o", "o.pt")
    assert main([*arguments]) == 2
    assert "--reset-counters" in capsys.readouterr().err or counter.ndim
    assert main([*arguments, "--reset-counters"]) == 0
    read = convert.load("o.pt", backend="torch").state_dict()
    assert all(read[name] == 0 for name in counters)
    assert torch.equal(read["head.weight"], state["head.weight"])


def test_mistakes_that_would_come_to_light_after_all_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    convert.save("m.pt", torch_resnet.create("ResNet20", 10))
    (tmp_path / "page").mkdir()
    for options, sentence in (
        (("--html", "page"), "--html page is a folder"),
        (("--json", "x", "--html", "x"), "--json and --html are both x"),
    ):
        assert main(["diff", "m.pt", *options]) == 2
        assert sentence in capsys.readouterr().err
    for name in ("none.npz", "none.pt", "none.safetensors"):
        with pytest.raises(FileNotFoundError):
            convert.load_preprocessing(name)
        (tmp_path / name).touch()
        with pytest.raises(convert.ConversionError, match="it is empty"):
            convert.load(name, backend="torch")


def test_a_command_that_is_interrupted_ends_with_a_sentence(tmp_path):
    path = tmp_path / "m.pt"
    os.mkfifo(path)  # from which nothing ever comes
    # as from a terminal: what runs in the background of a shell may ignore the signal
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from convert.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "inspect", str(path)]
    process = Process(command, stderr=subprocess.PIPE, text=True)
    writer, until = None, time.monotonic() + 60
    while writer is None:  # only once the command has opened it
        assert time.monotonic() < until
        with contextlib.suppress(OSError):
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, errors) == (130, "resnet-convert: interrupted\n")


@pytest.mark.slow
def test_a_command_that_is_out_of_memory_ends_with_a_sentence(tmp_path):
    convert.save(tmp_path / "m.pt", torch_resnet.create("ResNet20", 10))
    # more than the 6 GB that the process may have
    arguments = ["diff", "m.pt", "--backend-b", "torch", "--size", "448", "--batch", "64"]
    lines = (
        "import resource, sys, torch",
        "from convert.__main__ import main",
        "resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)",
        f"sys.exit(main({arguments}))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("resnet-convert: not enough memory")
    assert "Traceback" not in done.stderr
