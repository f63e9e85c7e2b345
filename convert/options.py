"""Options by which a user states what a peer's file does not say, alike in several commands."""

import argparse
from collections.abc import Mapping
from typing import Any

from resnet_spec import CHOICES, DIALECT, RATES

# Fields of the spec that a user may have to state: other packages' names do not show them.
_STATED = ("shortcut", *DIALECT, *RATES)


def add_stated(parser: argparse.ArgumentParser) -> None:
    """Adds `--reset-counters` and an option for each field that names of tensors do not show."""
    parser.add_argument(
        "--reset-counters",
        action="store_true",
        help="take num_batches_tracked that are missing, or no int64, as zero",
    )
    for name in _STATED:
        flag = f"--{name.replace('_', '-')}"
        if name in RATES:
            parser.add_argument(
                flag, type=float, help="of training, if it is not the model's usual"
            )
        else:
            parser.add_argument(flag, choices=CHOICES[name], help="if it is not the layout's usual")


def add_part(parser: argparse.ArgumentParser) -> None:
    """Adds `--entry` and `--prefix`: which part of a file is meant."""
    parser.add_argument(
        "--entry",
        default="",
        help="of the state dicts in what torch.save wrote, the one to take, as state_dict_ema",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="take only the tensors of a file whose names begin so, as encoder., and take it off",
    )


def as_options(fields: Mapping[str, Any]) -> str:
    """Fields as a user states them: `--bottleneck-stride 1x1`."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in fields.items())


def stated(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the spec that the user states."""
    return {name: value for name in _STATED if (value := getattr(options, name)) is not None}
