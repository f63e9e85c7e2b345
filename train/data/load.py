"""Loads the data set of a configuration: small ones into memory, the others as streams."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_spec import PREPROCESSINGS, Preprocessing, UnknownNameError
from resnet_spec.preprocessing import parse_preprocessing
from train.config import FOLDER, Config
from train.config.fields import RESIZING
from train.data.dataset import Dataset, Split
from train.data.sources import Part, Source, TfdsSource, at_home, explaining, open_folder, open_tfds
from train.errors import UserError


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration; UserError if it is missing, unreadable or too small."""
    return _large_enough(config, _LOADERS.get(config.data, _load_folder)(config))


def _large_enough(config: Config, dataset: Dataset) -> Dataset:
    if config.global_batch_size > len(dataset.train) and not config.eval_only:
        raise UserError(
            f"--global-batch-size {config.global_batch_size} is more than the "
            f"{len(dataset.train)} training images"
        )
    return dataset


def _load_digits(config: Config) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)  # (n, 64) in 0 to 16
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = target.astype(np.int32)
    is_test = np.arange(len(images)) % 5 == 0
    train, test = Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    names = tuple(map(str, range(10)))
    numbers = _in_memory(config, Preprocessing((0.3053,), (0.3762,), image_size=8))
    dataset = Dataset(train, test, "test", 10, *numbers, class_names=names)
    return _hold_out(config, dataset)


def _load_cifar(config: Config) -> Dataset:
    (train, names), (test, _) = _read_tfds(config, "train"), _read_tfds(config, "test")
    numbers = (len(names), *_in_memory(config, PREPROCESSINGS[config.data]))
    dataset = Dataset(train, test, "test", *numbers, whole_test_size=10_000, class_names=names)
    return _hold_out(config, dataset)


def _read_tfds(config: Config, split: str) -> tuple[Split, tuple[str, ...]]:
    """A whole split of a prepared data set in its original order, and the names of its classes."""
    with explaining(config.data, split, config.data_dir):
        source = open_tfds(config.data, split, config.data_dir)
        records = source.__getitems__(range(len(source)))
        images = np.stack([record["image"] for record in records])
        labels = np.array([record["label"] for record in records], np.int32)
        return Split(images, labels), tuple(source.dataset_info.features["label"].names)


def _hold_out(config: Config, dataset: Dataset) -> Dataset:
    """Tests on the last `validation_size` training images, if that is given."""
    if config.validation_size is None:
        return dataset
    train, kept = dataset.train, _count_kept(config, len(dataset.train))
    return dataclasses.replace(
        dataset,
        train=train.head(kept),
        test=Split(train.images[kept:], train.labels[kept:]),
        test_name=f"train[{kept}:]",
        whole_test_size=None,
    )


def _count_kept(config: Config, count: int) -> int:
    """Number of training images that are left after `validation_size` are held out."""
    size = config.validation_size or 0
    if size >= count:
        raise UserError(f"--validation-size {size} leaves none of the {count} training images")
    return count - size


def _load_imagenet(config: Config) -> Dataset:
    """The training set, and the validation set or the end of the training set to test on.

    A run that only tests needs training images for that end alone.
    """
    name, where = config.data, config.data_dir
    if config.validation_size is None:
        test = TfdsSource(name, "validation", where)
        train = Part(test, ()) if config.eval_only else TfdsSource(name, "train", where)
        return _stream(config, train, test, "validation", whole_test_size=50_000)
    train = TfdsSource(name, "train", where)
    kept = _count_kept(config, len(train))
    indices = np.arange(len(train))
    parts = Part(train, indices[:kept]), Part(train, indices[kept:])
    return _stream(config, *parts, f"train[{kept}:]")


def _load_folder(config: Config) -> Dataset:
    """A folder's training images, and its test images or held-out training images to test on.

    Held-out images are drawn by a fixed seed, because the end of the list is the last class. A run
    that only tests needs training images for these alone.
    """
    root = at_home(Path(config.data.removeprefix(FOLDER)))
    holds_out = config.validation_size is not None
    train, test, name = open_folder(
        root, needs_train=holds_out or not config.eval_only, needs_test=not holds_out
    )
    if test is not None:
        return _stream(config, train, test, name)
    kept = _count_kept(config, len(train))
    shuffled = np.random.default_rng(0).permutation(len(train))
    parts = Part(train, shuffled[:kept]), Part(train, shuffled[kept:])
    return _stream(config, *parts, f"shuffled train[{kept}:]")


def _stream(
    config: Config, train: Source, test: Source, test_name: str, whole_test_size: int | None = None
) -> Dataset:
    from train.data.stream import Stream  # grain, which it needs, takes two seconds to import

    options = {name: getattr(config, name) for name in RESIZING}
    known = _stated(config, dataclasses.replace(PREPROCESSINGS["imagenet"], **options))
    config = dataclasses.replace(config, **{name: getattr(known, name) for name in RESIZING})
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
        interpolation=config.interpolation,
    )


def _in_memory(config: Config, own: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of images that are not resized."""
    known = _stated(config, own)
    keys = dict(zip(RESIZING, ("size=", "crop=", "interpolation="), strict=True))
    if said := [key for name, key in keys.items() if getattr(known, name) != getattr(own, name)]:
        raise UserError(
            f"--preprocessing {config.preprocessing}: {config.data} has images of "
            f"{own.image_size} pixels, which are not resized: leave {', '.join(said)} out"
        )
    return known.mean, known.std


def _stated(config: Config, own: Preprocessing) -> Preprocessing:
    """A data set's own preprocessing with what `preprocessing` says; files were read before."""
    text = config.preprocessing
    if text is None:
        return own
    try:
        name, fields = parse_preprocessing(text)
        if name:
            raise UnknownNameError("preprocessing", name, PREPROCESSINGS)
        stated = dataclasses.replace(own, **fields)
    except ValueError as error:
        raise UserError(f"--preprocessing {text}: {error}") from error
    if len(stated.mean) != len(own.mean):
        raise UserError(
            f"--preprocessing {text}: it has {len(stated.mean)} channels, images of {config.data} "
            f"have {len(own.mean)}"
        )
    return stated


def dataset_shapes(config: Config) -> Dataset:
    """A data set of as many images, without their pixels where their number is published.

    Others, digits and folders, are loaded. UserError as by `load_dataset`.
    """
    if config.data not in _PUBLISHED:
        return load_dataset(config)
    train, test, classes = _PUBLISHED[config.data]
    names = tuple(map(str, range(classes)))
    if config.data == "imagenet2012":
        kept, held = _count_kept(config, train), config.validation_size or test
        return _large_enough(
            config, _stream(config, _Unread(kept, names), _Unread(held, names), "validation")
        )
    mean, std = _in_memory(config, PREPROCESSINGS[config.data])
    splits = (_no_pixels(train), _no_pixels(test))
    dataset = Dataset(*splits, "test", classes, mean, std, class_names=names)
    return _large_enough(config, _hold_out(config, dataset))


def _no_pixels(count: int) -> Split:
    """So many images of CIFAR's size, in one byte of memory."""
    images = np.broadcast_to(np.uint8(0), (count, 32, 32, 3))
    return Split(images, np.broadcast_to(np.int32(0), count))


@dataclasses.dataclass
class _Unread:
    """A source of so many images, none of which can be read."""

    count: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[bytes, int]:
        raise OSError(f"image {index} is only counted")

    def name(self, index: int) -> str:
        return f"[{index}]"


_PUBLISHED = {  # images to train and to test on, classes
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "imagenet2012": (1_281_167, 50_000, 1000),
}
_LOADERS: dict[str, Callable[[Config], Dataset]] = {
    "digits": _load_digits,
    "cifar10": _load_cifar,
    "cifar100": _load_cifar,
    "imagenet2012": _load_imagenet,
}
