"""What a resumed run is refused for, before anything in its folder is written."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from convert.runs.saved_run import read_run, write_run
from tests.run_folders import arrays
from train.__main__ import main, parse
from train.data.load import load_dataset
from train.results.collect import find_runs
from train.run.seeds import arrange

MODEL = ("--model", "WideResNet16-1-0.0")
pytestmark = pytest.mark.xdist_group("refused")  # one worker trains for all


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["digits", *MODEL, "--max-steps", "6", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(name="run")
def copy(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it, for a test to go on with."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def many(run) -> Path:
    """The same as one of two seeds' runs."""
    folder = run.parent / "many"
    for seed in (111, 222):
        shutil.copytree(run, folder / f"seed-{seed}")
    content = json.loads((run / "config.json").read_text())
    content["config"] |= {"seeds": "111,222", "run_dir": str(folder)}
    (folder / "seeds.json").write_text(json.dumps(content))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(folder: Path, *changes: str) -> int:
    return main(["--resume", "--run-dir", str(folder), *changes])


def test_what_is_refused_leaves_a_run_as_it_was(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + '{"step": 9, "kind": "train", "loss": 0.5}\n')
    before = contents(run)
    for changes, said in (
        (("--max-steps", "4"), "is at step 6, beyond the end that --max-steps 4 (4 steps) sets"),
        (("--max-steps", "9", "--wandb", "x"), "flax-resnet[wandb]"),
    ):
        assert resume(run, *changes) == 2
        assert said in capsys.readouterr().err
        assert contents(run) == before


def test_weights_that_do_not_fit_the_run_leave_it_as_it_was(run, capsys):
    place = run / "checkpoints" / "6" / "description" / "metadata"
    description = json.loads(place.read_text())
    shutil.rmtree(run / "checkpoints" / "6" / "progress")  # of an older version, without checksums
    listed = run / "checkpoints" / "6" / "_CHECKPOINT_METADATA"
    content = json.loads(listed.read_text())
    del content["item_handlers"]["progress"]
    listed.write_text(json.dumps(content))
    description["preprocessing"]["class_names"] = list("abcdefghij")
    place.write_text(json.dumps(description))
    before = contents(run)
    assert resume(run, "--max-steps", "9") == 2
    assert "it has the classes a, b, c" in capsys.readouterr().err
    assert contents(run) == before


def test_every_limit_that_ends_a_run_too_soon_is_named(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["config"]["global_batch_size"] = 720  # two steps an epoch
    (run / "config.json").write_text(json.dumps(config))
    assert resume(run, "--max-steps", "5000", "--epochs", "1") == 2
    assert "beyond the end that --epochs 1 (2 steps) sets" in capsys.readouterr().err
    assert resume(run, "--max-steps", "3", "--epochs", "1") == 2
    assert "--epochs 1 (2 steps) and --max-steps 3 (3 steps) set: give" in capsys.readouterr().err


def test_seeds_that_are_beyond_the_end_are_refused_as_one_run_is(many, capsys):
    before = contents(many)
    assert resume(many, "--max-steps", "5") == 2
    assert "seed-111 is at step 6, beyond the end that --max-steps 5" in capsys.readouterr().err
    assert resume(many) == 0
    assert "runs of all seeds are finished, after 6 steps" in capsys.readouterr().out
    assert contents(many) == before


def test_a_finished_run_keeps_the_configuration_that_trained_it(run):
    before = (run / "config.json").read_bytes()
    assert resume(run, "--learning-rate", "0.05") == 0
    assert (run / "config.json").read_bytes() == before
    assert resume(run, "--learning-rate", "0.05", "--max-steps", "7") == 0
    ((found,), _) = find_runs([run])
    assert found.changes == (
        "max_steps 6 to 7 at step 6",
        "learning_rate 0.1 to 0.05 at step 6",
    )


def test_a_run_that_begins_with_imported_weights_says_so(run, trained):
    shutil.rmtree(run)
    write_run(run, read_run(trained))
    assert resume(run, *MODEL, "--max-steps", "1") == 0
    ((found,), _) = find_runs([run])
    assert found.weights is not None
    assert found.weights.startswith("imported weights ")
    assert not found.is_plain
    assert arrays(run)["model/head.bias"].any()
    assert resume(run, "--max-steps", "2") == 0  # which is no start from weights
    ((found,), _) = find_runs([run])
    assert found.weights is not None


def test_what_is_tested_is_what_the_run_is_of(run, many, capsys):
    for folder, changes, said in (
        (run, ("--validation-size", "100"), "--validation-size 100, the run began with None"),
        (many, ("--seeds", "3"), "--seeds 3: --run-dir"),
        (many, ("--seeds", "3"), "holds no seed-333; there: seed-111, seed-222"),
    ):
        assert resume(folder, "--eval-only", *changes) == 2
        assert said in capsys.readouterr().err


def test_the_folder_of_several_seeds_runs_is_not_one_runs_weights(many, capsys):
    arguments = ("digits", *MODEL, "--init-from", str(many), "--run-dir", "new")
    assert main([*arguments]) == 2
    assert "name the folder of one (seed-111, seed-222)" in capsys.readouterr().err
    assert not Path("new").exists()


def test_devices_that_have_a_seed_each_have_whole_batches(tmp_path, capsys):
    """Of 126 images, which do not spread over eight devices."""
    of_seeds = ("--seeds", "8", "--seeds-mode", "devices", "--global-batch-size", "126")
    config = parse(["digits", *MODEL, *of_seeds])
    dataset = load_dataset(config)
    resolved = config.resolved(len(dataset.train))
    assert arrange(resolved, dataset, config.seed_list, {}, None, print)[0] == "devices"
    (tmp_path / "file").write_text("")
    assert main(["digits", *MODEL, *of_seeds, "--run-dir", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
