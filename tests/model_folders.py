"""Hugging Face folders for tests: models, a preprocessing of odd numbers, changes to JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torch_resnet
from convert.arrays import to_numpy
from convert.models import arrays_of, describe
from convert.weights import Weights
from resnet_spec import Preprocessing
from tests.twins import randomise

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


def weights_of(name: str, **changes: Any) -> tuple[Weights, torch.nn.Module]:
    """Random weights of a model with three classes, and the torch twin."""
    model = torch_resnet.create(name, 3, **changes)
    randomise(model)
    return Weights(arrays_of(model), describe(model), PREPROCESSING), model.eval()


def logits(model: Any, channels: int = 3) -> np.ndarray:
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.eval()(images)
    return to_numpy(getattr(output, "logits", output))
