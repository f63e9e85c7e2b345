"""The command line of the converter: `resnet-convert`, or `python -m convert`."""

import argparse
import contextlib
import difflib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from convert import files, folders, inference
from convert.atomic import check_text
from convert.diff import diff_command
from convert.errors import ConversionError
from convert.incoming import as_asked, as_ours
from convert.inspection import as_text, inspect
from convert.layouts import LAYOUTS, find_layout, write_layout
from convert.options import add_part, add_stated, as_options
from convert.runs.saved_run import write_run
from convert.sources import read_source
from convert.weights import Weights
from resnet_spec import PREPROCESSINGS

OURS = "flax-resnet"


@contextlib.contextmanager
def _ending_tidily() -> Iterator[None]:
    """Has SIGTERM end as Ctrl-C does, so that no half-written file stays behind."""
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
    """Runs one command; a mistake of the user's is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may have characters that it has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options: argparse.Namespace | None = None
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head`, which has what it wanted of a list
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no end
        if options is None or options.command in (_inspect, _layouts):
            return 0
        print("resnet-convert: standard output was closed", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("resnet-convert: interrupted", file=sys.stderr)
        return 130
    except (ConversionError, ValueError, OSError) as error:
        print(f"resnet-convert: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        print(f"resnet-convert: not enough memory for this: {reason}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"resnet-convert: this needs the package {error.name}: install it, or "
            "flax-resnet[torch,train] for everything",
            file=sys.stderr,
        )
        return 2


def _is_out_of_memory(error: Exception) -> bool:
    """Torch and JAX have RuntimeErrors for it."""
    text = str(error)
    return isinstance(error, MemoryError) or "memory" in text or "RESOURCE_EXHAUSTED" in text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-convert", description="Move ResNet weights between runs, files and packages."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_export(commands.add_parser("export", help="a run, or a file of ours, to a file"))
    _add_import(commands.add_parser("import", help="a file, ours or foreign, to ours or a new run"))

    look = commands.add_parser("inspect", help="what a file, a run or a folder holds")
    look.add_argument("source", type=Path)
    look.add_argument("--json", action="store_true", help="for programs")
    add_part(look)
    look.set_defaults(command=_inspect)

    diff_command.add_parser(commands)

    layouts = commands.add_parser("layouts", help="the layouts that are known")
    layouts.set_defaults(command=_layouts)
    return parser


def _add_export(parser: argparse.ArgumentParser) -> None:
    suffixes = ", ".join(files.SUFFIXES)
    parser.add_argument(
        "source", type=Path, help=f"folder of a training run, or {', '.join(files.READABLE)}"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        help=f"{suffixes}, .onnx or .pt2; with the layouts timm and transformers also a new "
        "folder, which their own loaders open",
    )
    parser.add_argument("--layout", default=OURS, help="names to write (see `layouts`)")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--weights",
        choices=("raw", "ema"),
        help="of a run that averages its weights: the newest or the average; default: the average",
    )
    inference.add_export_options(parser)
    _add_common(parser)
    parser.set_defaults(command=_export)


def _add_import(parser: argparse.ArgumentParser) -> None:
    suffixes = ", ".join(files.SUFFIXES)
    parser.add_argument(
        "source", type=Path, help=f"{', '.join(files.READABLE)}, or a Hugging Face folder"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        required=True,
        help=f"{suffixes}, or a new folder: a run to resume from",
    )
    parser.add_argument("--layout", help="names in the file (see `layouts` and `inspect`)")
    parser.add_argument("--model", help="name in our table; a file of ours knows its own")
    add_stated(parser)
    parser.add_argument(
        "--statistics-batch-size",
        type=int,
        help="record the batch that the running variances were taken over, for biased ones",
    )
    _add_common(parser)
    parser.set_defaults(command=_import)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_part(parser)
    parser.add_argument(
        "--head", default="keep", help="keep, drop, or new:N for a new one of N classes"
    )
    parser.add_argument(
        "--preprocessing",
        choices=(*PREPROCESSINGS, "none"),
        help="record how images were prepared, whatever the source says of it",
    )
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="take NaN, infinite values and negative variances, too",
    )


def _export(options: argparse.Namespace) -> None:
    output, layout = options.output, options.layout
    find_layout(layout)
    form = inference.choose_format(options)
    is_folder = layout in folders.LAYOUTS and output.suffix.lower() not in files.SUFFIXES
    if form is None:
        _check_output(output, is_folder=is_folder)
    else:
        _check_parent(output)
    source = read_source(
        options.source,
        step=options.step,
        average=options.weights,
        entry=options.entry,
        prefix=options.prefix,
        judge_values=False,  # to say all at once that is wrong with the tensors
        needs_preprocessing=options.preprocessing is None,
    )
    weights = source.weights
    if weights.classifier is None:
        raise ConversionError(
            f"{options.source} does not say which model it holds: use `import` first"
        )
    files.judge(
        options.source,
        weights,
        classifier=weights.classifier,
        allow_nonfinite=options.allow_nonfinite,
    )
    for note in weights.notes:
        print(f"note: {note}")
    weights = as_asked(weights, options)
    assert weights.classifier is not None
    if form is not None:
        print(inference.export_inference(weights, output, form, options.image_size))
        return
    lost = {} if layout == OURS else find_layout(layout).lost_fields(weights.classifier)
    if is_folder:
        folders.write_folder(output, weights, layout, allow_nonfinite=options.allow_nonfinite)
        lost = {name: value for name, value in lost.items() if name not in folders.RECORDED[layout]}
    else:
        if layout != OURS:  # a foreign file carries no description of the model, it is not ours
            arrays = write_layout(weights.arrays, weights.classifier, layout)
            weights = Weights(arrays, None, weights.preprocessing)
        files.write_weights(output, weights, allow_nonfinite=options.allow_nonfinite)
    if lost:
        print(
            f"note: the layout {layout} has no place for what `import` takes as {as_options(lost)}"
        )
    print(f"wrote {len(weights.arrays)} tensors to {output} in the layout {layout}")


def _import(options: argparse.Namespace) -> None:
    output = options.output
    is_folder = not output.suffix or output.suffix[1:].isdigit()  # runs/WideResNet28-10-0.0
    _check_output(output, is_folder=is_folder)
    if is_folder:
        check_text(output)
    if options.layout is not None:
        find_layout(options.layout)
    source = read_source(
        options.source,
        reset_counters=options.reset_counters,
        entry=options.entry,
        prefix=options.prefix,
        judge_values=False,  # to say all at once that is wrong with the tensors
        needs_preprocessing=options.preprocessing is None,
    )
    weights = as_asked(as_ours(source, options), options, is_headless=options.head != "keep")
    assert weights.classifier is not None
    notes, num_classes = list(weights.notes), weights.classifier.num_classes
    if num_classes is None and options.head == "keep":
        notes.append("there is no head: the model gives pooled features")
    elif not weights.classifier.head_bias:
        notes.append("the head has no bias")
    if is_folder:
        write_run(output, weights, allow_nonfinite=options.allow_nonfinite)
    else:
        files.write_weights(output, weights, allow_nonfinite=options.allow_nonfinite)
    for note in notes:
        print(f"note: {note}")
    head = "without a head" if num_classes is None else f"with a head of {num_classes} classes"
    print(f"wrote {len(weights.arrays)} tensors, {head}, to {output}")


def _inspect(options: argparse.Namespace) -> None:
    found = inspect(options.source, options.prefix, options.entry)
    print(json.dumps(found, indent=2) if options.json else as_text(found))


def _layouts(_: argparse.Namespace) -> None:
    width = max(map(len, LAYOUTS))
    print("\n".join(f"{name:{width}}  {layout.about}" for name, layout in LAYOUTS.items()))


def _check_output(output: Path, *, is_folder: bool) -> None:
    suffix = output.suffix.lower()
    is_meant_as_file = difflib.get_close_matches(suffix, files.READABLE, cutoff=0.8)
    if suffix not in files.SUFFIXES and (not is_folder or is_meant_as_file):
        raise ConversionError(f"{output}: weights are written to {', '.join(files.SUFFIXES)} files")
    _check_parent(output)


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise ConversionError(f"the folder {output.parent} does not exist")


if __name__ == "__main__":
    sys.exit(main())
