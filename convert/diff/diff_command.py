"""`resnet-convert diff`: where two files or runs differ, or one in both frameworks."""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from convert import folders
from convert.arrays import to_numpy
from convert.errors import ConversionError
from convert.layouts import OURS, find_layout, read_layout
from convert.models import build_flax, build_torch
from convert.options import add_part, add_stated, stated
from convert.parity.compare import compare
from convert.parity.precision import DEVICES, FRAMEWORKS, PRECISIONS, raise_defaults
from convert.runs.saved_run import find_checkpoint, has_average
from convert.sources import Source, read_source
from resnet_spec import ClassifierSpec

_DESCRIPTION = """\
Runs two networks on one batch, layer by layer, in float64 and in another precision. Says whether
they are the same function, and if not, where they first differ. With one file, its torch twin is
compared with its Flax twin; options not given for B are then those of A. Exit code: 0 the same,
1 different, even if only in counters of batches, 2 a mistake in the command.
"""


def add_parser(commands: Any) -> None:
    """Adds the command to those of `resnet-convert`."""
    parser = commands.add_parser(
        "diff", help="where two models differ, layer by layer", description=_DESCRIPTION
    )
    parser.add_argument("source_a", metavar="A", type=Path, help="file of weights, or a run")
    parser.add_argument(
        "source_b", metavar="B", type=Path, nargs="?", help="likewise; default: A again"
    )
    for side, backend in (("a", "torch"), ("b", "flax")):
        title = side.upper()
        parser.add_argument(
            f"--backend-{side}",
            choices=FRAMEWORKS,
            default=backend,
            help=f"framework that runs {title}; default: {backend}",
        )
        for name, text in (
            ("layout", "names in the file {}, if they are not ours"),
            ("entry", "state dict to read from the file {}, if torch.save wrote several"),
            ("prefix", "prefix of the names to read from the file {}"),
        ):
            text = text.format(title)
            parser.add_argument(f"--{name}-{side}", metavar=name.upper(), help=text)
        parser.add_argument(
            f"--step-{side}", type=int, metavar="STEP", help=f"step of the run {title}"
        )
        parser.add_argument(
            f"--weights-{side}",
            choices=("raw", "ema"),
            help=f"of a run {title} that averages its weights: the newest or the average; "
            "default: the average",
        )
    parser.add_argument("--layout", help="names in both files, unless given for one")
    parser.add_argument("--model", help="name in our table, for a file without a description")
    add_part(parser)
    add_stated(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="second precision, beside float64; default: f32",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    parser.add_argument(
        "--images", type=Path, metavar="FILE.npy", help="images (n, h, w, c), normalised"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE.npy", help="classes (n,), for the cross-entropy loss"
    )
    parser.add_argument("--batch", type=int, default=4, help="number of random images; default: 4")
    parser.add_argument(
        "--size",
        type=int,
        help="height and width of random images; default: 32 for models for small images, else 64",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of random images and of the loss; default: 0"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a plot")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from convert.parity.terminal import print_tables  # its package may not be installed

    _check_options(options)
    sides = _sides(options)
    backends = sides[0].backend, sides[1].backend
    raise_defaults(backends, options.device)
    sources = [_open(side, options) for side in sides]
    if all(source.weights.classifier is not None for source in sources):
        _check_stated(sources, options)
    weights = [_read(*pair, options) for pair in zip(sides, sources, strict=True)]
    images = _images(options, weights[0][0])  # before the networks are built, as it may fail
    models = [
        (build_torch if backend == "torch" else build_flax)(classifier, arrays)
        for backend, (classifier, arrays) in zip(backends, weights, strict=True)
    ]
    comparison = compare(
        models[0],
        models[1],
        images,
        None if options.labels is None else _load_array(options.labels),
        precision=options.precision,
        device=options.device,
        seed=options.seed,
        titles=(f"A: {_title(sides[0])}", f"B: {_title(sides[1])}"),
    )
    if options.json is not None:
        comparison.json(options.json)
    if options.html is not None:
        comparison.html(options.html)
    print_tables(comparison)
    return 0 if comparison.verdict.same else 1


class _Side(NamedTuple):
    """The options of one of the two."""

    source: Path
    backend: Literal["torch", "flax"]
    layout: str | None
    entry: str | None
    prefix: str | None
    step: int | None
    weights: Literal["raw", "ema"] | None


def _sides(options: argparse.Namespace) -> tuple[_Side, _Side]:
    """A and B. If B is A again, options not given for B are those of A."""
    given = vars(options)
    choices = [{name: given[f"{name}_{side}"] for name in _Side._fields} for side in "ab"]
    if options.source_b is None:
        choices[1] = {n: choices[0][n] if v is None else v for n, v in choices[1].items()}
    for choice in choices:
        for name in ("layout", "entry", "prefix"):
            choice[name] = choice[name] or getattr(options, name)
    return _Side(**choices[0]), _Side(**choices[1])


def _title(side: _Side) -> str:
    """`runs/a (step 10, moving average) in torch`: what was read from a run."""
    if not side.source.is_dir() or folders.is_model_folder(side.source):
        return f"{side.source} in {side.backend}"
    checkpoint = find_checkpoint(side.source, side.step)
    chosen = f"step {checkpoint.name}"
    if has_average(checkpoint):
        chosen += ", newest weights" if side.weights == "raw" else ", moving average"
    return f"{side.source} ({chosen}) in {side.backend}"


def _check_options(options: argparse.Namespace) -> None:
    """Finds mistakes before the work that they would waste."""
    problems = []
    for name, path in (("json", options.json), ("html", options.html)):
        if path is not None and not path.parent.is_dir():
            problems.append(f"--{name} {path}: the folder {path.parent} does not exist")
        elif path is not None and path.is_dir():
            problems.append(f"--{name} {path} is a folder")
    if options.json is not None and options.json == options.html:
        problems.append(f"--json and --html are both {options.json}")
    for layout in (options.layout, options.layout_a, options.layout_b):
        if layout is not None:
            find_layout(layout)
    for name in ("batch", "size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            problems.append(f"--{name} must be positive, not {value}")
    if options.seed < 0:
        problems.append(f"--seed must not be negative, not {options.seed}")
    if problems:
        raise ConversionError("this comparison cannot be made:", problems)


def _open(side: _Side, options: argparse.Namespace) -> Source:
    return read_source(
        side.source,
        step=side.step,
        average=side.weights,
        entry=side.entry or "",
        prefix=side.prefix or "",
        reset_counters=options.reset_counters,
    ).judged(keeps_preprocessing=False)


def _check_stated(sources: Iterable[Source], options: argparse.Namespace) -> None:
    """Refuses options that contradict the descriptions in files, which are read instead."""
    problems: list[str] = []
    rates = {"running_variance", *stated(options)}  # a model's name implies others
    for source in sources:
        assert source.weights.classifier is not None
        spec = source.weights.classifier.network
        asked = OURS.network(options.model) if options.model else spec
        asked = dataclasses.replace(asked, in_planes=spec.in_planes, **stated(options))
        problems += asked.differences(spec)
        training = asked.training_differences(spec)
        problems += [problem for problem in training if problem.partition(":")[0] in rates]
    if problems:
        problems = list(dict.fromkeys(problems))
        raise ConversionError("the files describe another model than the options:", problems)


def _read(
    side: _Side, source: Source, options: argparse.Namespace
) -> tuple[ClassifierSpec, dict[str, np.ndarray]]:
    """The description and the arrays, under our names, of a file, a run or a folder."""
    arrays, classifier = dict(source.weights.arrays), source.weights.classifier
    if classifier is not None:
        return classifier, arrays
    if options.model is None:
        raise ConversionError(
            f"{side.source} does not say which model it holds: give --model NAME, and --layout "
            "if its names are not ours"
        )
    layout = OURS if side.layout is None else find_layout(side.layout)
    spec = layout.network(options.model, arrays, **stated(options))
    source.check_beside(spec)
    arrays, classifier = read_layout(arrays, spec, layout, reset_counters=options.reset_counters)
    return classifier, arrays


def _images(options: argparse.Namespace, classifier: ClassifierSpec) -> np.ndarray:
    if options.images is not None:
        return _load_array(options.images)
    network = classifier.network
    size = options.size or (32 if network.small_images else 64)
    shape = (options.batch, size, size, network.in_planes)
    return np.random.default_rng(options.seed).standard_normal(shape)


def _load_array(path: Path) -> np.ndarray:
    try:
        return to_numpy(np.load(path, allow_pickle=False))
    except OSError:
        raise
    except Exception as error:  # NumPy raises several kinds for other formats
        raise ConversionError(
            f"{path} is not a .npy file with an array of numbers: {error}"
        ) from error
