"""Which images the runs of a row are trained and tested on. Two protocols are never compared."""

from pathlib import Path

from train.errors import UserError
from train.results.published import DATA

HELD_OUT, WHOLE = "V", "full"
PROTOCOLS = {
    HELD_OUT: "train without the last tenth of the training images, test on that tenth (He et al. "
    "2015, section 4.2: 5,000 of CIFAR's 50,000)",
    WHOLE: "train on all training images, test on the whole test set; refused where a part of it "
    "is missing",
}


def validation_size(protocol: str, data: str) -> int | None:
    """How many training images a protocol holds out to test on; None for none."""
    return DATA[data].train_images // 10 if protocol == HELD_OUT else None


def train_images(protocol: str, data: str) -> int:
    """How many images of the whole training set a protocol trains on."""
    return DATA[data].train_images - (validation_size(protocol, data) or 0)


def find_protocol(data: str, test_name: str, test_images: int | None) -> str:
    """The protocol of a run, judged by the images that it was really tested on.

    `V`, `full`; `T` and a number for a part of the test set; `V` and a number for other held-out
    images than those of V.
    """
    if test_name != "test":
        usual = test_images == validation_size(HELD_OUT, data)
        return HELD_OUT if usual else f"{HELD_OUT}{test_images}"
    return WHOLE if test_images == DATA[data].test_images else f"T{test_images}"


def check_complete(protocol: str, data: str, data_dir: Path | None) -> None:
    """Raises a UserError where the images of a protocol are not found, or are a part of them."""
    if protocol == HELD_OUT or data == "digits":
        return
    whole, count = DATA[data].test_images, _count_test_images(data, data_dir)
    if count != whole:
        raise UserError(
            f"--protocol full: the test set of {data} has {count:,} images here, not {whole:,}: "
            "prepare the whole data set (`resnet-train prepare`)"
        )


def _count_test_images(data: str, data_dir: Path | None) -> int:
    from train.data.sources import explaining, open_tfds

    with explaining(data, "test", data_dir):
        return len(open_tfds(data, "test", data_dir))
