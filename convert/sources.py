"""Anything that holds weights, read alike: a file, a training run, a Hugging Face folder."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convert.errors import ConversionError
from convert.files import READABLE, read_description, read_file
from convert.folders import (
    is_model_folder,
    is_of_folder,
    layout_of,
    network_beside,
    read_folder,
)
from convert.formats.contents import TENSORFLOW_ADVICE, TENSORFLOWS
from convert.hub import fetch, is_address
from convert.inference import is_program, read_program_description
from convert.layouts import Layout
from convert.models import judge
from convert.runs.foreign import find_tree, read_tree
from convert.runs.saved_run import read_run
from convert.shards import SUFFIX, read_shards
from convert.weights import Weights
from resnet_spec import Preprocessing, ResNetSpec


@dataclass(frozen=True)
class Source:
    """Whatever was read, good or bad; `accepted` and `judged` refuse what is bad.

    Attributes:
        path: the file or folder.
        weights: the arrays, under our names if they are those of a model folder, with faults.
        form: of the source, in a few words.
        layout: the package that a model folder is of.
        beside: the network of a file without a description, by the `config.json` in its folder.
        refused: why that `config.json` describes a network that the table does not have, if so.
    """

    path: Path
    weights: Weights
    form: str
    layout: Layout | None = None
    beside: ResNetSpec | None = None
    refused: ConversionError | None = None

    def accepted(self, *, keeps_preprocessing: bool = True) -> "Source":
        """The source, unless a `config.json` describes what this table does not have.

        A preprocessing that is not kept is left out with a note, if it cannot be expressed.
        """
        if self.refused is not None:
            raise self.refused
        if (unsaid := self.weights.unsaid) is None:
            return self
        if keeps_preprocessing:
            raise unsaid
        notes = (*self.weights.notes, f"left out: its preprocessing: {unsaid}")
        return replace(self, weights=replace(self.weights, notes=notes))

    def judged(self, *, keeps_preprocessing: bool = True) -> "Source":
        """As `accepted`; faults, and values that no weight has, are a ConversionError, too."""
        source = self.accepted(keeps_preprocessing=keeps_preprocessing)
        judge(self.path, source.weights, as_described=False)
        return source

    def check_beside(self, spec: ResNetSpec) -> None:
        """Raises a ConversionError if the `config.json` beside the file has another network."""
        if self.beside is not None and (problems := spec.differences(self.beside)):
            raise ConversionError(
                f"the config.json beside {self.path} says that it is of another network (move the "
                "file away if that is not its configuration):",
                problems,
            )


def read_source(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    average: Literal["raw", "ema"] | None = None,
    entry: str = "",
    prefix: str = "",
    reset_counters: bool = False,
) -> Source:
    """Whatever is at a path, with its faults.

    Args:
        path: a file of weights, the folder of a training run or of any Orbax checkpoint, a Hugging
            Face folder, or the address of such a folder on the hub, `hf://OWNER/NAME`.
        step: of a run's checkpoint; None is the newest.
        average: the run's newest weights or their moving average; None is the average if any.
        entry: which state dict of several in what `torch.save` wrote.
        prefix: take only the tensors of a file whose names begin with it, and remove it.
        reset_counters: take missing `num_batches_tracked` of a model folder as zero.

    Raises:
        ConversionError: it is none of these, or it is damaged.
        OSError: it cannot be read.
    """
    if is_address(path):
        found = fetch(path, READABLE)
        has_package = found.has_configuration and layout_of(found.file.parent) is not None
        if has_package and is_of_folder(found.file) and not (entry or prefix):
            source = _read_model_folder(found.file.parent, reset_counters, found.file)
        else:
            source = read_source(found.file, entry=entry, prefix=prefix)
        notes = (found.note, *source.weights.notes)
        return replace(source, weights=replace(source.weights, notes=notes))
    path = Path(path)
    path.stat()  # a clear FileNotFoundError or PermissionError before any guess at its form
    is_hugging_face = is_model_folder(path)
    is_run = path.is_dir() and not is_hugging_face
    tree = find_tree(path, step) if is_run and average is None else None
    if not is_run and (step is not None or average is not None):
        raise ConversionError(f"--step and --weights are for a run's folder, and {path} is none")
    for option, value in (("--entry", entry), ("--prefix", prefix)):
        if value and path.is_dir():
            raise ConversionError(
                f"{option} is for a file of weights, and {path} is a folder: name the file in it"
            )
    if is_hugging_face:
        return _read_model_folder(path, reset_counters)
    if tree is not None:
        return Source(path, read_tree(tree), "Orbax checkpoint of another program")
    if is_run and any(map(TENSORFLOWS.search, (inner.name for inner in path.iterdir()))):
        raise ConversionError(f"{path} {TENSORFLOW_ADVICE}")
    if is_run:
        weights = read_run(path, step, average, allow_nonfinite=True)
        return Source(path, weights, "training run (Orbax)")
    if path.name.endswith(SUFFIX):
        if entry:
            raise ConversionError(
                f"--entry is for one file of torch.save, and {path} is an index of several: leave "
                "it out, or name the file"
            )
        return Source(path, read_shards(path, prefix), "index of several files")
    source = Source(path, read_file(path, entry=entry, prefix=prefix), f"{path.suffix} file")
    if source.weights.classifier is not None:
        return source
    try:
        beside = network_beside(path, source.weights)
    except ConversionError as error:
        return replace(source, refused=error)
    if beside is None:
        return source
    note = (
        "left out: how images were prepared and what the classes are called, as far as the "
        f"folder says it: give the folder, {path.parent}, to take that too"
    )
    weights = replace(source.weights, notes=(*source.weights.notes, note))
    return replace(source, weights=weights, beside=beside)


def _read_model_folder(folder: Path, reset_counters: bool, file: Path | None = None) -> Source:
    """A folder of another package or ours, and the file in it that is named, if one is."""
    weights = read_folder(folder, reset_counters=reset_counters, file=file)
    layout = layout_of(folder)
    name = "ours" if layout is None else layout.name
    return Source(folder, weights, f"model folder of {name}", layout)


def load_preprocessing(path: str | os.PathLike[str]) -> Preprocessing | None:
    """How images were prepared, as a file, a run, a folder or a model for inference says it.

    Returns:
        None where it says nothing.

    Raises:
        ConversionError: the path is none of these, what it says is damaged, or `Preprocessing`
            cannot express how a Hugging Face folder prepares images.
        OSError: it cannot be read.
    """
    return _described(path).accepted().weights.preprocessing


def load_statistics_batch_size(path: str | os.PathLike[str]) -> int | None:
    """The batch size that the running variances were taken over; None where nothing says it.

    Raises: as `load_preprocessing`.
    """
    classifier = _described(path).weights.classifier
    return None if classifier is None else classifier.statistics_batch_size


def _described(path: str | os.PathLike[str]) -> Source:
    """A source of which only the description is wanted."""
    if is_address(path):
        return read_source(path, reset_counters=True)
    path = Path(path)
    if path.is_dir():
        return read_source(path, reset_counters=True)
    if is_program(path):
        return Source(path, read_program_description(path), f"{path.suffix} file")
    return Source(path, read_description(path), f"{path.suffix} file")
