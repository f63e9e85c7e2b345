"""Models for use elsewhere, as a torch.export program or ONNX: checked before a file appears."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.atomic import check_text, naming, replacing
from convert.errors import ConversionError
from convert.formats.archives import open_archive
from convert.models import arrays_of, build_torch, describe
from convert.weights import (
    LARGEST_DESCRIPTION,
    Weights,
    decode_description,
    encode_description,
)
from convert.wrappers import unwrap_module
from resnet_spec import Preprocessing
from resnet_spec.classifier import DESCRIPTION_KEY

if TYPE_CHECKING:
    import torch

Run = Callable[[np.ndarray], np.ndarray]  # images (n, c, h, w) -> logits (n, classes)
Traced = Any  # a torch.export.ExportedProgram
_BATCH_SIZES = (1, 3)  # neither is the traced one: the batch size must be free
_TRACED_BATCH_SIZE = 2  # torch treats sizes of 0 and 1 as constants
_LARGEST_GRAPH = 2**27  # bytes of the operations of a program that are read
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: a protocol buffer ends at 2 GiB


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file.
        image_shape: channels, height and width of its images; the batch size is free.
        largest_difference: from the torch twin's logits, relative to the largest of them.
    """

    path: Path
    image_shape: tuple[int, int, int]
    largest_difference: float

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.image_shape[1]


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
        path: a `.pt2` file; it appears only after it was loaded again and compared with the torch
            twin on batches of 1 and 3.
        image_size: height and width; by default the preprocessing's, else 32 for a stem for small
            images and 224 for others.
        preprocessing: replaces that of the `Weights`.

    Raises:
        ConversionError: the model cannot be described, a package is missing, or what was written
            computes something else.
        OSError: the file cannot be written.
        ValueError: `image_size` is not positive.
    """
    return _export(FORMS["program"], model, Path(path), image_size, preprocessing)


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Exported:
    """Writes one ONNX file: `images` (batch, c, h, w) float32 to `logits` (batch, classes).

    It appears only after it passed ONNX's checker and onnxruntime computed the torch twin's
    logits with it. The description of model and preprocessing is its metadata entry `flax_resnet`.

    Arguments and errors are those of `export_program`; needs flax-resnet[torch,onnx].
    """
    return _export(FORMS["onnx"], model, Path(path), image_size, preprocessing)


@dataclass(frozen=True)
class Form:
    """One form of a model for inference.

    Attributes:
        suffix: of its files.
        packages: what writing and checking needs; `extras` installs them.
        tolerance: largest difference from the torch twin, relative to the largest logit.
        write: a traced model and text by name, to a file.
        load: a file as a function, and the text that it carries.
        read: the text that a file carries, how many tensors it has, and the release of torch that
            wrote a program that no other release promises to open; nothing in it is run.
    """

    suffix: str
    packages: tuple[str, ...]
    extras: str
    tolerance: float
    write: Callable[[Traced, Path, Mapping[str, str]], None]
    load: Callable[[Path], tuple[Run, dict[str, str]]]
    read: Callable[[Path], tuple[dict[str, str], int, str | None]]

    def check_packages(self) -> None:
        """Raises a ConversionError that names the packages that are not installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConversionError(
                f"{self.suffix} files need the package {' and '.join(missing)}: install "
                f"flax-resnet[{self.extras}]"
            )

    def check_suffix(self, path: Path) -> None:
        """Raises a ConversionError for a file of another suffix."""
        if path.suffix.lower() != self.suffix:
            raise ConversionError(f"{path}: this format is written to {self.suffix} files")


def _export(
    form: Form, model: Any, path: Path, image_size: int | None, preprocessing: Preprocessing | None
) -> Exported:
    form.check_packages()
    form.check_suffix(path)
    check_text(path)
    weights, size = describe_export(model, preprocessing, image_size)
    assert weights.classifier is not None
    twin = build_torch(weights.classifier, weights.arrays).float()
    shape = (weights.classifier.network.in_planes, size, size)
    images = [
        np.random.default_rng(n).standard_normal((n, *shape), np.float32) for n in _BATCH_SIZES
    ]
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
                f"{path} is not written: its content differs from the torch twin by "
                f"{difference:.1e} of the largest logit, more than {form.tolerance:.0e}, or "
                "describes another model"
            )
    return Exported(path, shape, difference)


def describe_export(
    model: Any, preprocessing: Preprocessing | None, image_size: int | None
) -> tuple[Weights, int]:
    """The weights with the preprocessing of the exported model, and the size of its images."""
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


def trace(twin: "torch.nn.Module", image_shape: tuple[int, int, int]) -> Traced:
    """The operations of a twin for images of (c, h, w), the batch size left open."""
    import torch

    images = torch.zeros(_TRACED_BATCH_SIZE, *image_shape)
    batch = torch.export.Dim("batch")
    with _tf32_of_one_kind():
        program = torch.export.export(twin, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:  # the paths of this machine's source files
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def _tf32_of_one_kind() -> Iterator[None]:
    """Tracing reads cuDNN's flags by their old names, which fails once a new name was set."""
    import torch

    cudnn: Any = torch.backends.cudnn
    try:
        is_readable = cudnn.allow_tf32 in (True, False)
    except RuntimeError:
        is_readable = False
    if is_readable:  # as torch found it
        yield
        return
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


def _write_program(program: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    import torch

    # Not to the file itself: on a full disk torch's writer ends the whole process.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    path.write_bytes(buffer.getbuffer())


def _load_program(path: Path) -> tuple[Run, dict[str, str]]:
    import torch

    metadata = {DESCRIPTION_KEY: ""}
    module = torch.export.load(path, extra_files=metadata).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run, metadata


def _read_program(path: Path) -> tuple[dict[str, str], int, str | None]:
    with open_archive(path) as archive:
        names = archive.namelist()
        models = [name for name in names if name.endswith("models/model.json")]
        if not models:
            raise ValueError("it holds no program")  # a cut one may end in an inner archive
        with archive.open(models[0]) as member:
            release = json.loads(member.read(_LARGEST_GRAPH)).get("torch_version")
        texts = {}
        for name in names:
            folder, _, key = name.rpartition("/")
            if folder.endswith("extra") and key == DESCRIPTION_KEY:
                with archive.open(name) as member:
                    texts[key] = member.read(LARGEST_DESCRIPTION + 1).decode()
        return texts, len(names), release


def _write_onnx(program: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    import torch

    num_bytes = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if num_bytes > _LARGEST_ONNX:
        raise ConversionError(f"{num_bytes} bytes of weights are too many for one ONNX file")
    with _quiet(), _tf32_of_one_kind():
        model = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert model is not None
    model.model.metadata_props.update(metadata)
    model.save(path, external_data=False)


def _load_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run(["logits"], {"images": images})
        return np.asarray(logits)

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _read_onnx(path: Path) -> tuple[dict[str, str], int, None]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:  # an empty file is a whole message, too
        raise ValueError("it holds no graph")
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return texts, len(model.graph.initializer), None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of torch's exporter about torch itself."""
    with warnings.catch_warnings():
        # torch 2.13 copies a structure of its own that it deprecates
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        yield


FORMS: dict[str, Form] = {
    "onnx": Form(
        suffix=".onnx",
        packages=("torch", "onnx", "onnxscript", "onnxruntime"),
        extras="torch,onnx",
        tolerance=1e-5,
        write=_write_onnx,
        load=_load_onnx,
        read=_read_onnx,
    ),
    "program": Form(
        suffix=".pt2",
        packages=("torch",),
        extras="torch",
        tolerance=1e-6,
        write=_write_program,
        load=_load_program,
        read=_read_program,
    ),
}


def is_program(path: Path) -> bool:
    """Whether a path is a file with the suffix of a model for inference."""
    return not path.is_dir() and any(path.suffix.lower() == form.suffix for form in FORMS.values())


def read_program_description(path: Path) -> Weights:
    """What a model for inference says of itself, without its arrays; nothing in it is run.

    A note of a `.pt2` file names the release of torch that wrote it, and another one that is here.
    """
    (form,) = (form for form in FORMS.values() if path.suffix.lower() == form.suffix)
    try:
        metadata, num_tensors, release = form.read(path)
    except (OSError, ImportError):
        raise
    except Exception as error:  # of several kinds, for damaged files
        raise ConversionError(f"{path} is no whole {form.suffix} file: {error}") from error
    notes = () if release is None else (_release_note(release),)
    return Weights({}, **decode_description(path, metadata, num_tensors), notes=notes)


def _release_note(writer: str) -> str:
    try:
        here = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return f"written by torch {writer}"
    if here.partition("+")[0] == writer.partition("+")[0]:  # whatever it was built for
        return f"written by torch {writer}"
    return (
        f"written by torch {writer}, and torch here is {here}, which may not open it: then export "
        "it again from the weights"
    )
