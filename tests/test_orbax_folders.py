"""Checkpoints that others wrote by Orbax: every way in leads to the weights."""

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
def test_another_programs_checkpoint_comes_in_by_its_folder(
    name, variables, folder, tmp_path, capsys
):
    assert main(["import", str(folder / name), "-o", str(tmp_path / "x.pt")]) == 0
    assert "--layout flax-imagenet --model ResNet18" in capsys.readouterr().out
    expected = convert.from_layout(variables, "ResNet18", "flax-imagenet")
    assert_same_state(read_weights(tmp_path / "x.pt").arrays, expected)
    assert main(["export", str(folder / name), "-o", str(tmp_path / "y.pt")]) == 2
    assert "does not say which model it holds" in capsys.readouterr().err


def test_a_damaged_or_unclear_checkpoint_is_refused(variables, tmp_path, capsys):
    tree = {"a": np.ones(3)}
    with ocp.CheckpointManager(tmp_path / "two") as manager:
        items = {"one": ocp.args.StandardSave(tree), "other": ocp.args.StandardSave(tree)}
        manager.save(1, args=ocp.args.Composite(**items))
    assert main(["inspect", str(tmp_path / "two")]) == 2
    assert "holds several trees: name one:" in capsys.readouterr().err
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", tree)
    (tmp_path / "plain" / "_METADATA").write_text("{")
    assert main(["inspect", str(tmp_path / "plain")]) == 2
    assert "is not a whole tree of Orbax" in capsys.readouterr().err


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
