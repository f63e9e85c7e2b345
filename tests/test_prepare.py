"""`resnet-train prepare`: what it asks for, and a data set made by it where TensorFlow is."""

import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encode, make_pixels
from tests.test_data import CIFAR10, needs_cifar10
from train.__main__ import main
from train.config import Config
from train.data import sources
from train.data.load import load_dataset
from train.errors import UserError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
CLASSES = ("n01440764", "n01443537", "n01484850")


def run(capsys, *arguments: object) -> tuple[int, str]:
    code = main(["prepare", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_an_unknown_name_is_a_users_mistake(tmp_path, capsys):
    code, said = run(capsys, "cifar11", "--data-dir", tmp_path)
    assert code == 2
    assert "did you mean cifar10" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(tmp_path, capsys):
    code, said = run(capsys, "cifar10", "--data-dir", tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert "install flax-resnet[prepare]" in said


def test_all_that_is_missing_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, said = run(capsys, "imagenet2012", "--data-dir", tmp_path / "file" / "data")
    assert code == 2
    assert said.count("\n") == 1
    assert "cannot be written to: Not a directory" in said
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in said
    assert str(tmp_path / "file" / "data" / "downloads" / "manual") in said
    assert HAS_TENSORFLOW or "TensorFlow" in said
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    _, said = run(capsys, "imagenet2012", "--data-dir", tmp_path, "--manual-dir", tmp_path)
    assert "img_train.tar" in said
    assert "img_val.tar" not in said


@needs_cifar10
def test_a_data_set_that_is_prepared_already_needs_neither_tensorflow_nor_a_writable_folder(
    tmp_path, capsys
):
    """Nor archives, see the slow test."""
    (tmp_path / "cifar10").symlink_to(CIFAR10)
    tmp_path.chmod(0o500)
    assert main(["prepare", "cifar10", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"cifar10 is prepared in {tmp_path} already: nothing to do"
    assert "train: 50000 images" in said
    assert f"--data-dir {tmp_path}" in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]


def test_help_says_what_can_be_prepared(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--help"])
    assert caught.value.code == 0
    assert "cifar10 or cifar100 or imagenet2012" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="preparing needs TensorFlow: flax-resnet[prepare]")
def test_what_is_prepared_is_read_without_tensorflow(tmp_path, capsys):
    make_archives(tmp_path / "downloads" / "manual")
    for _ in range(2):  # the second time all is there already
        assert main(["prepare", "imagenet2012", "--data-dir", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "train: 12 images" in said
        assert f"--data-dir {tmp_path}" in said.splitlines()[-1]
    config = Config(data="imagenet2012", data_dir=tmp_path, global_batch_size=4, image_size=64)
    dataset = load_dataset(config)
    assert (len(dataset.train), len(dataset.test)) == (12, 5)
    labels = dataset.train.head(12).labels
    np.testing.assert_array_equal(np.bincount(labels), [4, 4, 4])
    assert dataset.train._source.name(0).endswith(".JPEG")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="preparing needs TensorFlow: flax-resnet[prepare]")
def test_a_damaged_archive_fails_and_leaves_nothing_half_done(tmp_path, capsys):
    manual = tmp_path / "downloads" / "manual"
    make_archives(manual)
    archive = manual / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:20_000])
    code, said = run(capsys, "imagenet2012", "--data-dir", tmp_path)
    assert code == 1
    assert "imagenet2012 could not be prepared" in said
    assert not (tmp_path / "imagenet2012" / "5.1.0").exists()


def make_archives(folder: Path) -> None:
    """ImageNet's two archives, with three classes of four images, and five to validate."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for label, name in enumerate(CLASSES):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for place in range(4):
                    add(archive, f"{name}_{place}.JPEG", encode(make_pixels(10 * label + place)))
            add(train, f"{name}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as validation:
        for place in range(1, 6):
            add(validation, f"ILSVRC2012_val_{place:08d}.JPEG", encode(make_pixels(100 + place)))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def test_the_reason_of_a_data_set_of_another_format_is_a_whole_sentence(tmp_path):
    """What tfds says of files that TensorFlow's TFRecord writer made goes on with a list."""
    (tmp_path / "cifar10").mkdir()
    said = (
        "Random access data source for file format tfrecord is not supported. Possible root causes:"
    )
    with (
        pytest.raises(UserError) as raised,
        sources.explaining("cifar10", "train", tmp_path),
    ):
        raise NotImplementedError(f"{said}\n\t* You have to run download_and_prepare")
    end = (
        "(NotImplementedError: Random access data source for file format tfrecord is not supported)"
    )
    assert str(raised.value).endswith(end)
