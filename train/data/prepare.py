"""`resnet-train prepare NAME` makes a tensorflow-datasets folder that the trainer reads.

Downloading and converting needs TensorFlow (the extra [prepare]); training does not.
"""

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path

from resnet_spec import UnknownNameError
from train.config.recipes import RECIPES
from train.data.sources import at_home, open_tfds
from train.errors import UserError

# Archives to download by hand: https://image-net.org/download-images
MANUAL = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
NAMES = ("cifar10", "cifar100", *MANUAL)


def main(arguments: list[str]) -> int:
    """Prepares one data set; one that is prepared already stays as it is.

    UserError if TensorFlow, the data set, its archives or a writable folder is missing; OSError if
    it could not be downloaded or written.
    """
    chosen = _parse(arguments)
    if chosen.name not in NAMES:
        raise UnknownNameError("data set to prepare", chosen.name, NAMES)
    data_dir = at_home(chosen.data_dir)
    if found := _find_prepared(chosen.name, data_dir):
        print(f"{chosen.name} is prepared in {data_dir} already: nothing to do", flush=True)
        _tell(chosen.name, data_dir, found)
        return 0
    manual_dir = at_home(chosen.manual_dir or data_dir / "downloads" / "manual")
    problems = [
        *_missing_tensorflow(),
        *_unwritable(data_dir),
        *_missing_files(chosen.name, manual_dir),
    ]
    if problems:
        raise UserError("; ".join(problems))
    print(f"preparing {chosen.name} in {data_dir}", flush=True)
    _prepare(chosen.name, data_dir, manual_dir)
    _tell(chosen.name, data_dir, _read(chosen.name, data_dir))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("resnet-train prepare", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=" or ".join(NAMES))
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(default),
        help="folder of tensorflow-datasets; by default TFDS_DATA_DIR, or ~/tensorflow_datasets",
    )
    parser.add_argument(
        "--manual-dir",
        type=Path,
        help="folder of archives downloaded by hand; by default DATA_DIR/downloads/manual",
    )
    return parser.parse_args(arguments)


def _missing_tensorflow() -> list[str]:
    if importlib.util.find_spec("tensorflow"):
        return []
    return ["preparing a data set needs TensorFlow: install flax-resnet[prepare]"]


def _unwritable(data_dir: Path) -> list[str]:
    """Makes the folder and a file in it: only that proves that it is writable."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            return []
    except OSError as error:
        return [f"--data-dir {data_dir} cannot be written to: {error.strerror or error}"]


def _missing_files(name: str, manual_dir: Path) -> list[str]:
    missing = [file for file in MANUAL.get(name, ()) if not (manual_dir / file).is_file()]
    if not missing:
        return []
    return [
        f"{name} must be downloaded by hand: put {' and '.join(missing)} from "
        f"https://image-net.org/download-images into {manual_dir}, or name another --manual-dir"
    ]


def _find_prepared(name: str, data_dir: Path) -> dict[str, int]:
    """Number of images by split; empty if the data set is not complete."""
    try:
        return _read(name, data_dir)
    except Exception:  # tfds raises a dozen kinds for missing data
        return {}


def _read(name: str, data_dir: Path) -> dict[str, int]:
    """Reads as the trainer does, without TensorFlow and archives."""
    return {split: len(records) for split, records in open_tfds(name, None, data_dir).items()}


def _tell(name: str, data_dir: Path, images: dict[str, int]) -> None:
    for split, count in images.items():
        print(f"{split}: {count} images", flush=True)
    print(f"train on it by: {_command(name)} --data-dir {data_dir}", flush=True)


def _prepare(name: str, data_dir: Path, manual_dir: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_dir=data_dir / "downloads",
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        )
        _read(name, data_dir)  # an existing folder may have another format
    except Exception as error:  # network, checksums, archives, a full disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{name} could not be prepared in {data_dir}: {reason}") from error


def _command(name: str) -> str:
    recipe = next((recipe for recipe, row in RECIPES.items() if row.config.data == name), None)
    return f"resnet-train {recipe}" if recipe else f"resnet-train --data {name}"
