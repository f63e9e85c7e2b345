"""Runs on digits for tests of `resnet-train table`, and what is read of the tables."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import DIGITS_RUNS
from tests.test_results import change, change_config
from train.config import Config
from train.run.trainer import count_steps

MODEL, SEEDS, STEPS = DIGITS_RUNS
IMAGES = 360  # of the test set
LENGTH = ("--max-steps", str(STEPS))
STEM = f"digits-{MODEL}-full-f32-{STEPS}steps"  # of a row's files
OF_DIGITS = ("--data", "digits", "--models", MODEL, "--seeds", "111,222", *LENGTH)
TABLE = (*OF_DIGITS, "--protocol", "full", "--runs", "runs")


def row_of(content: dict[str, Any], model: str = MODEL, protocol: str = "full") -> dict[str, Any]:
    (row,) = [r for r in content["rows"] if (r["model"], r["protocol"]) == (model, protocol)]
    return row


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


def pretend_cifar(
    folder: Path, config: Config, name: str, images: int, trained_on: int, **record: Any
) -> None:
    """Makes of a real run one that says it is of another configuration and test set.

    Its `recipe` and what was `asked` are those of `record`; without it, as of an older version.
    """
    fields = {k: v for k, v in config.to_json().items() if k not in ("seed", "run_dir")}
    change_config(folder, **fields)
    facts = {"test_name": name, "test_images": images, "train_images": trained_on}
    facts |= {"recipe": None, "asked": None, **record}
    steps = count_steps(config, trained_on)
    change(folder / "config.json", **facts, total_steps=steps)
    change(folder / "result.json", step=steps, images=images)
