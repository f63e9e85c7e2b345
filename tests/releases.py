"""Small files of each kind, kept in `tests/releases` for each release of JAX that wrote them.

`python -m tests.releases` writes those of the release that is installed. Their values are drawn by
NumPy, so that every other release can tell which they must be.
"""

import dataclasses
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import convert
import flax_resnet
from resnet_spec import ResNetSpec
from tests import saved_states
from tests.saved_states import make_state, open_run
from tests.torch_or_none import torch
from tests.twins import fill_randomly, random_images

FOLDER = Path(__file__).parent / "releases"
NETWORK: dict[str, Any] = {"stage_depths": (1, 1), "stage_planes": (4, 8), "stem_planes": 4}
PREPROCESSING = dataclasses.replace(saved_states.PREPROCESSING, image_size=8)
IMAGES = random_images(3, 8, "float32")


def make_network() -> Any:
    """A network of two blocks in evaluation, random in every leaf."""
    spec = ResNetSpec(block="basic", small_images=True, **NETWORK)
    model = flax_resnet.from_spec(spec, 10, rngs=nnx.Rngs(0))
    fill_randomly(model)
    model.eval()
    return model


def write(folder: Path) -> None:
    """A run, a network in all forms, images and logits; with torch, what torch writes, too."""
    with open_run(folder / "run") as checkpoints:
        checkpoints.save(make_state(20), error=0.1, seconds=20.5)
    model = make_network()
    for suffix in ("safetensors", "npz", "pt"):
        convert.save(folder / f"model.{suffix}", model, preprocessing=PREPROCESSING)
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "logits.npy", np.asarray(model(jnp.asarray(IMAGES))))
    if torch is not None:
        torch.save(convert.flax_to_torch(model), folder / "torchs.pt")
        convert.export_program(model, folder / "model.pt2", preprocessing=PREPROCESSING)
        convert.export_onnx(model, folder / "model.onnx", preprocessing=PREPROCESSING)


def main() -> None:
    jax.config.update("jax_enable_x64", True)  # as in tests: states have arrays of float64
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"jax-{jax.__version__}.zip"
    with (
        tempfile.TemporaryDirectory() as name,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        write(Path(name))
        for file in sorted(Path(name).rglob("*")):
            archive.write(file, file.relative_to(name))
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
