"""Reads a run's first weights from a file, and writes its model to one, checked in torch.

The only file of the trainer that uses the converter's layouts and torch.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import convert
from convert.arrays import digest
from convert.hub import shown
from convert.importing import Statement, as_ours
from convert.layouts import find_layout
from convert.leaves import as_flax
from convert.models import arrays_of
from convert.preprocessing import stated_fields
from convert.sources import Source, load_preprocessing, read_source
from resnet_spec import ClassifierSpec, Preprocessing, ResNetSpec
from resnet_spec.preprocessing import as_text, parse_preprocessing
from train.config import Config, flag, is_streamed
from train.config.fields import RESIZING
from train.data.dataset import Dataset, image_dtype, normalise
from train.errors import AbandonedError, UserError
from train.run.run_folder import SEEDS, saved_config

FROM_FILE = "file"  # of --preprocessing: what the weights say
FILE = "model.safetensors"
_BATCH = 250
MOST_STREAMED = 1_000  # images, a minute of torch on a CPU


class Loaded(NamedTuple):
    """Weights by Flax's names, remarks on them, and their preprocessing as JSON, if known."""

    arrays: dict[str, Any]
    notes: list[str]
    preprocessing: dict[str, Any] | None


def load_weights(config: Config, classifier: ClassifierSpec) -> Loaded:
    """The weights of `init_from`, for this model; a head of another size is left out.

    UserError if they cannot be read, have unknown names, or belong to another network.
    """
    path = config.init_from
    assert path is not None
    if (path / SEEDS).exists():
        names = ", ".join(sorted(place.name for place in path.glob("seed-*")))
        raise UserError(
            f"--init-from {path} holds the runs of several seeds: name the folder of one ({names})"
        )
    try:
        source = read_source(path).judged(keeps_preprocessing=config.preprocessing is None)
        weights = as_ours(source, _statement(config, classifier.network, source))
        found = weights.classifier
        assert found is not None
        if problems := found.network.differences(classifier.network):
            raise convert.ConversionError(
                f"the run's network is another (the fields of {config.model} can be changed by "
                "options of these names):",
                problems,
            )
    except (ValueError, OSError) as error:
        raise UserError(f"--init-from {shown(path)}: {error}") from error
    arrays, notes = weights.arrays, [f"starting from {shown(path)} ({source.form})", *weights.notes]
    shortcut = found.network.shortcut
    if source.weights.classifier is None and shortcut in ("identity", "centred_identity"):
        notes.append(f"tensors do not show where zeros are: taken as the run has it, {shortcut}")
    if found.num_classes != classifier.num_classes:
        arrays = {name: a for name, a in arrays.items() if not name.startswith("head.")}
        notes.append(f"a new head of {classifier.num_classes} classes, not {found.num_classes}")
    wide = image_dtype(config)
    flax_arrays = {
        name: array.astype(wide) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in as_flax(arrays).items()
    }
    preprocessing = weights.preprocessing
    return Loaded(flax_arrays, notes, None if preprocessing is None else preprocessing.to_json())


class Settled(NamedTuple):
    """A configuration whose preprocessing is settled, and how.

    Attributes:
        config: mean and deviation are in `preprocessing`, as numbers; it is None where nothing is
            said. Size, crop and interpolation of streamed images are the options of these names.
        is_stated: by the user, not by the weights.
        note: which of these options the preprocessing changed; empty for none.
    """

    config: Config
    is_stated: bool
    note: str = ""


def settle_preprocessing(config: Config, given: Collection[str] | None = None) -> Settled:
    """Takes the numbers of a preprocessing from where it is said.

    None and `file` are what the weights to start from or to test say: those of `init_from`, or of
    an imported run to resume. A resumed run recorded its numbers. Images in memory are not resized:
    of them, size, crop and interpolation are left out, unless the user writes them.

    Args:
        config: may name a file.
        given: the fields that the user gave as options, which count more than what a preprocessing
            says; None: those that are not the default.

    Raises:
        UserError: a file or a name does not exist, says nothing, or is damaged; an option and
            `preprocessing` give two sizes, crops or interpolations.
    """
    if given is None:
        given = [name for name in RESIZING if getattr(config, name) != getattr(Config, name)]
    text, path = config.preprocessing, config.init_from
    is_stated = text is not None and text.partition(",")[0] != FROM_FILE
    if config.resume and config.run_dir is not None and not is_stated:
        if (saved := saved_config(config.run_dir)) is not None:
            written = {} if text is None else _written(text)
            config = _resized(config, written, written, given)
            return Settled(dataclasses.replace(config, preprocessing=saved.preprocessing), False)
        path = config.run_dir if config.run_dir.is_dir() else None
    if not is_stated and path is None:
        if text is not None:
            raise UserError(f"--preprocessing {text} needs --init-from, the file that says it")
        return Settled(config, False)
    try:
        if text is None and load_preprocessing(str(path)) is None:
            return Settled(config, False)
        if not is_stated:
            text = f"{path}{(text or FROM_FILE).removeprefix(FROM_FILE)}"
        assert text is not None
        written, fields = _written(text), stated_fields(text)
    except (ValueError, OSError) as error:
        if config.preprocessing is None:
            return Settled(config, False)  # `load_weights` says what is wrong with the weights
        raise UserError(f"--preprocessing {config.preprocessing}: {error}") from error
    resized = _resized(config, fields, written, given)
    kept = {"mean", "std"} if is_streamed(config) else {"mean", "std", *written}
    numbers = {name: value for name, value in fields.items() if name in kept}
    changed = [name for name in RESIZING if getattr(resized, name) != getattr(config, name)]
    options = " ".join(f"{flag(name)} {getattr(resized, name)}" for name in changed)
    note = f"images are resized by {options}, as {shown(text)} says" if changed else ""
    return Settled(dataclasses.replace(resized, preprocessing=as_text(numbers)), is_stated, note)


def _written(text: str) -> dict[str, Any]:
    """The fields that a text gives by numbers, not by a name or a file."""
    return parse_preprocessing(text)[1]


def _resized(
    config: Config, fields: Mapping[str, Any], written: Mapping[str, Any], given: Collection[str]
) -> Config:
    """With the size, crop and interpolation of a preprocessing, but for options that are given."""
    if not is_streamed(config):
        return config
    if twice := [
        f"{flag(name)} {getattr(config, name)} and {as_text({name: written[name]})}"
        for name in RESIZING
        if name in given and name in written and written[name] != getattr(config, name)
    ]:
        raise UserError(
            f"--preprocessing {config.preprocessing}: {', '.join(twice)} contradict each other: "
            "leave one out"
        )
    changes = {name: fields[name] for name in RESIZING if name in fields and name not in given}
    return dataclasses.replace(config, **changes)


def _statement(config: Config, network: ResNetSpec, source: Source) -> Statement:
    """What the run says of weights that do not say themselves which network they are of."""
    layout = None if config.init_layout is None else find_layout(config.init_layout)
    if source.weights.classifier is not None:
        return Statement(layout=layout)
    return Statement(layout=layout, model=config.model, fields={"shortcut": network.shortcut})


@dataclass(frozen=True)
class Parity:
    """Both twins on the test set, in the model's own precision.

    Attributes:
        flax_error, torch_error: fraction of wrong images.
        largest_difference: of two logits. largest_logit: the magnitude to compare it with.
        different_predictions: number of images whose largest logit is another class.
    """

    images: int
    flax_error: float
    torch_error: float
    largest_difference: float
    largest_logit: float
    different_predictions: int

    def __str__(self) -> str:
        return (
            f"parity on {self.images} test images: Flax error {self.flax_error:.2%}, "
            f"torch error {self.torch_error:.2%}, largest logit difference "
            f"{self.largest_difference:.1e} (largest logit {self.largest_logit:.1f}), "
            f"{self.different_predictions} predictions differ"
        )


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def export(run_dir: Path, model: Any, preprocessing: Preprocessing) -> tuple[Path, str]:
    """Writes `model.safetensors` into the run's folder; its path, and the digest of the weights."""
    path = run_dir / FILE
    convert.save(path, model, preprocessing=preprocessing)
    return path, digest(arrays_of(model))


def check_parity(
    path: Path, model: Any, dataset: Dataset, dtype: Any, *, stops: Callable[[], bool]
) -> Parity | None:
    """Loads the file into the torch twin and runs the test set through both, as `dtype`.

    Streamed images: the first thousand; None if none of these can be read. AbandonedError if
    `stops`, which is called at each batch, says yes.
    """
    run_flax, run_torch = _flax_runner(model), torch_runner(convert.load(path, backend="torch"))
    outputs = []
    for images, labels in _test_images(dataset, dtype):
        if stops():
            raise AbandonedError(f"the check of {path} was abandoned")
        outputs.append((run_flax(images), run_torch(images), labels))
    if not outputs:
        return None
    flax_logits, torch_logits, labels = map(np.concatenate, zip(*outputs, strict=True))
    flax_classes, torch_classes = flax_logits.argmax(1), torch_logits.argmax(1)
    return Parity(
        images=len(labels),
        flax_error=float(np.mean(flax_classes != labels)),
        torch_error=float(np.mean(torch_classes != labels)),
        largest_difference=float(np.abs(flax_logits - torch_logits).max()),
        largest_logit=float(np.abs(flax_logits).max()),
        different_predictions=int(np.sum(flax_classes != torch_classes)),
    )


def _test_images(dataset: Dataset, dtype: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Normalised images (n, h, w, c) and labels (n,), batch by batch."""
    test = dataset.test.sample(MOST_STREAMED) if dataset.is_streamed else dataset.test
    for start in range(0, len(test), _BATCH):
        part = slice(start, start + _BATCH)
        yield normalise(test.images[part], dataset, dtype), test.labels[part]


def _flax_runner(model: Any) -> Any:
    graph, state = nnx.split(model)

    @jax.jit
    def logits(state: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state, copy=True)(images)

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):  # accelerators default to less
            return np.asarray(logits(state, images))

    return run


def torch_runner(model: Any) -> Any:
    """A function of normalised images (n, h, w, c) that returns a torch model's logits (n, k)."""
    import torch

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return run
