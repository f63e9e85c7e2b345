"""Folders of images and ImageNet as data sets: what is found, held out, and said when missing."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_spec import PREPROCESSINGS
from tests.commands import run
from tests.pictures import encode, make_folder, make_pixels
from train.config import Config
from train.config.fields import DataFields
from train.data.dataset import Dataset, Split
from train.data.load import load_dataset
from train.data.sources import TfdsSource, open_folder
from train.data.stream import Stream
from train.errors import UserError
from train.run.trainer import Trainer

IMAGENET = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")) / "imagenet2012"
needs_imagenet = pytest.mark.skipif(
    not IMAGENET.is_dir(), reason="TFDS_DATA_DIR holds no imagenet2012"
)


def folder_config(root: Path, **changes) -> Config:
    fields = {"image_size": 32, "global_batch_size": 4, "read_threads": 2, **changes}
    return Config(data=f"folder:{root}", **fields)


def labels_of(dataset: Dataset, split: str) -> list[int]:
    return getattr(dataset, split).head(10_000).labels.tolist()


@needs_imagenet
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_file_of_records_that_cannot_be_read_ends_the_run(tmp_path, damage):
    """Its images are not damaged one by one: they would be replaced by those of the next file."""
    version = tmp_path / "imagenet2012" / "5.1.0"
    version.mkdir(parents=True)
    for path in (IMAGENET / "5.1.0").iterdir():
        (version / path.name).symlink_to(path)
    (shard,) = version.glob("*train*00001-of-00002")
    content = shard.read_bytes()
    shard.unlink()
    if damage == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    stream = Stream(TfdsSource("imagenet2012", "train", tmp_path), DataFields(image_size=32))
    (batch,) = stream.test_batches([np.arange(2)])
    assert batch.counts.all()
    with pytest.raises(OSError, match="train cannot be read"):
        list(stream.test_batches([np.array([len(stream) - 1])]))
    assert not stream.skipped


@pytest.mark.slow
def test_a_test_that_fails_does_not_take_the_epoch_before_it(tmp_path):
    root = make_folder(tmp_path / "d", {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}})
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"\xff\xd8\xff")
    size = ("--image-size", "32", "--global-batch-size", "4", "--epochs", "2", "--no-flip")
    model = ("--model", "WideResNet16-1-0.0", "--run-dir", "run")
    result = run("train", "digits", "--data", f"folder:{root}", *size, *model, cwd=tmp_path)
    assert result.returncode == 2
    assert "none of the 4 test images can be read" in result.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


@needs_imagenet
def test_a_process_may_open_the_files_of_imagenet():
    """Of 1,024, of which the last would otherwise be taken for damaged images."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        TfdsSource("imagenet2012", "train", None)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(before[1], 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_sample_of_a_folder_has_images_of_all_classes(tmp_path):
    root = make_folder(
        tmp_path, {"train": {"a": 2, "b": 2, "c": 2}, "val": {"a": 4, "b": 4, "c": 4}}
    )
    test = load_dataset(folder_config(root)).test
    assert test.sample(3).labels.tolist() == [0, 1, 2]
    assert [label for _, _, label in test.pictures(3)] == [0, 1, 2]
    assert test.sample(100).labels.tolist() == labels_of(load_dataset(folder_config(root)), "test")


def test_a_folder_is_a_data_set(tmp_path):
    root = make_folder(tmp_path, {"train": {"dog": 3, "cat": 4}, "val": {"cat": 2, "dog": 1}})
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "dog" / "deeper").mkdir()
    (root / "train" / "dog" / "deeper" / "a.JPG").write_bytes(encode(make_pixels()))
    dataset = load_dataset(folder_config(root, crop_fraction=0.8))
    assert dataset.is_streamed
    assert (len(dataset.train), len(dataset.test)) == (8, 3)
    assert dataset.class_names == dataset.train.class_names == ("cat", "dog")
    assert dataset.num_classes == 2
    assert dataset.image_shape == (32, 32, 3)
    assert (dataset.test_name, dataset.missing()) == ("val", "")
    assert dataset.preprocessing == dataclasses.replace(
        PREPROCESSINGS["imagenet"], image_size=32, crop_fraction=0.8, class_names=("cat", "dog")
    )
    assert labels_of(dataset, "train") == [0] * 4 + [1] * 4
    assert labels_of(dataset, "test") == [0, 0, 1]
    assert not dataset.train.skipped


def test_links_are_followed_but_not_in_circles_and_hidden_folders_are_not_read(tmp_path):
    make_folder(tmp_path, {"val": {"a": 1, "b": 1}, "train": {"a": 1, "b": 0}})
    make_folder(tmp_path, {"x": {".hidden": 5, "images": 2}, "y": {"images": 1}})
    (tmp_path / "train" / "a" / "more").symlink_to(tmp_path / "x")
    (tmp_path / "train" / "b").rmdir()
    (tmp_path / "train" / "b").symlink_to(tmp_path / "y" / "images")
    (tmp_path / "x" / "y").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "x").symlink_to(tmp_path / "x")  # which has a link back
    (tmp_path / "x" / "images" / "up").symlink_to("..")
    (tmp_path / "x" / "itself").symlink_to("itself")
    train = load_dataset(folder_config(tmp_path, global_batch_size=1)).train
    assert [train._source.name(index) for index in range(len(train))] == [
        "train/a/000.png",
        "train/a/more/images/000.png",
        "train/a/more/images/001.png",
        "train/a/more/y/images/000.png",
        "train/b/000.png",
    ]
    assert labels_of(load_dataset(folder_config(tmp_path)), "train") == [0, 0, 0, 0, 1]


def test_a_held_out_part_of_a_folder_has_all_classes_and_is_the_same_each_time(tmp_path):
    root = make_folder(tmp_path, {"train": {"a": 40, "b": 40, "c": 40}})
    first, second = (load_dataset(folder_config(root, validation_size=30)) for _ in range(2))
    assert (len(first.train), len(first.test)) == (90, 30)
    assert first.test_name == "shuffled train[90:]"
    assert set(labels_of(first, "test")) == {0, 1, 2}
    assert labels_of(first, "test") == labels_of(second, "test")
    colours = [
        {image[0, 0].tobytes() for image in part.head(1000).images}
        for part in (first.train, first.test)
    ]
    assert (len(colours[0]), len(colours[1])) == (90, 30)
    assert not colours[0] & colours[1]
    with pytest.raises(UserError, match="leaves none of the 120"):
        load_dataset(folder_config(root, validation_size=120))


def test_every_seed_holds_out_the_same_images(tmp_path):
    make_folder(tmp_path, {"train": {"a": 8, "b": 8}})
    held_out = [
        load_dataset(folder_config(tmp_path, validation_size=6, seed=seed)).test.head(6).images
        for seed in (1, 7)
    ]
    np.testing.assert_array_equal(*held_out)


def test_a_test_folder_without_classes_is_passed_over(tmp_path):
    root = make_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    (root / "test").mkdir()
    (root / "test" / "secret.png").write_bytes(b"")
    assert load_dataset(folder_config(root)).test_name == "val"


def test_the_first_folder_with_the_classes_is_tested_on(tmp_path):
    classes = {"a": 1, "b": 1}
    splits = {"train": {"a": 3, "b": 2}, "val": {"a": 1}, "validation": classes}
    root = make_folder(tmp_path, {**splits, "test": {"images": 7}})
    dataset = load_dataset(folder_config(root))
    assert (dataset.test_name, labels_of(dataset, "test")) == ("validation", [0, 1])
    shutil.rmtree(root / "validation")
    with pytest.raises(UserError, match="no folder in train/ for the classes images"):
        load_dataset(folder_config(root))


def test_only_training_needs_images_to_train_on(tmp_path):
    root = make_folder(tmp_path, {"test": {"b": 1, "a": 2}})
    config = folder_config(root, eval_only=True, init_from=Path("w.pth"))
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (0, 3, ("a", "b"))
    assert labels_of(dataset, "test") == [0, 0, 1]
    Trainer(config.resolved(len(dataset.train)), dataset)
    for changes in ({"eval_only": False}, {"validation_size": 1}):
        with pytest.raises(UserError, match="train/ holds no classes"):
            load_dataset(dataclasses.replace(config, **changes))
    make_folder(tmp_path, {"train": {"a": 1, "c": 1}})  # what labels mean, where it is there
    with pytest.raises(UserError, match="no folder in train/ for the classes b"):
        load_dataset(config)


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        ({}, ["train/ holds no classes", "none of test/, val/, validation/", "--validation-size"]),
        ({"train": {"a": 5}}, ["none of test/"]),
        ({"test": {"a": 5}}, ["train/ holds no classes"]),
        (
            {"train": {"images": 5}, "test": {"images": 2}},
            ["train/ holds only one class, images", "test/ holds only one class"],
        ),
        (
            {"train": {"a": 5, "b": 5, "c": 0}, "test": {"a": 1, "c": 1, "d": 1}},
            [
                "no images in train/: c",
                "no folder in train/ for the classes d",
                "no folder in test/ for the classes b",
            ],
        ),
        (
            {"train": {f"{i:02d}": 0 for i in range(15)}, "test": {"00": 1}},
            ["07, 08, 09 and 5 more", "08, 09, 10 and 4 more"],
        ),
    ],
)
def test_all_that_is_wrong_with_a_folder_is_said_at_once(tmp_path, splits, parts):
    root = make_folder(tmp_path, splits)
    with pytest.raises(UserError) as caught:
        load_dataset(folder_config(root))
    for part in (str(root), *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["train", "train/a/deeper"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(place, of_nobody):
    for name in ("train/a/deeper", "train/b", "test/a", "test/b"):
        (of_nobody / name).mkdir(parents=True)
        (of_nobody / name / "0.png").write_bytes(b"")
    (of_nobody / place).chmod(0)
    with pytest.raises(UserError, match=f"{place} cannot be read: Permission"):
        open_folder(of_nobody, needs_test=True)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_dataset(folder_config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"~nobody\.here/x: "):
        load_dataset(folder_config(Path("~nobody.here/x")))
    make_folder(tmp_path, {"train": {"a": 2, "b": 1}, "test": {"a": 1, "b": 1}})
    with pytest.raises(UserError, match="more than the 3 training images"):
        load_dataset(folder_config(tmp_path))
    config = folder_config(
        tmp_path, eval_only=True, init_from=Path("w.pth"), drop_epochs=(3.0, 6.0)
    )
    dataset = load_dataset(config)  # too few for a batch and its schedule, enough to test on
    config.resolved(len(dataset.train))


def test_a_test_set_without_a_readable_image_has_no_error(tmp_path):
    root = make_folder(tmp_path, {"train": {"a": 4, "b": 4}, "test": {"a": 1, "b": 1}})
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    changes: Any = {"model": "WideResNet16-1-0.0", "image_size": 16, "global_batch_size": 8}
    config = folder_config(root, **changes)
    dataset = load_dataset(config)
    trainer = Trainer(config.resolved(len(dataset.train)), dataset)
    state = trainer.place(trainer.first_states([config.seed]))
    with pytest.raises(UserError, match=r"none of the 2 test images can be read; test/a/"):
        trainer.test(state)


def test_imagenet_that_is_not_there_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError, match=r"prepare imagenet2012 --data-dir") as caught:
        load_dataset(Config(data="imagenet2012", data_dir=tmp_path))
    assert str(caught.value).startswith(f"there is no folder {tmp_path / 'imagenet2012'}: ")


@needs_imagenet
def test_imagenet_is_streamed_and_its_images_are_the_files():
    dataset = load_dataset(Config(data="imagenet2012"))
    assert (len(dataset.train), len(dataset.test)) == (240, 60)
    assert (dataset.num_classes, dataset.test_name) == (1000, "validation")
    assert dataset.class_names is not None
    assert dataset.class_names[:2] == ("n01440764", "n01443537")
    assert "the whole test set has 50000" in dataset.missing()
    assert dataset.preprocessing == dataclasses.replace(
        PREPROCESSINGS["imagenet"], class_names=dataset.class_names
    )
    rows = np.arange(40)
    batches = list(
        dataset.train.train_batches(seed=0, first_step=0, last_step=6, batch_size=40, rows=rows)
    )
    labels = np.concatenate([batch.labels for batch in batches])
    assert len(set(labels.tolist())) == 240  # one image of a class
    assert all(batch.images.std() > 40 for batch in batches)  # real pictures
    assert not dataset.train.skipped
    assert "JPEG" in dataset.train._source.name(0)


@needs_imagenet
def test_only_training_needs_imagenets_training_set(tmp_path):
    (version,) = (path for path in IMAGENET.iterdir() if path.is_dir())
    place = tmp_path / "imagenet2012" / version.name
    place.mkdir(parents=True)
    for path in version.iterdir():
        if "-train." not in path.name:
            shutil.copyfile(path, place / path.name)
    info = json.loads((place / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "validation"]
    (place / "dataset_info.json").write_text(json.dumps(info))
    config = Config(data="imagenet2012", data_dir=tmp_path, image_size=32)
    tests = dataclasses.replace(config, eval_only=True, init_from=Path("w.pth"))
    dataset = load_dataset(tests)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (0, 60, 1000)
    assert dataset.class_names == load_dataset(Config(data="imagenet2012")).class_names
    for refused in (config, dataclasses.replace(tests, validation_size=5)):
        with pytest.raises(UserError, match=r"imagenet2012 \(train\) cannot be read"):
            load_dataset(refused)


@needs_imagenet
def test_the_end_of_imagenets_training_set_is_held_out():
    config = Config(data="imagenet2012", validation_size=10, image_size=64)
    dataset, whole = load_dataset(config), load_dataset(Config(data="imagenet2012", image_size=64))
    assert (len(dataset.train), len(dataset.test)) == (230, 10)
    assert (dataset.test_name, dataset.missing()) == ("train[230:]", "")
    held_out, train = dataset.test.head(10), whole.train.head(240)
    np.testing.assert_array_equal(held_out.images, train.images[230:])
    np.testing.assert_array_equal(held_out.labels, train.labels[230:])


def test_a_set_in_memory_says_the_same_of_itself():
    dataset = load_dataset(Config(data="digits"))
    assert not dataset.is_streamed
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.preprocessing.crop_fraction == 1
    assert isinstance(dataset.test.head(5), Split)
    assert len(dataset.test.head(5)) == 5
