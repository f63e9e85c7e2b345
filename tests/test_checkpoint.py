"""The checkpoints of a run: what is kept, that it comes back bit for bit, and what does not fit."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import convert
from convert.files import Weights
from convert.runs.disk_format import read_documents
from convert.runs.saved_run import read_run, write_run
from convert.twins import flax_to_arrays
from resnet_spec import ClassifierSpec, find_spec
from tests.saved_states import (
    CLASSIFIER,
    PREPROCESSING,
    array_file,
    assert_same,
    best_step,
    files,
    flip_a_bit,
    make_state,
    open_run,
    run_of_two,
    steps,
)
from tests.twins import make_flax
from train.errors import UserError

__all__ = ["run_of_two"]  # a fixture
BIG = {"big.kernel": ((200, 200), np.float32)}


def test_every_dtype_comes_back_bit_for_bit(run):
    with open_run(run) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(20))
        assert_same(checkpoints.restore(make_state(0), step=10), make_state(10))
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(make_state(0))}
    assert dtypes == {"float32", "float64", "bfloat16", "int32", "uint32"}


def test_a_state_may_change_as_soon_as_save_returns(tmp_path):
    state, copy = make_state(7, BIG), make_state(7, BIG)
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(state)
        for array in jax.tree.leaves(state):
            array[...] = 0
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state(0, BIG)), copy)


def test_a_run_that_goes_back_makes_the_newer_checkpoints_anew(tmp_path):
    with open_run(tmp_path) as checkpoints:
        for step, error in ((5, 0.3), (10, 0.1)):
            checkpoints.save(make_state(step), error=error)
        checkpoints.wait()
        checkpoints.delete_after(5)
        assert (checkpoints.latest_step(), best_step(checkpoints)) == (5, 5)
        checkpoints.save(make_state(10, seed=7), error=0.2)
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state(0, seed=7)), make_state(10, seed=7))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_what_eight_devices_saved_is_restored_on_fewer(tmp_path, devices):
    def place(state: Any, count: int) -> Any:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("devices",))
        spec = jax.sharding.PartitionSpec()
        return jax.device_put(state, jax.sharding.NamedSharding(mesh, spec))

    with open_run(tmp_path) as checkpoints:
        checkpoints.save(jax.device_get(place(make_state(20), 8)))
    with open_run(tmp_path) as checkpoints:
        restored = place(checkpoints.restore(place(make_state(0), devices)), devices)
    assert len(restored.params["head.bias"].devices()) == devices
    assert_same(jax.device_get(restored), make_state(20))


_PROGRAM = """
import sys
from pathlib import Path
import jax
from tests.saved_states import assert_same, make_state, open_run
from tests.test_checkpoint import BIG

assert jax.device_count() == 1
with open_run(Path(sys.argv[1])) as checkpoints:
    assert_same(checkpoints.restore(make_state(0, BIG)), make_state(20, BIG))
    checkpoints.save(make_state(30, BIG))
    sys.exit(0)
"""


def test_a_program_of_one_device_goes_on_from_eight_and_ends_without_waiting(tmp_path):
    """Orbax wants a target for the former, and loses the save of the latter."""
    assert jax.device_count() == 8
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(make_state(20, BIG))
    flags = "--xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    with open_run(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(0, BIG)), make_state(30, BIG))


@pytest.mark.parametrize("shape", [(200, 201), (200, 200, 1), (200,), ()])
def test_an_array_of_another_shape_is_never_filled_in(tmp_path, shape):
    """Orbax fills a NumPy target of another shape without a word."""
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(make_state(20, BIG))
        checkpoints.wait()
        fresh = make_state(0, {"big.kernel": (shape, np.float32)})
        with pytest.raises(UserError, match=r"another shape \(big\.kernel \(200, 200\), not"):
            checkpoints.restore(fresh)


def test_the_two_newest_and_the_best_are_kept_also_after_resuming(tmp_path):
    errors = {5: 0.5, 10: 0.1, 15: 0.2, 20: None, 25: 0.3}
    with open_run(tmp_path) as checkpoints:
        assert (checkpoints.latest_step(), best_step(checkpoints)) == (None, None)
        for step, error in errors.items():
            checkpoints.save(make_state(step), error=error)
        assert (checkpoints.latest_step(), best_step(checkpoints)) == (25, 10)
    assert steps(tmp_path) == ["10", "20", "25"]
    with open_run(tmp_path) as checkpoints:
        assert (checkpoints.latest_step(), best_step(checkpoints)) == (25, 10)
        checkpoints.save(make_state(30), error=0.15)
        checkpoints.save(make_state(35), error=0.1)
        assert best_step(checkpoints) == 35  # of two equal ones the newest
        checkpoints.wait()
        assert steps(tmp_path) == ["30", "35"]
        assert_same(checkpoints.restore(make_state(0), step=35), make_state(35))


def test_saving_the_same_state_again_is_harmless_and_another_one_is_refused(run):
    before = {path: path.read_bytes() for path in files(run)}
    with open_run(run) as checkpoints:
        checkpoints.save(checkpoints.restore(make_state(0)))
        checkpoints.save(make_state(20), error=0.1)
        other = make_state(10)._replace(step=np.array(20, np.int32))
        with pytest.raises(OSError, match="another state of step 20"):
            checkpoints.save(other)
        checkpoints.save(make_state(30))
        checkpoints.save(make_state(30))
    assert before == {path: path.read_bytes() for path in files(run)}
    assert steps(run) == ["20", "30"]


def test_a_checkpoint_that_was_saved_before_its_test_is_given_the_error(run):
    with open_run(run) as checkpoints:
        checkpoints.save(make_state(30))
        checkpoints.wait()
        assert best_step(checkpoints) == 20
        checkpoints.save(make_state(30), error=0.05)
        assert best_step(checkpoints) == 30
        checkpoints.save(make_state(30), error=0.5)  # known already
    with open_run(run) as checkpoints:
        assert checkpoints.best() == (30, 0.05)
        assert_same(checkpoints.restore(make_state(0)), make_state(30))
        assert checkpoints.restored["error"] == 0.05


def test_what_does_not_fit_is_listed_at_once_and_never_falls_back(run):
    head = {"head.kernel": ((64, 9), np.float32)}
    fresh = make_state(0, head, seed=7, momentum=0.0, has_average=False)
    model = ClassifierSpec(find_spec("ResNet20"), 9)
    data = dataclasses.replace(PREPROCESSING, mean=(0.1, 0.1, 0.1), class_names=("a",) * 10)
    with (
        open_run(run, classifier=model, preprocessing=data) as checkpoints,
        pytest.raises(UserError) as caught,
    ):
        checkpoints.restore(fresh)
    for part in (
        "checkpoints/20 does not fit",
        "another model: num_classes 10, not 9",
        "mean [0.5, 0.4, 0.3]",
        "--preprocessing none",
        "it has the classes 0, 1, 2, ... 7 more, not a, a, a",
        "the seed is 111, not 7",
        "model: 1 of another shape (head.kernel (64, 10), not (64, 9))",
        "model: 1 of another dtype (head.kernel bfloat16, not float32)",
        "optimizer: 10 left over (momentum.head.bias, ",
        "7 more",
        "ema is left over",
        "--init-from",
    ):
        assert part in str(caught.value), part
    assert steps(run) == ["10", "20"]


def test_a_state_without_average_or_momentum_is_not_taken_for_one_with_them(tmp_path):
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(make_state(3, momentum=0.0, has_average=False))
        checkpoints.wait()
        with pytest.raises(UserError) as caught:
            checkpoints.restore(make_state(0))
    assert "ema is missing" in str(caught.value)
    assert "optimizer: 10 missing (momentum." in str(caught.value)


def test_checkpoints_of_older_versions_are_taken_without_the_check(tmp_path):
    state = make_state(20)
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(state)
    place = tmp_path / "checkpoints" / "20"
    shutil.rmtree(place / "progress")
    content = json.loads((place / "_CHECKPOINT_METADATA").read_text())
    del content["item_handlers"]["progress"]
    (place / "_CHECKPOINT_METADATA").write_text(json.dumps(content))
    with open_run(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert best_step(checkpoints) is None
        assert not checkpoints.restored
        checkpoints.save(state)
    assert_same(restored._replace(skipped=state.skipped), state)
    assert not read_documents(place).progress
    assert read_run(tmp_path).arrays


def test_imported_weights_are_sealed(tmp_path):
    arrays = flax_to_arrays(make_flax("ResNet20", dtype="float32"))
    write_run(tmp_path / "run", Weights(arrays, CLASSIFIER))
    progress = read_documents(tmp_path / "run" / "checkpoints" / "0").progress
    assert len(progress["checksums"]["model"]) == len(arrays)
    rng = random.Random(0)
    for _ in range(20):  # all at once
        flip_a_bit(array_file(tmp_path / "run", 0), rng)
    with pytest.raises(convert.ConversionError, match="0 is not a whole checkpoint"):
        read_run(tmp_path / "run")
