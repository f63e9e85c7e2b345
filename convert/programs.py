"""A torch twin traced, written and run again, as a torch.export program or as ONNX."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.errors import ConversionError
from convert.formats.archives import open_archive
from convert.weights import LARGEST_DESCRIPTION, Weights, decode_description
from resnet_spec.classifier import DESCRIPTION_KEY

if TYPE_CHECKING:
    import torch

Run = Callable[[np.ndarray], np.ndarray]  # images (n, c, h, w) -> logits (n, classes)
Traced = Any  # a torch.export.ExportedProgram

_TRACED_BATCH_SIZE = 2  # torch takes sizes of 0 and 1 for constants
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: a protocol buffer ends at 2 GiB


@dataclass(frozen=True)
class Form:
    """One form of a model for inference.

    Attributes:
        suffix: of its files.
        packages: that writing and checking it needs, and `extras`, which brings them.
        tolerance: largest difference from the torch twin, relative to the largest logit.
        write: a traced model and text by name, to a file.
        load: a file as a function, and the text that it carries.
        read: the text that a file carries, and how many tensors it has; nothing in it is run.
    """

    suffix: str
    packages: tuple[str, ...]
    extras: str
    tolerance: float
    write: Callable[[Traced, Path, Mapping[str, str]], None]
    load: Callable[[Path], tuple[Run, dict[str, str]]]
    read: Callable[[Path], tuple[dict[str, str], int]]

    def check_packages(self) -> None:
        """Raises a ConversionError that names the packages that are not installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConversionError(
                f"{self.suffix} files need the package {' and '.join(missing)}: install "
                f"flax-resnet[{self.extras}]"
            )


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
    """Torch's tracing reads cuDNN's flags the old way, which fails once one is set the new way."""
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

    # Not to the file itself: torch's writer ends the whole process where the disk is full.
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


def _read_program(path: Path) -> tuple[dict[str, str], int]:
    with open_archive(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("models/model.json") for name in names):
            raise ValueError("it holds no program")  # a cut one may end in an archive within it
        texts = {}
        for name in names:
            folder, _, key = name.rpartition("/")
            if folder.endswith("extra") and key == DESCRIPTION_KEY:
                with archive.open(name) as member:
                    texts[key] = member.read(LARGEST_DESCRIPTION + 1).decode()
        return texts, len(names)


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


def _read_onnx(path: Path) -> tuple[dict[str, str], int]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:  # an empty file is a whole message, too
        raise ValueError("it holds no graph")
    return {entry.key: entry.value for entry in model.metadata_props}, len(model.graph.initializer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter about torch itself."""
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
    """Whether a path is a file whose suffix is that of a model for inference."""
    return not path.is_dir() and any(path.suffix.lower() == form.suffix for form in FORMS.values())


def read_description(path: Path) -> Weights:
    """What a model for inference says of itself, without its arrays; nothing in it is run.

    Raises:
        ConversionError: it is damaged.
        ImportError: the package onnx, which reads its files, is not installed.
        OSError: it cannot be read.
    """
    (form,) = (form for form in FORMS.values() if path.suffix.lower() == form.suffix)
    try:
        metadata, num_tensors = form.read(path)
    except (OSError, ImportError):
        raise
    except Exception as error:  # of several kinds, for damaged files
        raise ConversionError(f"{path} is no whole {form.suffix} file: {error}") from error
    return Weights({}, **decode_description(path, metadata, num_tensors))
