"""`resnet-train table`: what it says of real runs."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.kept_networks import errors_in_both
from tests.published_tables import (
    IMAGES,
    MODEL,
    STEM,
    STEPS,
    TABLE,
    pretend_cifar,
    results,
    row_of,
)
from tests.test_results import change, change_config
from train.__main__ import main
from train.data.dataset import normalise
from train.data.load import load_dataset
from train.results.plan import Asked, configure
from train.results.published import published_models
from train.results.render import table_page
from train.results.table import from_json
from train.results.training import find_below, is_run_of

pytestmark = pytest.mark.xdist_group("results")  # one worker trains for all


@pytest.fixture
def table(made) -> Callable[..., dict[str, Any]]:
    """Writes the table of what is there; its JSON, and the page as `page`."""

    def call(*arguments: str, data: str = "digits", out: str = "results") -> dict[str, Any]:
        given = (*TABLE, *arguments, "--data", data, "--out", out, "--only-write")
        assert main(["table", *given]) == 0
        content = json.loads((made / out / f"{data}.json").read_text())
        return {**content, "page": (made / out / f"{data}.md").read_text()}

    return call


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


@pytest.mark.parametrize(
    "starts",
    [
        [{"step": 0, "weights": "imported weights"}],
        [{"step": 0}, {"step": 12, "changed": {"learning_rate": [0.4, 0.1]}}],
    ],
)
def test_a_run_that_its_configuration_alone_did_not_make_is_no_rows(starts, made, table):
    change(made / "runs" / "seed-111" / "config.json", starts=starts)
    config = configure(MODEL, Asked("digits", "full", max_steps=STEPS))
    done = [run.seed for run in find_below(made / "runs") if is_run_of(run, config, "full")]
    assert done == [222]
    assert [run["seed"] for run in row_of(table())["runs"]] == [222]


def test_protocols_are_never_mixed(made, table):
    """The same error on 5,000, 1,000 and 10,000 images is three tables of one row each."""
    folder, source = made / "runs", made / "runs" / "seed-111"
    sets = {"V": ("train[45000:]", 5_000), "T1000": ("test", 1_000), "full": ("test", 10_000)}
    for protocol, (name, images) in sets.items():
        place = shutil.copytree(source, folder / protocol / "seed-111")
        config = configure("ResNet20", Asked("cifar10", "V" if protocol == "V" else "full"))
        pretend_cifar(place, config, name, images, 45_000 if protocol == "V" else 50_000)
    content = table("--models", "ResNet20", data="cifar10")
    rows = [row for row in content["rows"] if row["status"] == "measured"]
    assert [row["protocol"] for row in rows] == ["T1000", "full", "V"]
    for row in rows:
        error = row["error"]["mean"]
        assert len(row["runs"]) == 1
        assert row["standard_error"] == pytest.approx(
            math.sqrt(error * (1 - error) / sets[row["protocol"]][1]), abs=1e-6
        )
    assert "## T1000: trained on 50,000 images, tested on 1,000 of the 10,000" in content["page"]
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
        configure("ResNet20", Asked("cifar10", "V", epochs=epochs)),
        *("train[45000:]", 5_000, 45_000),
    )
    change(source / "result.json", error=error)
    content = table(data="cifar10")
    row = row_of(content, "ResNet20", "V")
    assert row["above_published"] == is_marked
    assert row["schedule"] == ("whole" if epochs == 178 else "scaled")
    assert ("†" in content["page"]) == is_marked


def test_a_run_that_no_recipe_makes_is_a_row_without_a_recipe(made, table):
    config = dataclasses.replace(configure("ResNet20", Asked("cifar10", "V")), weight_decay=0.3)
    config = dataclasses.replace(config, max_steps=1)  # where the recipes' drops would meet
    pretend_cifar(made / "runs" / "seed-111", config, "train[45000:]", 5_000, 45_000)
    content = table(data="cifar10")
    row = row_of(content, "ResNet20", "V")
    assert (row["status"], row["recipe"], row["above_published"]) == ("measured", None, False)
    assert row["configuration"]["weight_decay"] == 0.3
    assert "```console" not in content["page"]


_HE = Asked("cifar10", "full", "cifar10-he2015", max_steps=3_200)


@pytest.mark.parametrize(
    ("record", "recipe"),
    [
        ({"recipe": "cifar10-he2015", "asked": dataclasses.asdict(_HE)}, "cifar10-he2015"),
        ({"recipe": "cifar10-he2015"}, "cifar10-he2015"),
        ({"recipe": "cifar10-wide"}, None),
        ({"recipe": "of a newer version"}, None),
        ({}, None),
    ],
    ids=["of a table", "by hand", "with other fields", "newer", "older"],
)
def test_the_recipe_of_a_row_is_the_one_that_its_run_records(record, recipe, made, table):
    config = configure("ResNet20", _HE)
    pretend_cifar(made / "runs" / "seed-111", config, "test", 10_000, 50_000, **record)
    content = table(data="cifar10")
    row = row_of(content, "ResNet20")
    assert (row["recipe"], row["schedule"]) == (recipe, recipe and "scaled")
    command = "table --protocol full --recipe cifar10-he2015 --max-steps 3200 --seed 111"
    assert (command in content["page"]) == (recipe is not None)
    assert table_page(from_json(content)) == content["page"].partition("\n![")[0]


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
    assert table_page(from_json(content)) == page


def test_the_error_of_a_network_that_is_kept_is_found_again(made, table):
    entry = row_of(table())["weights"]
    assert entry["seed"] == 111
    dataset = load_dataset(configure(MODEL, Asked("digits", "full")))
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
