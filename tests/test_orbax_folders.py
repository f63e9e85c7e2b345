"""Checkpoints that others wrote by Orbax: recognised, and both ways in lead to the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization, traverse_util
from flax.training import train_state

import convert
from convert.__main__ import main
from convert.files import read_weights
from convert.inspection import inspect
from convert.layouts import find_layout
from convert.layouts.translate import flatten
from tests.commands import assert_refused, run_here
from tests.peers import make_peer
from tests.twins import assert_same_state

LAYOUT = ("--layout", "flax-imagenet", "--model", "ResNet18")


@pytest.fixture(scope="module")
def variables() -> Any:
    return make_peer("flax-imagenet", "ResNet18").tensors


@pytest.fixture(scope="module")
def folder(variables, tmp_path_factory) -> Path:
    """A manager's checkpoint at step 5, and one without a manager."""
    folder = tmp_path_factory.mktemp("orbax")
    with ocp.CheckpointManager(folder / "manager") as manager:
        manager.save(5, args=ocp.args.StandardSave(variables))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "plain", variables)
    return folder


@pytest.mark.parametrize("name", ["manager", "manager/5", "manager/5/default", "plain"])
def test_another_programs_checkpoint_is_not_taken_for_a_damaged_one(name, folder, tmp_path, capsys):
    out = ("-o", str(tmp_path / "x.npz"))
    for arguments in (["import", *LAYOUT, *out], ["export", *out], ["inspect"]):
        command, *options = arguments
        assert main([command, str(folder / name), *options]) == 2
        error = capsys.readouterr().err
        assert "is an Orbax checkpoint, but not one of this trainer" in error
        assert "convert.from_layout" in error
        assert "numpy.savez" in error


def test_both_ways_in_lead_to_the_same_weights(variables, folder, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / "plain", variables)
    state = convert.from_layout(tree, "ResNet18", "flax-imagenet")
    arrays = flatten(tree, find_layout("flax-imagenet"))
    np.savez(tmp_path / "theirs.npz", **{name: np.asarray(a) for name, a in arrays.items()})  # pyright: ignore
    assert (
        main(["import", str(tmp_path / "theirs.npz"), *LAYOUT, "-o", str(tmp_path / "x.pt")]) == 0
    )
    assert_same_state(read_weights(tmp_path / "x.pt").arrays, state)


def test_a_whole_train_state_leads_to_them_too(variables, tmp_path, capsys):
    """As Flax's example makes it: `step` and `opt_state` beside the variables."""

    class State(train_state.TrainState):
        batch_stats: Any

    state = State.create(
        apply_fn=lambda *_: None, params=variables["params"], tx=optax.sgd(0.1, momentum=0.9),
        batch_stats=variables["batch_stats"],
    )  # fmt: skip
    tree = serialization.to_state_dict(state)
    assert set(tree) == {"step", "params", "opt_state", "batch_stats"}
    expected = convert.from_layout(variables, "ResNet18", "flax-imagenet")
    assert_same_state(convert.from_layout(tree, "ResNet18", "flax-imagenet"), expected)
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(tree, sep="/"))
    np.savez(tmp_path / "state.npz", **flat)
    found = inspect(tmp_path / "state.npz")
    assert found["matches"][0]["sure"] == "every name and shape fits"
    assert main(["import", str(tmp_path / "state.npz"), *LAYOUT, "-o", f"{tmp_path}/x.pt"]) == 0
    assert "left out: step, opt_state/0/trace/" in capsys.readouterr().out
    assert_same_state(read_weights(tmp_path / "x.pt").arrays, expected)
    tree["ema_params"] = tree["params"]  # which of the two is meant, nobody said
    with pytest.raises(convert.ConversionError, match="left over: ema_params"):
        convert.from_layout(tree, "ResNet18", "flax-imagenet")


def test_a_folder_is_no_file_to_load_and_the_command_for_it_is_said(folder, tmp_path):
    for path in (tmp_path, folder / "manager"):
        with pytest.raises(convert.ConversionError, match=r"`resnet-convert import .* -o FILE`"):
            convert.load(path, backend="torch")


def test_an_empty_folder_is_still_no_checkpoint(tmp_path):
    assert_refused(run_here("convert", "inspect", ".", cwd=tmp_path), "holds no checkpoint")
