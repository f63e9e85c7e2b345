"""Thousands of damaged files: only our own errors, no hang, no memory out of proportion."""

import collections
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import convert
from convert.folders import model_folder
from convert.runs import torch_state
from convert.weights import Weights
from tests import mutators
from tests.fuzz_cases import MODEL_FOLDERS
from train.config import Config


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_time_and_memory():
    """A process of its own: it forks, which JAX in this one would not bear."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", "5000", "--seed", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5000  files" in run.stdout
    for kind in (
        "safetensors",
        "npz",
        "pt",
        "config",
        "hdf5",
        "msgpack",
    ):  # neither all nor none is refused
        assert f"{kind}: accepted" in run.stdout
        assert f"{kind}: refused, " in run.stdout
    assert "folder: refused, by us" in run.stdout  # beyond its JSON, where that is damaged


@pytest.mark.parametrize("layout", MODEL_FOLDERS)
def test_damaged_configurations_of_model_folders_are_read_or_refused(layout, tmp_path):
    outcomes = collections.Counter()
    arrays = {f"a{number}": np.zeros(1, np.float32) for number in range(400)}
    files = MODEL_FOLDERS[layout]
    for number in range(1000):
        rng = random.Random(f"{layout} {number}")
        damaged = rng.choice(list(files))
        for name, text in files.items():
            mutated = mutators.mutate_json(rng, json.loads(text)) if name == damaged else text
            (tmp_path / name).write_text(mutated)
        try:
            model_folder._read_description(tmp_path, Weights(arrays, None))
            outcomes["accepted"] += 1
        except convert.ConversionError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes
    assert sum(outcomes.values()) == 1000


def test_damaged_configurations_of_runs_are_read_or_refused(tmp_path):
    outcomes = collections.Counter()
    content = {
        "config": Config().to_json(),
        "train_images": 1437,
        "total_steps": 100,
        "versions": {"flax-resnet": "0"},
    }
    for number in range(1000):
        text = mutators.mutate_json(random.Random(number), content)
        (tmp_path / "config.json").write_text(text)
        try:
            torch_state._read_config(tmp_path)
            outcomes["accepted"] += 1
        except convert.ConversionError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes
    assert sum(outcomes.values()) == 1000
