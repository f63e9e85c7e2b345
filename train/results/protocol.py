"""Which images the runs of a row are trained and tested on. Two protocols are never compared."""

from pathlib import Path

from train.errors import UserError
from train.results.published import DATA

HELD_OUT, PART, WHOLE = "V", "T1k", "full"
PROTOCOLS = {
    HELD_OUT: "train without the last tenth of the training images, test on that tenth (He et al. "
    "2015, section 4.2: 5,000 of CIFAR's 50,000)",
    PART: "train on all training images, test on the images of the test set that are there",
    WHOLE: "the same, but refuse a test set that is not complete",
}
_THOUSAND = 1_000


def validation_size(protocol: str, data: str) -> int | None:
    """How many training images a protocol holds out to test on; None for none."""
    return DATA[data].train_images // 10 if protocol == HELD_OUT else None


def train_images(protocol: str, data: str) -> int:
    """How many images of the whole training set a protocol trains on."""
    return DATA[data].train_images - (validation_size(protocol, data) or 0)


def find_protocol(data: str, test_name: str, test_images: int | None) -> str:
    """The protocol of a run, judged by the images that it was really tested on.

    `V`, `full`, `T1k`; `T` and a number for another part of the test set; `V` and a number for
    other held-out images than those of V.
    """
    if test_name != "test":
        usual = test_images == validation_size(HELD_OUT, data)
        return HELD_OUT if usual else f"{HELD_OUT}{test_images}"
    if test_images == DATA[data].test_images:
        return WHOLE
    return PART if test_images == _THOUSAND else f"T{test_images}"


def expected_protocol(protocol: str, data: str, data_dir: Path | None) -> str:
    """What `find_protocol` will return for a run that is started now.

    Raises:
        UserError: the data set is not found, or `full` is asked for and the test set is incomplete.
    """
    if protocol == HELD_OUT:
        return HELD_OUT
    whole = DATA[data].test_images
    count = whole if data == "digits" else _count_test_images(data, data_dir)
    if protocol == WHOLE and count != whole:
        raise UserError(
            f"--protocol full: the test set of {data} has {count:,} images here, not {whole:,}; "
            f"--protocol {PART} tests on these and says so"
        )
    return find_protocol(data, "test", count)


def _count_test_images(data: str, data_dir: Path | None) -> int:
    from train.data.sources import explaining, open_tfds

    with explaining(data, "test", data_dir):
        return len(open_tfds(data, "test", data_dir))
