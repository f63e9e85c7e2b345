"""The command line of the converter: `resnet-convert`, or `python -m convert`."""

import argparse
import contextlib
import difflib
import importlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from convert import folders
from convert.atomic import check_text
from convert.diff import diff_command
from convert.errors import ConversionError
from convert.files import READABLE, SUFFIXES, write_weights
from convert.folding import EPSILON
from convert.guess import as_options
from convert.importing import Statement, as_ours, change_as_asked
from convert.inference import FORMS, export_onnx, export_program
from convert.inspection import as_text, inspect
from convert.layouts import LAYOUTS, OURS, Layout, find_layout, write_layout
from convert.models import judge
from convert.names import read_map, under_original_names, with_names
from convert.options import add_part, add_stated, stated
from convert.preprocessing import HELP
from convert.runs.saved_run import write_run
from convert.sources import read_source
from convert.weights import Weights
from resnet_spec import PREPROCESSINGS

_DESCRIPTION = """\
Moves the weights of ResNets between training runs, files of weights, models for inference and
other packages. A file is written whole or not at all, and every tensor is accounted for.
"""


@contextlib.contextmanager
def _ending_tidily() -> Iterator[None]:
    """Ends on SIGTERM as on Ctrl-C, so that no half-written file stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_ending_tidily()
def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a user's mistake is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # which may lack characters of file names
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options: argparse.Namespace | None = None
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes the rest
        if options is None or options.command in (_inspect, _layouts):
            return 0
        sentence = "standard output was closed"
    except KeyboardInterrupt:
        print("resnet-convert: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # a ConversionError among them
        sentence = str(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        sentence = f"not enough memory for this: {reason}"
    except ModuleNotFoundError as error:
        everything = "flax-resnet[torch,train] for everything"
        sentence = f"this needs the package {error.name}: install it, or {everything}"
    print(f"resnet-convert: {sentence}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    """Torch and JAX raise a RuntimeError for it."""
    text = str(error)
    return isinstance(error, MemoryError) or "memory" in text or "RESOURCE_EXHAUSTED" in text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet-convert", description=_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_import(commands)

    text = "show what a file, a run or a folder holds"
    look = commands.add_parser("inspect", help=text, description=f"{text.capitalize()}.")
    look.add_argument("source", type=Path, help="file of weights, training run or model folder")
    look.add_argument("--json", action="store_true", help="write JSON, for programs")
    look.add_argument(
        "--names",
        action="store_true",
        help="print our name and the file's name of every tensor; with --json the map that "
        "`import --names` reads",
    )
    _add_rename(look)
    add_part(look)
    look.set_defaults(command=_inspect)

    diff_command.add_parser(commands)

    text = "run a model folder in its own package, and compare errors and pixels with ours"
    check = commands.add_parser("check", help=text, description=f"{text.capitalize()}.")
    check.add_argument("folder", type=Path, help="model folder of timm or transformers, any origin")
    check.add_argument(
        "--data", required=True, help="imagenet2012, or folder:PATH with test/CLASS/ or val/CLASS/"
    )
    check.add_argument(
        "--data-dir",
        type=Path,
        help="folder of tensorflow-datasets; default: TFDS_DATA_DIR, or ~/tensorflow_datasets",
    )
    check.add_argument(
        "--images", type=int, default=1000, help="number of test images; default: 1000"
    )
    check.set_defaults(command=_check)

    text = "list the known layouts"
    layouts = commands.add_parser("layouts", help=text, description=f"{text.capitalize()}.")
    layouts.set_defaults(command=_layouts)
    return parser


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "export",
        help="write a run, or a file of ours, as another file",
        description="Writes the weights of a run, or of a file that says which model it holds, to "
        "a file: with our names or another package's, or as a model for inference.",
    )
    parser.add_argument(
        "source", type=Path, help=f"folder of a training run, or {', '.join(READABLE)}"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        help=f"{', '.join(SUFFIXES)}, .onnx or .pt2; with the layouts timm and transformers also "
        "a new folder, which these packages open",
    )
    parser.add_argument(
        "--layout",
        default=OURS.name,
        help="whose names to write (see `resnet-convert layouts`); default: ours",
    )
    parser.add_argument(
        "--names",
        choices=("original",),
        help="write the names, and their order, of the file that was imported",
    )
    parser.add_argument("--step", type=int, help="step of the run's checkpoint; default: newest")
    parser.add_argument(
        "--weights",
        choices=("raw", "ema"),
        help="of a run that averages its weights: the newest or the average; default: the average",
    )
    inference = parser.add_argument_group("models for inference")
    inference.add_argument(
        "--format", choices=FORMS, help="default: by the suffix, .onnx or .pt2, else weights"
    )
    inference.add_argument(
        "--image-size",
        type=int,
        help="height and width of the images; default: the preprocessing's, else 32 or 224",
    )
    _add_common(parser)
    parser.set_defaults(command=_export)


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="make a file of ours, or a new run, from any weights",
        description="Reads weights under our names or another package's, and writes a file that "
        "says which model it holds, or a run to resume. Without --layout and --model it takes a "
        "known layout that every tensor fits, else it recognises the network by the shapes and "
        "the order of the tensors, whatever their names are.",
    )
    parser.add_argument(
        "source", type=Path, help=f"{', '.join(READABLE)}, a model folder, or hf://OWNER/NAME"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        help=f"{', '.join(SUFFIXES)}, or a new folder: a run to resume",
    )
    parser.add_argument(
        "--layout",
        help="whose names the file has (see `resnet-convert layouts` and `inspect`); default: "
        "what fits",
    )
    parser.add_argument(
        "--model",
        help="name of the model in our table; not needed where the source says it, or its tensors",
    )
    _add_rename(parser)
    parser.add_argument(
        "--names",
        type=Path,
        metavar="MAP.json",
        help="JSON file: our names -> the file's, of layers or tensors; as many as are needed",
    )
    parser.add_argument(
        "--statistics-batch-size",
        type=int,
        help="batch size to record for biased running variances",
    )
    parser.add_argument(
        "--epsilon",
        type=_positive,
        help="of the file's BatchNorms, folded into their variances (Keras: 1.001e-5); default: "
        "1e-5",
    )
    add_stated(parser)
    _add_common(parser)
    parser.set_defaults(command=_import)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _add_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="replace plain text anywhere in the names of a file's tensors, after --prefix and "
        "before all else; may be repeated, and is done in that order",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_part(parser)
    parser.add_argument(
        "--head",
        default="keep",
        help="keep, drop, or new:N for a new one of N classes; default: keep",
    )
    parser.add_argument(
        "--preprocessing",
        help=f"how images were prepared, instead of what the source says: {HELP}; or none. Names: "
        + ", ".join(PREPROCESSINGS),
    )
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="accept NaN, infinite values and negative variances",
    )


def _export(options: argparse.Namespace) -> None:
    output, layout = options.output, find_layout(options.layout)
    format = _choose_format(output, options.format, layout, options.image_size)
    is_folder = layout.name in folders.PACKAGES and output.suffix.lower() not in SUFFIXES
    if options.names and (layout != OURS or format is not None):
        raise ConversionError("--names is for files of weights, without --layout")
    if format is None:
        _check_output(output, is_folder=is_folder)
    source = read_source(
        options.source,
        step=options.step,
        average=options.weights,
        entry=options.entry,
        prefix=options.prefix,
    ).accepted(keeps_preprocessing=options.preprocessing is None)
    if source.weights.classifier is None:
        raise ConversionError(
            f"{options.source} does not say which model it holds: use `import` first"
        )
    judge(options.source, source.weights, allow_nonfinite=options.allow_nonfinite)
    weights = change_as_asked(source.weights, options.head, options.preprocessing)
    assert weights.classifier is not None
    _print_notes(weights.notes)
    if format is not None:
        export = {"onnx": export_onnx, "program": export_program}[format]
        done = export(weights, output, image_size=options.image_size)
        shape = ", ".join(map(str, ("batch", *done.image_shape)))
        print(
            f"wrote {output}: images ({shape}) float32 to logits, largest difference from the "
            f"torch twin {done.largest_difference:.1e} of the largest logit"
        )
        return
    lost = {} if layout == OURS else layout.lost_fields(weights.classifier)
    if options.names:
        lost = OURS.lost_fields(weights.classifier)
        if (shortcut := weights.classifier.network.shortcut) == "centred_identity":
            lost["shortcut"] = shortcut  # not what tensors are taken for
    if is_folder:
        folders.write_folder(output, weights, layout, allow_nonfinite=options.allow_nonfinite)
        recorded = folders.RECORDED[layout.name]
        lost = {name: value for name, value in lost.items() if name not in recorded}
        if layout.name == "transformers" and weights.preprocessing is not None:
            _print_notes([folders.WITHOUT_TIMM])
    else:
        if options.names:
            arrays, notes = under_original_names(weights)
            _print_notes(notes)
            weights = Weights(arrays, None, weights.preprocessing)
        elif layout != OURS:  # the model's description is for our names
            arrays = write_layout(weights.arrays, weights.classifier, layout)
            weights = Weights(arrays, None, weights.preprocessing)
        write_weights(output, weights, allow_nonfinite=options.allow_nonfinite)
    said = "the author's naming" if options.names else f"the layout {layout.name}"
    if lost:
        _print_notes([f"{said} has no place for what `import` takes as {as_options(lost)}"])
    print(f"wrote {len(weights.arrays)} tensors to {output} in {said}")


def _choose_format(
    output: Path, asked: str | None, layout: Layout, image_size: int | None
) -> str | None:
    """The format of a model for inference, a key of `FORMS`; None for a file of weights."""
    by_suffix = {form.suffix: name for name, form in FORMS.items()}
    format = asked or by_suffix.get(output.suffix.lower())
    if format is None:
        if image_size is not None:
            raise ConversionError(f"--image-size is for a model for inference, not for {output}")
        return None
    FORMS[format].check_suffix(output)
    check_text(output)
    if layout != OURS:
        raise ConversionError(f"--layout is for weights: {output} holds a model")
    _check_parent(output)
    return format


def _import(options: argparse.Namespace) -> None:
    output = options.output
    is_folder = not output.suffix or output.suffix[1:].isdigit()  # runs/WideResNet28-10-0.0
    _check_output(output, is_folder=is_folder)
    if is_folder:
        check_text(output)
    said = Statement(
        layout=None if options.layout is None else find_layout(options.layout),
        model=options.model,
        fields=stated(options),
        names=None if options.names is None else read_map(options.names),
        epsilon=EPSILON if options.epsilon is None else options.epsilon,
        statistics_batch_size=options.statistics_batch_size,
        reset_counters=options.reset_counters,
        allow_nonfinite=options.allow_nonfinite,
    )
    source = read_source(
        options.source,
        reset_counters=options.reset_counters,
        entry=options.entry,
        prefix=options.prefix,
    ).accepted(keeps_preprocessing=options.preprocessing is None)
    source = with_names(source, options.rename)
    keeps_head = options.head == "keep"
    weights = as_ours(source, said, options.head)
    weights = change_as_asked(
        weights, options.head, options.preprocessing, is_headless=not keeps_head
    )
    if is_folder:
        write_run(output, weights, allow_nonfinite=options.allow_nonfinite)
    else:
        write_weights(output, weights, allow_nonfinite=options.allow_nonfinite)
    assert weights.classifier is not None
    _print_notes(weights.notes)
    num_classes = weights.classifier.num_classes
    if num_classes is None and keeps_head:
        _print_notes(["there is no head: the model gives pooled features"])
    elif not weights.classifier.head_bias:
        _print_notes(["the head has no bias"])
    head = "without a head" if num_classes is None else f"with a head of {num_classes} classes"
    print(f"wrote {len(weights.arrays)} tensors, {head}, to {output}")


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _inspect(options: argparse.Namespace) -> None:
    found = inspect(
        options.source,
        options.prefix,
        options.entry,
        renames=options.rename,
        has_names=options.names,
    )
    print(json.dumps(found, indent=2) if options.json else as_text(found))


def _check(options: argparse.Namespace) -> None:
    # the trainer reads pictures, and may import this package; this package imports no trainer
    importlib.import_module("train.run.check_command").main(options)


def _layouts(_: argparse.Namespace) -> None:
    width = max(map(len, LAYOUTS))
    print("\n".join(f"{name:{width}}  {layout.about}" for name, layout in LAYOUTS.items()))


def _check_output(output: Path, *, is_folder: bool) -> None:
    suffix = output.suffix.lower()
    is_meant_as_file = difflib.get_close_matches(suffix, READABLE, cutoff=0.8)
    if suffix not in SUFFIXES and (not is_folder or is_meant_as_file):
        raise ConversionError(f"{output}: weights are written to {', '.join(SUFFIXES)} files")
    _check_parent(output)


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise ConversionError(f"the folder {output.parent} does not exist")


if __name__ == "__main__":
    sys.exit(main())
