"""Which images a row is trained and tested on. Rows of two protocols are never compared."""

from pathlib import Path

from train.errors import UserError
from train.results.collect import Run
from train.results.published import DATA

HELD_OUT, PART, WHOLE = "V", "T1k", "full"
PROTOCOLS = {
    HELD_OUT: "train without the last tenth of the training images, test on that tenth (He et al. "
    "2015, section 4.2: 5,000 of CIFAR's 50,000)",
    PART: "train on all training images, test on those of the test set that are there",
    WHOLE: "the same, refused where the test set is not whole",
}
_THOUSAND = 1_000


def validation_size(protocol: str, data: str) -> int | None:
    """Training images that a protocol holds out to test on."""
    return DATA[data].train_images // 10 if protocol == HELD_OUT else None


def train_images(protocol: str, data: str) -> int:
    """How many of the whole training set a protocol leaves to train on."""
    return DATA[data].train_images - (validation_size(protocol, data) or 0)


def protocol_of(run: Run) -> str:
    """What a run followed, by the images that it was really tested on.

    V; full; T1k, or T and a number, for a part of the test set; V and a number where other images
    are held out than V's.
    """
    if run.test_name == "test":
        return _name_test(run.config.data, run.test_images)
    usual = run.test_images == validation_size(HELD_OUT, run.config.data)
    return HELD_OUT if usual else f"{HELD_OUT}{run.test_images}"


def expected(protocol: str, data: str, data_dir: Path | None) -> str:
    """What `protocol_of` will say of a run that is started now.

    Raises:
        UserError: the data set is not where it was looked for, or its test set is only a part and
            the whole is asked for.
    """
    if protocol == HELD_OUT:
        return HELD_OUT
    count = DATA[data].test_images if data == "digits" else _count_tfds(data, data_dir)
    if protocol == WHOLE and count != DATA[data].test_images:
        raise UserError(
            f"--protocol full: the test set of {data} has {count:,} images here, not "
            f"{DATA[data].test_images:,}; --protocol {PART} tests on these and says so"
        )
    return _name_test(data, count)


def describe(run: Run) -> str:
    """`T1k: trained on 50,000 images, tested on 1,000 of the 10,000 images of test`."""
    whole = DATA[run.config.data].test_images
    is_part = run.test_name == "test" and run.test_images != whole
    tested = f"{run.test_images:,}" + (f" of the {whole:,}" if is_part else "")
    trained = f"trained on {run.train_images:,} images"
    return f"{protocol_of(run)}: {trained}, tested on {tested} images of {run.test_name}"


def _name_test(data: str, count: int | None) -> str:
    if count == DATA[data].test_images:
        return WHOLE
    return PART if count == _THOUSAND else f"T{count}"


def _count_tfds(data: str, data_dir: Path | None) -> int:
    from train.data.sources import explaining, open_tfds

    with explaining(data, "test", data_dir):
        return len(open_tfds(data, "test", data_dir))
