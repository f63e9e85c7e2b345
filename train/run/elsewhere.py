"""An exported folder in the package that it is for: fed pictures by that package's own pipeline."""

import importlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convert.errors import ConversionError
from convert.files import read_file
from convert.folders import PACKAGES, write_folder
from convert.layouts import find_layout
from convert.models import build_torch
from convert.weights import Weights
from train.data.stream import Stream
from train.errors import AbandonedError, UserError
from train.run.export import MOST_STREAMED, torch_runner

_BATCH = 32
Runner = Callable[[np.ndarray], np.ndarray]  # normalised (n, h, w, c) to logits (n, k)


@dataclass(frozen=True)
class Elsewhere:
    """What a package makes of our folder, beside what we make of the same weights.

    Attributes:
        images: those that Pillow can read.
        error, our_error: fraction of wrong images.
        different_predictions: number of images whose largest logit is another class.
        pixel_difference, largest_pixel_difference: in grey levels, mean and largest.
    """

    package: str
    images: int
    error: float
    our_error: float
    different_predictions: int
    pixel_difference: float
    largest_pixel_difference: float

    def __str__(self) -> str:
        return (
            f"{self.package} on {self.images} test pictures, by its own pipeline: error "
            f"{self.error:.2%}, ours {self.our_error:.2%}, {self.different_predictions} "
            f"predictions differ, pixels differ by {self.pixel_difference:.3f} grey levels on "
            f"average, {self.largest_pixel_difference:.0f} at most"
        )


def check_exports(path: Path, stream: Stream, *, stops: Callable[[], bool]) -> list[Any]:
    """Writes a folder for each installed package that has a file's network, and runs it there.

    Returns:
        An `Elsewhere` for each package, and a sentence for one that cannot be asked.

    Raises:
        AbandonedError: `stops`, which is called at each batch, says yes.
    """
    found: list[Elsewhere | str] = []
    weights = read_file(path)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "folder"
            try:
                write_folder(folder, weights, find_layout(package))
            except ConversionError:  # it has no such network
                continue
            try:
                model = open_folder(folder, package)
            except Exception as error:  # of an installation that is not whole, of any kind
                found.append(f"no check in {package}: {type(error).__name__}: {error}")
                continue
            result = compare(model, weights, stream, stops=stops)
            found += [] if result is None else [result]
    return found


@dataclass(frozen=True)
class Opened:
    """A folder in its package: from a picture to normalised pixels (h, w, c), and to logits."""

    package: str
    prepare: Callable[[Image.Image], np.ndarray]
    run: Runner


def open_folder(folder: Path, package: str) -> Opened:
    """Opens a folder by the package's own loader and pipeline."""
    theirs: Any = importlib.import_module(package)

    def channels_last(tensor: Any) -> np.ndarray:
        return tensor.numpy().transpose(1, 2, 0)

    if package == "timm":
        model = theirs.create_model(f"local-dir:{folder}", pretrained=True)
        data = theirs.data.resolve_data_config({}, model=model)
        transform = theirs.data.create_transform(**data, is_training=False)
        model.eval()
        return Opened(package, lambda p: channels_last(transform(p)), torch_runner(model))
    model = theirs.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = theirs.AutoImageProcessor.from_pretrained(folder)

    def prepare(picture: Image.Image) -> np.ndarray:
        return channels_last(processor(picture, return_tensors="pt")["pixel_values"][0])

    return Opened(package, prepare, torch_runner(lambda images: model(images).logits))


def compare(
    theirs: Opened,
    weights: Weights,
    stream: Stream,
    *,
    count: int = MOST_STREAMED,
    stops: Callable[[], bool] = lambda: False,
) -> Elsewhere | None:
    """Both pipelines and both networks on the first pictures; None if none can be read."""
    said, outputs, means, largest = weights.preprocessing, [], [], 0.0
    assert said is not None
    assert weights.classifier is not None
    run_ours = torch_runner(build_torch(weights.classifier, weights.arrays))
    mean, std = (np.array(numbers, np.float32) for numbers in (said.mean, said.std))
    for batch in _batches(stream.pictures(count)):
        if stops():
            raise AbandonedError(f"the check in {theirs.package} was abandoned")
        ours = np.stack([(view / np.float32(255) - mean) / std for _, view, _ in batch])
        prepared = np.stack([theirs.prepare(picture) for picture, _, _ in batch])
        if prepared.shape != ours.shape:
            raise UserError(
                f"{theirs.package} prepares images of {prepared.shape[1:]}, ours are of "
                f"{ours.shape[1:]} (height, width, channels)"
            )
        levels = np.abs(prepared - ours) * 255 * std
        means.append(levels.mean((1, 2, 3)))
        largest = max(largest, float(levels.max()))
        labels = np.array([label for _, _, label in batch])
        outputs.append((theirs.run(prepared).argmax(1), run_ours(ours).argmax(1), labels))
    if not outputs:
        return None
    their_classes, our_classes, labels = map(np.concatenate, zip(*outputs, strict=True))
    return Elsewhere(
        package=theirs.package,
        images=len(labels),
        error=float(np.mean(their_classes != labels)),
        our_error=float(np.mean(our_classes != labels)),
        different_predictions=int(np.sum(their_classes != our_classes)),
        pixel_difference=float(np.concatenate(means).mean()),
        largest_pixel_difference=largest,
    )


def _batches(
    pictures: Iterator[tuple[bytes, np.ndarray, int]],
) -> Iterator[list[tuple[Image.Image, np.ndarray, int]]]:
    batch = []
    for content, view, label in pictures:
        try:
            with warnings.catch_warnings(action="ignore"):  # of transparency, of odd EXIF
                picture = Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, ValueError):  # OpenCV can read what Pillow cannot
            continue
        batch.append((picture, view, label))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
