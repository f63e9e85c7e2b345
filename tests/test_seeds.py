"""Several seeds at once: each is the run that it would be alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import assert_refused, run, run_here
from tests.run_folders import arrays, assert_same, largest_difference, metrics
from tests.test_run import train
from train.config import Config, unused_fields
from train.run.run_folder import own_config

MODEL = ("--model", "WideResNet16-1-0.0")
SHORT = ("digits", *MODEL, "--max-steps", "20", "--log-every-steps", "5", "--ema-decay", "0.9")
EXACT = ("--precision", "f64")
SEEDS = ("--seeds", "7,111", "--run-dir", "many")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of one seed each, in float64."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (7, 111):
        train(folder, *SHORT, *EXACT, "--seed", str(seed), "--run-dir", str(seed))
    return {seed: folder / str(seed) for seed in (7, 111)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "devices", "bound"), [("turns", 1, 0.0), ("vmap", 1, 1e-13), ("devices", 2, 1e-13)]
)
@pytest.mark.xdist_group("seeds")
def test_a_seed_among_others_is_the_run_that_it_is_alone(alone, mode, devices, bound, tmp_path):
    train(tmp_path, *SHORT, *EXACT, *SEEDS, "--seeds-mode", mode, devices=devices)
    for seed, expected in alone.items():
        folder = tmp_path / "many" / f"seed-{seed}"
        reached = largest_difference(folder, expected)
        print(f"seeds {mode}: largest relative difference after 20 steps {reached:.1e}")
        assert reached <= bound
        if bound == 0:
            assert_same(folder, expected)
        steps = [(line["step"], line["kind"]) for line in metrics(folder)]
        assert steps == [(line["step"], line["kind"]) for line in metrics(expected)]
        result = json.loads((folder / "result.json").read_text())
        assert result["seed"] == seed
        assert result["parity"]["different_predictions"] == 0
        assert (folder / "model.safetensors").is_file()
    saved = json.loads((tmp_path / "many" / "seeds.json").read_text())
    assert saved["mode"] == mode


@pytest.mark.slow
@pytest.mark.xdist_group("seeds")
def test_a_measurement_chooses_how_seeds_are_trained_and_a_resumed_run_goes_on_so(tmp_path):
    arguments = (*SHORT, *SEEDS, "--max-steps", "6", "--checkpoint-every-steps", "2")
    output = train(tmp_path, *arguments)
    assert "one step of 2 seeds: turns" in output
    assert "taking " in output
    saved = json.loads((tmp_path / "many" / "seeds.json").read_text())
    assert saved["mode"] in ("turns", "vmap")
    assert saved["config"]["seeds"] == "7,111"
    assert "runs of all seeds are finished" in train(tmp_path, "--resume", "--run-dir", "many")
    shutil.copytree(tmp_path / "many", tmp_path / "whole")
    for seed in (7, 111):  # as if killed when the one had saved its last step, and the other not
        (tmp_path / "many" / f"seed-{seed}" / "result.json").unlink()
    shutil.rmtree(tmp_path / "many" / "seed-7" / "checkpoints" / "6")
    train(tmp_path, "--resume", "--run-dir", "many")
    for seed in (7, 111):
        assert_same(tmp_path / "many" / f"seed-{seed}", tmp_path / "whole" / f"seed-{seed}")
    # a seed's own folder is a run like any other
    longer = train(tmp_path, "--resume", "--run-dir", "many/seed-7", "--max-steps", "8")
    assert "resumed at 6" in longer
    assert "model/head.bias" in arrays(tmp_path / "many" / "seed-7", 8)


@pytest.mark.parametrize("mode", ["turns", "vmap", "devices"])
def test_the_run_of_one_seed_says_nothing_of_how_several_are_trained(mode, tmp_path):
    """Resumed alone, it would be told that it does not use it."""
    own = own_config(Config(seeds="7,111", seeds_mode=mode), 7, tmp_path)
    assert not [field for field in unused_fields(own, Config()) if "seeds" in field]


def test_seeds_that_cannot_be_are_refused(tmp_path):
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--seeds", "1,x"), ("--seeds", "1,x")),
        (("--seeds", "3,3"), ("twice",)),
        (("--seeds", "0"), ("--seeds",)),
        (("--seeds", "2", "--seeds-mode", "devices"), ("--seeds-mode devices", "turns or vmap")),
    ]
    for arguments, parts in cases:
        command = run if "devices" in arguments else run_here  # of one device, or of eight
        result: Any = command("train", "digits", *arguments, "--run-dir", "a", cwd=tmp_path)
        assert_refused(result, *parts)
        assert not (tmp_path / "a").exists()
