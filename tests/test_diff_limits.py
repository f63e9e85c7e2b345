"""What `diff` must not call the same: outputs, NaN, counters, averages, one run at two steps."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

import convert
from convert.__main__ import main
from convert.leaves import as_flax
from convert.models import arrays_of, describe
from convert.parity import compare
from convert.parity.comparison import NOISE_FACTOR
from convert.runs.saved_run import Checkpoint, write_checkpoint
from tests.test_diff import IMAGES, make_torch


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    model = make_torch()
    return model, copy.deepcopy(model)


def add_seven(module: torch.nn.Module, inputs: Any, output: Any) -> torch.Tensor:
    return output + 7


def test_what_a_network_returns_is_compared_too():
    one, other = pair()
    other.register_forward_hook(add_seven)
    verdict = compare(one, other, IMAGES, precision="f64").verdict
    assert not verdict.same_function
    assert verdict.first_layer == "output"


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_nan_is_no_agreement(precision):
    one, other = pair()
    for model in (one, other):
        model.get_parameter("stages.0.0.conv1.weight").data[0, 0, 0, 0] = float("nan")
    verdict = compare(one, other, IMAGES, precision=precision).verdict
    assert not verdict.same
    assert verdict.first_layer == "stages.0.0.conv1"
    assert any("not finite in both" in reason for reason in verdict.reasons)


def test_one_value_to_a_channel_is_no_batch_to_train_on():
    with pytest.raises(convert.ConversionError, match=r"more images, or larger .*--batch, --size"):
        compare(*pair(), IMAGES[:1, :2, :2], precision="f64")


def test_counters_alone_are_the_same_function_but_not_the_same():
    one, other = pair()
    other.get_buffer("stem.bn.num_batches_tracked").fill_(1_000_000)
    verdict = compare(one, other, IMAGES, precision="f64").verdict
    assert verdict.same_function
    assert not verdict.same
    assert verdict.first_layer is None
    assert any("only counters" in reason for reason in verdict.reasons)


def test_a_fault_is_told_from_the_rounding_of_bfloat16_too():
    one, other = pair()
    other.get_submodule("stages.1.0.bn1").eps = 0.5  # pyright: ignore
    comparison = compare(one, other, IMAGES, precision="bf16")
    assert comparison.verdict.first_layer == "stages.1.0.bn1"
    row = next(row for row in comparison.sections["eval"] if row.name == "stages.1.0.bn1")
    assert row.noise_ratio is not None
    assert row.noise_ratio > NOISE_FACTOR


def test_labels_need_a_head_and_its_classes():
    one, other = pair()
    with pytest.raises(convert.ConversionError, match="labels"):
        compare(one, other, IMAGES, np.array([0, 1, 999]), precision="f64")
    for model in (one, other):
        model.head = torch.nn.Identity()
    with pytest.raises(convert.ConversionError, match="labels are for networks with a head"):
        compare(one, other, IMAGES, np.array([0, 1, 2]), precision="f64")


def test_two_steps_of_one_run_and_its_average_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for step, seed in ((10, 0), (20, 1)):
        model, average = make_torch(seed), make_torch(seed + 7)
        items = {n: as_flax(arrays_of(m)) for n, m in (("model", model), ("ema", average))}
        write_checkpoint(tmp_path / "run", Checkpoint(step, describe(model), items))
    command = ["diff", "run", "--backend-b", "torch", "--size", "8", "--precision", "f64"]
    for options, code, title in (
        (["--step-a", "10", "--weights-a", "raw"], 0, "step 10, newest weights"),
        (["--step-a", "10"], 0, "step 10, moving average"),
        (["--step-a", "10", "--step-b", "20"], 1, "step 20, moving average"),
        (["--weights-a", "raw", "--weights-b", "ema"], 1, "step 20, newest weights"),
    ):
        assert main([*command, *options, "--json", "found.json"]) == code, options
        assert title in (tmp_path / "found.json").read_text()
    capsys.readouterr()
