"""Options that several commands of `resnet-convert` share."""

import argparse
from typing import Any

from resnet_spec import CHOICES, DIALECT, RATES

# Fields of the spec that a user may have to state: other packages' names do not show them.
_STATED = ("shortcut", *DIALECT, *RATES)


def add_stated(parser: argparse.ArgumentParser) -> None:
    """Adds `--reset-counters` and an option for each field that names of tensors do not show."""
    parser.add_argument(
        "--reset-counters",
        action="store_true",
        help="take num_batches_tracked as zero where it is missing or not int64",
    )
    group = parser.add_argument_group(
        "the network", "fields that names of tensors do not show; default: the layout's usual value"
    )
    for name in _STATED:
        flag = f"--{name.replace('_', '-')}"
        if name in RATES:
            group.add_argument(flag, type=float, help="used in training; default: the model's")
        else:
            group.add_argument(flag, choices=CHOICES[name])


def add_part(parser: argparse.ArgumentParser) -> None:
    """Adds `--entry` and `--prefix`: which part of a file is meant."""
    parser.add_argument(
        "--entry",
        default="",
        help="which state dict to take, where torch.save wrote several: state_dict_ema",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="take only the tensors whose names begin with this, and remove it: encoder.",
    )


def stated(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the spec that the user states."""
    return {name: value for name in _STATED if (value := getattr(options, name)) is not None}
