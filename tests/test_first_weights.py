"""What `--init-from` takes: what a file's tensors show, and else what the run says."""

from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from convert.leaves import as_flax
from convert.models import arrays_of, describe
from resnet_spec import ShortcutKind
from tests.test_any_names import numbered_scheme, theirs_of
from tests.twins import make_twins
from train.config import Config
from train.errors import UserError
from train.run.export import load_weights

FILES = [  # layout of the names (None: any), shortcut of the file
    ("cifar", "projection"),
    ("cifar", "centred_identity"),
    ("cifar", "identity"),
    ("torch-resnet", "identity"),
    ("torch-resnet", "projection"),
    (None, "projection"),
    (None, "identity"),
    (None, "centred_identity"),
    (None, "convolution"),
]


def save(path: Path, layout: str | None, shortcut: ShortcutKind) -> tuple[Config, object]:
    """A file of a ResNet20 in torch's form, and the configuration of a run of the same network."""
    _, model = make_twins("ResNet20", dtype="float32", shortcut=shortcut)
    if layout is None:
        state = theirs_of(model, numbered_scheme(7))[0]
    else:
        told = "centred_identity" if (layout, shortcut) == ("cifar", "identity") else shortcut
        named = make_twins("ResNet20", dtype="float32", shortcut=told)[1]
        named.load_state_dict(dict(model.state_dict()))
        state = dict(convert.to_layout(named.state_dict(), "ResNet20", layout, shortcut=told))
    torch.save({"state_dict": state}, path)
    return Config(model="ResNet20", init_from=path, shortcut=shortcut), model


@pytest.mark.parametrize(("layout", "shortcut"), FILES)
def test_a_file_is_what_its_tensors_show_and_else_what_the_run_says(layout, shortcut, tmp_path):
    config, model = save(tmp_path / "theirs.pth", layout, shortcut)
    loaded = load_weights(config, describe(model))
    expected = as_flax(arrays_of(model))
    assert loaded.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    said = f"tensors do not show where zeros are: taken as the run has it, {shortcut}"
    assert (said in loaded.notes) == shortcut.endswith("identity")


@pytest.mark.parametrize("layout", ["cifar", None])
def test_a_run_of_another_network_is_refused_by_what_differs(layout, tmp_path):
    config, _ = save(tmp_path / "theirs.pth", layout, "projection")
    _, other = make_twins("ResNet20", dtype="float32", shortcut="identity")
    with pytest.raises(
        UserError, match="--shortcut identity has it: shortcut: 'projection', not 'identity'"
    ):
        load_weights(config, describe(other))


def test_a_layout_that_is_told_has_the_runs_shortcut(tmp_path):
    config, model = save(tmp_path / "theirs.pth", "cifar", "projection")
    config = Config(model="ResNet20", init_from=config.init_from, init_layout="cifar")
    loaded = load_weights(config, describe(model))
    assert loaded.arrays.keys() == as_flax(arrays_of(model)).keys()
