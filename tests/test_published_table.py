"""`resnet-train table`: what it trains and what it says, of real runs."""

import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import assert_refused, run
from tests.conftest import DIGITS_RUNS
from tests.kept_networks import errors_in_both
from tests.test_data import needs_cifar10
from tests.test_processes import until
from tests.test_results import change, change_config
from tests.test_stopping import start
from train.__main__ import main, parse
from train.config import Config
from train.data import load_dataset, normalise
from train.published import published_models
from train.resume import computed_fields
from train.table.content import from_json
from train.table.page import as_markdown
from train.table.plan import Wish, cheapest_first, configure
from train.table.training import Plan, find_below, is_run_of, starts
from train.trainer import count_steps

MODEL, SEEDS, STEPS = DIGITS_RUNS
IMAGES = 360  # of the test set
LENGTH = ("--max-steps", str(STEPS))
STEM = f"digits-{MODEL}-full-f32-{STEPS}steps"  # of a row's files
OF_DIGITS = ("--data", "digits", "--models", MODEL, "--seeds", "111,222", *LENGTH)
TABLE = (*OF_DIGITS, "--protocol", "full", "--runs", "runs")
pytestmark = pytest.mark.xdist_group("results")  # one worker trains for all


@pytest.fixture
def made(digits_runs, tmp_path, monkeypatch) -> Path:
    """The working folder, with a copy of the real runs on digits for a test to change."""
    shutil.copytree(digits_runs, tmp_path / "made" / "runs")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def table(made) -> Callable[..., dict[str, Any]]:
    """Writes the table of what is there; its JSON, and the page as `page`."""

    def call(*arguments: str, data: str = "digits", out: str = "results") -> dict[str, Any]:
        given = (*TABLE, *arguments, "--data", data, "--out", out, "--only-write")
        assert main(["table", *given]) == 0
        content = json.loads((made / out / f"{data}.json").read_text())
        return {**content, "page": (made / out / f"{data}.md").read_text()}

    return call


def row_of(content: dict[str, Any], model: str = MODEL, protocol: str = "full") -> dict[str, Any]:
    (row,) = [r for r in content["rows"] if (r["model"], r["protocol"]) == (model, protocol)]
    return row


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


def pretend_cifar(folder: Path, config: Config, name: str, images: int, trained_on: int) -> None:
    """Makes of a real run one that says it is of another configuration and test set."""
    fields = {k: v for k, v in config.to_json().items() if k not in ("seed", "run_dir")}
    change_config(folder, **fields)
    facts = {"test_name": name, "test_images": images, "train_images": trained_on}
    steps = count_steps(config, trained_on)
    change(folder / "config.json", **facts, total_steps=steps)
    change(folder / "result.json", step=steps, images=images)


def test_the_table_says_what_the_runs_reached(made, table):
    outcomes = results(made / "runs")
    errors = np.array([outcome["error"] for outcome in outcomes])
    assert len(errors) == 2
    assert errors[0] != errors[1]
    content = table()
    row = row_of(content)
    mean = errors.mean()
    assert row["error"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert row["error"]["std"] == pytest.approx(errors.std(ddof=1), abs=1e-6)
    assert row["standard_error"] == pytest.approx(np.sqrt(mean * (1 - mean) / IMAGES), abs=1e-6)
    assert row["torch_error"]["mean"] == pytest.approx(
        np.mean([outcome["parity"]["torch_error"] for outcome in outcomes]), abs=1e-6
    )
    assert row["different_predictions"] == 0
    assert row["seconds"] == pytest.approx(np.mean([o["seconds"] for o in outcomes]), abs=0.1)
    assert row["parameters"] == 174_970
    assert (row["test_images"], row["steps"], row["precision"]) == (IMAGES, STEPS, "f32")
    assert (row["recipe"], row["recipe_epochs"], row["schedule"]) == ("digits", 30, "scaled")
    deviation, sampling = 100 * errors.std(ddof=1), 100 * row["standard_error"]
    assert f"{100 * mean:.2f} ± {deviation:.2f} [±{sampling:.2f}]" in content["page"]
    assert "2.138 of 30" in content["page"]
    assert "resnet-train table --data digits --protocol full --max-steps 24" in content["page"]


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
        wish = Wish("digits", "full", max_steps=STEPS)
        config = dataclasses.replace(configure(MODEL, wish), **changes)
        found = [r for r in find_below(runs) if r.config.weight_decay == config.weight_decay]
        plan = Plan(wish, [MODEL], seeds, mode, runs)
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
    wish = Wish("digits", "full", max_steps=STEPS)
    config = configure(MODEL, wish)
    plan = Plan(wish, [MODEL], [111], "turns", made / "runs")
    (start,) = starts(plan, config, find_below(folder), "full")
    assert start.resume
    assert start.run_dir == folder
    alone = dataclasses.replace(start, run_dir=None, resume=False, log_every_steps=20)
    assert alone == dataclasses.replace(config, seed=111)


@pytest.mark.parametrize(
    "starts",
    [
        [{"step": 0, "weights": "imported weights"}],
        [{"step": 0}, {"step": 12, "changed": {"learning_rate": [0.4, 0.1]}}],
    ],
)
def test_a_run_that_its_configuration_alone_did_not_make_is_no_rows(starts, made, table):
    change(made / "runs" / "seed-111" / "config.json", starts=starts)
    config = configure(MODEL, Wish("digits", "full", max_steps=STEPS))
    done = [run.seed for run in find_below(made / "runs") if is_run_of(run, config, "full")]
    assert done == [222]
    assert [run["seed"] for run in row_of(table())["runs"]] == [222]


@pytest.mark.parametrize("epochs", [20, 178])
def test_a_run_by_hand_can_be_a_row(epochs):
    arguments = ("cifar10-45k", "--model", "ResNet20", "--run-dir", "anywhere", "--seed", "222")
    if epochs == 20:  # of 178: 400, 32,000 and 48,000 steps in proportion
        drops = ("--warmup-steps", "45", "--drop-steps", "3596", "5393")
        arguments = (*arguments, "--epochs", "20", *drops)
    wish = Wish("cifar10", "V", epochs=epochs)
    assert computed_fields(parse([*arguments])) == computed_fields(configure("ResNet20", wish))


def test_the_cheapest_model_comes_first():
    order = cheapest_first(published_models("cifar10"), "cifar10")
    assert order[0] == "ResNet20"
    assert order[-1].startswith("PreActWideResNet28-10")
    assert order.index("ResNet110") < order.index("ResNet18-small") < order.index("ResNet1001")


def test_wide_resnets_follow_their_own_paper():
    config = configure("PreActWideResNet16-8-0.0", Wish("cifar10", "T1k", epochs=20))
    assert config.nesterov
    assert config.drop_epochs == pytest.approx((6, 12, 16))  # of 60, 120, 160 of 200
    assert configure("PreActWideResNet16-8-0.0", Wish("cifar10", "V", "cifar10")).epochs == 178


def test_protocols_are_never_mixed(made, table):
    """The same error on 5,000, 1,000 and 10,000 images is three tables of one row each."""
    folder, source = made / "runs", made / "runs" / "seed-111"
    sets = {"V": ("train[45000:]", 5_000), "T1k": ("test", 1_000), "full": ("test", 10_000)}
    for protocol, (name, images) in sets.items():
        place = shutil.copytree(source, folder / protocol / "seed-111")
        config = configure("ResNet20", Wish("cifar10", protocol))
        pretend_cifar(place, config, name, images, 45_000 if protocol == "V" else 50_000)
    content = table("--models", "ResNet20", data="cifar10")
    rows = [row for row in content["rows"] if row["status"] == "measured"]
    assert [row["protocol"] for row in rows] == ["T1k", "full", "V"]
    for row in rows:
        error = row["error"]["mean"]
        assert len(row["runs"]) == 1
        assert row["standard_error"] == pytest.approx(
            math.sqrt(error * (1 - error) / sets[row["protocol"]][1]), abs=1e-6
        )
    assert "## T1k: trained on 50,000 images, tested on 1,000 of the 10,000" in content["page"]
    assert "## V: trained on 45,000 images, tested on 5,000 images" in content["page"]
    assert "## full: trained on 50,000 images, tested on 10,000 images" in content["page"]


def test_what_nobody_ran_is_marked_and_has_no_figure(table):
    content = table("--models", f"{MODEL},ResNet110", data="cifar10")
    assert {row["status"] for row in content["rows"]} == {"not run"}
    assert {*published_models("cifar10"), MODEL} == {row["model"] for row in content["rows"]}
    for row in content["rows"]:
        assert row.keys() == {
            *("protocol", "status", "model", "parameters", "data", "published_percent")
        }
    (line,) = [x for x in content["page"].splitlines() if x.startswith("| ResNet110 ")]
    assert [cell.strip() for cell in line.strip("|").split("|")][2:-3] == [
        *("—", "—", "—", "not run", "—", "—")
    ]


@pytest.mark.parametrize(
    ("epochs", "error", "is_marked"),
    [(178, 0.0897, True), (178, 0.0895, False), (20, 0.5, False)],
)
def test_only_a_whole_schedule_above_two_published_deviations_is_marked(
    epochs, error, is_marked, made, table
):
    """ResNet20 is published as 8.64 ± 0.16: 8.96 is two deviations above."""
    source = made / "runs" / "seed-111"
    pretend_cifar(
        source,
        configure("ResNet20", Wish("cifar10", "V", epochs=epochs)),
        *("train[45000:]", 5_000, 45_000),
    )
    change(source / "result.json", error=error)
    content = table(data="cifar10")
    row = row_of(content, "ResNet20", "V")
    assert row["above_published"] == is_marked
    assert row["schedule"] == ("whole" if epochs == 178 else "scaled")
    assert ("†" in content["page"]) == is_marked


def test_a_run_that_no_recipe_makes_is_a_row_without_a_recipe(made, table):
    config = dataclasses.replace(configure("ResNet20", Wish("cifar10", "V")), weight_decay=0.3)
    config = dataclasses.replace(config, max_steps=1)  # where the recipes' drops would meet
    pretend_cifar(made / "runs" / "seed-111", config, "train[45000:]", 5_000, 45_000)
    content = table(data="cifar10")
    row = row_of(content, "ResNet20", "V")
    assert (row["status"], row["recipe"], row["above_published"]) == ("measured", None, False)
    assert row["configuration"]["weight_decay"] == 0.3
    assert "```console" not in content["page"]


def test_rows_of_an_older_table_stay_without_their_runs(made, table):
    before = table()
    files = {path: path.read_bytes() for path in (made / "results").rglob("*.s*")}
    assert {path.name for path in files} == {f"{STEM}.svg", f"{STEM}.safetensors"}
    shutil.rmtree(made / "runs")
    assert table() == before
    assert {path: path.read_bytes() for path in files} == files


def test_a_seed_that_is_trained_elsewhere_joins_its_row_and_spoils_no_picture(made, table):
    (made / "runs" / "seed-222").rename(made / "elsewhere")
    table()
    picture = made / "results" / "curves" / f"{STEM}.svg"
    before = picture.read_bytes()
    (made / "runs" / "seed-111").rename(made / "another machine's")
    (made / "elsewhere").rename(made / "runs" / "seed-222")
    row = row_of(table())
    assert [run["seed"] for run in row["runs"]] == [111, 222]
    assert row["weights"]["seed"] == 111
    assert picture.read_bytes() == before
    (made / "another machine's").rename(made / "runs" / "seed-111")
    table()
    assert picture.read_bytes() != before


def test_a_row_that_is_trained_elsewhere_leaves_the_other_rows_files_alone(made, table):
    table()
    files = {path: path.read_bytes() for path in (made / "results").rglob("*.s*")}
    before = row_of({"rows": [r for r in table()["rows"] if r["model"] == MODEL]})
    for folder in (made / "runs").glob("seed-*"):
        change_config(folder, precision="bf16")
    rows = [row for row in table()["rows"] if row["model"] == MODEL]
    assert [row["precision"] for row in rows] == ["bf16", "f32"]
    assert rows[1] | {"options": {}} == before | {"options": {}}
    assert {path: path.read_bytes() for path in files} == files
    stem = STEM.replace("f32", "bf16")
    new = {path.name for path in (made / "results").rglob("*.s*")} - {path.name for path in files}
    assert new == {f"{stem}.svg", f"{stem}.safetensors"}


def test_rows_that_only_an_unusual_field_tells_apart_have_files_of_their_own(made, table):
    shutil.copytree(made / "runs", made / "runs" / "others")
    for folder in (made / "runs" / "others").iterdir():
        change_config(folder, weight_decay=0.3)
    table()
    files = [path.name for path in (made / "results").rglob("*.s*")]
    assert len(files) == len(set(files)) == 4
    assert all(name.startswith(STEM) for name in files)


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


def test_a_run_that_is_made_again_takes_its_place_in_an_older_table(made, table):
    table()
    folder = made / "runs" / "seed-222"
    change(folder / "result.json", error=0.125)
    row = row_of(table())
    assert [run["error"] for run in row["runs"]][1] == 0.125
    assert row["error"]["min"] == 0.125


def test_the_page_is_that_of_the_json(table):
    content = table()
    page = content["page"].partition("\n![")[0]
    assert as_markdown(from_json(content)) == page


def test_the_error_of_a_network_that_is_kept_is_found_again(made, table):
    entry = row_of(table())["weights"]
    assert entry["seed"] == 111
    dataset = load_dataset(configure(MODEL, Wish("digits", "full")))
    assert len(dataset.test) == entry["test_images"] == IMAGES
    images = normalise(dataset.test.images, dataset)
    errors = errors_in_both(made / "results" / entry["file"], images, dataset.test.labels)
    assert errors == pytest.approx((entry["error"],) * 2, abs=1e-6)


def test_a_half_done_run_is_a_row_without_a_figure(made, table):
    folder = made / "runs" / "seed-222"
    (folder / "result.json").unlink()
    row = row_of(table())
    assert [run["finished"] for run in row["runs"]] == [True, False]
    assert row["error"]["std"] is None
    shutil.rmtree(folder.with_name("seed-111"))
    content = table(out="elsewhere")
    assert row_of(content)["status"] == "unfinished"
    assert row_of(content)["error"] is None
    assert "unfinished, step 24 of 24" in content["page"]


def test_the_command_for_a_row_of_one_seed_names_it(made, table):
    (made / "runs" / "seed-111" / "result.json").unlink()
    (command,) = [line for line in table()["page"].splitlines() if line.startswith("resnet-train")]
    words = command.split()
    assert words[words.index("--seed") + 1] == "222"
    assert main([*words[1:], "--runs", "runs", "--out", "again"]) == 0


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
    row = row_of(json.loads(path.read_text()), protocol="V")
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
    result = run("train", "table", "--protocol", "full", cwd=tmp_path)
    assert_refused(result, "--protocol full", "1,000 images here, not 10,000")
