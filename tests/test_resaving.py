"""How a file that is not read is saved again: what its refusal says works word for word."""

import argparse
import collections
import datetime
import pathlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convert
from convert.files import read_weights


class _Own:
    """A class of the user's project, which is not at hand."""


def follow(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What is read after the lines of code in a file's refusal were run, from another folder."""
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    code = [line for line in lines if line.startswith(("content =", "state =", "torch.save("))]
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("\n".join(code), {"torch": torch})
    return dict(read_weights(folder / "weights.pt").arrays)


def _quietly(make: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def quiet(tensor: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(tensor)

    return quiet


KINDS: dict[str, Any] = {
    "NumPy": lambda t: t.numpy(),
    "sparse": lambda t: t.to_sparse(),
    "compressed": _quietly(lambda t: t.to_sparse_csr()),
    "quantised": _quietly(lambda t: torch.quantize_per_tensor(t, 0.25, 0, torch.qint8)),
    "8 bits": lambda t: t.to(torch.float8_e4m3fn),
}
WRAPS: dict[str, Any] = {
    "flat": lambda state: state,
    "model": lambda state: {"model": state, "args": _Own(), "epoch": 3},
    "params": lambda state: {"params": state, "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_other_kinds_are_made_plain_by_the_advice(kind, wrap, tmp_path, monkeypatch):
    plain = {name: torch.tensor([[0.5, 0.0], [0.0, -1.25]]) for name in ("a", "b", "c")}
    count = torch.tensor(2**40 + 1)
    state = {
        **{n: KINDS[kind](tensor) for n, tensor in plain.items()},
        "num_batches_tracked": count,
    }
    path = tmp_path / "m.pt"
    torch.save(WRAPS[wrap](state), path)
    arrays = follow(path, tmp_path, monkeypatch)
    for name, tensor in plain.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    assert arrays["num_batches_tracked"] == count.numpy()
    assert arrays["num_batches_tracked"].dtype == np.int64


def test_advice_for_a_file_elsewhere_names_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "it's far").mkdir()
    (tmp_path / "here").mkdir()
    path = tmp_path / "it's far" / "m.pt"
    state = {"w": torch.arange(3.0)}
    for content in ({"state_dict": state, "own": _Own()}, {"a": state, "b": state}):
        torch.save(content, path)
        arrays = follow(path, tmp_path / "here", monkeypatch)
        np.testing.assert_array_equal(arrays["w"], np.arange(3))


def test_a_whole_model_in_a_file_is_asked_for_its_state_dict(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 3)
    for content in (model, {"model": model, "epoch": 3}):
        torch.save(content, tmp_path / "m.pt")
        arrays = follow(tmp_path / "m.pt", tmp_path, monkeypatch)
        np.testing.assert_array_equal(arrays["bias"], model.bias.detach().numpy())


@pytest.mark.parametrize("wrap", ["flat", "state_dict"])
def test_many_numpy_arrays_in_a_pickle_are_guessed_at_and_made_plain(wrap, tmp_path, monkeypatch):
    large = np.random.default_rng(0).normal(size=2**21)
    state = {"w": large, "b": np.ones(3, np.float32)}
    torch.save(state if wrap == "flat" else {"state_dict": state}, tmp_path / "m.pt")
    with pytest.raises(convert.ConversionError, match="most likely its values are NumPy arrays"):
        read_weights(tmp_path / "m.pt")
    np.testing.assert_array_equal(follow(tmp_path / "m.pt", tmp_path, monkeypatch)["w"], large)


def test_a_real_torchscript_file_is_told_how_to_re_save(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), tmp_path / "s.pt")
    with pytest.raises(convert.ConversionError, match="TorchScript"):
        read_weights(tmp_path / "s.pt")
    arrays = follow(tmp_path / "s.pt", tmp_path, monkeypatch)
    np.testing.assert_array_equal(arrays["weight"], model.weight.detach().numpy())


@pytest.mark.parametrize("value", [3, None, "text", np.float64(3), collections.OrderedDict()])
@pytest.mark.parametrize("wrap", ["flat", "model"])
def test_a_value_that_is_no_tensor_is_named(value, wrap, tmp_path, monkeypatch):
    state = {"w": torch.arange(3.0), "b": torch.ones(2), "fc._extra_state": value}
    path = tmp_path / "m.pt"
    torch.save(WRAPS[wrap](state), path)
    if wrap == "flat":
        with pytest.raises(convert.ConversionError) as caught:
            read_weights(path)
        assert "'fc._extra_state' is " in caught.value.problems[0]
        assert not any("asks for" in problem for problem in caught.value.problems)
    arrays = follow(path, tmp_path, monkeypatch)
    assert {"w", "b"} <= set(arrays)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_training_scripts_keep_beside_the_weights_is_left_out(protocol, tmp_path):
    """As those of torchvision and of timm do."""
    state = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    beside = {
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("out"), names={"a", "b"}),
        "metric": np.float64(76.5),
        "best": np.int64(3),
        "history": np.arange(5.0),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "python_rng": random.getstate(),
        "torch_rng": torch.get_rng_state(),
        "where": pathlib.PurePosixPath("a/b"),
        "digest": b"\x00\xff",
        "log": collections.defaultdict(list, loss=[0.5, np.float32(0.25)]),
        "recent": collections.deque([1, 2], maxlen=2),
        "started": datetime.datetime(2020, 1, 1),
        "version": torch.__version__,
    }
    path = tmp_path / "checkpoint.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": state, **beside}, path, pickle_protocol=protocol)
    weights = read_weights(path)
    np.testing.assert_array_equal(weights.arrays["w"], state["w"].numpy())
    assert list(weights.arrays) == ["w"]
    for name in beside:
        assert any(f"left out: {name!r}" in note for note in weights.notes), name


@pytest.mark.parametrize("make", [np.float64, lambda _: argparse.Namespace(a=1), pathlib.Path])
def test_what_is_harmless_beside_weights_is_no_weight(make, tmp_path):
    torch.save({"state_dict": {"w": make("3")}}, tmp_path / "m.pt")
    with pytest.raises(
        convert.ConversionError, match=r"does not hold a state dict|not all tensors"
    ):
        read_weights(tmp_path / "m.pt")
