"""Hugging Face folders for tests: a preprocessing of odd numbers, and changes to a JSON file."""

import json
from pathlib import Path
from typing import Any

from resnet_spec import Preprocessing

PREPROCESSING = Preprocessing(
    mean=(0.1 + 0.2, 1 / 3, 0.4),
    std=(0.2, 0.7, 0.30000000000000004),
    image_size=64,
    class_names=("tench", "cat, tabby", "d\u00e9j\u00e0"),
    interpolation="bicubic",
    crop_fraction=0.95,
)


def change(path: Path, changes: dict[str, Any]) -> None:
    """Entries of a JSON file; those of `pretrained_cfg` one by one."""
    config = json.loads(path.read_text())
    inner = changes.get("pretrained_cfg")
    if isinstance(inner, dict):
        changes = {**changes, "pretrained_cfg": {**config["pretrained_cfg"], **inner}}
    path.write_text(json.dumps({**config, **changes}))
