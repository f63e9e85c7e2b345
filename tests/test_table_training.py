"""`resnet-train table`: what it trains, measures, goes on with and leaves alone."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands import assert_refused, run, run_here
from tests.published_tables import (
    MODEL,
    OF_DIGITS,
    SEEDS,
    STEPS,
    TABLE,
    row_of,
)
from tests.test_data import link_a_part, needs_cifar10
from tests.test_processes import until
from tests.test_results import change, change_config
from tests.test_stopping import start
from train.__main__ import main, parse
from train.config import computed_fields
from train.results.plan import Asked, configure, image_cost
from train.results.published import published_models
from train.results.training import Plan, find_below, starts

pytestmark = pytest.mark.xdist_group("results")  # one worker trains for all


def test_what_is_done_is_not_done_again_whoever_did_it(made, capsys):
    folder = made / "runs"
    (folder / "seed-222").rename(folder / "by hand")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["table", *TABLE]) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("seeds", "said"),
    [("--seeds 2", "2 of 2"), ("--seeds 111,222", "2 of 2"), ("--seed 222", "1 of 1")],
)
def test_seeds_are_a_number_of_them_or_their_names_and_seed_is_one(seeds, said, made, capsys):
    command = " ".join(("table", *TABLE)).replace("--seeds 111,222", seeds)
    assert main(command.split()) == 0
    assert f"{said} runs are done" in capsys.readouterr().out


def test_a_changed_configuration_has_a_folder_of_its_own(made):
    runs = Path("runs")
    place = f"{MODEL}-full-f32-24steps"
    (made / "runs" / place).mkdir()
    for seed in SEEDS:
        (made / "runs" / f"seed-{seed}").rename(made / "runs" / place / f"seed-{seed}")

    def folders(seeds: tuple[int, ...] = SEEDS, mode: str = "turns", **changes: Any) -> list[Any]:
        asked = Asked("digits", "full", max_steps=STEPS)
        config = dataclasses.replace(configure(MODEL, asked), **changes)
        found = [r for r in find_below(runs) if r.config.weight_decay == config.weight_decay]
        plan = Plan(asked, [MODEL], seeds, mode, runs)
        return [start.run_dir for start in starts(plan, config, found, "full")]

    assert folders() == []
    assert folders((111, 333)) == [runs / place / "seed-333"]
    other = runs / f"{place}-2"
    assert folders(weight_decay=0.5) == [other / "seed-111", other / "seed-222"]
    assert folders(weight_decay=0.5, mode="vmap") == [runs / place / "seeds-111-222"]


def test_a_half_done_run_of_a_cluster_goes_on_by_itself(made):
    folder = made / "runs" / "seed-111"
    (folder / "result.json").unlink()
    cluster = {"distributed": True, "coordinator": "gone:1", "process_id": 1, "num_processes": 2}
    change_config(folder, **cluster, profile=True, overwrite=True)
    asked = Asked("digits", "full", max_steps=STEPS)
    config = configure(MODEL, asked)
    plan = Plan(asked, [MODEL], [111], "turns", made / "runs")
    (start,) = starts(plan, config, find_below(folder), "full")
    assert start.resume
    assert start.run_dir == folder
    alone = dataclasses.replace(start, run_dir=None, resume=False, log_every_steps=20)
    assert alone == dataclasses.replace(config, seed=111)


@pytest.mark.parametrize("epochs", [20, 178])
def test_a_run_by_hand_can_be_a_row(epochs):
    arguments = ("cifar10-45k", "--model", "ResNet20", "--run-dir", "anywhere", "--seed", "222")
    if epochs == 20:  # of 178: 400, 32,000 and 48,000 steps in proportion
        drops = ("--warmup-steps", "45", "--drop-steps", "3596", "5393")
        arguments = (*arguments, "--epochs", "20", *drops)
    asked = Asked("cifar10", "V", epochs=epochs)
    assert computed_fields(parse([*arguments])) == computed_fields(configure("ResNet20", asked))


def test_the_cheapest_model_comes_first():
    order = sorted(published_models("cifar10"), key=lambda model: image_cost(model, "cifar10"))
    assert order[0] == "ResNet20"
    assert order[-1].startswith("PreActWideResNet28-10")
    assert order.index("ResNet110") < order.index("ResNet18-small") < order.index("ResNet1001")


def test_wide_resnets_follow_their_own_paper():
    config = configure("PreActWideResNet16-8-0.0", Asked("cifar10", "full", epochs=20))
    assert config.nesterov
    assert config.drop_epochs == pytest.approx((6, 12, 16))  # of 60, 120, 160 of 200
    assert configure("PreActWideResNet16-8-0.0", Asked("cifar10", "V", "cifar10")).epochs == 178


def test_a_finished_run_without_checkpoints_is_not_trained_again_to_be_measured(made, capsys):
    change(made / "runs" / "seed-111" / "result.json", parity=None)
    assert main(["table", *TABLE]) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_that_was_not_exported_or_measured_is_by_the_same_command(
    tmp_path, monkeypatch, capsys
):
    """As where torch was not installed, or the disk was full."""
    monkeypatch.chdir(tmp_path)
    length = ("--models", MODEL, "--seeds", "111,222", "--max-steps", "2", "--runs", "runs")
    command = ["table", "--data", "digits", "--protocol", "full", *length]

    def write() -> tuple[dict[str, Any], str]:
        assert main(command) == 0
        (row,) = [
            {**row, "seconds": 0, "runs": [{**run, "seconds": 0} for run in row["runs"]]}
            for row in json.loads(Path("results/digits.json").read_text())["rows"]
        ]
        return row, capsys.readouterr().out

    row, _ = write()
    unmeasured, unexported = (path.parent for path in sorted(Path("runs").rglob("result.json")))
    change(unmeasured / "result.json", parity=None)
    (unexported / "model.safetensors").unlink()
    again, said = write()
    assert "0 of 2 runs are done" in said
    assert said.count("resumed at 2") == 2
    assert again == row
    assert (unexported / "model.safetensors").is_file()
    assert "2 of 2 runs are done" in write()[1]


def test_a_finished_run_is_not_trained_again_for_a_half_done_one_of_its_seed(made, capsys):
    shutil.copytree(made / "runs" / "seed-111", made / "runs" / "abandoned")
    (made / "runs" / "abandoned" / "result.json").unlink()
    assert main(["table", *TABLE]) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out
    assert not (made / "runs" / "abandoned" / "result.json").exists()


@pytest.mark.slow
def test_the_cheapest_network_is_trained_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models = ("WideResNet16-2-0.0", "WideResNet16-1-0.0")
    asked = ("--data", "digits", "--models", ",".join(models), "--seed", "111", "--max-steps", "2")
    assert main(["table", *asked, "--protocol", "V"]) == 0
    said = capsys.readouterr().out
    assert said.index(f"{models[1]} by V") < said.index(f"{models[0]} by V")
    content = json.loads((tmp_path / "results" / "digits.json").read_text())
    assert all(row_of(content, model, "V")["status"] == "measured" for model in models)


@pytest.mark.slow
def test_an_interrupted_table_is_a_table_and_goes_on(tmp_path):
    command = ("table", *OF_DIGITS, "--protocol", "V")
    process = start(tmp_path, *command)
    place = tmp_path / "runs" / "table" / f"{MODEL}-V-f32-24steps"
    log = place / "seed-111" / "metrics.jsonl"
    until(lambda: log.exists() and log.read_text() != "")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "stopped by SIGTERM" in err
    assert "the same command goes on" in err
    path = tmp_path / "results" / "digits.json"
    content = json.loads(path.read_text())
    assert [r["seed"] for r in row_of(content, protocol="V")["runs"]] == [111]
    assert not (place / "seed-222").exists()
    again = run("train", *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed at" in again.stdout
    began = json.loads((place / "seed-222" / "config.json").read_text())
    asked = {"data": "digits", "protocol": "V", "recipe": None, "epochs": None, "max_steps": 24}
    assert (began["recipe"], began["asked"]) == ("digits", asked)
    row = row_of(json.loads(path.read_text()), protocol="V")
    assert [r["asked"] for r in row["runs"]] == [asked] * 2
    assert [r["finished"] for r in row["runs"]] == [True, True]
    assert row["test_images"] == 143  # a tenth of the training images
    assert row["different_predictions"] == 0
    assert row["schedule"] == "scaled"
    assert (path.parent / row["weights"]["file"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ("results/digits.json", "--out")),
        (("--seeds", "1,1"), ("--seeds",)),
        (("--seeds", "222"), ("--seeds", "one seed is --seed")),
        (("--models", "ResNet21"), ("ResNet20",)),
        (("--models", ""), ("--models",)),
        (("--max-steps", "0"), ("--epochs and --max-steps must be at least 1",)),
        (("--recipe", "cifar10"), ("--recipe cifar10 is for cifar10",)),
        (
            ("--data", "cifar10", "--models", "ResNet20", "--max-steps", "1"),
            ("the drops of the learning rate at (32000, 48000) steps become (1, 1)",),
        ),
    ],
    ids=["damaged table", "seeds", "one", "model", "no models", "no epochs", "recipe", "length"],
)
def test_mistakes_are_refused_before_anything_is_trained(arguments, said, made, capsys):
    (made / "results").mkdir()
    (made / "results" / "digits.json").write_text("{}")
    (made / "runs" / "seed-222").rename(made / "elsewhere")
    assert main(["table", *TABLE, *arguments]) == 2
    err = capsys.readouterr().err
    for part in said:
        assert part in err
    assert not (made / "runs" / f"{MODEL}-full-f32-24steps").exists()
    assert (made / "results" / "digits.json").read_text() == "{}"


@needs_cifar10
def test_a_part_of_the_test_set_is_not_taken_for_the_whole(tmp_path):
    count = link_a_part("cifar10", tmp_path / "data")["test"]
    result = run_here("train", "table", "--protocol", "full", "--data-dir", "data", cwd=tmp_path)
    assert 0 < count < 10_000
    assert_refused(result, "--protocol full", f"{count:,} images here, not 10,000")
