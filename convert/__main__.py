"""The command line of the converter: `resnet-convert`, or `python -m convert`."""

import argparse
import dataclasses
import sys
from pathlib import Path

from convert import checkpoints, files
from convert.errors import ConversionError
from convert.layouts import LAYOUTS, find_layout, read_layout, write_layout
from convert.models import check
from resnet_spec import SHORTCUTS, find_spec


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a mistake of the user's is one sentence on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ConversionError, ValueError, OSError) as error:
        print(f"resnet-convert: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"resnet-convert: this needs the package {error.name}: install it, or "
            "flax-resnet[torch,train] for everything",
            file=sys.stderr,
        )
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-convert", description="Move ResNet weights between runs, files and packages."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="a run's checkpoint, or a file of ours, to a file")
    export.add_argument("source", type=Path, help="folder of a training run, .safetensors or .pt")
    export.add_argument("-o", "--output", type=Path, required=True, help=".safetensors or .pt")
    export.add_argument("--layout", default="flax-resnet", help="names to write (see `layouts`)")
    export.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    export.add_argument(
        "--weights",
        choices=("raw", "ema"),
        help="of a run that averages its weights: the newest or the average; default: the average",
    )
    export.set_defaults(command=_export)

    bring = commands.add_parser("import", help="a file, ours or foreign, to our file or a new run")
    bring.add_argument("source", type=Path, help=".safetensors, .pt or .pth")
    bring.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=".safetensors or .pt, or a new folder: a run to resume from",
    )
    bring.add_argument("--layout", default="flax-resnet", help="names in the file (see `layouts`)")
    bring.add_argument("--model", help="name in our table; a file of ours knows its own")
    bring.add_argument(
        "--reset-counters", action="store_true", help="take missing num_batches_tracked as zero"
    )
    bring.add_argument("--shortcut", choices=SHORTCUTS, help="if it is not the model's default")
    bring.set_defaults(command=_import)

    layouts = commands.add_parser("layouts", help="the layouts that are known")
    layouts.set_defaults(command=lambda _: print("\n".join(LAYOUTS)))
    return parser


def _export(options: argparse.Namespace) -> None:
    source, output, layout = options.source, options.output, options.layout
    find_layout(layout)
    _check_output(output)
    if source.is_dir():
        weights = checkpoints.read_run(source, options.step, options.weights)
    elif options.step is not None or options.weights is not None:
        raise ConversionError(f"--step and --weights are for a run's folder: {source} is none")
    else:
        weights = files.read_weights(source)
    if weights.classifier is None:
        raise ConversionError(f"{source} does not say which model it holds: use `import` first")
    check(weights.classifier, weights.arrays)
    if layout != "flax-resnet":  # a foreign file carries no description of ours
        weights = files.Weights(write_layout(weights.arrays, weights.classifier, layout), None)
    files.write_weights(output, weights)
    print(f"wrote {len(weights.arrays)} tensors to {output} in the layout {layout}")


def _import(options: argparse.Namespace) -> None:
    source, output = options.source, options.output
    find_layout(options.layout)
    is_folder = not output.suffix or output.suffix[1:].isdigit()  # runs/WideResNet28-10-0.0
    if not is_folder:
        _check_output(output)
    is_foreign = options.layout != "flax-resnet" or options.reset_counters or options.shortcut
    if options.model is None and is_foreign:
        raise ConversionError("a foreign file needs --model, the name in our table")
    weights = files.read_weights(source)
    if options.model is not None:
        spec = find_spec(options.model)
        if options.shortcut is not None:
            spec = dataclasses.replace(spec, shortcut=options.shortcut)
        arrays, classifier = read_layout(
            weights.arrays, spec, options.layout, reset_counters=options.reset_counters
        )
        weights = files.Weights(arrays, classifier)
    if weights.classifier is None:
        raise ConversionError(f"{source} does not say which model it holds: give --model NAME")
    check(weights.classifier, weights.arrays)
    if not is_folder:
        files.write_weights(output, weights)
    else:
        checkpoints.write_run(output, weights)
    print(f"wrote {len(weights.arrays)} tensors to {output}")


def _check_output(output: Path) -> None:
    if output.suffix not in files.SUFFIXES:
        raise ConversionError(f"{output}: weights are written to {', '.join(files.SUFFIXES)} files")
    if not output.parent.is_dir():
        raise ConversionError(f"the folder {output.parent} does not exist")


if __name__ == "__main__":
    sys.exit(main())
