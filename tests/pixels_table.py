"""The table of pixels in docs/converting.md: `TFDS_DATA_DIR=... python -m tests.pixels_table`.

Our test view of the pictures of imagenet2012's validation set that are there, beside what other
packages make of the same pictures by our exported folders.
"""

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from convert.folders import timm_config, transformers_config
from resnet_spec import PREPROCESSINGS, ClassifierSpec, Preprocessing, find_spec
from tests.peers import import_timm, import_torchvision
from train.data.decode import Picture
from train.data.sources import TfdsSource

CASES = tuple(
    dataclasses.replace(
        PREPROCESSINGS["imagenet"],
        image_size=size,
        crop_fraction=fraction,
        interpolation="bilinear" if fraction == 0.875 else "bicubic",
    )
    for size in (224, 160)
    for fraction in (0.875, 0.95)
)
PACKAGES = ("torchvision", "timm", "transformers", "transformers without timm")
Pipeline = Callable[[Image.Image], np.ndarray]  # to (size, size, 3) in grey levels


def pipelines(said: Preprocessing) -> dict[str, Pipeline]:
    """Each package's own, by the folder that we export for it."""
    transforms, timm = import_torchvision().transforms, import_timm()
    import transformers

    classifier = ClassifierSpec(find_spec("ResNet18"), None)
    mode = transforms.InterpolationMode(said.interpolation)
    resize = transforms.Resize(said.shorter_side, mode)
    cut = transforms.Compose([resize, transforms.CenterCrop(said.image_size)])
    config = timm_config.write(classifier, said)["config.json"]
    data = timm.data.resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"])
    of_timm = timm.data.create_transform(**data, is_training=False)
    with tempfile.TemporaryDirectory() as name:
        for file, content in transformers_config.write(classifier, said).items():
            (Path(name) / file).write_text(json.dumps(content))
        of_auto = transformers.AutoImageProcessor.from_pretrained(name, backend="pil")
        of_bit = transformers.BitImageProcessorPil.from_pretrained(name)

    def levels(pixels: np.ndarray) -> np.ndarray:
        """The inverse of the normalisation of (3, h, w)."""
        return (pixels.transpose(1, 2, 0) * said.std + said.mean) * 255

    def prepare(processor: Callable, picture: Image.Image) -> np.ndarray:
        return levels(processor(picture, return_tensors="pt")["pixel_values"][0].numpy())

    return {
        "torchvision": lambda picture: np.asarray(cut(picture), float),
        "timm": lambda picture: levels(of_timm(picture).numpy()),
        "transformers": lambda picture: prepare(of_auto, picture),
        "transformers without timm": lambda picture: prepare(of_bit, picture),
    }


def differences(said: Preprocessing, pictures: Iterable[bytes]) -> dict[str, tuple[float, float]]:
    """Mean and largest difference from our test view, in grey levels, by package."""
    theirs = pipelines(said)
    found: dict[str, list[np.ndarray]] = {name: [] for name in theirs}
    for content in pictures:
        ours = Picture(content).middle(said.shorter_side, said.image_size, said.interpolation)
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        for name, prepare in theirs.items():
            found[name].append(np.abs(prepare(picture) - ours))
    return {name: (float(np.mean(values)), float(np.max(values))) for name, values in found.items()}


def rows(pictures: list[bytes]) -> list[str]:
    """Markdown, one line for each kind of test view: mean and largest difference."""
    lines = [f"| pixels | {' | '.join(PACKAGES)} |", "|---|" + "---:|" * len(PACKAGES)]
    for said in CASES:
        found = differences(said, pictures)
        cells = (f"{found[name][0]:.3f}, {found[name][1]:.0f}" for name in PACKAGES)
        what = f"{said.image_size} of {said.shorter_side}, {said.interpolation}"
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    source = TfdsSource("imagenet2012", "validation", None)
    print("\n".join(rows([source.read(index)[0] for index in range(len(source))])))
