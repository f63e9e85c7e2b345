"""What `results/` says: its figures are found again, and stand in docs/results.md."""

import functools
import json
from typing import Any

import numpy as np
import pytest

from resnet_spec import PREPROCESSINGS
from tests.kept_networks import errors_in_both
from tests.measured_results import DATA, RESULTS, ROOT, lines, results
from tests.test_data import CIFAR10, needs_cifar10
from train.data.sources import open_tfds
from train.results.render import table_page

RECORD = RESULTS / f"{DATA}.json"
ROWS: list[dict[str, Any]] = json.loads(RECORD.read_text())["rows"]
KEPT = [row for row in ROWS if row.get("weights")]
FLIPS = 2  # images on the edge between two classes, which another processor's rounding may move


def test_the_page_shows_what_the_record_says():
    page = (RESULTS / f"{DATA}.md").read_text()
    assert page.partition("\n![")[0] == table_page(results())
    for line in page.splitlines():
        if line.startswith("!["):
            assert (RESULTS / line.rpartition("(")[2].rstrip(")")).is_file()


def test_the_page_of_results_shows_what_was_measured():
    assert "\n".join(lines()) in (ROOT / "docs" / "results.md").read_text()


def test_every_network_that_is_listed_is_there_and_no_other():
    there = {path.relative_to(RESULTS).as_posix() for path in (RESULTS / "weights").glob("*")}
    assert there == {row["weights"]["file"] for row in KEPT}
    small = [row for row in ROWS if row["status"] == "measured" and row["model"].endswith("Net20")]
    small = [row for row in small if 111 in [run["seed"] for run in row["runs"]]]
    kept = {(row["model"], row["protocol"]) for row in KEPT}
    assert {(row["model"], row["protocol"]) for row in small} <= kept


@pytest.mark.slow
@needs_cifar10
@pytest.mark.parametrize("row", KEPT, ids=lambda row: f"{row['model']}-{row['protocol']}")
def test_the_error_of_a_committed_network_is_found_again_in_both_frameworks(row):
    """Read, normalised and counted here, beside the trainer's own way."""
    entry = row["weights"]
    images, labels = read_images(row["tested_on"])
    assert len(images) == entry["test_images"]
    found = errors_in_both(RESULTS / entry["file"], images, labels)
    counts = np.array(found) * len(images)
    np.testing.assert_allclose(counts, entry["error"] * len(images), atol=FLIPS + 0.5, rtol=0)
    (run,) = [run for run in row["runs"] if run["seed"] == entry["seed"]]
    assert abs(run["torch_error"] - entry["error"]) < 1e-9


@functools.cache
def read_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images (n, 32, 32, 3) and labels (n,) of a split such as `train[45000:]`."""
    source = open_tfds(DATA, split, CIFAR10.parent)
    records = source.__getitems__(range(len(source)))
    known = PREPROCESSINGS[DATA]
    images = np.stack([record["image"] for record in records]).astype(np.float32) / 255
    mean, std = np.array(known.mean, np.float32), np.array(known.std, np.float32)
    return (images - mean) / std, np.array([record["label"] for record in records])
