"""The data sets that are streamed: ImageNet, and any folder of images."""

from pathlib import Path

import numpy as np

from resnet_spec import PREPROCESSINGS
from train.config import FOLDER, Config
from train.data.dataset import Dataset, count_kept
from train.data.image_folder import open_folder
from train.data.sources import Part, Source, TfdsSource, at_home
from train.data.stream import Stream


def load_imagenet(config: Config) -> Dataset:
    """ImageNet's training set, and its validation set or the end of the training set to test on.

    Where a run only tests, images to train on are needed for that end alone.

    Raises:
        UserError: they are not where they were looked for.
    """
    name, where = config.data, config.data_dir
    if config.validation_size is None:
        test = TfdsSource(name, "validation", where)
        train = Part(test, ()) if config.eval_only else TfdsSource(name, "train", where)
        return _streamed(config, train, test, "validation", whole_test_size=50_000)
    train = TfdsSource(name, "train", where)
    kept = count_kept(config, len(train))
    indices = np.arange(len(train))
    parts = Part(train, indices[:kept]), Part(train, indices[kept:])
    return _streamed(config, *parts, f"train[{kept}:]")


def load_folder(config: Config) -> Dataset:
    """A folder's training images, and its test images or a part of the others to test on.

    A part that is held out is drawn by a fixed seed, as the end of the list is the last class.
    Where a run only tests, images to train on are needed for that part alone.

    Raises:
        UserError: what is missing or does not fit; all of it at once.
    """
    root = at_home(Path(config.data.removeprefix(FOLDER)))
    holds_out = config.validation_size is not None
    train, test, name = open_folder(
        root, needs_train=holds_out or not config.eval_only, needs_test=not holds_out
    )
    if test is not None:
        return _streamed(config, train, test, name)
    kept = count_kept(config, len(train))
    shuffled = np.random.default_rng(0).permutation(len(train))
    parts = Part(train, shuffled[:kept]), Part(train, shuffled[kept:])
    return _streamed(config, *parts, f"shuffled train[{kept}:]")


def _streamed(
    config: Config,
    train: Source,
    test: Source,
    test_name: str,
    whole_test_size: int | None = None,
) -> Dataset:
    known = PREPROCESSINGS["imagenet"]
    return Dataset(
        Stream(train, config),
        Stream(test, config),
        test_name,
        len(train.class_names),
        known.mean,
        known.std,
        whole_test_size=whole_test_size,
        class_names=train.class_names,
        crop_fraction=config.crop_fraction,
    )
