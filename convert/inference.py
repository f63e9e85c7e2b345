"""Models for use elsewhere, as a torch.export program or ONNX: checked before a file appears."""

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.atomic import check_text, naming, replacing
from convert.errors import ConversionError
from convert.models import arrays_of, build_torch, describe
from convert.programs import FORMS, trace
from convert.weights import Weights, encode_description
from convert.wrappers import unwrap_module
from resnet_spec import Preprocessing

if TYPE_CHECKING:
    import torch

_BATCH_SIZES = (1, 3)  # both others than the traced one: the batch size must be free


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        image_size: height and width of its images; the batch size is free.
        largest_difference: from the torch twin's logits, relative to the largest of them.
    """

    path: Path
    image_size: int
    largest_difference: float


def export_program(
    model: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Exported:
    """Writes a `torch.export` program, `.pt2`: images (n, c, h, w) float32 to logits (n, classes).

    `torch.export.load(path).module()` is the model, in eval mode and float32. The description of
    model and preprocessing is the program's extra file `flax_resnet`.

    Args:
        model: either twin, or the `Weights` of one.
        path: a `.pt2` file; it appears whole, loaded again and compared with the torch twin on
            batches of 1 and 3, or not at all.
        image_size: height and width; by default the preprocessing's, else 32 for a stem for small
            images and 224 for others.
        preprocessing: replaces that of the `Weights`.

    Raises:
        ConversionError: the model cannot be described, a package is missing, or what was written
            computes something else.
        OSError: the file cannot be written.
        ValueError: `image_size` is not positive.
    """
    return _export("program", model, Path(path), image_size, preprocessing)


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Exported:
    """Writes one ONNX file: `images` (batch, c, h, w) float32 to `logits` (batch, classes).

    It passed ONNX's checker, and onnxruntime computed the torch twin's logits with it, before it
    appears. The description of model and preprocessing is its metadata entry `flax_resnet`.

    Arguments and errors are those of `export_program`; needs flax-resnet[torch,onnx].
    """
    return _export("onnx", model, Path(path), image_size, preprocessing)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The options of `resnet-convert export` that a model for inference has."""
    parser.add_argument(
        "--format",
        choices=FORMS,
        help="a model for inference instead of weights; default: by the suffix, .onnx or .pt2",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="height and width of its images; default: the preprocessing's, else 32 or 224",
    )


def choose_format(options: argparse.Namespace) -> str | None:
    """The format that `resnet-convert export` is asked for, None where it is a file of weights.

    Raises:
        ConversionError: the options contradict each other, or there is no such folder.
    """
    output, chosen = options.output, options.format
    by_suffix = {form.suffix: name for name, form in FORMS.items()}
    format = chosen or by_suffix.get(output.suffix.lower())
    if format is None:
        if options.image_size is not None:
            raise ConversionError(f"--image-size is of a model for inference, not of {output}")
        return None
    _check_suffix(output, format)
    check_text(output)
    if options.layout != "flax-resnet":
        raise ConversionError(f"--layout is of weights: {output} holds a model")
    if not output.parent.is_dir():
        raise ConversionError(f"the folder {output.parent} does not exist")
    return format


def export_inference(
    weights: Weights, output: Path, format: str, image_size: int | None = None
) -> str:
    """Writes a model for inference as `format`, a key of `FORMS`; a sentence to print."""
    done = _export(format, weights, output, image_size, None)
    assert weights.classifier is not None
    shape = f"batch, {weights.classifier.network.in_planes}, {done.image_size}, {done.image_size}"
    return (
        f"wrote {output}: images ({shape}) float32 to logits, largest difference from the torch "
        f"twin {done.largest_difference:.1e} of the largest logit"
    )


def _export(
    format: str, model: Any, path: Path, image_size: int | None, preprocessing: Preprocessing | None
) -> Exported:
    form = FORMS[format]
    form.check_packages()
    _check_suffix(path, format)
    check_text(path)
    weights, size = describe_export(model, preprocessing, image_size)
    assert weights.classifier is not None
    twin = build_torch(weights.classifier, weights.arrays).float()
    shape = (weights.classifier.network.in_planes, size, size)
    images = [_random_images(count, shape) for count in _BATCH_SIZES]
    expected = [_run_twin(twin, batch) for batch in images]
    program, metadata = trace(twin, shape), encode_description(weights)
    with replacing(path) as temporary:
        with naming(path):
            form.write(program, temporary, metadata)
        run, written = form.load(temporary)
        # NumPy's maximum keeps a NaN, Python's may not
        difference = float(np.max([*map(_relative_difference, map(run, images), expected)]))
        if written != metadata or not difference <= form.tolerance:
            raise ConversionError(
                f"{path} is not written: what would be in it differs from the torch twin by "
                f"{difference:.1e} of the largest logit, more than {form.tolerance:.0e}, or "
                "describes another model"
            )
    return Exported(path, size, difference)


def _check_suffix(path: Path, format: str) -> None:
    suffix = FORMS[format].suffix
    if path.suffix.lower() != suffix:
        raise ConversionError(f"{path}: the format {format} is written to {suffix} files")


def describe_export(
    model: Any, preprocessing: Preprocessing | None, image_size: int | None
) -> tuple[Weights, int]:
    """The weights with the preprocessing of the exported model, and the size of its images.

    Raises:
        ConversionError: the model cannot be described, or this is not its preprocessing.
        ValueError: the image size is not positive.
    """
    model = unwrap_module(model)
    weights = model if isinstance(model, Weights) else Weights(arrays_of(model), describe(model))
    if weights.classifier is None:
        raise ConversionError("these weights do not say which model they are")
    if image_size is not None and image_size < 1:
        raise ValueError(f"an image size is a positive number of pixels, not {image_size}")
    known = preprocessing or weights.preprocessing
    if known is None:
        usual = 32 if weights.classifier.network.small_images else 224
        return weights, image_size or usual
    known = dataclasses.replace(known, image_size=image_size or known.image_size)
    weights = dataclasses.replace(weights, preprocessing=known)
    weights.check_preprocessing()
    return weights, known.image_size


def _random_images(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal, as normalised pictures are."""
    return np.random.default_rng(count).standard_normal((count, *shape), np.float32)


def _run_twin(twin: "torch.nn.Module", images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = twin(torch.from_numpy(images)).numpy()
    if not np.isfinite(logits).all():
        raise ConversionError("the model's logits of random images are not finite: nothing written")
    return logits


def _relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        raise ConversionError(f"it computes logits of shape {actual.shape}, not {expected.shape}")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual - expected).max()) / scale
