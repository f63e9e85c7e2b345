"""`resnet-convert check FOLDER --data ...`: a folder of timm or transformers, there and here."""

import argparse
from pathlib import Path

from convert.errors import ConversionError
from convert.sources import read_source
from resnet_spec.preprocessing import as_text
from train.config import Config, is_streamed
from train.data.load import load_dataset
from train.errors import UserError
from train.run.elsewhere import compare, open_folder
from train.run.saved_state import compare_classes


def main(options: argparse.Namespace) -> None:
    """Prints errors, predictions and pixels that differ.

    Raises:
        ConversionError: the folder is not of these packages, or does not say how its images are
            prepared. UserError: there are no such pictures, or they are of other classes.
    """
    folder: Path = options.folder
    source = read_source(folder).judged()
    weights, layout = source.weights, source.layout
    if layout is None:
        raise ConversionError(f"{folder} is no model folder of timm or transformers")
    if weights.preprocessing is None:
        raise ConversionError(f"{folder} does not say how its images are prepared")
    config = Config(
        data=options.data,
        data_dir=options.data_dir,
        eval_only=True,
        init_from=folder,
        preprocessing=as_text(vars(weights.preprocessing)),  # all of it, size and crop, too
    )
    if not is_streamed(config):
        raise UserError(
            f"--data {options.data} is not imagenet2012 or folder:PATH: nothing is prepared"
        )
    dataset = load_dataset(config)
    for problem in compare_classes(weights.preprocessing.to_json(), dataset.preprocessing):
        print(f"note: {folder} {problem}: errors are right where the order is the same", flush=True)
    if weights.classifier is None or weights.classifier.num_classes != dataset.num_classes:
        raise UserError(f"{folder} has no head of the {dataset.num_classes} classes of this data")
    try:
        opened = open_folder(folder, layout.name)
    except Exception as error:  # of an installation that is not whole, of any kind
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{layout.name} cannot open {folder}: {reason}") from error
    found = compare(opened, weights, dataset.test, count=options.images)
    print(found or "none of the pictures can be read", flush=True)
